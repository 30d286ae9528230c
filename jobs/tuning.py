"""How an index is to be searched: measured against exact search, on the running session.

Ray tasks: one a shard gathers queries from it, one a shard finds their true neighbours in it (in bounded memory), and one walks
the settings with the searcher that everything else uses.
"""

import hashlib
import io
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from cluster.artifact import Artifact, Blob, Input, Part, open_artifact
from cluster.errors import BadInputError, JobFailedError, ObjectMissingError
from cluster.storage import split_uri
from cluster.tasks import run_tasks
from cluster.telemetry import say
from jobs.querying import QuerySpec, dead_rows, open_searcher, query_dim, query_spec, read_all, whitening_of
from jobs.sharding import ShardRows
from manet.exact import exact_search
from manet.metrics import bootstrap_interval
from manet.search import DEFAULT_REFINE, USUAL_ANSWERS, Searcher
from manet.tuning import DEPTHS, Setting, choose, found_share, mixed, walk
from manet.whitening import whiten

Matrix = np.ndarray[Any, np.dtype[Any]]
K = USUAL_ANSWERS
EXACT = {"recall@7": 1.0}  # what a flat index says in their place
TUNED = ("nprobe", "refine", "recall@7", "query_ms", "recall_target", "latency_ms")  # what a manifest says of it
MEASURED = ("recall@7", "query_ms", "seconds", "train_s", "fill_s")  # what a change of the rows makes untrue
_BLOCK = 8192  # rows compared at once
_ALONE = 64  # queries that are timed alone
_BATCH = 100


