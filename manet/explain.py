"""Why two pictures are alike: which regions of SR-MAC matched which.

The score of two pictures is the inner product of their descriptors; each descriptor is a sum of its regions' parts
(`manet.pooling.sr_mac_parts`), so the score is the sum over all pairs of regions of the parts' inner products.

Shape letters: R regions of one picture, S of the other, D descriptor length.
"""

from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]


def contributions(parts_RD: Matrix, parts_SD: Matrix) -> Matrix:
    """What each pair of regions adds to the score, float64 [R, S]: their sum is the score, descriptors' rounding aside."""
    found: Matrix = parts_RD.astype(np.float64) @ parts_SD.astype(np.float64).T
    return found


def strongest(pairs_RS: Matrix, count: int) -> list[tuple[int, int, float]]:
    """The `count` pairs that add most, as (region, region of the other, part), strongest first.

    A region is named once: its best partner tells what it saw, and its other pairs would only repeat it.
    """
    order = np.argsort(-pairs_RS, axis=None, kind="stable")
    rows, columns = np.unravel_index(order, pairs_RS.shape)
    found: list[tuple[int, int, float]] = []
    used: tuple[set[int], set[int]] = (set(), set())
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        if len(found) == count or pairs_RS[row, column] <= 0:
            break
        if row not in used[0] and column not in used[1]:
            found.append((row, column, float(pairs_RS[row, column])))
            used[0].add(row)
            used[1].add(column)
    return found
