"""`bench search`: an index of this project against stock faiss on the very same codes, and against a flat index.

  manet bench search --index s3://bench/index --descriptors s3://bench/vectors --out s3://bench/search

The stock index is all shards merged by faiss itself (`faiss.merge_into`), searched with the same nprobe, its candidates
re-scored by hand with the same float16 vectors. All are measured in turn in one process, round after round, and the median
round counts: queries a second at batches of 1 and 100, on 1 and 2 threads, and over a sweep of nprobe and refine, with
recall@7 of held-out queries against exact search. Cold start and resident bytes are those of fresh processes. The table goes to
stderr, the figures to stdout; with --out also `search.json` and `search.png` (recall against queries a second).
"""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from pydantic import Field

from cluster.artifact import Artifact, open_artifact
from cluster.errors import BadInputError, IntegrityError
from cluster.session import SessionConfig
from cluster.storage import open_store
from cluster.telemetry import say
from jobs.bench import by_hand
from jobs.bench.by_hand import K, Stock
from jobs.bench.probing import measured
from jobs.bench.truth import recall, say_table
from jobs.bench.vectors import held_out
from jobs.inputs import cache_folder
from jobs.plotting import frontier_png
from jobs.postprocessing import OPTIONS
from jobs.querying import open_index, open_searcher, read_descriptors
from manet.exact import exact_search
from manet.search import Searcher

Matrix = np.ndarray[Any, np.dtype[Any]]
Engine = Callable[[Matrix], Any]
BATCHES = (1, 100)


class Config(SessionConfig):
    """Flags of `manet bench search`."""

    index: str
    """Index artifact, as `manet index` built it."""
    descriptors: str
    """Descriptors artifact of `manet bench vectors` that it was built from."""
    out: str = ""
    """Folder for `search.json` and `search.png`; default: nothing is written."""
    queries: int = Field(default=1000, ge=1)
    """Held-out queries, at most."""
    nprobe: tuple[int, ...] = (1, 4, 16, 64)
    """Cells visited, a point of the sweep."""
    refine: tuple[int, ...] = (25, 100, 400)
    """Candidates re-scored, a point of the sweep."""
    threads: tuple[int, ...] = (1, 2)
    """Threads of the search."""
    rounds: int = Field(default=3, ge=1)
    """Rounds of each measurement; the median counts."""
    seconds: float = Field(default=1.0, gt=0)
    """Seconds of one engine in one round."""
    flat: bool = True
    """Measure exact search by a flat float32 index in memory too: 4 bytes a dimension of each vector."""


