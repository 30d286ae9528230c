"""Pictures -> descriptors as a Ray Data stream: THE engine of `extract`, `evaluate` and `compare`.

    units of rows -> fetch + decode (CPU actors) -> describe + write (model actors) -> counts

A unit is a fixed range of the table's rows, cut before the start. It travels as ONE row of a Ray Data block, so no setting
of block sizes can split or merge it, and its pictures are batched from its own rows alone: the same unit gives the
same bytes for any number of workers. The model actor writes its files and its receipt; the driver sees counts only.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, Receipt, put_unit
from cluster.errors import ClusterError, IntegrityError, JobFailedError
from cluster.session import SessionConfig, cluster_cpus, ray_session, require_resources
from cluster.storage import Store
from cluster.streams import configure_data
from cluster.telemetry import Meter, say
from jobs.config import deciding, how
from jobs.inputs import Table, local_copy
from jobs.parquet import parquet_bytes
from jobs.pictures import check_rejects, load_picture, reject_row
from manet.errors import ManetError, PictureError
from manet.images import PictureConfig
from manet.pooling import DEAD, DescriptorName
from manet.tables import REJECTS, descriptor_column

if TYPE_CHECKING:
    from manet.describe import Describer

FETCH_THREADS = 8  # requests in flight of one decode actor


class DescribeConfig(SessionConfig):
    """How pictures are described, and by how many workers."""

    size: int = Field(default=0, ge=0)
    """Longer side of a prepared picture, px; 0: the size that the model's config states."""
    part_rows: int = Field(default=256, ge=1, le=4096)
    """Rows of one part: the unit of work, of resume and of files."""
    batch_size: int = Field(default=16, ge=1)
    """Pictures that the model sees at once."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number type inside the model; descriptors are float16 in any case."""
    model_actors: int = how(0, ge=0)
    """Most model actors; 0: one per GPU of the cluster with --model-gpus, else one per CPU."""
    model_gpus: float = how(0.0, ge=0)
    """GPUs of one model actor; 0: it runs on the CPU."""
    model_cpus: float = how(0.75, gt=0)
    """CPUs that Ray books for one model actor; it computes on one thread for each whole CPU, at least one."""
    decode_actors: int = how(0, ge=0)
    """Most decode actors; 0: one per CPU."""
    decode_cpus: float = how(0.25, gt=0)
    """CPUs that Ray books for one decode actor."""
    max_rejects: float = how(0.01, ge=0, le=1)
    """Share of the pictures that may be rejected before the job counts as failed (everything else is saved first)."""

    @staticmethod
    def describing() -> list[str]:
        """The fields that decide a descriptors artifact."""
        return deciding(DescribeConfig, skip=SessionConfig.model_fields)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One range of rows, and the names of its files."""

    index: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of the unit, of its receipt and of its files."""
        return f"{self.index:05d}"


def cut(rows: int, part_rows: int) -> list[Unit]:
    """Cut rows 0..rows-1 into units of `part_rows`, from the count alone."""
    return [
        Unit(index=index, start=start, stop=min(start + part_rows, rows))
        for index, start in enumerate(range(0, rows, part_rows))
    ]


def unit_names(table: Table, config: DescribeConfig) -> list[str]:
    """Names of all units of a table, in order: what a manifest is committed over."""
    return [unit.name for unit in cut(table.rows, config.part_rows)]


