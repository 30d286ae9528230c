"""How an index is to be searched: measured against exact search, on the running session.

Ray tasks: one a shard gathers queries from it, one a shard finds their true neighbours in it (in bounded memory), and one walks
the settings with the searcher that everything else uses.
"""

import hashlib
import io
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field

from cluster.artifact import Artifact, Blob, Input, Part, open_artifact
from cluster.errors import BadInputError, JobFailedError, ObjectMissingError
from cluster.storage import read_uri
from cluster.tasks import run_tasks
from cluster.telemetry import say
from jobs.querying import dead_rows, open_searcher, read_all
from jobs.sharding import ShardRows
from manet.exact import exact_search
from manet.metrics import bootstrap_interval
from manet.search import Searcher
from manet.tuning import Setting, choose, found_share, mixed, walk

Matrix = np.ndarray[Any, np.dtype[Any]]
K = 7  # answers that a shop shows
_BLOCK = 8192  # rows compared at once
_ALONE = 64  # queries that are timed alone
_BATCH = 100


class TuningConfig(BaseModel):
    """How well an index must find, and at what cost."""

    recall_target: float = Field(default=0.95, gt=0, le=1)
    """Share of the 7 true neighbours (exact search of the same vectors) that must be found: sets nprobe and refine."""
    latency_ms: float = Field(default=0.0, ge=0)
    """Most milliseconds of one query on one thread; 0: whatever the target needs."""
    tuning_queries: int = Field(default=500, ge=1)
    """Queries that recall is measured with: rows of the gallery, each mixed with another one and then not counted itself."""
    queries: str = ""
    """What to search with instead: a descriptors artifact (`search --queries` and `evaluate` write one), or a .npy [Q, D]."""


@dataclass(frozen=True)
class Tuning:
    """The setting that was chosen, all that were seen, and the 95% interval of its recall."""

    chosen: Setting
    seen: list[Setting]
    interval: tuple[float, float]
    queries: int
    target: float

    def summary(self) -> dict[str, Any]:
        """What the manifest says: `open_searcher` takes nprobe and refine from here."""
        return {
            "nprobe": self.chosen.nprobe,
            "refine": self.chosen.refine,
            "recall@7": round(self.chosen.recall, 6),
            "query_ms": self.chosen.ms,
            "recall_target": self.target,
        }

    def report(self) -> dict[str, Any]:
        """What was seen, without times: the same for the same index."""
        rows = [{name: value for name, value in asdict(each).items() if name != "ms"} for each in self.seen]
        low, high = self.interval
        return {
            "recall_target": self.target,
            "queries": self.queries,
            "nprobe": self.chosen.nprobe,
            "refine": self.chosen.refine,
            "recall@7": round(self.chosen.recall, 6),
            "recall@7_low": round(low, 6),
            "recall@7_high": round(high, 6),
            "seen": rows,
        }


@dataclass(frozen=True)
class Queries:
    """Vectors to search with, float32 [Q, D], and where they came from."""

    vectors: Matrix
    source: Input


def open_queries(config: TuningConfig) -> Queries | None:
    """The queries, where they were given.

    Raises:
        BadInputError: no such file, or none of vectors.
    """
    uri = config.queries
    if not uri:
        return None
    if not uri.endswith(".npy"):
        artifact = open_artifact(uri, "descriptors")
        vectors, source = read_all(artifact)[1] if artifact.parts("part-") else np.empty((0, 0)), artifact.as_input()
    else:
        try:
            data = read_uri(uri)
            vectors, source = np.load(io.BytesIO(data)), Input(uri=uri, sha256=hashlib.sha256(data).hexdigest())
        except (ObjectMissingError, ValueError, EOFError) as error:
            raise BadInputError(f"--queries {uri}: no such .npy file, or none of numbers ({error})") from None
    if vectors.ndim != 2 or not len(vectors):
        raise BadInputError(f"--queries {uri}: it holds no vectors [Q, D]")
    return Queries(vectors[: config.tuning_queries].astype(np.float32), source)


