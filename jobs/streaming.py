"""Pictures -> descriptors as a Ray Data stream: THE engine of `extract`, `evaluate` and `compare`.

    units of rows -> [fetch + decode] -> describe + write -> counts

A unit is a fixed range of the table's rows, cut before the start. It travels as ONE row of a Ray Data block, so no setting
of block sizes can split or merge it, and its pictures are batched from its own rows alone: the same unit gives the
same bytes for any number of workers. A model actor holds a few units at once: it loads the next ones in threads and decode
processes while it describes one and writes the last; or decode actors of their own load them (`--decode-actors`), where the
model's nodes have too few cores. It writes the files of a unit and its receipt; the driver sees counts only.
"""

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated, Any, Literal, Self, cast

import pyarrow.parquet as pq
from pydantic import Field, model_validator

from cluster.artifact import CHECK_THREADS, Artifact, ArtifactWriter, Receipt, Units
from cluster.errors import IntegrityError, JobFailedError
from cluster.s3 import retries_seen
from cluster.session import MIB, SessionConfig, alive_nodes, joins_cluster, ray_session, require_resources
from cluster.storage import Store
from cluster.streams import configure_data, open_board, waiting_for, watched
from cluster.telemetry import Meter, say
from jobs.config import how
from jobs.inputs import Table, network_of
from jobs.memory import FOR_PASSES
from jobs.pictures import check_rejects
from jobs.planning import Ask, Plan, Unit, cut, fit
from jobs.workers import COUNTED, Describe, Fetch, ModelActor
from manet.images import PictureConfig
from manet.names import DescriptorName

PARTS = "parts.json"  # in the folder of a run: how many rows and parts there will be, for `manet status`


class DescribeConfig(SessionConfig):
    """How pictures are described, and by how many workers."""

    size: int = Field(default=0, ge=0)
    """Longer side of a prepared picture, px; 0: the size that the model's config states."""
    part_rows: int = Field(default=256, ge=1, le=4096)
    """Rows of one part: the unit of work, of resume and of files."""
    batch_size: int = Field(default=0, ge=0)
    """Pictures that the model sees at once; 0: by their size on a CPU, on a GPU as many as fit, up to 64."""
    scales: tuple[Annotated[float, Field(ge=0.25, le=4)], ...] = Field(default=(1.0,), min_length=1)
    """Sizes that a picture is described at, as shares of --size; their descriptors are summed and brought to unit length."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type inside the model; descriptors are float16 in any case."""
    compile: bool = False
    """Let torch.compile build the network's kernels; GPU only."""
    model_actors: int = how(0, ge=0)
    """Most model actors; 0: on one machine one per GPU, where they take GPUs, or per CPU; on a cluster as many as find room."""
    model_actors_min: int = how(0, ge=0)
    """Fewest model actors; the job is refused when the cluster has no room for them. 0: one."""
    model_gpus: float = how(0.0, ge=0)
    """GPUs of one model actor; 0: it runs on the CPU."""
    device: Literal["auto", "cpu"] = how("auto")
    """What the model computes on; auto: GPUs where they are booked, else CPUs. cpu: CPUs even so, to rehearse a cluster
    whose nodes only say that they have GPUs."""
    model_cpus: float = how(0.75, gt=0)
    """CPUs that Ray books for one model actor; it computes on one thread for each whole CPU, at least one."""
    decoders: int = how(0, ge=0)
    """Decode processes of one model actor (or decode actor); 0: one for each whole CPU that it books, at least one."""
    decode_actors: int = how(0, ge=0)
    """Actors that only fetch and decode, for a cluster whose model nodes have few cores; 0: that is done beside the model."""
    decode_cpus: float = how(0.25, gt=0)
    """CPUs that Ray books for one decode actor."""
    decode_resource: str = how("")
    """Custom resource that each decode actor books as much of as CPUs, so that it runs on nodes that have it alone (`decode` in
    ray_cluster.yaml), not on the CPUs that a GPU's model actor needs; default: none, Ray spreads decode actors over all nodes."""
    parts_in_flight: int = how(3, ge=1, le=16)
    """Parts that one model actor holds at once: one is described, one is written, the others are fetched and decoded."""
    picture_seconds: float = how(30.0, gt=0)
    """Time limit of decoding one picture, s; beyond it the picture is rejected."""
    stall_timeout: float = how(600.0, gt=0)
    """Seconds without any progress after which the job fails, naming what it waits for."""
    max_rejects: float = how(0.01, ge=0, le=1)
    """Share of the pictures that may be rejected before the job counts as failed (everything else is saved first)."""

    @model_validator(mode="after")
    def _resource_is_booked(self) -> Self:
        if self.decode_resource and not self.decode_actors:
            raise ValueError("--decode-resource is booked by decode actors: give --decode-actors too, or drop it")
        if self.decode_resource in {"CPU", "GPU", "memory", "object_store_memory"}:
            raise ValueError(
                f"--decode-resource {self.decode_resource}: name a custom resource, one that nodes are given"
            )
        return self

    @property
    def computes_on(self) -> Literal["cpu", "cuda"]:
        """The device of the model actors."""
        return "cuda" if self.model_gpus > 0 and self.device == "auto" else "cpu"


