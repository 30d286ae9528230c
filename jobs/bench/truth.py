"""What the index benches share: recall against exact answers, a gallery as one file, tables on stderr."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cluster.artifact import Artifact
from cluster.telemetry import say
from jobs.querying import read_descriptors

Matrix = np.ndarray[Any, np.dtype[Any]]


def gallery_file(descriptors: Artifact, path: Path) -> list[str]:
    """Write all vectors of an artifact into one .npy, float16 [N, D], part by part; their ids in that order."""
    parts = [part for part in descriptors.parts("part-") if part.rows]
    ids: list[str] = []
    out = None
    for part in parts:
        names, vectors = read_descriptors(descriptors, part)
        if out is None:
            shape = (sum(each.rows for each in parts), vectors.shape[1])
            out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        out[len(ids) : len(ids) + len(names)] = vectors
        ids += names
    if out is not None:
        out.flush()
    return ids


def recall(found: Sequence[Sequence[int]], truth_QK: Matrix) -> float:
    """Share of the true neighbours that were found: |found and true| / |true|, over all queries."""
    hits = sum(len(set(rows) & set(true)) for rows, true in zip(found, truth_QK.tolist(), strict=True))
    return round(hits / truth_QK.size, 4)


def say_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of equal keys as an aligned table on stderr."""
    if not rows:
        return
    cells = [list(rows[0]), *[["-" if value is None else str(value) for value in row.values()] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        say("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