class Fetch:
    """Decode actor: a unit's rows -> its pictures, uint8 [n, size, size, 3], and the rejects of this stage."""

    def __init__(self, table: Table, pictures: PictureConfig) -> None:
        import cv2

        cv2.setNumThreads(1)
        self._table, self._config = table, pictures
        self._pool = ThreadPoolExecutor(FETCH_THREADS)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of a unit with its pictures; or with `failure`, which the driver raises (Ray Data loses an error's type)."""
        try:
            return {**row, **self._fetch(row), "failure": ""}
        except (ClusterError, ManetError) as error:
            return {
                **row,
                "pixels": np.zeros((0, 1, 1, 3), np.uint8),
                "ids": "[]",
                "rejects": "[]",
                "failure": str(error),
            }

    def _fetch(self, row: dict[str, Any]) -> dict[str, Any]:
        rows = self._table.pictures(int(row["start"]), int(row["stop"]))
        ids, pixels, rejects = [], [], []
        for (image_id, uri), result in zip(
            rows, self._pool.map(lambda item: load_picture(item[1], self._config), rows), strict=True
        ):
            if isinstance(result, PictureError):
                rejects.append(reject_row(image_id, uri, "decode", result))
            else:
                ids.append((image_id, uri))
                pixels.append(result)
        side = self._config.size
        stacked = np.stack(pixels) if pixels else np.zeros((0, side, side, 3), np.uint8)
        return {"pixels": stacked, "ids": json.dumps(ids), "rejects": json.dumps(rejects)}


class Describe:
    """Model actor: a unit's pictures -> its part and its rejects in the store, then its receipt."""

    def __init__(
        self, model: Artifact, store: Store, names: tuple[DescriptorName, ...], config: DescribeConfig
    ) -> None:
        self._store, self._names = store, names
        self._describer = self.load(model, names, config)

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
        )

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Counts of a unit that is done; or its failure."""
        if row["failure"]:
            return {"rows": 0, "rejects": 0, "failure": row["failure"]}
        try:
            return {**self._describe(row), "failure": ""}
        except (ClusterError, ManetError) as error:
            return {"rows": 0, "rejects": 0, "failure": str(error)}

    def _describe(self, row: dict[str, Any]) -> dict[str, int]:
        described = self._describer.describe(row["pixels"])
        ids, rejects = json.loads(row["ids"]), json.loads(row["rejects"])
        dead = [pair for pair, is_dead in zip(ids, described.dead, strict=True) if is_dead]
        rejects += [reject_row(image_id, uri, "describe", DEAD) for image_id, uri in dead]
        alive = [image_id for (image_id, _), is_dead in zip(ids, described.dead, strict=True) if not is_dead]
        vectors = {name: matrix[~described.dead] for name, matrix in described.vectors.items()}
        name = Unit(index=int(row["index"]), start=int(row["start"]), stop=int(row["stop"])).name
        blobs = {f"part-{name}.parquet": Blob(data=_part_bytes(alive, vectors), rows=len(alive))}
        if rejects:
            blobs[f"rejects-{name}.parquet"] = Blob(
                data=parquet_bytes(pa.Table.from_pylist(rejects, schema=REJECTS)), rows=len(rejects)
            )
        put_unit(self._store, name, blobs, {"rows": len(alive), "rejects": len(rejects)})
        return {"rows": len(alive), "rejects": len(rejects)}


def describe_into(
    writer: ArtifactWriter, table: Table, model: Artifact, config: DescribeConfig, *, names: tuple[DescriptorName, ...]
) -> dict[str, Any]:
    """Describe all pictures of `table` into the artifact, resuming what is done; returns the counts, checked.

    Raises:
        IntegrityError: rows in the store and rows of the table do not reconcile.
        JobFailedError: more rejects than `max_rejects`.
    """
    units = cut(table.rows, config.part_rows)
    done = writer.finished()
    todo = [unit for unit in units if unit.name not in done]
    if len(todo) < len(units):
        say(f"resuming: {len(units) - len(todo)} of {len(units)} parts are finished and verified")
    if todo:
        with ray_session(config), Meter("describe", sum(unit.stop - unit.start for unit in todo), "pictures") as meter:
            for counts in stream(writer.store, table, model, config, names, todo):
                if counts["failure"]:
                    raise JobFailedError(counts["failure"])
                meter.advance(int(counts["rows"] + counts["rejects"]))
    receipts = writer.receipts([unit.name for unit in units])
    _reconcile(writer.store, units, receipts)
    return {**check_rejects(writer, receipts, config.max_rejects), "parts": len(units)}


def stream(
    store: Store,
    table: Table,
    model: Artifact,
    config: DescribeConfig,
    names: tuple[DescriptorName, ...],
    todo: list[Unit],
) -> Iterator[dict[str, Any]]:
    """Describe `todo` on the running session; yields the counts of each unit as it is done."""
    import ray
    from ray.data import ActorPoolStrategy

    configure_data()
    require_resources(cpus=config.model_cpus, gpus=config.model_gpus, flags="--model-cpus / --model-gpus")
    decoders = config.decode_actors or cluster_cpus()
    models = config.model_actors or (_cluster_gpus() if config.model_gpus else cluster_cpus())
    rows = [{"index": unit.index, "start": unit.start, "stop": unit.stop} for unit in todo]
    stream = (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map(
            cast(Any, Fetch),
            fn_constructor_args=(table, picture_config(model, config.size)),
            compute=ActorPoolStrategy(min_size=1, max_size=min(decoders, len(rows))),
            num_cpus=config.decode_cpus,
        )
        .map(
            cast(Any, Describe),
            fn_constructor_args=(model, store, names, config),
            compute=ActorPoolStrategy(min_size=1, max_size=min(models, len(rows))),
            num_cpus=config.model_cpus,
            num_gpus=config.model_gpus,
        )
    )
    yield from stream.iter_rows()


def _cluster_gpus() -> int:
    import ray

    return max(1, int(ray.cluster_resources().get("GPU", 0)))


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
