"""Search over the shards of an index: candidates from faiss, re-scored with the stored float16 vectors, merged.

Shape letters: Q queries, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow.parquet as pq

from manet.errors import InputError

Matrix = np.ndarray[Any, np.dtype[Any]]
DEFAULT_REFINE = 100  # candidates a shard
_PROBED_SHARE = 16  # one cell of this many is visited by default, at least _LEAST_PROBES
_LEAST_PROBES = 16


@dataclass(frozen=True, kw_only=True)
class ShardFiles:
    """The three files of a shard."""

    index: Path
    ids: Path
    refine: Path


@dataclass(frozen=True, kw_only=True)
class Hit:
    """One answer: a gallery id, and its inner product with the query (cosine, as all vectors have unit length)."""

    image_id: str
    score: float


class Searcher:
    """Answers queries from shards that were built with the same quantizer.

    Args:
        shards: their files.
        nprobe: cells visited in each shard; 0: a sixteenth of them, 16 at least.
        refine: candidates of each shard that are re-scored; 0: 100, or more where k asks for more.
        threads: OpenMP threads of faiss.

    Raises:
        InputError: no shard, or files of one shard that do not belong together.
    """

    def __init__(self, shards: Sequence[ShardFiles], *, nprobe: int = 0, refine: int = 0, threads: int = 1) -> None:
        if not shards:
            raise InputError("an index without shards")
        faiss.omp_set_num_threads(threads)
        self._refine = refine or DEFAULT_REFINE
        self._shards = [_Shard(files, nprobe) for files in shards]

    def search(self, queries_QD: Matrix, k: int) -> list[list[Hit]]:
        """The k best gallery pictures for every query, best first; equal scores in order of id."""
        queries = np.ascontiguousarray(queries_QD, np.float32)
        if len(queries) == 0:
            return []
        found = [shard.search(queries, max(k, self._refine)) for shard in self._shards]
        answers = []
        for query in range(len(queries)):
            hits = [hit for shard_hits in found for hit in shard_hits[query]]
            answers.append(sorted(hits, key=lambda hit: (-hit.score, hit.image_id))[:k])
        return answers


class _Shard:
    def __init__(self, files: ShardFiles, nprobe: int) -> None:
        self._index = faiss.read_index(str(files.index), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        self._ids = pq.read_table(files.ids, memory_map=True)["image_id"]
        self._vectors = np.load(files.refine, mmap_mode="r")
        counts = {"faiss": self._index.ntotal, "ids": len(self._ids), "refine": len(self._vectors)}
        if len(set(counts.values())) != 1:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise InputError(
                f"{files.index.name}: its files do not belong together: {listed} rows; build the index again"
            )
        inner = self._index
        if isinstance(inner, faiss.IndexPreTransform):
            inner = faiss.downcast_index(inner.index)
        if isinstance(inner, faiss.IndexIVF):
            inner.nprobe = min(inner.nlist, nprobe or max(_LEAST_PROBES, inner.nlist // _PROBED_SHARE))

    def search(self, queries: Matrix, candidates: int) -> list[list[Hit]]:
        if queries.shape[1] != self._index.d:
            raise InputError(f"queries of {queries.shape[1]} dimensions for an index of {self._index.d}")
        _, rows = self._index.search(queries, min(candidates, self._index.ntotal))
        answers = []
        for query, row in zip(queries, rows, strict=True):
            kept = np.sort(row[row >= 0])
            scores = self._vectors[kept].astype(np.float32) @ query
            names = self._ids.take(kept).to_pylist()
            answers.append([Hit(image_id=name, score=float(score)) for name, score in zip(names, scores, strict=True)])
        return answers
