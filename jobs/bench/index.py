"""`bench index`: the job `index` against stock faiss by hand, and against autofaiss and usearch where they are installed.

  manet bench index --descriptors s3://bench/vectors
  manet bench index --descriptors s3://bench/vectors --autofaiss-python /opt/autofaiss/bin/python
  manet bench index --descriptors s3://bench/vectors --usearch-python /opt/usearch/bin/python

Each build runs in a process of its own whose seconds and peak memory (with all processes below it, Ray's too) are measured, and
each index is then opened in a fresh one. Recall@7 of held-out queries is against exact search; `recall@7` is with the
candidates re-scored with the stored vectors, `raw_recall@7` as the index itself ranks them (what autofaiss gives). Stock faiss
gets the same factory, training rows and threads; a `DealtN` rotation, which faiss does not know, becomes its OPQ.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from cluster.artifact import Artifact, open_artifact
from cluster.errors import BadInputError
from cluster.session import SessionConfig
from cluster.telemetry import say
from jobs.bench import by_hand
from jobs.bench.by_hand import K, batches
from jobs.bench.probing import Measured, measured, measured_job
from jobs.bench.truth import gallery_file, recall, say_table
from jobs.bench.vectors import held_out
from jobs.querying import open_index, open_searcher
from jobs.rates import IndexRate, Rates, add_rates, origin
from manet.exact import exact_search
from manet.index import cells_of, choose_factory, split_factory, training_rows
from manet.search import Searcher

Matrix = np.ndarray[Any, np.dtype[Any]]


class Config(SessionConfig):
    """Flags of `manet bench index`."""

    descriptors: str
    """Descriptors artifact of `manet bench vectors`."""
    factory: str = "auto"
    """Factory of the project's index, as `manet index --factory`."""
    stock_factory: str = ""
    """Factory of the stock index; default: the same, with OPQ for the rotation."""
    shard_rows: int = Field(default=0, ge=0)
    """Most rows of a shard of the project's index; 0: as `manet index`."""
    queries: int = Field(default=1000, ge=1)
    """Held-out queries, at most."""
    recall_target: float = Field(default=0.95, gt=0, le=1)
    """Recall that the project's index tunes itself to, with those held-out queries that are not measured with."""
    nprobe: int = Field(default=0, ge=0)
    """Cells visited; 0: what the project's index was tuned to."""
    refine: int = Field(default=0, ge=0)
    """Candidates re-scored; 0: what the project's index was tuned to."""
    threads: int = Field(default=1, ge=1)
    """Threads that train, of each builder; the project fills shards on as many CPUs, by Ray."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling and training."""
    autofaiss_python: str = ""
    """Python with autofaiss, which is measured too; default: it is left out."""
    usearch_python: str = ""
    """Python with usearch (a graph, HNSW), which is measured too; default: it is left out."""
    autofaiss_memory: str = "1G"
    """Most memory of autofaiss's index."""
    rates: str = ""
    """File to write the project's rates into, for `manet plan`; default: they are printed only."""


