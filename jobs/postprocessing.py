"""What an index makes of descriptors before it stores them: whitened, then averaged with their neighbours (both are options).

Queries go the same way: `open_searcher` gives the whitening to the searcher, which applies it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from cluster.artifact import Artifact, Blob, Part, Receipt, Units
from cluster.tasks import run_tasks
from jobs.querying import Vectors, whitening_of, worker_searcher
from jobs.sharding import Rows, sampled
from manet.whitening import Matrix, learn_whitening, whiten

OPTIONS = ("whiten", "augment", "expand")  # in an index's summary, where they are asked for
WHITENING = "whitening"  # the unit, and its one file whitening.npy
SAMPLE = 65536  # rows that the whitening is learned on
_BATCH = 256  # rows whose neighbours are looked up at once


@dataclass(frozen=True)
class WhitenedRows:
    """Rows of another source, whitened."""

    rows_of: Rows
    matrix: Matrix

    def __call__(self, part: Part) -> tuple[pa.Table, Vectors]:
        """A part's ids and details, and its vectors."""
        table, vectors = self.rows_of(part)
        return table, whiten(self.matrix, vectors).astype(np.float16)


@dataclass(frozen=True)
class AugmentedRows:
    """Rows of another source, each with its nearest rows of an index added (database augmentation).

    Args:
        rows_of: vectors as that index stores them.
        index: an index, or what is to become one.
        count: neighbours.
        inside: the rows are in the index themselves.
        without: ids of the index that are no neighbours.
    """

    rows_of: Rows
    index: Artifact
    count: int
    inside: bool
    without: tuple[str, ...] = ()

    def __call__(self, part: Part) -> tuple[pa.Table, Vectors]:
        """A part's ids and details, and its vectors."""
        table, vectors = self.rows_of(part)
        searcher = worker_searcher(self.index, expand=0)
        allowed = searcher.allow(without=self.without) if self.without else None
        blocks = [
            searcher.expanded(vectors[at : at + _BATCH], self.count, allowed=allowed, inside=self.inside).astype(
                np.float16
            )
            for at in range(0, len(vectors), _BATCH)
        ]
        return table, np.concatenate([vectors[:0], *blocks])


def learned_whitening(units: Units, rows_of: Rows, parts: list[Part], dim: int, power: float, seed: int) -> Receipt:
    """The unit of the whitening: as it stands, or learned by one Ray task on the running session.

    Args:
        units: of the index.
        rows_of: a part -> its rows.
        parts: what it is learned on.
        dim, power: as `learn_whitening`.
        seed: of the sample.
    """
    standing = units.finished(WHITENING)
    return standing or next(iter(run_tasks(partial(_learn, units, rows_of, dim, power, seed), [parts])))


def _learn(units: Units, rows_of: Rows, dim: int, power: float, seed: int, parts: list[Part]) -> Receipt:
    sink = io.BytesIO()
    np.save(sink, learn_whitening(sampled(rows_of, parts, SAMPLE, seed), dim, power), allow_pickle=False)
    return units.put(WHITENING, {f"{WHITENING}.npy": Blob(data=sink.getvalue())})


def whitened(index: Artifact, rows_of: Rows) -> Rows:
    """Descriptors as an index (or what is to become one) whitens them, where it does."""
    matrix = whitening_of(index)
    return rows_of if matrix is None else WhitenedRows(rows_of, matrix)


def processed(index: Artifact, rows_of: Rows, replaced: Sequence[str]) -> Rows:
    """New descriptors as an index of these options stores them; `replaced` rows of it are on their way out."""
    rows_of = whitened(index, rows_of)
    if count := index.manifest.summary.get("augment", 0):
        rows_of = AugmentedRows(rows_of, index, count, inside=False, without=tuple(replaced))
    return rows_of
