"""The actors of the stream: decode actors, and model actors that load, describe and write.

A model actor is called by as many threads as it may hold units: one loads, one computes, the others write or wait their turn.
"""

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from cluster.artifact import Artifact, Blob, Units
from cluster.errors import ClusterError
from cluster.s3 import retries_seen
from cluster.streams import keep_reporting
from cluster.telemetry import Metrics
from jobs.inputs import Table, local_copy
from jobs.loading import Loaded, Loader
from jobs.parquet import parquet_bytes
from jobs.pictures import reject_row
from jobs.planning import Unit
from manet.errors import ManetError
from manet.images import PictureConfig
from manet.names import DEAD, DescriptorName
from manet.tables import REJECTS, descriptor_column

if TYPE_CHECKING:
    from jobs.streaming import DescribeConfig
    from manet.describe import Describer

Array = np.ndarray[Any, np.dtype[Any]]
COUNTED = (
    "rows", "rejects", "retries", "restarts", "halvings",
    "fetch_s", "decode_s", "load_s", "wait_model_s", "model_s", "idle_s", "write_s", "fetch_bytes", "write_bytes",
)  # fmt: skip


def make_loader(table: Table, pictures: PictureConfig, config: "DescribeConfig") -> Loader:
    """The loader of one actor."""
    booked = config.decode_cpus if config.decode_actors else config.model_cpus
    return Loader(table, pictures, decoders=config.decoders or max(1, int(booked)), seconds=config.picture_seconds)


