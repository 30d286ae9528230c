"""What a person writes with stock faiss (or autofaiss, or usearch) alone: the benches' counterpart, in a process of its own.

Imports numpy and faiss only, so that another interpreter can run it as a file. Not a command: `bench index` and
`bench search` start it, each command prints one JSON object.

  by_hand.py build VECTORS.npy OUT FACTORY TRAINING_ROWS SEED THREADS
  by_hand.py autofaiss FOLDER OUT MEMORY THREADS
  by_hand.py open INDEX VECTORS.npy QUERIES.npy NPROBE REFINE THREADS
  by_hand.py usearch VECTORS.npy OUT THREADS
  by_hand.py open-usearch INDEX QUERIES.npy THREADS

VECTORS.npy is float16 [N, D] of unit vectors, row i has id i.
"""

import ctypes
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
BLOCK = 8192  # rows widened to float32 and added at once
K = 7


def build(vectors: str, out: str, factory: str, training: str, seed: str, threads: str) -> dict[str, Any]:
    """One index of all rows, trained on a uniform sample, rows added block by block from the mapped file."""
    import faiss

    faiss.omp_set_num_threads(int(threads))
    started = time.monotonic()
    rows_ND = np.load(vectors, mmap_mode="r")
    index = faiss.index_factory(rows_ND.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    wanted = min(len(rows_ND), int(training))
    sample = np.sort(np.random.default_rng(int(seed)).choice(len(rows_ND), wanted, replace=False))
    index.train(rows_ND[sample].astype(np.float32))
    trained = time.monotonic()
    for start in range(0, len(rows_ND), BLOCK):
        index.add(rows_ND[start : start + BLOCK].astype(np.float32))
    faiss.write_index(index, out)
    done = time.monotonic()
    return {"build_s": round(done - started, 2), "train_s": round(trained - started, 2)}


def autofaiss(folder: str, out: str, memory: str, threads: str) -> dict[str, Any]:
    """What autofaiss chooses and builds from a folder of .npy files within a limit of the index's memory."""
    import autofaiss as library

    started = time.monotonic()
    library.build_index(
        embeddings=folder,
        index_path=out,
        index_infos_path=f"{out}.json",
        metric_type="ip",
        max_index_memory_usage=memory,
        nb_cores=int(threads),
    )
    infos = json.loads(Path(f"{out}.json").read_text())
    return {"build_s": round(time.monotonic() - started, 2), "factory": infos.get("index_key")}


def usearch(vectors: str, out: str, threads: str) -> dict[str, Any]:
    """A graph (HNSW) over all rows with usearch, as it is by default, float16 vectors inside."""
    from usearch.index import Index

    started = time.monotonic()
    rows_ND = np.load(vectors, mmap_mode="r")
    index: Any = Index(ndim=rows_ND.shape[1], metric="ip", dtype="f16")
    for start in range(0, len(rows_ND), BLOCK):
        block = rows_ND[start : start + BLOCK]
        index.add(np.arange(start, start + len(block)), block, threads=int(threads))
    index.save(out)
    factory = f"HNSW{index.connectivity},f16, search {index.expansion_search}"
    return {"build_s": round(time.monotonic() - started, 2), "factory": factory}


def open_usearch(index_path: str, queries: str, threads: str) -> dict[str, Any]:
    """Open a graph of usearch, as `open_index` does a stock index."""
    from usearch.index import Index

    def search(engine: Any, batch: Matrix, threads: int) -> Matrix:  # noqa: ANN401 - of usearch
        return np.asarray(engine.search(batch, K, threads=threads).keys)

    queries_QD = np.load(queries).astype(np.float16)
    found, figures = used(lambda: Index.restore(index_path), search, len, queries_QD, int(threads))
    return {**figures, "rows": np.concatenate(found).tolist()}


def open_index(index_path: str, vectors: str, queries: str, nprobe: str, refine: str, threads: str) -> dict[str, Any]:
    """Open an index as `faiss.read_index` does: seconds to the first answer, what stays resident, queries a second."""
    import faiss

    def search(engine: Stock, batch: Matrix, threads: int) -> Matrix:
        faiss.omp_set_num_threads(threads)
        return engine.search(batch, K, int(nprobe), int(refine))

    def opening() -> Stock:
        return Stock(faiss.read_index(index_path), np.load(vectors, mmap_mode="r"))

    queries_QD = np.load(queries).astype(np.float32)
    faiss.omp_set_num_threads(1)
    found, figures = used(opening, search, lambda engine: int(engine.index.ntotal), queries_QD, int(threads))
    return {**figures, "rows": np.concatenate(found).tolist()}


def used(
    opening: Callable[[], Any],
    search: Callable[[Any, Matrix, int], Any],
    rows: Callable[[Any], int],
    queries_QD: Matrix,
    threads: int,
) -> tuple[list[Any], dict[str, float]]:
    """Open an index of any kind and search it: the answers to each batch, and its figures.

    These are seconds to open and to the first answer (of one thread), queries a second, and the bytes a vector that a second
    copy adds to the process, the stored vectors left out.

    Args:
        opening: opens it.
        search: (the opened index, queries, threads) -> answers.
        rows: how many vectors an opened index holds.
        queries_QD: all queries.
        threads: of the search.
    """
    started = time.monotonic()
    engine = opening()
    opened = time.monotonic()
    search(engine, queries_QD[:1], 1)
    first = time.monotonic()
    found = [search(engine, batch, threads) for batch in batches(queries_QD)]
    began = time.monotonic()
    for batch in batches(queries_QD):
        search(engine, batch, threads)
    rate = len(queries_QD) / (time.monotonic() - began)
    before = resident()
    second = opening()
    for batch in batches(queries_QD):
        search(second, batch, threads)
    return found, {
        "queries_per_s": round(rate, 1),
        "resident_bytes_per_vector": round((resident() - before) / max(1, rows(engine)), 1),
        "open_s": round(opened - started, 4),
        "first_answer_s": round(first - started, 4),
    }


class Stock:
    """A stock index and the vectors beside it, re-scored by hand.

    Args:
        index: any faiss index whose row i is row i of the vectors.
        vectors_ND: float16 [N, D], may be mapped.
    """

    def __init__(self, index: Any, vectors_ND: Matrix) -> None:  # noqa: ANN401 - faiss.Index
        self.index, self.vectors = index, vectors_ND

    def search(self, queries_QD: Matrix, k: int, nprobe: int, refine: int) -> Matrix:
        """Rows [Q, k] of the best of `refine` candidates by their stored vectors; refine 0: as the index ranks them."""
        import faiss

        if nprobe:
            faiss.ParameterSpace().set_index_parameter(self.index, "nprobe", nprobe)
        _, rows_QC = self.index.search(queries_QD, max(k, refine))
        if not refine:
            found: Matrix = rows_QC
            return found
        candidates_QCD = self.vectors[np.maximum(rows_QC, 0)].astype(np.float32)
        scores_QC = np.einsum("qcd,qd->qc", candidates_QCD, queries_QD)
        scores_QC[rows_QC < 0] = -np.inf
        order = np.argsort(-scores_QC, axis=1)[:, :k]
        return np.asarray(np.take_along_axis(rows_QC, order, 1))


def batches(queries_QD: Matrix) -> list[Matrix]:
    """Queries in batches of 100."""
    return [queries_QD[at : at + 100] for at in range(0, len(queries_QD), 100)]


def resident() -> int:
    """Bytes that this process uses, but for pages of mapped `.npy` files: the stored vectors, which can be dropped."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)  # what was freed is not in use
    total, stored = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            stored = line.endswith((".npy", ".npy (deleted)"))
        elif words[0] == "Rss:" and not stored:
            total += int(words[1]) << 10
    return total


def main(arguments: list[str]) -> None:
    """Run one command, print its result."""
    commands: dict[str, Callable[..., dict[str, Any]]] = {"build": build, "autofaiss": autofaiss, "open": open_index}
    commands |= {"usearch": usearch, "open-usearch": open_usearch}
    sys.stdout.write(json.dumps(commands[arguments[0]](*arguments[1:])) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
