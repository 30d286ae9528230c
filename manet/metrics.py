"""Retrieval metrics. Source: METHOD.md "MAP@7"."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from manet.errors import InputError

BOOTSTRAPS = 1000
Vectors = np.ndarray[Any, np.dtype[np.float32]]


def average_precision(ranked: Sequence[str], relevant: Collection[str], k: int = 7) -> float:
    """AP@k as the challenge's public code has it: the divisor is the number of hits among the k answers."""
    total, hits = _precision_sum(ranked, relevant, k)
    return total / hits if hits else 0.0


def average_precision_standard(ranked: Sequence[str], relevant: Collection[str], k: int = 7) -> float:
    """AP@k in its standard form: the divisor is min(k, number of relevant ids)."""
    total, _ = _precision_sum(ranked, relevant, k)
    return total / min(k, len(relevant))


def _precision_sum(ranked: Sequence[str], relevant: Collection[str], k: int) -> tuple[float, int]:
    """Sum of hits-so-far / rank over the ranks that hold a hit, and the number of hits."""
    hits, total = 0, 0.0
    for rank, answer in enumerate(ranked[:k], 1):
        if answer in relevant:
            hits += 1
            total += hits / rank
    return total, hits


def pairs_average_precision(query_NC: Vectors, gallery_NC: Vectors, k: int = 7) -> float:
    """MAP@k of pairs: row i of the gallery is the one answer to query i, so that it is the mean of 1 / rank, or of 0 beyond k.

    Args:
        query_NC: unit-length descriptors.
        gallery_NC: as many; those as near as the right one stand before it.
        k: answers that are looked at.
    """
    scores = []
    for start in range(0, len(query_NC), 1024):
        similarity = query_NC[start : start + 1024] @ gallery_NC.T
        own = np.diagonal(similarity, start)[:, None]
        rank = (~(similarity < own)).sum(1)  # what is not a number is behind all
        scores.append(np.where(rank <= k, 1 / rank, 0.0))
    return float(np.concatenate(scores).mean()) if scores else 0.0


def drop_self(ranked: Sequence[str], query: str, k: int) -> list[str]:
    """The first k answers other than the query's own id."""
    return [answer for answer in ranked if answer != query][:k]


def retrieval_metrics(
    ranked: Mapping[str, Sequence[str]], relevant: Mapping[str, Collection[str]], k: int = 7
) -> dict[str, float]:
    """MAP@k in both forms, recall@1, recall@k (shares of queries with a hit so early), and MAP@k's 95% interval.

    Args:
        ranked: query id -> its answers, best first; a query without answers scores 0.
        relevant: query id -> the ids that answer it, its own left out; its keys are the queries that count.
        k: answers that are looked at.

    Raises:
        InputError: no queries, or one without a relevant id.
    """
    if not relevant:
        raise InputError("no queries to evaluate")
    answers = [(ranked.get(query, ()), set(ids) - {query}) for query, ids in relevant.items()]
    for query, (_, ids) in zip(relevant, answers, strict=True):
        if not ids:
            raise InputError(f"query {query!r} has no relevant id but its own; drop it or name its gallery pictures")
    scores = np.array([average_precision(ranks, ids, k) for ranks, ids in answers])
    low, high = bootstrap_interval(scores)
    return {
        f"map@{k}": round(float(scores.mean()), 6),
        f"map@{k}_low": round(low, 6),
        f"map@{k}_high": round(high, 6),
        f"map@{k}_standard": round(
            float(np.mean([average_precision_standard(ranks, ids, k) for ranks, ids in answers])), 6
        ),
        "recall@1": round(float(np.mean([bool(ids & set(ranks[:1])) for ranks, ids in answers])), 6),
        f"recall@{k}": round(float(np.mean([bool(ids & set(ranks[:k])) for ranks, ids in answers])), 6),
        "queries": len(answers),
    }


def paired_interval(
    ranked: Mapping[str, Sequence[str]],
    other: Mapping[str, Sequence[str]],
    relevant: Mapping[str, Collection[str]],
    k: int = 7,
    *,
    by_product: bool = False,
) -> tuple[float, float, float]:
    """MAP@k of `ranked` less that of `other` over the same queries: the mean, and its 95% bootstrap interval.

    Args:
        ranked, other: query id -> its answers, best first.
        relevant: query id -> the ids that answer it.
        k: answers that are looked at.
        by_product: whether products are resampled rather than queries: all queries with the same relevant ids together. The
            interval then tells of other products; the plain one tells of other photographs of these.
    """
    differences = np.array(
        [
            average_precision(ranked.get(query, ()), set(ids), k) - average_precision(other.get(query, ()), set(ids), k)
            for query, ids in relevant.items()
        ]
    )
    low, high = bootstrap_interval(differences, products_of(relevant) if by_product else None)
    return float(differences.mean()), low, high


def products_of(relevant: Mapping[str, Collection[str]]) -> list[int]:
    """A number for each query: the same one for queries with the same relevant ids."""
    numbers: dict[frozenset[str], int] = {}
    return [numbers.setdefault(frozenset(ids), len(numbers)) for ids in relevant.values()]


def bootstrap_interval(scores: np.ndarray, groups: Sequence[int] | None = None, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of the mean over resampled scores, seeded; with groups (0, 1, ... for each score), over resampled
    groups, whose scores stay together: the cluster bootstrap.
    """
    places = np.arange(len(scores)) if groups is None else np.asarray(groups)
    sums, counts = np.bincount(places, scores), np.bincount(places)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(BOOTSTRAPS):
        drawn = rng.integers(0, len(sums), len(sums))
        means.append(sums[drawn].sum() / counts[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