def unit_names(table: Table, config: DescribeConfig) -> list[str]:
    """Names of all units of a table, in order: what a manifest is committed over."""
    return [unit.name for unit in cut(table.rows, config.part_rows)]


def describe_into(
    writer: ArtifactWriter, table: Table, model: Artifact, config: DescribeConfig, *, names: tuple[DescriptorName, ...]
) -> dict[str, Any]:
    """Describe all pictures of `table` into the artifact, resuming what is done; returns the counts, checked.

    Raises:
        BadInputError: this machine can never give what the config asks for.
        JobFailedError: nor did a cluster, within `wait_for_resources`.
        IntegrityError: rows in the store and rows of the table do not reconcile.
        JobFailedError: more rejects than `max_rejects`, or no progress for `stall_timeout`.
    """
    run = Totals()
    units = cut(table.rows, config.part_rows)
    writer.store.write(PARTS, json.dumps({"rows": table.rows, "parts": len(units)}).encode())
    done = writer.finished()
    todo = [unit for unit in units if unit.name not in done]
    if len(todo) < len(units):
        say(f"resuming: {len(units) - len(todo)} of {len(units)} parts are finished and verified")
    if todo:
        with ray_session(config):
            _run(writer.units, table, model, config, names, todo, run)
    receipts = writer.receipts([unit.name for unit in units])
    _reconcile(writer.store, units, receipts)
    return {**check_rejects(writer, receipts, config.max_rejects), "parts": len(units), **run.summary()}


def _run(
    units: Units,
    table: Table,
    model: Artifact,
    config: DescribeConfig,
    names: tuple[DescriptorName, ...],
    todo: list[Unit],
    run: "Totals",
) -> None:
    """The stream, its progress, and its end when there is none."""
    if joins_cluster(config):
        require_resources(
            cpus=config.model_cpus,
            gpus=config.model_gpus,
            workers=max(1, config.model_actors_min),
            spare_cpus=config.decode_cpus if config.decode_actors else 0,
            spare_resource=config.decode_resource,
            flags="--model-cpus / --model-gpus / --model-actors-min / --decode-cpus / --decode-resource",
        )
    say(plan_line(table, model, config, todo))
    board = open_board()
    results = stream(units, table, model, config, names, todo, board)
    with Meter("describe", sum(unit.stop - unit.start for unit in todo), "pictures") as meter:
        for counts in watched(results, config.stall_timeout, partial(waiting_for, board), "--stall-timeout"):
            if counts is not None and counts["failure"]:
                raise JobFailedError(counts["failure"])
            if counts is not None:
                run.add(counts)
            done = int(counts["rows"] + counts["rejects"]) if counts is not None else 0
            part = f"{counts['unit']:05d}" if counts is not None else ""
            meter.advance(done, f"{run.rejects} rejects, waiting for {waiting_for(board)}" if meter.due() else "", part)


class Totals:
    """Sums over the units of this run, and the requests that this process itself had to repeat."""

    def __init__(self) -> None:
        self._sums = dict.fromkeys(COUNTED, 0.0)
        self._units, self._first, self._retries = 0, 0.0, retries_seen()
        self._began = time.monotonic()

    def add(self, counts: Mapping[str, Any]) -> None:
        """One more unit is done."""
        self._units += 1
        self._first = self._first or time.monotonic() - self._began
        for key in self._sums:
            self._sums[key] += float(counts[key])
        if counts["halvings"]:
            say("the batch did not fit into the GPU's memory and was halved; give a smaller --batch-size")

    @property
    def rejects(self) -> int:
        """Pictures rejected so far."""
        return int(self._sums["rejects"])

    def summary(self) -> dict[str, Any]:
        """Seconds and bytes of each stage, summed over workers; the time to the first part; how busy the model was."""
        if not self._units:
            return {}
        sums = self._sums
        stages = {key: round(sums[key], 2) for key in sums if key.endswith("_s")}
        sizes = {key: int(sums[key]) for key in sums if key.endswith("_bytes")}
        return {
            "first_part_s": round(self._first, 2),
            "model_busy": round(sums["model_s"] / max(1e-9, sums["model_s"] + sums["idle_s"]), 3),
            "retries": int(sums["retries"]) + retries_seen() - self._retries,
            "decoder_restarts": int(sums["restarts"]),
            "stages": {**stages, **sizes},
        }


