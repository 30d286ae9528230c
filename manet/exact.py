"""Exact nearest neighbours by inner product: the reference that indices are measured against."""

from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
BLOCK_ROWS = 65536  # gallery rows compared at once


def exact_search(gallery_ND: Matrix, queries_QD: Matrix, k: int, block: int = BLOCK_ROWS) -> tuple[Matrix, Matrix]:
    """The k gallery rows of largest inner product for each query, in bounded memory.

    Returns:
        scores float32 [Q, k] descending, rows int64 [Q, k]; equal scores in order of row. k is cut to N.
    """
    k = min(k, len(gallery_ND))
    queries = queries_QD.astype(np.float32)
    scores = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(gallery_ND), block):
        found = queries @ gallery_ND[start : start + block].astype(np.float32).T
        scores = np.concatenate([scores, found], 1)
        rows = np.concatenate([rows, np.broadcast_to(np.arange(start, start + found.shape[1]), found.shape)], 1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores, rows = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
    return scores, rows
