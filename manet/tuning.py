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
# Share of another row in a made-up query: then it needs as many cells as a customer's photo (BENCHMARKS.md).
_MIXED = 0.15
_ALIKE = 1e-5  # two sums of the same products in another order differ by less
_IDLE = 2  # doublings of the cells without a gain, after which no more are tried
_FINEST = 16  # the number of cells is found to a sixteenth
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
    """The settings worth a look: with each doubling of the cells, fewer candidates are tried until the target is missed; then
    the cells of the cheapest setting are halved in between.

    The doubling ends when no cheaper setting is left, when all cells are visited, or when more cells find no more (the codes,
    not the cells, lose the rest).

    Args:
        measure: (nprobe, refine) -> recall and milliseconds a query.
        scale: what a setting costs.
        target: recall to reach.
        depths: candidates to try, ascending.
    """
    left, before, idle, nprobe = list(depths), 0.0, 0, 1
    best: Setting | None = None
    while left and idle < _IDLE and (best is None or scale.bytes(nprobe, left[0]) < best.bytes):
        tried = []
        for refine in reversed(left):
            tried.append(_measured(measure, scale, nprobe, refine))
            yield tried[-1]
            if tried[-1].recall < target:
                break
        idle = idle + 1 if tried[0].recall < before + _GAIN else 0
        before = tried[0].recall
        reached = [each for each in tried if each.recall >= target]
        if reached:
            best = min([*reached, *([best] if best else [])], key=lambda each: each.bytes)
            left, before, idle = [depth for depth in left if depth < reached[-1].refine], 0.0, 0
        if nprobe == scale.cells:
            break
        nprobe = min(2 * nprobe, scale.cells)
    if best is None:
        return
    low, high = best.nprobe // 2, best.nprobe  # the first misses the target, the second reaches it
    while high - low > max(1, best.nprobe // _FINEST):
        middle = _measured(measure, scale, (low + high) // 2, best.refine)
        yield middle
        low, high = (low, middle.nprobe) if middle.recall >= target else (middle.nprobe, high)


def _measured(measure: Callable[[int, int], tuple[float, float]], scale: Scale, nprobe: int, refine: int) -> Setting:
    recall, ms = measure(nprobe, refine)
    return Setting(nprobe=nprobe, refine=refine, recall=recall, bytes=scale.bytes(nprobe, refine), ms=ms)


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
