"""Prices and rates -> a `Stream`, and its hours -> what is paid, stored and moved.

Seconds of the steps of one part of r rows, of B bytes a picture, prepared at S px, with decode rate f (pictures a CPU-second),
model rate g, descriptors of b bytes, n bytes a second of a node's network, c CPUs and a actors of a node:

    load      max(r / f, r B a / n)                                 on a CPU of a node that has no GPUs
              max(r a / (f c), r B a / n)                           beside a model on a GPU: with the CPUs of its node
              max(r / f, r B a / n, r 3 S^2 a / n)                  on a node that decodes for others
              (named in the output after the longest: decode, fetch, send)
    receive   r 3 S^2 a / n                                         pixels from nodes that decode
    model     r / g
    write     r b a / n

The index, on the groups without GPUs (else on all), measured with R0 rows of D0 dimensions and k0 cells, k = the cells that
`manet index` takes for N rows (a code stands for 160 axes at most, whatever D is, so the seconds do not grow with D):

    train     train_cpu_s (k / k0)^2  /  CPUs of one node                    its sample grows with the cells
    fill      fill_cpu_s (N / R0) (k / k0)  /  all CPUs
    stored    stored_bytes + 2 (D - D0) a vector

Paid: each node for the hours of the stream and its idle time, those that build the index also for it; the head for everything;
a GET for each picture and each part of the descriptors (twice: training, filling), 2 PUTs for each part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from cluster.errors import BadInputError, ObjectMissingError
from cluster.storage import split_uri
from jobs.config import first_fault
from jobs.estimating import Pool, Step, Stream
from jobs.rates import Rates, Record
from jobs.strict_yaml import YamlFaultError, read_yaml

GBIT = 125e6  # bytes
HOUR = 3600.0


class HeadPrice(Record):
    """The head: it is there all the time and does no work."""

    instance: str
    per_hour: float = Field(ge=0)


class GroupPrice(Record):
    """One node type."""

    instance: str
    cpus: int = Field(ge=1)
    gpus: int = Field(default=0, ge=0)
    gpu: str = ""
    resource: str = ""
    """Custom resource of its nodes, as many as their CPUs, by which decode actors find them; empty: they have none."""
    per_hour: float = Field(ge=0)
    spot_per_hour: float | None = Field(default=None, ge=0)
    spot: bool = False
    losses_per_hour: float = Field(default=0.0, ge=0)
    start_s: float = Field(ge=0)
    gbit_per_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.spot and self.spot_per_hour is None:
            raise ValueError("spot without spot_per_hour")
        if self.gpus and not self.gpu:
            raise ValueError("gpus without the name of the gpu")
        return self

    @property
    def paid_per_hour(self) -> float:
        """As it is bought."""
        return self.spot_per_hour if self.spot and self.spot_per_hour is not None else self.per_hour


class StorePrice(Record):
    """The object store."""

    per_gib_month: float = Field(ge=0)
    per_1000_gets: float = Field(ge=0)
    per_1000_puts: float = Field(ge=0)


class Prices(Record):
    """The price table."""

    currency: str
    as_of: str
    head: HeadPrice
    groups: dict[str, GroupPrice] = Field(min_length=1)
    idle_s: float = Field(ge=0)
    store: StorePrice


def read_prices(uri: str) -> Prices:
    """A price table; the shipped example where no other is named.

    Raises:
        BadInputError: no such file, or not a price table; what is wrong is named.
    """
    shown = f"--prices {uri}" if uri else "cluster/prices.yaml"
    try:
        if uri:
            store, name = split_uri(uri)
            data = store.read(name)
        else:
            data = Path(str(files("cluster") / "prices.yaml")).read_bytes()
        return Prices.model_validate(read_yaml(data))
    except (ObjectMissingError, FileNotFoundError):
        raise BadInputError(f"{shown}: no such file") from None
    except YamlFaultError as error:
        raise BadInputError(f"{shown}: not YAML: {error}") from None
    except ValidationError as error:
        raise BadInputError(f"{shown}: {first_fault(error)}") from None


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done, and how the stream is set."""

    pictures: int
    part_rows: int
    in_flight: int
    size: int
    dim: int
    model_cpus: float
    slow_share: float
    slow_factor: float

    @property
    def parts(self) -> int:
        """Parts that the pictures are cut into."""
        return -(-self.pictures // self.part_rows)


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """Rates that are reckoned with: pictures a CPU-second, pictures a second of one model actor, bytes, seconds."""

    decode: float
    model: float
    picture_bytes: float
    descriptor_bytes: float
    actor_start_s: float


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """All that a plan is made from; `notes` say where each figure comes from."""

    nodes: dict[str, int]
    work: Work
    prices: Prices
    rates: Rates
    speeds: Speeds
    notes: list[str]

    @classmethod
    def of(
        cls, nodes: dict[str, int], work: Work, prices: Prices, rates: Rates, given: dict[str, float | None]
    ) -> "Inputs":
        """Choose each rate: the one that a flag gives, else the one that was measured.

        Raises:
            BadInputError: neither is there.
        """
        notes: list[str] = []
        with_gpus = next((prices.groups[name] for name in nodes if prices.groups[name].gpus), None)
        wanted = with_gpus.gpu if with_gpus else "cpu"
        model = rates.models.get(wanted)
        decode = rates.decode

        def choose(flag: str, what: str, measured: float | None, source: object, how: str) -> float:
            value = given[flag]
            if value is not None:
                notes.append(f"{what} {value:g}: ASSUMPTION, given by --{flag.replace('_', '-')}")
                return value
            if measured is None:
                raise BadInputError(
                    f"--rates: nobody measured {what}; {how}, or give --{flag.replace('_', '-')}, an assumption"
                )
            notes.append(f"{what} {measured:.6g}: {source}")
            return measured

        more = f"--model-gpus 1 --model-cpus {with_gpus.cpus / with_gpus.gpus:g} " if with_gpus else ""
        at = f"on such a node: manet bench extract --catalog CATALOG --model MODEL {more}--rates FILE"
        by = "measure it: manet bench decode --catalog CATALOG --rates FILE"
        speeds = Speeds(
            model=choose(
                "model_rate", f"pictures/s of one model actor on {wanted}", model.pictures_per_s if model else None,
                model.origin if model else None, f"measure it {at}",
            ),
            decode=choose(
                "decode_rate", "pictures/s that one CPU decodes", decode.pictures_per_cpu_s if decode else None,
                decode.origin if decode else None, by,
            ),
            picture_bytes=choose(
                "picture_bytes", "bytes of a picture's file", decode.picture_bytes if decode else None,
                decode.origin if decode else None, by,
            ),
            actor_start_s=choose(
                "actor_start", "seconds until a model actor works", model.start_s if model else None,
                model.origin if model else None, f"measure it {at}",
            ),
            descriptor_bytes=2.0 * work.dim if model is None else model.descriptor_bytes,
        )  # fmt: skip
        if model is None:
            notes.append(f"bytes of a descriptor {2 * work.dim}: 2 for each of {work.dim} dimensions, ids left out")
        else:
            notes.append(f"bytes of a descriptor {model.descriptor_bytes:.6g}: {model.origin}")
        sizes = {name: rate.size for name, rate in (("decoding", decode), ("the model", model)) if rate is not None}
        notes += [
            f"{name} was measured at {size} px, not at {work.size}"
            for name, size in sizes.items()
            if size != work.size and given["model_rate" if name == "the model" else "decode_rate"] is None
        ]
        as_measured = model if given["model_rate"] is None else None
        if as_measured and wanted == "cpu" and as_measured.model_cpus not in (0, work.model_cpus):
            notes.append(
                f"the model was measured with --model-cpus {as_measured.model_cpus:g}, not {work.model_cpus:g}"
            )
        if rates.index is not None:
            notes.append(f"index: {rates.index.origin}, {rates.index.rows} rows x {rates.index.dim}")
        if rates.coordination is not None:
            seen = rates.coordination
            notes.append(f"the driver's {seen.parts_per_s:g} parts/s to {seen.actors} actors: {seen.origin}")
        precision = as_measured.precision if as_measured else ""
        faster = f" --precision {precision}" if precision not in {"", "float32"} else ""
        notes.append(f"extract is given {_flags(nodes, prices, work)}{faster}")
        notes.append("a CPU of a node is as fast as one of the machine that was measured: ASSUMPTION")
        notes.append(f"prices, node starts, losses, network: price table as of {prices.as_of}: ASSUMPTION")
        return cls(nodes=nodes, work=work, prices=prices, rates=rates, speeds=speeds, notes=notes)

    def with_nodes(self, name: str, count: int) -> "Inputs":
        """The same with another number of nodes in a group."""
        return replace(self, nodes={**self.nodes, name: count})

    def groups(self, *, gpus: bool) -> dict[str, GroupPrice]:
        """The groups in use with GPUs, or those without."""
        return {name: self.prices.groups[name] for name in self.nodes if bool(self.prices.groups[name].gpus) == gpus}

    @property
    def builders(self) -> dict[str, GroupPrice]:
        """The groups that build the index: those without GPUs, else all."""
        return self.groups(gpus=False) or self.groups(gpus=True)


def _flags(nodes: Mapping[str, int], prices: Prices, work: Work) -> str:
    """Flags of `manet extract` that put its actors onto the nodes as they are reckoned here."""
    groups = {name: prices.groups[name] for name in nodes}
    gpu = next((group for group in groups.values() if group.gpus), None)
    if gpu is None:
        return f"--model-cpus {work.model_cpus:g}"
    plain = next((name for name, group in groups.items() if not group.gpus), "")
    if plain:
        actors = nodes[plain] * groups[plain].cpus
        resource = groups[plain].resource
        return f"--model-gpus 1 --decode-actors {actors} --decode-cpus 1" + (
            resource and f" --decode-resource {resource}"
        )
    return f"--model-gpus 1 --model-cpus {gpu.cpus / gpu.gpus:g}: a decode process for each of them"


def stream_of(inputs: Inputs) -> Stream:
    """The stream of `manet extract` on these nodes.

    Raises:
        BadInputError: more than one group of a kind: their actors would not be alike.
    """
    plain, with_gpus = inputs.groups(gpus=False), inputs.groups(gpus=True)
    for kind in (plain, with_gpus):
        if len(kind) > 1:
            raise BadInputError(f"--nodes: {' and '.join(kind)} are of one kind; plan with one of them at a time")
    work, coordination = inputs.work, inputs.rates.coordination
    if not with_gpus:
        pools: tuple[Pool, ...] = (_alone(inputs, *next(iter(plain.items()))),)
    else:
        model = _on_gpus(inputs, *next(iter(with_gpus.items())), beside=not plain)
        pools = (*(_decoding(inputs, *item) for item in plain.items()), model)
    return Stream(
        parts=work.parts,
        pools=pools,
        in_flight=work.in_flight,
        buffer=2 * pools[-1].nodes * pools[-1].actors if len(pools) > 1 else 0,
        dispatch_s=1 / coordination.parts_per_s if coordination else 0.0,
        slow_share=work.slow_share,
        slow_factor=work.slow_factor,
    )


def _pool(inputs: Inputs, name: str, actors: int, steps: tuple[Step, ...], cores: int, start_s: float) -> Pool:
    group = inputs.prices.groups[name]
    return Pool(
        name=name,
        nodes=inputs.nodes[name],
        actors=actors,
        steps=steps,
        cores=cores,
        start_s=group.start_s,
        actor_start_s=start_s,
        losses_per_s=group.losses_per_hour / HOUR if group.spot else 0.0,
    )


def _network(inputs: Inputs, group: GroupPrice, actors: int, size: float) -> float:
    """Seconds that a part's bytes need, `size` of each picture, when all actors of a node move such."""
    return inputs.work.part_rows * size * actors / (group.gbit_per_s * GBIT)


def _longest(*, shared: bool = False, **seconds: float) -> Step:
    """Things that go on at once, as one step with the name of the longest."""
    name = max(seconds, key=lambda each: seconds[each])
    return Step(name=name, seconds=seconds[name], shared=shared)


def _alone(inputs: Inputs, name: str, group: GroupPrice) -> Pool:
    """Decode and describe on the same cores."""
    work, speeds = inputs.work, inputs.speeds
    actors = int(group.cpus / work.model_cpus + 1e-9)
    if not actors:
        raise BadInputError(f"--model-cpus {work.model_cpus:g}: a node of {name} has {group.cpus} CPUs")
    fetch_s = _network(inputs, group, actors, speeds.picture_bytes)
    steps = (
        _longest(decode=work.part_rows / speeds.decode, fetch=fetch_s, shared=True),
        Step(name="model", seconds=work.part_rows / speeds.model, shared=True),
        Step(name="write", seconds=_network(inputs, group, actors, speeds.descriptor_bytes)),
    )
    return _pool(inputs, name, actors, steps, group.cpus, speeds.actor_start_s)


def _decoding(inputs: Inputs, name: str, group: GroupPrice) -> Pool:
    """Decode for others: an actor a CPU."""
    work, speeds = inputs.work, inputs.speeds
    fetch_s = _network(inputs, group, group.cpus, speeds.picture_bytes)
    send_s = _network(inputs, group, group.cpus, 3 * work.size**2)
    steps = (_longest(decode=work.part_rows / speeds.decode, fetch=fetch_s, send=send_s),)
    return _pool(inputs, name, group.cpus, steps, 0, 0.0)


def _on_gpus(inputs: Inputs, name: str, group: GroupPrice, *, beside: bool) -> Pool:
    """Describe on GPUs, an actor each; load beside them, or receive what others decoded."""
    work, speeds = inputs.work, inputs.speeds
    decode_s = work.part_rows * group.gpus / (speeds.decode * group.cpus)
    fetch_s = _network(inputs, group, group.gpus, speeds.picture_bytes)
    receive_s = _network(inputs, group, group.gpus, 3 * work.size**2)
    steps = (
        _longest(decode=decode_s, fetch=fetch_s) if beside else Step(name="receive", seconds=receive_s),
        Step(name="model", seconds=work.part_rows / speeds.model),
        Step(name="write", seconds=_network(inputs, group, group.gpus, speeds.descriptor_bytes)),
    )
    return _pool(inputs, name, group.gpus, steps, 0, speeds.actor_start_s)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What is paid, stored and moved; hours by phase and in total; bytes."""

    hours: dict[str, float]
    nodes: dict[str, float]
    head: float
    requests: float
    storage_month: float
    stored: dict[str, float]
    moved: dict[str, float]
    resident: float | None
    total: float


def costs(inputs: Inputs, stream_s: float) -> Costs:
    """Costs of a stream that takes `stream_s` seconds, and of the index after it where that was measured."""
    work, speeds, prices = inputs.work, inputs.speeds, inputs.prices
    index_s = _index_s(inputs)
    hours = {"extract": stream_s / HOUR, **({} if index_s is None else {"index": index_s / HOUR})}
    hours["total"] = sum(hours.values())
    nodes = {}
    for name, count in inputs.nodes.items():
        held_s = stream_s + prices.idle_s + ((index_s or 0.0) if name in inputs.builders else 0.0)
        nodes[name] = count * prices.groups[name].paid_per_hour * held_s / HOUR
    head = prices.head.per_hour * (hours["total"] + prices.idle_s / HOUR)
    stored = {"gallery": work.pictures * speeds.picture_bytes, "descriptors": work.pictures * speeds.descriptor_bytes}
    pixels = work.pictures * 3.0 * work.size**2 if len(inputs.nodes) > 1 else 0.0
    moved = {
        "pictures read": stored["gallery"],
        "pixels between nodes": pixels,
        "descriptors written": stored["descriptors"],
    }
    resident = None
    gets, puts = float(work.pictures), 2.0 * work.parts
    if inputs.rates.index is not None:
        rate = inputs.rates.index
        stored["index"] = work.pictures * (rate.stored_bytes + 2 * (work.dim - rate.dim))
        resident = work.pictures * rate.resident_bytes
        moved |= {"descriptors read for the index": stored["descriptors"], "index written": stored["index"]}
        gets += 2 * work.parts
    requests = gets / 1000 * prices.store.per_1000_gets + puts / 1000 * prices.store.per_1000_puts
    return Costs(
        hours=hours,
        nodes=nodes,
        head=head,
        requests=requests,
        storage_month=sum(stored.values()) / (1 << 30) * prices.store.per_gib_month,
        stored=stored,
        moved=moved,
        resident=resident,
        total=sum(nodes.values()) + head + requests,
    )


def _index_s(inputs: Inputs) -> float | None:
    """Seconds of building the index; None: nobody measured it."""
    from manet.index import cells_of, choose_factory

    rate, work = inputs.rates.index, inputs.work
    if rate is None:
        return None
    cells = cells_of(choose_factory(work.pictures, work.dim)[0])
    if not cells:  # a flat index: nothing is trained, rows are copied
        return 0.0
    cpus = sum(inputs.nodes[name] * group.cpus for name, group in inputs.builders.items())
    train = rate.train_cpu_s * (cells / rate.cells) ** 2 / max(group.cpus for group in inputs.builders.values())
    return train + rate.fill_cpu_s * work.pictures / rate.rows * cells / rate.cells / cpus
