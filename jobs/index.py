"""Build a sharded index: descriptors -> index.

  manet index --descriptors s3://shop/descriptors --out s3://shop/index

Ray tasks: one trains the quantizer (rotation, IVF, PQ) on a uniform sample of all parts, then each shard is built from its own
descriptor parts with that same quantizer. Writes stock faiss files (`trained.faiss`, `shard-*.faiss`), the shards' ids and
float16 vectors (`shard-*.ids.parquet`, `shard-*.refine.npy`), `query.json` (how a query must be described) and
`report.json`. The same command again keeps the finished shards.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, Part, open_artifact, put_unit
from cluster.errors import BadInputError, IntegrityError
from cluster.session import ray_session
from cluster.storage import Store
from cluster.tasks import run_tasks
from cluster.telemetry import Meter, say
from jobs.config import JobConfig, how
from jobs.make import make
from jobs.parquet import parquet_bytes
from jobs.querying import QuerySpec, read_descriptors

TRAINED, REPORT = "trained", "report"  # names of the units beside the shards


class Config(JobConfig):
    """Flags of `manet index`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("descriptors",)

    descriptors: str
    """Descriptors artifact."""
    factory: str = "auto"
    """faiss index factory string, or `auto`: flat while a quantizer would lack training points, else rotation,IVF,PQ."""
    shard_rows: int = Field(default=131072, ge=1)
    """Most rows of a shard (shards are cut at the borders of descriptor parts)."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling and training."""
    train_cpus: float = how(1.0, gt=0)
    """CPUs (threads) that train the quantizer."""
    train_gpus: int = how(0, ge=0)
    """GPUs that train the quantizer; 0: it is trained on the CPU."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    descriptors = open_artifact(config.descriptors, "descriptors")
    return make(config, "index", {"descriptors": descriptors.as_input()}, partial(_build, config, descriptors))


def _build(config: Config, descriptors: Artifact, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    from manet.index import check_factory, choose_factory

    parts = [part for part in descriptors.parts("part-") if part.rows]
    rows = sum(part.rows for part in parts)
    if not rows:
        raise BadInputError(f"--descriptors {descriptors.uri}: no descriptor to index")
    dim = read_descriptors(descriptors, parts[0])[1].shape[1]
    factory, reason = (
        choose_factory(rows, dim) if config.factory == "auto" else (config.factory, "asked for by --factory")
    )
    check_factory(factory, dim)
    say(f"index: {rows} x {dim}, {factory}: {reason}")
    shards = cut_shards(parts, config.shard_rows)
    done = writer.finished()
    with ray_session(config):
        if TRAINED not in done:
            train = partial(_train_quantizer, writer.store, descriptors, config, factory)
            list(run_tasks(train, [parts], cpus=config.train_cpus, gpus=config.train_gpus))
        todo = [shard for shard in shards if shard.name not in done]
        with Meter("index", rows, "rows") as meter:
            meter.advance(rows - sum(shard.rows for shard in todo))
            for count in run_tasks(partial(_build_shard, writer.store, descriptors), todo):
                meter.advance(count)
    _reconcile(writer, shards)
    summary = {"rows": rows, "dim": dim, "factory": factory, "reason": reason, "shards": len(shards)}
    put_unit(writer.store, REPORT, {"report.json": Blob(data=json.dumps(summary, indent=1).encode())})
    return [TRAINED, *(shard.name for shard in shards), REPORT], summary


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Descriptor parts that make one shard."""

    name: str
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        """Rows of the shard."""
        return sum(part.rows for part in self.parts)


def cut_shards(parts: Sequence[Part], shard_rows: int) -> list[Shard]:
    """Cut parts into shards of at most `shard_rows` rows (one part at least), in order, from the manifest alone."""
    groups: list[list[Part]] = []
    for part in parts:
        if not groups or sum(p.rows for p in groups[-1]) + part.rows > shard_rows:
            groups.append([])
        groups[-1].append(part)
    return [Shard(name=f"shard-{index:05d}", parts=tuple(group)) for index, group in enumerate(groups)]


def _train_quantizer(store: Store, descriptors: Artifact, config: Config, factory: str, parts: list[Part]) -> None:
    """Train on a uniform sample over all rows of all parts."""
    from manet.index import train, training_rows

    rows = sum(part.rows for part in parts)
    wanted = min(rows, training_rows(factory, rows))
    chosen = np.sort(np.random.default_rng(config.seed).choice(rows, wanted, replace=False))
    sample, first = [], 0
    for part in parts:
        here = chosen[(chosen >= first) & (chosen < first + part.rows)] - first
        if here.size:
            sample.append(read_descriptors(descriptors, part)[1][here])
        first += part.rows
    vectors = np.concatenate(sample)
    trained = train(vectors, factory, seed=config.seed, threads=max(1, int(config.train_cpus)), gpus=config.train_gpus)
    spec = QuerySpec.of(descriptors)
    put_unit(
        store,
        TRAINED,
        {"trained.faiss": Blob(data=trained), "query.json": Blob(data=spec.model_dump_json(indent=1).encode())},
    )


def _build_shard(store: Store, descriptors: Artifact, shard: Shard) -> int:
    """Add a shard's parts to the trained quantizer, one part in memory at a time."""
    import faiss

    from manet.index import build_shard

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store.download("trained.faiss", folder / "trained.faiss")
        dim = faiss.read_index(str(folder / "trained.faiss")).d
        refine = np.lib.format.open_memmap(folder / "refine.npy", "w+", np.float16, (shard.rows, dim))
        ids: list[str] = []

        def blocks() -> Iterator[np.ndarray[Any, np.dtype[np.float16]]]:
            for part in shard.parts:
                names, vectors = read_descriptors(descriptors, part)
                refine[len(ids) : len(ids) + len(names)] = vectors
                ids.extend(names)
                yield vectors

        index = build_shard((folder / "trained.faiss").read_bytes(), blocks(), threads=1)
        refine.flush()
        faiss.write_index(index, str(folder / "shard.faiss"))
        table = parquet_bytes(pa.table({"image_id": pa.array(ids, pa.string())}))
        blobs = {
            f"{shard.name}.faiss": Blob(data=folder / "shard.faiss", rows=int(index.ntotal)),
            f"{shard.name}.ids.parquet": Blob(data=table, rows=len(ids)),
            f"{shard.name}.refine.npy": Blob(data=folder / "refine.npy", rows=shard.rows),
        }
        put_unit(store, shard.name, blobs, {"rows": shard.rows})
    return shard.rows


def _reconcile(writer: ArtifactWriter, shards: list[Shard]) -> None:
    """Each shard's stored ids are as many as its descriptors."""
    for shard in shards:
        with writer.store.open(f"{shard.name}.ids.parquet") as file:
            stored = pq.ParquetFile(file).metadata.num_rows
        if stored != shard.rows:
            raise IntegrityError(f"{writer.store.uri(shard.name)}: {stored} ids for {shard.rows} descriptors")
