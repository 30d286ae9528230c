"""Choosing how an index is searched: the cheapest setting that reaches a recall, walked from the cheap end.

Recall is that of the k true neighbours by exact search of the same vectors. A neighbour counts as found when the answer in
its place is as close as it: of several equally close rows any will do.

Shape letters: Q queries, D dimensions, K answers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
DEPTHS = (25, 50, 100, 200, 400, 800)  # candidates re-scored, tried in turn
_MIXED = (
    0.15  # share of another row in a made-up query: then it needs as many cells as a customer's photo (BENCHMARKS.md)
)
_ALIKE = 1e-5  # two sums of the same products in another order differ by less
_GAIN = 0.001  # recall that twice the cells must add, else the codes are what limits it


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One way to search: cells visited, candidates re-scored, what that finds and what it costs."""

    nprobe: int
    refine: int
    recall: float
    bytes: int
    """Codes and stored vectors that a query reads, expected."""
    ms: float
    """Median of a query alone on one thread, milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What decides how many bytes a query reads."""

    rows: int
    cells: int
    code_bytes: int
    vector_bytes: int

    def bytes(self, nprobe: int, refine: int) -> int:
        """Expected bytes of codes and vectors that a query reads."""
        return round(nprobe / self.cells * self.rows * self.code_bytes) + refine * self.vector_bytes


def mixed(own_QD: Matrix, other_QD: Matrix) -> Matrix:
    """Queries near the gallery but not of it, float32 [Q, D] of unit length: each row with a share of another one."""
    queries_QD = (1 - _MIXED) * own_QD.astype(np.float32) + _MIXED * other_QD.astype(np.float32)
    unit_QD: Matrix = queries_QD / np.linalg.norm(queries_QD, axis=1, keepdims=True)
    return unit_QD


def found_share(found: list[list[float]], last_true_Q: Matrix, k: int) -> Matrix:
    """Share of each query's k true neighbours that its answers hold [Q].

    Args:
        found: scores of each query's answers.
        last_true_Q: score of each query's k-th true neighbour.
        k: neighbours.
    """
    pairs = zip(found, last_true_Q.tolist(), strict=True)
    return np.array([min(k, sum(score >= last - _ALIKE for score in scores)) / k for scores, last in pairs])


def walk(
    measure: Callable[[int, int], tuple[float, float]], scale: Scale, target: float, depths: tuple[int, ...] = DEPTHS
) -> Iterator[Setting]:
    """The settings worth a look: with each doubling of the cells, fewer candidates are tried until the target is missed.

    Ends when no cheaper setting is left, when all cells are visited, or when more cells find no more (the codes, not the
    cells, lose the rest).

    Args:
        measure: (nprobe, refine) -> recall and milliseconds a query.
        scale: what a setting costs.
        target: recall to reach.
        depths: candidates to try, ascending.
    """
    left, cheapest, before, idle, nprobe = list(depths), None, 0.0, 0, 1
    while True:
        deepest, reached = None, None
        for refine in reversed(left):
            recall, ms = measure(nprobe, refine)
            cost = scale.bytes(nprobe, refine)
            yield Setting(nprobe=nprobe, refine=refine, recall=recall, bytes=cost, ms=ms)
            deepest = recall if deepest is None else deepest
            if recall < target:
                break
            reached, cheapest = refine, min(cost, cheapest or cost)
        idle = idle + 1 if deepest is not None and deepest < before + _GAIN else 0
        before = deepest or 0.0
        if reached is not None:
            left, before, idle = [depth for depth in left if depth < reached], 0.0, 0
        nprobe *= 2
        if not left or nprobe >= 2 * scale.cells or idle > 1:
            return
        nprobe = min(nprobe, scale.cells)
        if cheapest is not None and scale.bytes(nprobe, left[0]) >= cheapest:
            return


def choose(settings: list[Setting], target: float, latency_ms: float = 0.0) -> Setting:
    """The setting that reads the fewest bytes among those that reach the target; where none does, that of best recall.

    Args:
        settings: what was seen, at least one.
        target: recall to reach.
        latency_ms: most milliseconds of a query alone; 0: any. Where none is so quick, the quickest is taken.
    """
    quick = [each for each in settings if not latency_ms or each.ms <= latency_ms]
    if not quick:
        return min(settings, key=lambda each: each.ms)
    good = [each for each in quick if each.recall >= target]
    if good:
        return min(good, key=lambda each: (each.bytes, each.nprobe))
    return max(quick, key=lambda each: (each.recall, -each.bytes))
