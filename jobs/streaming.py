"""Pictures -> descriptors as a Ray Data stream: THE engine of `extract`, `evaluate` and `compare`.

    units of rows -> [fetch + decode] -> describe + write -> counts

A unit is a fixed range of the table's rows, cut before the start. It travels as ONE row of a Ray Data block, so no setting
of block sizes can split or merge it, and its pictures are batched from its own rows alone: the same unit gives the
same bytes for any number of workers. A model actor holds a few units at once: it loads the next ones in threads and decode
processes while it describes one and writes the last; or decode actors of their own load them (`--decode-actors`), where the
model's nodes have too few cores. It writes the files of a unit and its receipt; the driver sees counts only.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, Receipt, put_unit
from cluster.errors import ClusterError, IntegrityError, JobFailedError
from cluster.s3 import retries_seen
from cluster.session import SessionConfig, ray_session
from cluster.storage import Store
from cluster.streams import alive_nodes, configure_data, may_scale
from cluster.telemetry import Meter, say
from jobs.config import deciding, how
from jobs.inputs import Table, local_copy
from jobs.loading import Loaded, Loader
from jobs.parquet import parquet_bytes
from jobs.pictures import check_rejects, reject_row
from jobs.planning import Ask, Node, Plan, Unit, cut, fit
from manet.errors import ManetError
from manet.images import PictureConfig
from manet.pooling import DEAD, DescriptorName
from manet.tables import REJECTS, descriptor_column

if TYPE_CHECKING:
    from manet.describe import Described, Describer


class DescribeConfig(SessionConfig):
    """How pictures are described, and by how many workers."""

    size: int = Field(default=0, ge=0)
    """Longer side of a prepared picture, px; 0: the size that the model's config states."""
    part_rows: int = Field(default=256, ge=1, le=4096)
    """Rows of one part: the unit of work, of resume and of files."""
    batch_size: int = Field(default=0, ge=0)
    """Pictures that the model sees at once; 0: by their size on a CPU, the largest that fits on a GPU."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type inside the model; descriptors are float16 in any case."""
    compile: bool = False
    """Let torch.compile build the network's kernels; GPU only."""
    model_actors: int = how(0, ge=0)
    """Most model actors; 0: one per GPU of the cluster with --model-gpus, else one per CPU."""
    model_actors_min: int = how(0, ge=0)
    """Fewest model actors; the job is refused when the cluster has no room for them. 0: one."""
    model_gpus: float = how(0.0, ge=0)
    """GPUs of one model actor; 0: it runs on the CPU."""
    model_cpus: float = how(0.75, gt=0)
    """CPUs that Ray books for one model actor; it computes on one thread for each whole CPU, at least one."""
    decoders: int = how(0, ge=0)
    """Decode processes of one model actor (or decode actor); 0: one for each whole CPU that it books, at least one."""
    decode_actors: int = how(0, ge=0)
    """Actors that only fetch and decode, for a cluster whose model nodes have few cores; 0: that is done beside the model."""
    decode_cpus: float = how(0.25, gt=0)
    """CPUs that Ray books for one decode actor."""
    parts_in_flight: int = how(3, ge=1, le=16)
    """Parts that one model actor holds at once: one is described, one is written, the others are fetched and decoded."""
    picture_seconds: float = how(30.0, gt=0)
    """Time limit of decoding one picture, s; beyond it the picture is rejected."""
    stall_timeout: float = how(600.0, gt=0)
    """Seconds without any progress after which the job fails, naming what it waits for."""
    max_rejects: float = how(0.01, ge=0, le=1)
    """Share of the pictures that may be rejected before the job counts as failed (everything else is saved first)."""

    @staticmethod
    def describing() -> list[str]:
        """The fields that decide a descriptors artifact."""
        return deciding(DescribeConfig, skip=SessionConfig.model_fields)