class Bench:
    """One gallery on disk, its queries, their exact answers."""

    def __init__(self, config: Config, descriptors: Artifact, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.vectors, self.queries = folder / "vectors" / "vectors.npy", folder / "queries.npy"
        self.vectors.parent.mkdir()
        self.ids = gallery_file(descriptors, self.vectors)
        every_QD = held_out(descriptors)
        queries_QD, rest_QD = every_QD[: config.queries], every_QD[config.queries :]
        np.save(self.queries, queries_QD)
        self.tuning = folder / "tuning.npy" if len(rest_QD) else None
        if self.tuning:
            np.save(self.tuning, rest_QD)
        self.queries_QD = queries_QD.astype(np.float32)
        gallery_ND = np.load(self.vectors, mmap_mode="r")
        self.rows, self.dim = gallery_ND.shape
        say(f"bench: exact answers of {len(queries_QD)} queries over {self.rows} x {self.dim}")
        self.truth = exact_search(gallery_ND, self.queries_QD, K, block=16384)[1]

    def factories(self) -> tuple[str, str]:
        """The project's factory, and the stock one."""
        own = choose_factory(self.rows, self.dim)[0] if self.config.factory == "auto" else self.config.factory
        return own, self.config.stock_factory or stock_factory(own, self.dim)

    def project(self, descriptors: str, factory: str) -> tuple[dict[str, Any], int, int]:
        """Build with `manet index`, open, search; its row of the table, and the nprobe and refine that it used."""
        config, out = self.config, self.folder / "index"
        flags = {
            "--descriptors": descriptors,
            "--out": out,
            "--factory": factory,
            "--shard-rows": config.shard_rows,
            "--seed": config.seed,
            "--recall-target": config.recall_target,
            "--train-cpus": config.threads,
            "--ray-cpus": config.threads,
            "--object-store-mib": config.object_store_mib,
        }
        if self.tuning:
            flags["--queries"] = self.tuning
        run = measured_job("index", flags)
        searcher = open_searcher(open_index(str(out)), nprobe=config.nprobe, refine=config.refine)
        nprobe, refine = searcher.nprobe, searcher.refine
        words = map(str, (out, self.queries, nprobe, refine, config.threads))
        probe = [sys.executable, "-m", "jobs.bench.probing", *words]
        opened = measured(probe, "opening the project's index").result
        found = found_rows(searcher, self.queries_QD, self.ids)
        row = self._row("manet index", factory, run, opened, run.result["seconds"])
        row |= {"recall@7": recall(found, self.truth), "raw_recall@7": None, "raw_queries_per_s": None}
        if config.rates:
            self._write_rates(run, str(out), factory, row["resident_bytes_per_vector"])
        return row, nprobe, refine

    def _write_rates(self, run: Measured, index: str, factory: str, resident: float) -> None:
        """CPU-seconds of training and filling (each CPU that was given counts as busy), bytes a vector.

        Raises:
            BadInputError: the index has no cells.
        """
        config, cells = self.config, cells_of(factory)
        if not cells:
            raise BadInputError(f"--rates: {factory} has no cells to reckon with; measure more rows")
        stored = sum(part.bytes for part in open_index(index).manifest.parts)
        rate = IndexRate(
            origin=origin(),
            rows=self.rows,
            dim=self.dim,
            cells=cells,
            train_cpu_s=run.result["train_s"] * config.threads,
            fill_cpu_s=run.result["fill_s"] * config.threads,
            stored_bytes=stored / self.rows,
            resident_bytes=resident,
        )
        add_rates(config.rates, Rates(index=rate))

    def stock(self, factory: str, nprobe: int, refine: int) -> dict[str, Any]:
        """Build with faiss by hand, open, search."""
        config, out = self.config, self.folder / "stock.faiss"
        training = training_rows(self.factories()[0], self.rows)
        words = [str(self.vectors), str(out), factory, str(training), str(config.seed), str(config.threads)]
        run = self._by_hand(sys.executable, "faiss by hand", "build", *words)
        return self._opened("faiss by hand", factory, run, out, nprobe, refine)

    def autofaiss(self, refine: int) -> dict[str, Any]:
        """Build with autofaiss in its own interpreter; searched as it tuned itself."""
        config, out = self.config, self.folder / "autofaiss.faiss"
        floats = self.folder / "floats"
        floats.mkdir()
        gallery_ND = np.load(self.vectors, mmap_mode="r")
        wide = np.lib.format.open_memmap(floats / "vectors.npy", "w+", np.float32, gallery_ND.shape)
        for start in range(0, len(gallery_ND), 16384):
            wide[start : start + 16384] = gallery_ND[start : start + 16384]
        wide.flush()
        words = [str(floats), str(out), config.autofaiss_memory, str(config.threads)]
        run = self._by_hand(config.autofaiss_python, "autofaiss", "autofaiss", *words)
        return self._opened("autofaiss", str(run.result["factory"]), run, out, 0, refine)

    def usearch(self) -> dict[str, Any]:
        """Build a graph with usearch in its own interpreter; searched as it is by default, over the vectors themselves."""
        python, threads, out = self.config.usearch_python, str(self.config.threads), self.folder / "graph.usearch"
        run = self._by_hand(python, "usearch", "usearch", str(self.vectors), str(out), threads)
        found = self._by_hand(python, "opening usearch", "open-usearch", str(out), str(self.queries), threads).result
        row = self._row("usearch", str(run.result["factory"]), run, found, run.result["build_s"])
        here = recall(found["rows"], self.truth)
        return {**row, "recall@7": here, "raw_recall@7": here, "raw_queries_per_s": found["queries_per_s"]}

    def _opened(self, name: str, factory: str, run: Measured, out: Path, nprobe: int, refine: int) -> dict[str, Any]:
        """Open a stock index twice: as it ranks by itself, and re-scored."""
        words = ["open", str(out), str(self.vectors), str(self.queries), str(nprobe)]
        threads = str(self.config.threads)
        raw = self._by_hand(sys.executable, f"opening {name}", *words, "0", threads).result
        scored = self._by_hand(sys.executable, f"opening {name}", *words, str(refine), threads).result
        row = self._row(name, factory, run, scored, run.result["build_s"])
        return {
            **row,
            "recall@7": recall(scored["rows"], self.truth),
            "raw_recall@7": recall(raw["rows"], self.truth),
            "raw_queries_per_s": raw["queries_per_s"],
        }

    def _by_hand(self, python: str, label: str, *words: str) -> Measured:
        threads = str(self.config.threads)
        return measured([python, str(Path(by_hand.__file__)), *words], label, OMP_NUM_THREADS=threads)

    def _row(self, name: str, factory: str, run: Measured, opened: dict[str, Any], build_s: float) -> dict[str, Any]:
        say(f"bench: {name}: {factory} built in {build_s} s, at most {run.peak_own_mib} MiB")
        return {
            "builder": name,
            "factory": factory,
            "seconds": run.seconds,
            "build_s": build_s,
            "peak_mib": run.peak_mib,
            "peak_own_mib": run.peak_own_mib,
            "largest_process_mib": run.largest_mib,
            "resident_bytes_per_vector": opened["resident_bytes_per_vector"],
            "open_s": opened["open_s"],
            "queries_per_s": opened["queries_per_s"],
        }


def run(config: Config) -> dict[str, Any]:
    """Build with each, measure; returns the table and the ratios."""
    descriptors = open_artifact(config.descriptors, "descriptors")
    others = {"autofaiss": config.autofaiss_python, "usearch": config.usearch_python}
    for name, python in others.items():
        if python and not os.access(python, os.X_OK):
            raise BadInputError(f"--{name}-python {python}: no such program")
    with tempfile.TemporaryDirectory(prefix="manet-bench-") as scratch:
        bench = Bench(config, descriptors, Path(scratch))
        own, other = bench.factories()
        for name, python in others.items():
            if python:  # before an hour is spent on the rest
                measured([python, "-c", f"import {name}; print('{{}}')"], f"--{name}-python {python}")
        project, nprobe, refine = bench.project(descriptors.uri, own)
        table = [project, bench.stock(other, nprobe, refine)]
        if config.autofaiss_python:
            table.append(bench.autofaiss(refine))
        if config.usearch_python:
            table.append(bench.usearch())
    say_table(table)
    return {
        "kind": "bench",
        "rows": bench.rows,
        "dim": bench.dim,
        "queries": len(bench.queries_QD),
        "nprobe": nprobe,
        "refine": refine,
        "threads": config.threads,
        "table": table,
        "ratios": {row["builder"]: ratios(project, row) for row in table[1:]},
    }


def ratios(project: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How much more another builder needs than the project's job: above 1, the job is better (not for recall and queries)."""
    keys = ("seconds", "build_s", "peak_mib", "resident_bytes_per_vector", "recall@7", "queries_per_s")
    return {key: round(other[key] / project[key], 3) for key in keys if project.get(key)}


def stock_factory(factory: str, dim: int) -> str:
    """A factory of this project as one that faiss itself knows: OPQ in the place of the dealt axes."""
    axes, rest = split_factory(factory, dim)
    codes = [piece for piece in rest.split(",") if piece.startswith("PQ")]
    return f"OPQ{codes[0][2:].split('x')[0]}_{axes},{rest}" if axes and codes else rest


def found_rows(searcher: Searcher, queries_QD: Matrix, ids: list[str]) -> list[list[int]]:
    """Gallery rows of the answers of the project's searcher."""
    row_of = {name: row for row, name in enumerate(ids)}
    found = (hits for batch in batches(queries_QD) for hits in searcher.search(batch, K))
    return [[row_of[hit.image_id] for hit in hits] for hits in found]
