"""Exact nearest neighbours by inner product: the reference that indices are measured against."""

from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
BLOCK_ROWS = 65536  # gallery rows compared at once
_BLOCK_QUERIES = 1024  # with so many queries


def exact_search(
    gallery_ND: Matrix, queries_QD: Matrix, k: int, block: int = BLOCK_ROWS, *, live_N: Matrix | None = None
) -> tuple[Matrix, Matrix]:
    """The k gallery rows of largest inner product for each query, in bounded memory.

    Args:
        gallery_ND: rows, which may be mapped from a file.
        queries_QD: what is looked for.
        k: rows wanted of each, cut to N.
        block: gallery rows compared at once.
        live_N: bool; rows that are not score -inf. None: all are.

    Returns:
        scores float32 [Q, k] descending, rows int64 [Q, k]; equal scores in order of row.
    """
    k = min(k, len(gallery_ND))
    queries = queries_QD.astype(np.float32)
    best = [(np.empty(0, np.float32), np.empty(0, np.int64)) for _ in queries]
    for start in range(0, len(gallery_ND), block):
        rows = np.arange(start, min(start + block, len(gallery_ND)))
        vectors = gallery_ND[start : start + block].astype(np.float32)
        for first in range(0, len(queries), _BLOCK_QUERIES):
            found = queries[first : first + _BLOCK_QUERIES] @ vectors.T
            if live_N is not None:
                found[:, ~live_N[rows]] = -np.inf
            for query, scores in enumerate(found, first):
                best[query] = merge_best(best[query], (scores, rows), k)
    shape = (len(queries), k)
    scores = np.array([scores for scores, _ in best], np.float32).reshape(shape)
    return scores, np.array([rows for _, rows in best], np.int64).reshape(shape)


def merge_best(one: tuple[Matrix, Matrix], other: tuple[Matrix, Matrix], k: int) -> tuple[Matrix, Matrix]:
    """The k largest of two lists of (scores, rows), descending; equal scores in order of row."""
    if len(other[0]) > k:  # all that tie with the k-th stay, in order of row
        kept = other[0] >= np.partition(other[0], len(other[0]) - k)[len(other[0]) - k] if k else slice(0, 0)
        other = other[0][kept], other[1][kept]
    scores, rows = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]