def tune(
    index: Artifact, config: TuningConfig, queries: Queries | None, *, seed: int, label: str = "index"
) -> Tuning | None:
    """Measure an index on the running session, and choose how it is searched; None where it is flat, hence exact.

    Args:
        index: a version, or what is to become one (only its parts are looked at).
        config: target and budget.
        queries: what to search with; None: made from the gallery.
        seed: of the choice of queries.
        label: of the messages.

    Raises:
        BadInputError: queries of other dimensions.
    """
    shards = index.parts("shard-", ".faiss")
    dead = dead_rows(index)
    rows_of = ShardRows(index, dead)
    live = sum(part.rows for part in shards) - sum(map(len, dead.values()))
    if index.manifest.summary["factory"] == "Flat" or live <= 1:
        return None
    if queries is not None:
        vectors_QD = queries.vectors
        own: list[str] = [""] * len(vectors_QD)
    else:
        vectors_QD, own = _made_up(rows_of, shards, config.tuning_queries, seed)
    if vectors_QD.shape[1] != index.manifest.summary["dim"]:
        raise BadInputError(
            f"--queries {config.queries}: {vectors_QD.shape[1]} dimensions, the index has {index.manifest.summary['dim']}"
        )
    say(f"{label}: exact answers of {len(vectors_QD)} queries")
    k = min(K, live - 1)
    last_Q = _last_true(rows_of, shards, vectors_QD, own, k)
    work = partial(_walk, index, vectors_QD, own, last_Q, k)
    seen, shares = next(iter(run_tasks(work, [config.recall_target])))
    chosen = choose(seen, config.recall_target, config.latency_ms)
    for each in seen:
        mark = "  <- chosen" if each == chosen else ""
        say(
            f"{label}: nprobe {each.nprobe:5} refine {each.refine:4} recall@7 {each.recall:.4f} "
            f"{each.bytes / 1e3:9.0f} kB {each.ms:7.2f} ms a query{mark}"
        )
    low, high = bootstrap_interval(shares[(chosen.nprobe, chosen.refine)])
    return Tuning(chosen, seen, (low, high), len(vectors_QD), config.recall_target)


def check_tuned(summary: Mapping[str, Any], config: TuningConfig, uri: str) -> None:
    """Fail, after all is saved, where the budget did not allow the target.

    Raises:
        JobFailedError: what was reached, and what to change.
    """
    reached, ms = summary.get("recall@7", 1.0), summary.get("query_ms", 0.0)
    if config.latency_ms and ms > config.latency_ms:
        raise JobFailedError(
            f"{uri} is written, but a query takes {ms} ms, --latency-ms is {config.latency_ms}: give fewer bytes a vector"
        )
    if reached < config.recall_target:
        raise JobFailedError(
            f"{uri} is written, but recall@7 is {reached:.4f} (nprobe {summary['nprobe']}, refine {summary['refine']}), "
            f"--recall-target is {config.recall_target}: give more --memory-per-vector (or --latency-ms), or a lower target"
        )


