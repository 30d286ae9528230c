"""Find near-duplicates of a gallery: index -> groups.

  manet dedup --index s3://shop/index --threshold 0.97 --out s3://shop/groups
  manet index --descriptors s3://shop/descriptors --dedup s3://shop/groups --out s3://shop/deduplicated

Each picture's neighbours are looked up through the index, one Ray task a shard, never all pairs; pictures whose similarity
passes the threshold are joined, and so are those that are joined through others. Writes `groups.parquet` (image_id,
group), where a group is named by its first id; pictures alone have no row. `index --dedup` lets a group answer once.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from cluster.artifact import Artifact, ArtifactWriter, Blob, Part
from cluster.session import ray_session
from cluster.tasks import run_tasks
from cluster.telemetry import Meter
from jobs.config import JobConfig
from jobs.inputs import cache_folder
from jobs.make import make
from jobs.parquet import parquet_bytes, read_parquet
from jobs.querying import dead_rows, open_index, worker_searcher

GROUPS = pa.schema([("image_id", pa.string()), ("group", pa.string())])
_ROUNDED = 1e-6  # by which two sums of the same products may differ
_BATCH = 256  # pictures looked up at once
Pairs = list[tuple[str, str]]


class Config(JobConfig):
    """Flags of `manet dedup`."""

    INPUTS: ClassVar[tuple[str, ...]] = ("index",)

    index: str
    """Index artifact."""
    threshold: float = Field(default=0.97, gt=0, le=1)
    """Least similarity (cosine) of two pictures that are near-duplicates."""
    neighbours: int = Field(default=16, ge=1, le=1000)
    """Neighbours looked at for each picture."""
    nprobe: int = Field(default=0, ge=0)
    """Cells visited; 0: what the index was tuned to."""


def run(config: Config) -> dict[str, Any]:
    """Run the job; returns its summary."""
    index = open_index(config.index)
    return make(config, "groups", {"index": index.as_input()}, partial(_build, config, index))


def _build(config: Config, index: Artifact, writer: ArtifactWriter) -> tuple[list[str], dict[str, Any]]:
    pairs: Pairs = []
    shards = index.parts("shard-", ".faiss")
    with ray_session(config), Meter("dedup", sum(part.rows for part in shards), "rows") as meter:
        for rows, found in run_tasks(partial(_pairs, index, config), shards):
            pairs += found
            meter.advance(rows)
    groups = joined(pairs)
    table = pa.table([list(groups), list(groups.values())], schema=GROUPS)
    blob = Blob(data=parquet_bytes(table), rows=len(table))
    writer.units.put("groups", {"groups.parquet": blob})
    return ["groups"], {"pictures": len(groups), "groups": len(set(groups.values())), "threshold": config.threshold}


def _pairs(index: Artifact, config: Config, part: Part) -> tuple[int, Pairs]:
    """Pairs of near-duplicates whose first is in one shard, and the shard's rows."""
    searcher = worker_searcher(
        index, nprobe=config.nprobe, folded=False, expand=0
    )  # groups that it has are found again
    name = part.name.removesuffix(".faiss")
    by_name = {each.name: index.local(each, cache_folder()) for each in index.parts(f"{name}.") if each != part}
    ids = read_parquet(by_name[f"{name}.ids.parquet"], ["image_id"])["image_id"].to_pylist()
    vectors = np.load(by_name[f"{name}.refine.npy"], mmap_mode="r")
    live = np.setdiff1d(np.arange(len(ids)), dead_rows(index).get(name, ()))
    pairs: Pairs = []
    for start in range(0, len(live), _BATCH):
        rows = live[start : start + _BATCH]
        names = [ids[row] for row in rows]
        found = searcher.search(vectors[rows], config.neighbours, stored=True, own=names)
        squares = np.square(vectors[rows].astype(np.float32)).sum(1)  # not quite 1, in float16
        least = config.threshold * np.clip(squares, 0.99, 1) - _ROUNDED
        for name, hits, bound in zip(names, found, least.tolist(), strict=True):
            pairs += [(name, hit.image_id) for hit in hits if hit.score >= bound]
    return part.rows, pairs


def joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """id -> the first id, in order, of all that pairs connect it to; ids in order."""
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while (parent := parents.setdefault(name, name)) != name:
            parents[name] = name = parents[parent]
        return name

    for one, other in pairs:
        low, high = sorted((root(one), root(other)))
        parents[high] = low
    return {name: root(name) for name in sorted(parents)}