def unit_names(table: Table, config: DescribeConfig) -> list[str]:
    """Names of all units of a table, in order: what a manifest is committed over."""
    return [unit.name for unit in cut(table.rows, config.part_rows)]


def make_loader(table: Table, pictures: PictureConfig, config: DescribeConfig) -> Loader:
    """The loader of one actor."""
    booked = config.decode_cpus if config.decode_actors else config.model_cpus
    return Loader(table, pictures, decoders=config.decoders or max(1, int(booked)), seconds=config.picture_seconds)


class Fetch:
    """Decode actor: a unit's rows -> its pictures, uint8 [n, size, size, 3], and the rejects of this stage."""

    def __init__(self, table: Table, pictures: PictureConfig, config: DescribeConfig) -> None:
        self._loader = make_loader(table, pictures, config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of a unit with its pictures; or with `failure`, which the driver raises (Ray Data loses an error's type)."""
        try:
            loaded = self._loader.load(int(row["start"]), int(row["stop"]))
        except (ClusterError, ManetError) as error:
            return {**row, "pixels": np.zeros((0, 1, 1, 3), np.uint8), "loaded": "{}", "failure": str(error)}
        rest = {"pictures": loaded.pictures, "rejects": loaded.rejects, "spent": loaded.spent}
        return {**row, "pixels": loaded.pixels, "loaded": json.dumps(rest), "failure": ""}


class Describe:
    """Model actor: a unit's rows or pictures -> its part and its rejects in the store, then its receipt.

    Called by as many threads as it may hold units. One loads, one computes, the others write or wait their turn.
    """

    def __init__(
        self,
        table: Table,
        model: Artifact,
        writer: tuple[Store, str],
        names: tuple[DescriptorName, ...],
        config: DescribeConfig,
    ) -> None:
        self._store, self._claim = writer
        self._names, self._config = names, config
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="model")  # one thread: one pool of torch's own
        self._turn = threading.Lock()
        self._failure = ""
        self._loader: Loader | None = None
        try:
            if not config.decode_actors:
                self._loader = make_loader(table, picture_config(model, config.size), config)
            self._describer = self._computing.submit(self.load, model, names, config).result()
        except (ClusterError, ManetError) as error:
            self._failure = str(error)

    @staticmethod
    def load(model: Artifact, names: tuple[DescriptorName, ...], config: DescribeConfig) -> "Describer":
        """The describer of this process, with its threads bounded."""
        import torch

        from manet.checkpoint import load_model
        from manet.describe import Describer

        torch.set_num_threads(max(1, int(config.model_cpus)))
        return Describer(
            load_model(local_copy(model)),
            names=names,
            device="cuda" if config.model_gpus > 0 else "cpu",
            batch_size=config.batch_size,
            precision=config.precision,
            compiled=config.compile,
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Counts of a unit that is done; or its failure."""
        retries = retries_seen()
        failure, counts = self._failure or row.get("failure", ""), dict.fromkeys(COUNTED, 0.0)
        if not failure:
            try:
                counts |= self._unit(row)
            except (ClusterError, ManetError) as error:
                failure = str(error)
        return {"unit": int(row["index"]), **counts, "retries": float(retries_seen() - retries), "failure": failure}

    def _unit(self, row: dict[str, Any]) -> dict[str, float]:
        loaded = self._loaded(row)
        began = time.monotonic()
        described, seconds = self._computing.submit(self._described, loaded).result()
        waited = time.monotonic() - began - seconds
        began = time.monotonic()
        counts = self._write(
            Unit(index=int(row["index"]), start=int(row["start"]), stop=int(row["stop"])), loaded, described
        )
        spent = {"model_s": seconds, "wait_model_s": waited, "write_s": time.monotonic() - began}
        return {**loaded.spent, **counts, **spent}

    def _loaded(self, row: dict[str, Any]) -> Loaded:
        if self._loader is not None:
            with self._turn:  # a unit at a time, so that the first is there first
                return self._loader.load(int(row["start"]), int(row["stop"]))
        rest = json.loads(row["loaded"])
        rest["pictures"] = [tuple(pair) for pair in rest["pictures"]]
        return Loaded(pixels=row["pixels"], **rest)

    def _described(self, loaded: Loaded) -> "tuple[Described, float]":
        began = time.monotonic()
        return self._describer.describe(loaded.pixels), time.monotonic() - began

    def _write(self, unit: Unit, loaded: Loaded, described: "Described") -> dict[str, float]:
        pictures = loaded.pictures
        dead = [pair for pair, is_dead in zip(pictures, described.dead, strict=True) if is_dead]
        rejects = loaded.rejects + [reject_row(image_id, uri, "describe", DEAD) for image_id, uri in dead]
        alive = [image_id for (image_id, _), is_dead in zip(pictures, described.dead, strict=True) if not is_dead]
        vectors = {name: matrix[~described.dead] for name, matrix in described.vectors.items()}
        blobs = {f"part-{unit.name}.parquet": Blob(data=_part_bytes(alive, vectors), rows=len(alive))}
        if rejects:
            blobs[f"rejects-{unit.name}.parquet"] = Blob(
                data=parquet_bytes(pa.Table.from_pylist(rejects, schema=REJECTS)), rows=len(rejects)
            )
        counts = {"rows": len(alive), "rejects": len(rejects)}
        receipt = put_unit(self._store, unit.name, blobs, counts, claim=self._claim)
        return {**counts, "write_bytes": float(sum(part.bytes for part in receipt.parts))}


COUNTED = (
    "rows", "rejects", "fetch_s", "fetch_bytes", "decode_s", "load_s", "wait_model_s", "model_s", "write_s", "write_bytes",
)  # fmt: skip


def describe_into(
    writer: ArtifactWriter, table: Table, model: Artifact, config: DescribeConfig, *, names: tuple[DescriptorName, ...]
) -> dict[str, Any]:
    """Describe all pictures of `table` into the artifact, resuming what is done; returns the counts, checked.

    Raises:
        BadInputError: the cluster can never give what the config asks for.
        IntegrityError: rows in the store and rows of the table do not reconcile.
        JobFailedError: more rejects than `max_rejects`.
    """
    units = cut(table.rows, config.part_rows)
    done = writer.finished()
    todo = [unit for unit in units if unit.name not in done]
    if len(todo) < len(units):
        say(f"resuming: {len(units) - len(todo)} of {len(units)} parts are finished and verified")
    run = Totals()
    if todo:
        with ray_session(config), Meter("describe", sum(unit.stop - unit.start for unit in todo), "pictures") as meter:
            for counts in stream((writer.store, writer.claim_sha256), table, model, config, names, todo):
                if counts["failure"]:
                    raise JobFailedError(counts["failure"])
                run.add(counts)
                meter.advance(int(counts["rows"] + counts["rejects"]), run.note())
    receipts = writer.receipts([unit.name for unit in units])
    _reconcile(writer.store, units, receipts)
    return {**check_rejects(writer, receipts, config.max_rejects), "parts": len(units), **run.summary()}


class Totals:
    """Sums over the units of this run."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys((*COUNTED, "retries"), 0.0)
        self._units, self._first = 0, 0.0
        self._began = self._last = time.monotonic()
        self.models = 1

    def add(self, counts: Mapping[str, Any]) -> None:
        """One more unit is done."""
        self._units += 1
        self._last = time.monotonic()
        self._first = self._first or self._last - self._began
        for key in self._sums:
            self._sums[key] += float(counts[key])

    def note(self) -> str:
        """Rejects, and what the model waits for most."""
        waits = "store or decode" if self._sums["load_s"] > self._sums["model_s"] else "model"
        return f"{self._sums['rejects']:.0f} rejects, waiting for: {waits}"

    def summary(self) -> dict[str, Any]:
        """Seconds and bytes of each stage, summed over workers, and the time to the first part."""
        if not self._units:
            return {}
        stages = {key: round(self._sums[key], 2) for key in self._sums if key.endswith("_s")}
        sizes = {key: int(self._sums[key]) for key in self._sums if key.endswith("_bytes")}
        return {
            "first_part_s": round(self._first, 2),
            "stages": {**stages, **sizes},
            "retries": int(self._sums["retries"]),
        }


def plan_of(config: DescribeConfig, parts: int) -> Plan:
    """What the running session has room for.

    Raises:
        BadInputError: it can never give what the config asks for.
    """
    ask = Ask(
        model_cpus=config.model_cpus,
        model_gpus=config.model_gpus,
        models=config.model_actors,
        models_min=config.model_actors_min,
        decode_cpus=config.decode_cpus,
        decoders=config.decode_actors,
    )
    nodes = [Node(cpus=cpus, gpus=gpus) for cpus, gpus in alive_nodes()]
    return fit(nodes, ask, parts, scales=may_scale(config))


def stream(
    writer: tuple[Store, str],
    table: Table,
    model: Artifact,
    config: DescribeConfig,
    names: tuple[DescriptorName, ...],
    todo: list[Unit],
) -> Iterator[dict[str, Any]]:
    """Describe `todo` on the running session; yields the counts of each unit as it is done.

    Args:
        writer: the store of the artifact, and the hash of its claim.
    """
    import ray
    from ray.data import ActorPoolStrategy

    configure_data()
    plan = plan_of(config, len(todo))
    rows = [{"index": unit.index, "start": unit.start, "stop": unit.stop} for unit in todo]
    stream: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
    if plan.decoders:
        stream = stream.map(
            cast(Any, Fetch),
            fn_constructor_args=(table, picture_config(model, config.size), config),
            compute=ActorPoolStrategy(size=plan.decoders),
            num_cpus=config.decode_cpus,
        )
    stream = stream.map(
        cast(Any, Describe),
        fn_constructor_args=(table, model, writer, names, config),
        compute=ActorPoolStrategy(
            min_size=plan.models,
            max_size=plan.models_max,
            max_tasks_in_flight_per_actor=config.parts_in_flight,
            max_concurrent_calls_per_actor=config.parts_in_flight,
            enable_true_multi_threading=True,
        ),
        num_cpus=config.model_cpus,
        num_gpus=config.model_gpus,
    )
    yield from stream.iter_rows()


def picture_config(model: Artifact, size: int) -> PictureConfig:
    """How a model wants its pictures; `size` in px stands in for the model's own unless it is 0."""
    from manet.checkpoint import read_config

    pictures = read_config(local_copy(model, "config.json")).network.pictures
    return pictures.model_copy(update={"size": size}) if size else pictures


def _reconcile(store: Store, units: list[Unit], receipts: list[Receipt]) -> None:
    """Rows in = rows out + rejects for every unit, counted from the footers of the stored files."""
    for unit, receipt in zip(units, receipts, strict=True):
        stored = sum(int(pq.ParquetFile(store.open(part.name)).metadata.num_rows) for part in receipt.parts)
        if stored != unit.stop - unit.start:
            raise IntegrityError(
                f"{store.uri('')}: part {unit.name} holds {stored} rows for {unit.stop - unit.start} pictures; "
                f"delete receipts/{unit.name}.json and run the same command again"
            )


def _part_bytes(ids: list[str], vectors: Mapping[DescriptorName, np.ndarray[Any, np.dtype[Any]]]) -> bytes:
    """A part: `descriptor` for one descriptor, `descriptor_NAME` for each of several."""
    single = len(vectors) == 1
    columns = {"descriptor" if single else f"descriptor_{name}": descriptor_column(v) for name, v in vectors.items()}
    return parquet_bytes(pa.table({"image_id": pa.array(ids, pa.string()), **columns}))