def plan_line(table: Table, model: Artifact, config: DescribeConfig, todo: list[Unit]) -> str:
    """What will run, in one line; needs a running session.

    Raises:
        BadInputError: the session can never give what the config asks for.
    """
    plan = plan_of(config, len(todo))
    side = picture_config(model, config.size).size
    actors = plan.decoders or plan.models
    booked = config.decode_cpus if plan.decoders else config.model_cpus
    return plan.line(
        parts=len(todo),
        pictures=sum(unit.stop - unit.start for unit in todo),
        of=table.rows,
        part_mib=min(config.part_rows, table.rows) * side * side * 3 / MIB,
        in_flight=config.parts_in_flight,
        processes=actors * (config.decoders or max(1, int(booked))),
    )


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
        decode_resource=config.decode_resource,
    )
    return fit(alive_nodes(), ask, parts, scales=joins_cluster(config))


def stream(
    units: Units,
    table: Table,
    model: Artifact,
    config: DescribeConfig,
    names: tuple[DescriptorName, ...],
    todo: list[Unit],
    board: Any = None,  # noqa: ANN401 - a handle of a Ray actor
) -> Iterator[dict[str, Any]]:
    """Describe `todo` on the running session; yields the counts of each unit as it is done.

    Args:
        units: where the units go.
        board: where workers report what they are at, or None.
    """
    plan, pictures = plan_of(config, len(todo)), picture_config(model, config.size)
    fetch = (Fetch, (table, pictures, config)) if plan.decoders else None
    describe = (Describe, (table, pictures, model, units, names, config, board))
    yield from flow(todo, plan, config, fetch=fetch, describe=describe)


def flow(
    todo: list[Unit],
    plan: Plan,
    config: DescribeConfig,
    *,
    fetch: "tuple[type[Fetch], tuple[Any, ...]] | None",
    describe: tuple[type[ModelActor], tuple[Any, ...]],
) -> Iterator[dict[str, Any]]:
    """Send units through actors on the running session; yields what the model actors return.

    Args:
        todo: the units.
        plan: how many actors.
        config: what Ray books for each of them, and how many units a model actor holds.
        fetch: class and arguments of the decode actors; None: there are none.
        describe: class and arguments of the model actors.
    """
    import ray
    from ray.data import ActorPoolStrategy

    configure_data()
    rows = [{"index": unit.index, "start": unit.start, "stop": unit.stop} for unit in todo]
    stream: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
    if fetch is not None:
        booked = {config.decode_resource: config.decode_cpus} if config.decode_resource else {}
        stream = stream.map(
            cast(Any, fetch[0]),
            fn_constructor_args=fetch[1],
            compute=ActorPoolStrategy(size=plan.decoders),
            num_cpus=config.decode_cpus,
            resources=booked,
        )
    stream = stream.map(
        cast(Any, describe[0]),
        fn_constructor_args=describe[1],
        compute=ActorPoolStrategy(
            min_size=plan.models,
            max_size=plan.models_max,
            max_tasks_in_flight_per_actor=config.parts_in_flight,
            max_concurrent_calls_per_actor=config.parts_in_flight,
            enable_true_multi_threading=True,
        ),
        num_cpus=config.model_cpus,
        num_gpus=config.model_gpus,
        runtime_env={"env_vars": FOR_PASSES if config.computes_on == "cpu" else {}},
    )
    yield from stream.iter_rows()


def picture_config(model: Artifact, size: int) -> PictureConfig:
    """How a model wants its pictures; `size` in px stands in for the model's own unless it is 0."""
    pictures = network_of(model).pictures
    return pictures.model_copy(update={"size": size}) if size else pictures


def _reconcile(store: Store, units: list[Unit], receipts: list[Receipt]) -> None:
    """Rows in = rows out + rejects for every unit, counted from the footers of the stored files."""

    def rows(receipt: Receipt) -> int:
        return sum(int(pq.ParquetFile(store.open(part.name)).metadata.num_rows) for part in receipt.parts)

    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        counted = list(pool.map(rows, receipts))
    for unit, stored in zip(units, counted, strict=True):
        if stored != unit.stop - unit.start:
            raise IntegrityError(
                f"{store.uri('')}: part {unit.name} holds {stored} rows for {unit.stop - unit.start} pictures; "
                f"delete receipts/{unit.name}.json and run the same command again"
            )