class Fetch:
    """Decode actor: a unit's rows -> its pictures, uint8 [n, size, size, 3], and the rejects of this stage."""

    def __init__(self, table: Table, pictures: PictureConfig, config: "DescribeConfig") -> None:
        self._loader = make_loader(table, pictures, config)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row of a unit with its pictures; or with `failure`, which the driver raises (Ray Data loses an error's type)."""
        try:
            loaded = self._loader.load(int(row["start"]), int(row["stop"]))
        except (ClusterError, ManetError) as error:
            return {**row, "pixels": np.zeros((0, 1, 1, 3), np.uint8), "loaded": "{}", "failure": str(error)}
        rest = {"pictures": loaded.pictures, "rejects": loaded.rejects, "spent": loaded.spent}
        return {**row, "pixels": loaded.pixels, "loaded": json.dumps(rest), "failure": ""}


class Loads(Protocol):
    """What loads the pictures of a model actor: `jobs.loading.Loader`."""

    @property
    def restarts(self) -> int:
        """What had to be started again."""

    def load(self, start: int, stop: int) -> Loaded:
        """Rows start..stop."""

    def waits_for(self) -> str:
        """What a load that is going on waits for."""


class Found(Protocol):
    """Descriptors of pictures: `manet.describe.Described`."""

    @property
    def vectors(self) -> Mapping[DescriptorName, Array]:
        """Descriptors by name, [N, D]."""

    @property
    def dead(self) -> Array:
        """Pictures that have none, bool [N]."""


class Describes(Protocol):
    """The model of a model actor: `manet.describe.Describer`."""

    halvings: int

    def describe(self, pixels_NSS3: Array, /) -> Found:
        """Pictures -> descriptors."""


class ModelActor:
    """A unit's rows or pictures -> its part and its rejects in the store, then its receipt.

    Args:
        units: where its units go.
        board: where it reports what it is at, or None.
        model: makes the model, in the thread that will run it.
        loader: makes what loads the pictures; None: units come with their pictures.
    """

    def __init__(
        self,
        units: Units,
        board: Any,  # noqa: ANN401 - a handle of a Ray actor
        *,
        model: Callable[[], Describes],
        loader: Callable[[], Loads] | None,
    ) -> None:
        self._units = units
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._metrics = Metrics()
        self._at: dict[int, str] = {}  # unit -> stage that it is in
        self._ended = 0.0  # when the model last ended a unit
        self._counted = {"requests": 0, "decoders": 0}
        self._computing = ThreadPoolExecutor(1, thread_name_prefix="model")  # one thread: one pool of torch's own
        self._turn, self._counting = threading.Lock(), threading.Lock()
        self._failure = ""
        self._loader: Loads | None = None
        try:
            if loader is not None:
                self._loader = loader()
            self._describer = self._computing.submit(model).result()
        except (ClusterError, ManetError) as error:
            self._failure = str(error)
        if board is not None:
            keep_reporting(board, self._name, self._stages)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Counts of a unit that is done; or its failure."""
        unit = Unit(index=int(row["index"]), start=int(row["start"]), stop=int(row["stop"]))
        failure, counts = self._failure or row.get("failure", ""), dict.fromkeys(COUNTED, 0.0)
        if not failure:
            try:
                counts |= self._unit(unit, row)
            except (ClusterError, ManetError) as error:
                failure = str(error)
            finally:
                self._at.pop(unit.index, None)
        counts |= self._again()
        self._export(counts)
        return {"unit": unit.index, "actor": self._name, **counts, "failure": failure}

    def _unit(self, unit: Unit, row: dict[str, Any]) -> dict[str, float]:
        self._at[unit.index] = "loading"
        loaded = self._loaded(row)
        self._at[unit.index] = "the model"
        began = time.monotonic()
        described, spent = self._computing.submit(self._described, loaded).result()
        spent["wait_model_s"] = time.monotonic() - began - spent["model_s"]
        self._at[unit.index] = "writing to the store"
        began = time.monotonic()
        counts = self._write(unit, loaded, described)
        return {**loaded.spent, **counts, **spent, "write_s": time.monotonic() - began}

    def _stages(self) -> dict[str, int]:
        """Units by what they wait for."""
        loading = self._loader.waits_for() if self._loader is not None else "decoding"
        return dict(Counter(loading if stage == "loading" else stage for stage in list(self._at.values())))

    def _again(self) -> dict[str, float]:
        """Requests and decode processes that had to be repeated since the last time that this was asked."""
        now = {"requests": retries_seen(), "decoders": self._loader.restarts if self._loader is not None else 0}
        with self._counting:
            new = {key: float(now[key] - self._counted[key]) for key in now}
            self._counted = now
        return {"retries": new["requests"], "restarts": new["decoders"]}

    def _export(self, counts: Mapping[str, float]) -> None:
        for key, value in counts.items():
            stage, _, unit = key.rpartition("_")
            if key in {"rows", "rejects"}:
                self._metrics.add("pictures", key, value)
            elif key in {"retries", "restarts"}:
                self._metrics.add("restarts", {"retries": "requests", "restarts": "decoders"}[key], value)
            else:
                self._metrics.add("stage_seconds" if unit == "s" else "stage_bytes", stage, value)

    def _loaded(self, row: dict[str, Any]) -> Loaded:
        if self._loader is not None:
            with self._turn:  # a unit at a time, so that the first is there first
                return self._loader.load(int(row["start"]), int(row["stop"]))
        rest = json.loads(row["loaded"])
        rest["pictures"] = [tuple(pair) for pair in rest["pictures"]]
        return Loaded(pixels=row["pixels"], **rest)

    def _described(self, loaded: Loaded) -> tuple[Found, dict[str, float]]:
        """Descriptors; seconds that the model took, and seconds that it had nothing to do before."""
        began = time.monotonic()
        idle = began - self._ended if self._ended else 0.0
        described = self._describer.describe(loaded.pixels)
        self._ended = time.monotonic()
        spent = {"model_s": self._ended - began, "idle_s": idle, "halvings": float(self._describer.halvings)}
        self._describer.halvings = 0
        return described, spent

    def _write(self, unit: Unit, loaded: Loaded, described: Found) -> dict[str, float]:
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
        receipt = self._units.put(unit.name, blobs, counts)
        return {**counts, "write_bytes": float(sum(part.bytes for part in receipt.parts))}


class Describe(ModelActor):
    """Model actor of the jobs: MANet on pictures of a table, which it loads itself unless there are decode actors."""

    def __init__(
        self,
        table: Table,
        pictures: PictureConfig,
        model: Artifact,
        units: Units,
        names: tuple[DescriptorName, ...],
        config: "DescribeConfig",
        board: Any = None,  # noqa: ANN401 - a handle of a Ray actor
    ) -> None:
        loader = None if config.decode_actors else partial(make_loader, table, pictures, config)
        super().__init__(units, board, model=partial(self.load, model, names, config), loader=loader)

    @staticmethod
    def load(model: Artifact, names: tuple[DescriptorName, ...], config: "DescribeConfig") -> "Describer":
        """The describer of this process, with its threads bounded."""
        import torch

        from manet.checkpoint import load_model
        from manet.describe import Describer

        torch.set_num_threads(max(1, int(config.model_cpus)))
        return Describer(
            load_model(local_copy(model)),
            names=names,
            device=config.computes_on,
            batch_size=config.batch_size,
            precision=config.precision,
            scales=config.scales,
            compiled=config.compile,
        )


def _part_bytes(ids: list[str], vectors: Mapping[DescriptorName, Array]) -> bytes:
    """A part: `descriptor` for one descriptor, `descriptor_NAME` for each of several."""
    single = len(vectors) == 1
    columns = {"descriptor" if single else f"descriptor_{name}": descriptor_column(v) for name, v in vectors.items()}
    return parquet_bytes(pa.table({"image_id": pa.array(ids, pa.string()), **columns}))