def _made_up(rows_of: ShardRows, shards: list[Part], count: int, seed: int) -> tuple[Matrix, list[str]]:
    """Queries float32 [Q, D] from rows drawn uniformly over all shards, and the row that each must not find."""
    rng = np.random.default_rng([seed, 7])
    rows = sum(part.rows for part in shards)
    wanted = min(rows, 3 * count)  # some may be deleted
    drawn = rng.permutation(rng.choice(rows, wanted, replace=False))
    first, asked = 0, []
    for part in shards:
        here = np.flatnonzero((drawn >= first) & (drawn < first + part.rows))
        asked.append((part, drawn[here] - first, here))
        first += part.rows
    found: dict[int, tuple[str, Matrix]] = {}
    for each in run_tasks(partial(_rows, rows_of), asked):
        found |= each
    names, vectors = zip(*(found[place] for place in sorted(found)), strict=True)
    half = min(count, len(names) // 2)
    return mixed(np.stack(vectors[:half]), np.stack(vectors[half : 2 * half])), list(names[:half])


def _rows(rows_of: ShardRows, item: tuple[Part, Matrix, Matrix]) -> dict[int, tuple[str, Matrix]]:
    """Place among the drawn -> id and vector of a shard's rows; of those that are deleted nothing."""
    part, rows, places = item
    table, vectors = rows_of(part)
    inside = rows < len(table)
    names = table["image_id"].take(pa.array(rows[inside])).to_pylist()
    chosen = zip(places[inside].tolist(), rows[inside].tolist(), names, strict=True)
    return {place: (name, np.array(vectors[row])) for place, row, name in chosen}


def _last_true(rows_of: ShardRows, shards: list[Part], queries_QD: Matrix, own: list[str], k: int) -> Matrix:
    """Score of each query's k-th true neighbour over all shards [Q]."""
    every = list(run_tasks(partial(_nearest, rows_of, queries_QD, own), shards))
    last: Matrix = -np.sort(-np.concatenate(every, 1), 1)[:, k - 1]
    return last


def _nearest(rows_of: ShardRows, queries_QD: Matrix, own: list[str], part: Part) -> Matrix:
    """Scores of the nearest rows of one shard [Q, up to 8], the query's own row left out."""
    table, vectors = rows_of(part)
    scores, rows = exact_search(vectors, queries_QD, K + 1, block=_BLOCK)
    names = table["image_id"].take(pa.array(rows.ravel())).to_numpy(zero_copy_only=False).reshape(rows.shape)
    return np.where(names == np.array(own, object)[:, None], -np.inf, scores)


def _walk(
    index: Artifact, queries_QD: Matrix, own: list[str], last_Q: Matrix, k: int, target: float
) -> tuple[list[Setting], dict[tuple[int, int], Matrix]]:
    """All settings that were looked at, and each query's share of found neighbours."""
    searcher = open_searcher(index, threads=1, folded=False)
    shares: dict[tuple[int, int], Matrix] = {}

    def measure(nprobe: int, refine: int) -> tuple[float, float]:
        searcher.nprobe, searcher.refine = nprobe, refine
        starts = range(0, len(queries_QD), _BATCH)
        hits = [each for at in starts for each in searcher.search(queries_QD[at : at + _BATCH], k + 1)]
        found = [[hit.score for hit in each if hit.image_id != name][:k] for each, name in zip(hits, own, strict=True)]
        shares[(nprobe, refine)] = found_share(found, last_Q, k)
        return float(shares[(nprobe, refine)].mean()), _alone_ms(searcher, queries_QD[:_ALONE])

    return list(walk(measure, searcher.scale, target)), shares


def _alone_ms(searcher: Searcher, queries_QD: Matrix) -> float:
    """Median milliseconds of a query that is searched alone."""
    times = []
    for place in range(len(queries_QD)):
        started = time.perf_counter()
        searcher.search(queries_QD[place : place + 1], K)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e3, 3)


def plots(tuning: Tuning | None) -> dict[str, Blob]:
    """`recall.png`: recall against the bytes that a query reads, of all settings that were seen."""
    if tuning is None:
        return {}
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for depth in sorted({each.refine for each in tuning.seen}):
        rows = [each for each in tuning.seen if each.refine == depth]
        axes.plot([each.bytes / 1e3 for each in rows], [each.recall for each in rows], "o-", label=f"refine {depth}")
        for each in rows:
            axes.annotate(f"{each.nprobe}", (each.bytes / 1e3, each.recall), textcoords="offset points", xytext=(4, 4))
    axes.plot(
        [tuning.chosen.bytes / 1e3], [tuning.chosen.recall], "ks", markersize=12, fillstyle="none", label="chosen"
    )
    axes.axhline(tuning.target, color="grey", linestyle=":", label="target")
    axes.set(
        xlabel="kB of codes and vectors that a query reads (numbers: cells visited)", ylabel="recall@7", xscale="log"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=120, metadata={"Software": None})
    return {"recall.png": Blob(data=sink.getvalue())}