class Engines:
    """The same vectors behind each engine.

    Raises:
        BadInputError: the index was built from other descriptors, or has changed since.
        IntegrityError: faiss's merge shifted a row.
    """

    def __init__(self, config: Config, index: Artifact, descriptors: Artifact, folder: Path) -> None:
        built_from = index.manifest.inputs.get("descriptors")
        if built_from is None or built_from.sha256 != descriptors.sha256 or index.manifest.number != 1:
            raise BadInputError(
                f"--index {index.uri} is not version 1 of an index that was built from {descriptors.uri}"
            )
        if processed := [f"--{name}" for name in OPTIONS if index.manifest.summary.get(name)]:
            raise BadInputError(
                f"--index {index.uri} was built with {', '.join(processed)}: its answers are not those of {descriptors.uri} "
                "itself, which they are measured against here; give an index without"
            )
        self.index, self.folder = index, folder
        self.merged, self.vectors = folder / "merged.faiss", folder / "vectors.npy"
        self.quantized = self._merge(folder)
        self.ids = [
            name for part in descriptors.parts("part-") if part.rows for name in read_descriptors(descriptors, part)[0]
        ]
        self.row_of = {name: row for row, name in enumerate(self.ids)}
        self.searchers: dict[tuple[int, int, int], Searcher] = {}
        self.stock = Stock(faiss.read_index(str(self.merged)), np.load(self.vectors, mmap_mode="r"))
        if not self.stock.index.ntotal == len(self.stock.vectors) == len(self.ids):
            raise IntegrityError(f"{index.uri}: {self.stock.index.ntotal} merged rows of {len(self.ids)}")
        self.flat = None
        if config.flat:
            self.flat = faiss.IndexFlatIP(self.stock.vectors.shape[1])
            for start in range(0, len(self.ids), 16384):
                self.flat.add(self.stock.vectors[start : start + 16384].astype(np.float32))

    def _merge(self, folder: Path) -> bool:
        """All shards as one stock index and one file of vectors, in order; whether it has an inverted file."""
        parts = {part.name: self.index.local(part, cache_folder()) for part in self.index.parts("shard-")}
        names = [name for name in parts if name.endswith(".faiss")]
        merged: Any = faiss.read_index(str(parts[names[0]]))
        quantized = not isinstance(merged, faiss.IndexFlat)
        for name in names[1:]:
            other = faiss.read_index(str(parts[name]))
            if quantized:
                faiss.merge_into(merged, other, True)
            else:
                merged.merge_from(other)
        faiss.write_index(merged, str(folder / "merged.faiss"))
        blocks = [np.load(parts[name.replace(".faiss", ".refine.npy")], mmap_mode="r") for name in names]
        shape = (sum(map(len, blocks)), blocks[0].shape[1])
        out, start = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, shape), 0
        for block in blocks:
            out[start : start + len(block)] = block
            start += len(block)
        out.flush()
        return quantized

    def searcher(self, nprobe: int, refine: int, threads: int) -> Searcher:
        """The project's searcher of some settings; the pages of its files are shared with the others."""
        key = (nprobe, refine, threads)
        if key not in self.searchers:
            self.searchers.clear()
            self.searchers[key] = open_searcher(self.index, nprobe=nprobe, refine=refine, threads=threads)
        return self.searchers[key]

    def at(self, nprobe: int, refine: int, threads: int) -> dict[str, Engine]:
        """Each engine as a function of a batch of queries, at one setting."""
        own = self.searcher(nprobe, refine, threads)

        def stock(batch: Matrix) -> Matrix:
            faiss.omp_set_num_threads(threads)
            return self.stock.search(batch, K, nprobe if self.quantized else 0, refine)

        return {"manet": lambda batch: own.search(batch, K), "faiss": stock}

    def exact(self, threads: int) -> Engine:
        """The flat index."""
        flat = self.flat

        def search(batch: Matrix) -> Any:  # noqa: ANN401 - faiss's answer
            faiss.omp_set_num_threads(threads)
            return flat.search(batch, K) if flat is not None else None

        return search

    def rows(self, name: str, answers: Any) -> list[list[int]]:  # noqa: ANN401 - of either engine
        """An engine's answers as gallery rows."""
        if name == "manet":
            return [[self.row_of[hit.image_id] for hit in hits] for hits in answers]
        found: list[list[int]] = np.asarray(answers).tolist()
        return found


def run(config: Config) -> dict[str, Any]:
    """Measure; returns the figures."""
    index, descriptors = open_index(config.index), open_artifact(config.descriptors, "descriptors")
    queries_QD = held_out(descriptors)[: config.queries].astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="manet-bench-") as scratch:
        engines = Engines(config, index, descriptors, Path(scratch))
        truth = exact_search(engines.stock.vectors, queries_QD, K, block=16384)[1]
        default = open_searcher(index)
        nprobe, refine = default.nprobe, default.refine
        del default
        rates = _rates(config, engines, queries_QD, nprobe, refine)
        sweep = _sweep(config, engines, queries_QD, truth, nprobe)
        cold = _cold(engines, queries_QD, nprobe, refine)
    say_table(rates)
    say_table(sweep)
    say_table([{"engine": name, **row} for name, row in cold.items()])
    summary = {
        "kind": "bench",
        "rows": len(engines.ids),
        "dim": queries_QD.shape[1],
        "queries": len(queries_QD),
        "shards": index.manifest.summary["shards"],
        "factory": index.manifest.summary["factory"],
        "default_nprobe": nprobe,
        "default_refine": refine,
        "rates": rates,
        "sweep": sweep,
        "fresh_process": cold,
    }
    if config.out:
        store = open_store(config.out)
        store.write("search.json", json.dumps(summary, indent=1).encode())
        store.write("search.png", frontier_png(sweep, [row for row in rates if row["batch"] == BATCHES[-1]]))
        say(f"bench: {store.uri('search.json')}, {store.uri('search.png')}")
    return summary


