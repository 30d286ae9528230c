"""Building a sharded faiss index: one trained quantizer, shards filled apart. Inner product on unit vectors throughout.

Shape letters: N rows, D dimensions.
"""

from collections.abc import Iterable
from typing import Any, cast

import faiss
import numpy as np

from manet.errors import InputError

Matrix = np.ndarray[Any, np.dtype[Any]]
POINTS_PER_CENTROID = 39  # the fewest that faiss trains a centroid on without a warning
_MAX_POINTS_PER_CELL = 64  # training points a cell: more gains little
_MAX_PQ_POINTS = 65536
_OPQ_POINTS = 16384  # the rotation needs fewer points than the codes do
_OPQ_ITERATIONS, _OPQ_KMEANS_FIRST, _OPQ_KMEANS = 6, 8, 2


def choose_factory(rows: int, dim: int) -> tuple[str, str]:
    """A faiss factory string for a gallery, and the reason in one line.

    A product quantizer needs 39 training points for each of its 2^bits centroids: with fewer rows the index is flat.
    Else OPQ to 4 dimensions a code, about 4 sqrt(N) cells of an inverted file, and one code of 8 (6) bits for each 4
    dimensions of at most 256: candidates that the stored float16 vectors re-rank.
    """
    bits = next((b for b in (8, 6) if rows >= POINTS_PER_CENTROID * 2**b), 0)
    codes = next((m for m in (64, 48, 32, 16, 8, 4, 2, 1) if dim % m == 0 and m * 4 <= dim), 0)
    if not bits or not codes:
        why = f"{rows} rows are fewer than the {POINTS_PER_CENTROID * 64} that train a 6-bit quantizer"
        return "Flat", why if not bits else f"{dim} dimensions are too few to quantize"
    cells = min(int(4 * rows**0.5), rows // POINTS_PER_CENTROID)
    cells = 2 ** max(0, cells.bit_length() - 1)
    suffix = "" if bits == 8 else f"x{bits}"
    return (
        f"OPQ{codes}_{codes * 4},IVF{cells},PQ{codes}{suffix}",
        f"{rows} rows train {cells} cells and {bits}-bit codes",
    )


def check_factory(factory: str, dim: int) -> None:
    """Refuse a factory string before anything is read for it.

    Raises:
        InputError: faiss cannot make it for `dim` dimensions, or its cells have no plain number.
    """
    try:
        faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        training_rows(factory, 1)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--factory {factory}: faiss: {_last_line(error)}") from None


def training_rows(factory: str, rows: int) -> int:
    """How many rows of a uniform sample train a factory's quantizers."""
    if factory == "Flat":
        return min(rows, 1)
    cells = max([int(piece[3:].split("_")[0]) for piece in factory.split(",") if piece.startswith("IVF")], default=0)
    return min(rows, max(cells * _MAX_POINTS_PER_CELL, _MAX_PQ_POINTS))


def train(sample_ND: Matrix, factory: str, *, seed: int = 0, threads: int = 1, gpus: int = 0) -> bytes:
    """Train the quantizers of a factory: the bytes of an empty stock faiss index.

    The same sample, seed and number of threads give the same bytes.

    Args:
        sample_ND: unit vectors.
        factory: faiss factory string.
        seed: seed of the k-means.
        threads: OpenMP threads.
        gpus: above 0, k-means of the cells runs on the GPUs (faiss-gpu).

    Raises:
        InputError: faiss does not know the factory, or cannot train it on this sample.
    """
    faiss.omp_set_num_threads(threads)
    try:
        index = faiss.index_factory(sample_ND.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        kept = _prepare(index, seed)
        if gpus and (ivf := _ivf(index)) is not None:
            flat = faiss.IndexFlatIP(ivf.d)
            ivf.clustering_index = faiss.index_cpu_to_all_gpus(flat, ngpu=gpus)
        index.train(np.ascontiguousarray(sample_ND, np.float32))
        del kept
    except RuntimeError as error:
        raise InputError(f"--factory {factory}: faiss: {_last_line(error)}") from None
    return bytes(faiss.serialize_index(index))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__


def _prepare(index: Any, seed: int) -> list[Any]:  # noqa: ANN401 - faiss has no types
    """Seed every k-means of an index and bound the training of its rotation; what it returns must outlive the training.

    faiss's defaults train the rotation for fifty rounds with 256 centroids whatever the codes have: most of a build.
    """
    ivf = _ivf(index)
    kept: list[Any] = []
    if ivf is None:
        return kept
    quantizers = [ivf.cp]
    if hasattr(ivf, "pq"):
        quantizers.append(ivf.pq.cp)
    if isinstance(index, faiss.IndexPreTransform) and hasattr(ivf, "pq"):
        transform = faiss.downcast_VectorTransform(cast(Any, index.chain).at(0))
        if isinstance(transform, faiss.OPQMatrix):
            transform.niter, transform.niter_pq_0, transform.niter_pq = _OPQ_ITERATIONS, _OPQ_KMEANS_FIRST, _OPQ_KMEANS
            transform.max_train_points = _OPQ_POINTS
            codes = faiss.ProductQuantizer(transform.d_out, transform.M, ivf.pq.nbits)
            quantizers.append(codes.cp)
            transform.pq = codes
            kept.append(codes)  # the C++ side does not own it
    for each in quantizers:
        each.seed = seed + 1234
        each.min_points_per_centroid = 1
    return kept


def _ivf(index: Any) -> Any:  # noqa: ANN401 - faiss has no types
    """The inverted file inside an index, or None."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return inner if isinstance(inner, faiss.IndexIVF) else None


def build_shard(trained: bytes, blocks: Iterable[Matrix], *, threads: int = 1) -> Any:  # noqa: ANN401 - faiss.Index
    """A shard: blocks of vectors [n, D] added to the trained quantizer in order, so that row i has id i."""
    faiss.omp_set_num_threads(threads)
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    for block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
    return index