class TuningConfig(BaseModel):
    """How well an index must find, and at what cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    recall_target: float = Field(default=0.95, gt=0, le=1)
    """Share of the 7 true neighbours (exact search of the same vectors) that must be found: sets nprobe and refine."""
    latency_ms: float = Field(default=0.0, ge=0)
    """Most milliseconds of one query on one thread, without query expansion; 0: whatever the target needs."""
    tuning_queries: int = Field(default=500, ge=1, le=10_000)
    """Queries that recall is measured with: rows of the gallery, each mixed with another one and then not counted itself; as
    many are drawn where queries are given."""
    queries: str = ""
    """What recall is measured with instead: a descriptors artifact (`search` and `evaluate` write one), or a .npy [Q, D]."""


@dataclass(frozen=True)
class Tuning:
    """The setting that was chosen, all that were seen, and the 95% interval of its recall."""

    chosen: Setting
    seen: list[Setting]
    interval: tuple[float, float]
    queries: int
    target: float
    latency_ms: float

    def summary(self) -> dict[str, Any]:
        """What the manifest says: `open_searcher` takes nprobe and refine from here."""
        return {
            "nprobe": self.chosen.nprobe,
            "refine": self.chosen.refine,
            "recall@7": round(self.chosen.recall, 6),
            "query_ms": self.chosen.ms,
            "recall_target": self.target,
            "latency_ms": self.latency_ms,
        }

    def report(self) -> dict[str, Any]:
        """What was seen, without times: the same for the same index (with --latency-ms, on an equally quick machine)."""
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
    """Vectors to search with, float32 [Q, D] of unit length, where they came from, and what described them if that is known."""

    vectors: Matrix
    source: Input
    spec: QuerySpec | None

    def check(self, dim: int, spec: QuerySpec | None) -> None:
        """Refuse queries that an index of `dim` dimensions, whose gallery was described by `spec`, never gets.

        Raises:
            BadInputError: other dimensions, or another model, descriptor, size, precision, or other scales.
        """
        where = f"--queries {self.source.uri}"
        if self.vectors.shape[1] != dim:
            raise BadInputError(f"{where}: {self.vectors.shape[1]} dimensions, the index has {dim}")
        if self.spec is not None and spec is not None:
            self.spec.refuse_other(spec, where)


def open_queries(config: TuningConfig) -> Queries | None:
    """The queries, where they were given: at most `tuning_queries` of them, drawn from all.

    Raises:
        BadInputError: no such file, or none of vectors.
    """
    uri = config.queries
    if not uri:
        return None
    spec = None
    try:
        if uri.endswith(".npy"):
            store, name = split_uri(uri)
            data = store.read(name)
            found = Input(uri=store.uri(name), sha256=hashlib.sha256(data).hexdigest())
            vectors, source = np.load(io.BytesIO(data)), found
        else:
            artifact = open_artifact(uri, "descriptors")
            spec = QuerySpec.of(artifact) if "model" in artifact.manifest.inputs else None
            vectors, source = read_all(artifact)[1], artifact.as_input()
        drawn = np.random.default_rng(0).permutation(len(vectors))[: config.tuning_queries]
        chosen = vectors[np.sort(drawn)].astype(np.float32)
        lengths = np.linalg.norm(chosen, axis=1, keepdims=True)
    except (ObjectMissingError, ValueError, TypeError, IndexError, EOFError, AttributeError) as error:
        raise BadInputError(f"--queries {uri}: no table of vectors [Q, D] in it ({error})") from None
    if chosen.ndim != 2 or not len(chosen) or not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise BadInputError(f"--queries {uri}: it needs vectors [Q, D], finite and not zero")
    return Queries(chosen / lengths, source, spec)


def tune(
    index: Artifact, config: TuningConfig, queries: Queries | None, *, seed: int, label: str = "index"
) -> Tuning | None:
    """Measure an index on the running session, and choose how it is searched; None where it is flat, hence exact.

    Args:
        index: a version, or what is to become one (its parts, `factory` of its summary and its inputs are looked at).
        config: target and budget.
        queries: what to search with; None: made from the gallery.
        seed: of the choice of queries.
        label: of the messages.

    Raises:
        BadInputError: queries that this index never gets.
    """
    shards = index.parts("shard-", ".faiss")
    dead = dead_rows(index)
    rows_of = ShardRows(index, dead)
    live = sum(part.rows for part in shards) - sum(map(len, dead.values()))
    if index.manifest.summary["factory"] == "Flat" or live <= 1:
        say(f"{label}: {'a flat index is exact' if live > 1 else f'{live} rows'}: nothing to tune")
        return None
    counts = [part.rows - len(dead.get(part.name.removesuffix(".faiss"), ())) for part in shards]
    if queries is not None:
        whitening = whitening_of(index)
        queries.check(query_dim(index), query_spec(index) if index.parts("query.json") else None)
        vectors_QD = queries.vectors if whitening is None else whiten(whitening, queries.vectors)
        own: list[str] | None = None
    else:
        vectors_QD, own = _made_up(rows_of, list(zip(shards, counts, strict=True)), config.tuning_queries, seed)
    say(f"{label}: exact answers of {len(vectors_QD)} queries")
    k = min(K, live - 1)
    last_Q = _last_true(rows_of, shards, vectors_QD, own, k)
    depths = tuple(depth for depth in DEPTHS if depth >= DEFAULT_REFINE or "dedup" not in index.manifest.inputs)
    work = partial(_walk, index, (vectors_QD, own, last_Q), k, depths)
    seen, shares = next(iter(run_tasks(work, [config.recall_target])))
    chosen = choose(seen, config.recall_target, config.latency_ms)
    for each in seen:
        mark = "  <- chosen" if each == chosen else ""
        say(
            f"{label}: nprobe {each.nprobe:5} refine {each.refine:4} recall@7 {each.recall:.4f} "
            f"{each.bytes / 1e3:9.0f} kB {each.ms:7.2f} ms a query{mark}"
        )
    low, high = bootstrap_interval(shares[(chosen.nprobe, chosen.refine)])
    return Tuning(chosen, seen, (low, high), len(vectors_QD), config.recall_target, config.latency_ms)


def check_tuned(summary: Mapping[str, Any]) -> None:
    """Fail, after all is saved, where the budget did not allow the target that the version was tuned to.

    Raises:
        JobFailedError: what was reached, and what to change.
    """
    uri = summary["out"]
    reached, target = summary.get("recall@7"), summary.get("recall_target", 0.0)
    ms, budget = summary.get("query_ms", 0.0), summary.get("latency_ms", 0.0)
    again = f"accept it with `manet index tune --index {uri}"
    if budget and ms > budget:
        raise JobFailedError(
            f"{uri} is written, but a query takes {ms} ms, --latency-ms is {budget:g}: build with a lower "
            f"--memory-per-vector into another --out, or {again} --latency-ms {ms + 1:.0f}`"
        )
    if reached is not None and reached < target:
        raise JobFailedError(
            f"{uri} is written, but recall@7 is {reached:.4f} (nprobe {summary['nprobe']}, refine {summary['refine']}), "
            f"--recall-target is {target:g}: build with more --memory-per-vector, or another --factory, into another --out, or "
            f"{again} --recall-target {int(reached * 100) / 100}`"
        )


def tuning_files(
    tuning: Tuning | None, summary: Mapping[str, Any], suffix: str = "", earlier: Mapping[str, Any] | None = None
) -> dict[str, Blob]:
    """`report.json` and, of what was measured, `recall.png`: what an index holds, and how well it finds; or how well an `earlier`
    version did.
    """
    built = {name: value for name, value in summary.items() if name not in TUNED}
    exact = EXACT if summary["factory"] == "Flat" else {}
    measured = tuning.report() if tuning else earlier
    report = {**built, **({"tuning": measured} if measured else exact)}
    blobs = {f"report{suffix}.json": Blob(data=json.dumps(report, indent=1).encode())}
    return blobs | ({f"recall{suffix}.png": Blob(data=recall_png(tuning))} if tuning else {})


def _made_up(rows_of: ShardRows, shards: list[tuple[Part, int]], count: int, seed: int) -> tuple[Matrix, list[str]]:
    """Queries float32 [Q, D] from live rows drawn uniformly over all shards, and the row that each must not find."""
    rng = np.random.default_rng([seed, 7])
    live = sum(rows for _, rows in shards)
    drawn = rng.permutation(rng.choice(live, min(live, 2 * count), replace=False))
    first, asked = 0, []
    for part, rows in shards:
        here = np.flatnonzero((drawn >= first) & (drawn < first + rows))
        asked.append((part, drawn[here] - first, here))
        first += rows
    found: dict[int, tuple[str, Matrix]] = {}
    for each in run_tasks(partial(_rows, rows_of), asked):
        found |= each
    names, vectors = zip(*(found[place] for place in sorted(found)), strict=True)
    half = min(count, len(names) // 2)
    return mixed(np.stack(vectors[:half]), np.stack(vectors[half : 2 * half])), list(names[:half])


def _rows(rows_of: ShardRows, item: tuple[Part, Matrix, Matrix]) -> dict[int, tuple[str, Matrix]]:
    """Place among the drawn -> id and vector of a shard's live rows."""
    part, rows, places = item
    table, vectors, live = rows_of.whole(part)
    there = np.flatnonzero(live)[rows]
    names = table["image_id"].take(pa.array(there)).to_pylist()
    chosen = zip(places.tolist(), there.tolist(), names, strict=True)
    return {place: (name, np.array(vectors[row])) for place, row, name in chosen}