def per_second(
    engines: dict[str, Engine], queries_QD: Matrix, batch: int, rounds: int, seconds: float
) -> dict[str, float]:
    """Queries a second of each engine: all in turn, the median over rounds; the first batch of each is not counted."""
    found: dict[str, list[float]] = {name: [] for name in engines}
    starts = range(0, max(1, len(queries_QD) - batch + 1), batch)
    for _ in range(rounds):
        for name, search in engines.items():
            search(queries_QD[:batch])
            done, number, began = 0, 0, time.perf_counter()
            while not done or time.perf_counter() - began < seconds:
                at = starts[number % len(starts)]
                done, number = done + len(queries_QD[at : at + batch]), number + 1
                search(queries_QD[at : at + batch])
            found[name].append(done / (time.perf_counter() - began))
    return {name: round(statistics.median(rates), 2) for name, rates in found.items()}


def _rates(config: Config, engines: Engines, queries_QD: Matrix, nprobe: int, refine: int) -> list[dict[str, Any]]:
    """Queries a second at the index's own defaults, by batch and threads."""
    rows = []
    for threads in config.threads:
        each = engines.at(nprobe, refine, threads)
        if config.flat:
            each["flat"] = engines.exact(threads)
        for batch in BATCHES:
            rate = per_second(each, queries_QD, batch, config.rounds, config.seconds)
            row = {"threads": threads, "batch": batch, **{f"{name}_qps": value for name, value in rate.items()}}
            rows.append(
                {**row, **{f"ratio_{name}": _ratio(rate["manet"], rate[name]) for name in rate if name != "manet"}}
            )
    return rows


def _sweep(config: Config, engines: Engines, queries_QD: Matrix, truth: Matrix, widest: int) -> list[dict[str, Any]]:
    """Recall@7 and queries a second of batches, on one thread, for each nprobe and refine."""
    rows = []
    for nprobe in config.nprobe if widest else (0,):
        for refine in config.refine:
            each = engines.at(nprobe, refine, 1)
            found = {name: engines.rows(name, search(queries_QD)) for name, search in each.items()}
            rate = per_second(each, queries_QD, BATCHES[-1], config.rounds, config.seconds)
            row: dict[str, Any] = {"nprobe": nprobe, "refine": refine}
            row |= {f"{name}_recall@7": recall(answers, truth) for name, answers in found.items()}
            row |= {f"{name}_qps": value for name, value in rate.items()}
            rows.append({**row, "ratio_faiss": _ratio(rate["manet"], rate["faiss"])})
    return rows


def _cold(engines: Engines, queries_QD: Matrix, nprobe: int, refine: int) -> dict[str, dict[str, Any]]:
    """What a fresh process needs: to open, to the first answer, and to stay up."""
    file = engines.folder / "queries.npy"
    np.save(file, queries_QD)
    last = [str(file), str(nprobe), str(refine), "1"]
    files = [str(engines.merged), str(engines.vectors)]
    commands = {
        "manet": [sys.executable, "-m", "jobs.bench.probing", engines.index.uri, *last],
        "faiss": [sys.executable, str(Path(by_hand.__file__)), "open", *files, *last],
    }
    found = {}
    for name, command in commands.items():
        run = measured(command, f"opening {name}", OMP_NUM_THREADS="1")
        found[name] = {**run.result, "process_s": run.seconds, "peak_mib": run.peak_mib}
        found[name].pop("rows", None)
    return found


def _ratio(one: float, other: float) -> float | None:
    return round(one / other, 3) if other else None