def _last_true(rows_of: ShardRows, shards: list[Part], queries_QD: Matrix, own: list[str] | None, k: int) -> Matrix:
    """Score of each query's k-th true neighbour over all shards [Q]."""
    every = list(run_tasks(partial(_nearest, rows_of, queries_QD, own), shards))
    last: Matrix = -np.sort(-np.concatenate(every, 1), 1)[:, k - 1]
    return last


def _nearest(rows_of: ShardRows, queries_QD: Matrix, own: list[str] | None, part: Part) -> Matrix:
    """Scores of the nearest rows of one shard [Q, up to 8], the query's own row left out."""
    table, vectors, live = rows_of.whole(part)
    scores, rows = exact_search(vectors, queries_QD, K + 1, block=_BLOCK, live_N=None if live.all() else live)
    if own is None:
        return scores
    names = table["image_id"].take(pa.array(rows.ravel())).to_numpy(zero_copy_only=False).reshape(rows.shape)
    return np.where(names == np.array(own, object)[:, None], -np.inf, scores)


def _walk(
    index: Artifact, searches: tuple[Matrix, list[str] | None, Matrix], k: int, depths: tuple[int, ...], target: float
) -> tuple[list[Setting], dict[tuple[int, int], Matrix]]:
    """All settings that were looked at, and each query's share of found neighbours.

    Args:
        index: what is searched: through its cells, however few rows are live.
        searches: queries [Q, D], the row that each must not find (None: none), the score of its k-th true neighbour [Q].
        k: neighbours.
        depths: candidates to try.
        target: recall to reach.
    """
    queries_QD, own, last_Q = searches
    searcher = open_searcher(index, threads=1, folded=False, exact_below=0, expand=0)
    shares: dict[tuple[int, int], Matrix] = {}

    def measure(nprobe: int, refine: int) -> tuple[float, float]:
        searcher.nprobe, searcher.refine = nprobe, refine
        found: list[list[float]] = []
        for at in range(0, len(queries_QD), _BATCH):
            names = own[at : at + _BATCH] if own is not None else None
            hits = searcher.search(queries_QD[at : at + _BATCH], k, stored=True, own=names)
            found += [[hit.score for hit in each] for each in hits]
        shares[(nprobe, refine)] = found_share(found, last_Q, k)
        return float(shares[(nprobe, refine)].mean()), _alone_ms(searcher, queries_QD[:_ALONE])

    return list(walk(measure, searcher.scale, target, depths)), shares


def _alone_ms(searcher: Searcher, queries_QD: Matrix) -> float:
    """Median milliseconds of a query that is searched alone."""
    times = []
    for place in range(len(queries_QD)):
        started = time.perf_counter()
        searcher.search(queries_QD[place : place + 1], K, stored=True)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1e3, 3)


def recall_png(tuning: Tuning) -> bytes:
    """Recall against the bytes that a query reads, of all settings that were seen."""
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
    return sink.getvalue()
