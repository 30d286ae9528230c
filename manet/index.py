"""Building a sharded faiss index: one trained quantizer, shards filled apart. Inner product on unit vectors throughout.

Shape letters: N rows, D dimensions.
"""

import re
from collections.abc import Iterable
from typing import Any, cast

import faiss
import numpy as np

from manet.errors import InputError
from manet.rotation import principal_rotation, rotate

Matrix = np.ndarray[Any, np.dtype[Any]]
POINTS_PER_CENTROID = 39  # the fewest that faiss trains a centroid on without a warning
FLAT_ROWS = 10_000  # below: exact search of all rows (BENCHMARKS.md)
DEALT = "Dealt"  # `DealtN,...`: N principal axes dealt to the codes (manet.rotation), then a faiss factory
_MAX_POINTS_PER_CELL = 48  # training points a cell: more gains little
_MAX_PQ_POINTS = 65536
_SHARD_ROWS, _ROWS_PER_LIST = 262_144, 128  # fewest rows of a full shard, and of one of its lists on average
_LIST_STEP = 32  # the codes of a list are stored by 32 (fast scan): half as many places stay empty
_OPQ_POINTS = 16384  # the rotation needs fewer points than the codes do
_OPQ_ITERATIONS, _OPQ_KMEANS_FIRST, _OPQ_KMEANS = 6, 8, 2
_WHERE = re.compile(r"^Error in .* at \S+:\d+: ")  # in faiss's source
_AXES_PER_BYTE = 4  # a byte is two 4-bit codes of two axes each
_CODES = (256, 192, 128, 96, 64, 48, 40, 32, 16, 8, 4, 2, 1)  # bytes of a row's code, longest first
_USUAL_CODE = 40  # the longest where no memory is given: longer ones found hardly more (BENCHMARKS.md)


def choose_factory(rows: int, dim: int, memory: float = 0.0) -> tuple[str, str]:
    """A factory string for a gallery, and the reason in one line.

    Few rows stay flat. Else principal axes are dealt to the codes (`DealtN`), about 4 sqrt(N) cells of an inverted file
    are trained, and one code of 4 bits stands for each 2 axes, read by faiss's fast scan (Andre, Kermarrec, Le Scouarnec,
    *Quicker ADC*, TPAMI 2019): candidates that the stored float16 vectors re-rank.

    Args:
        rows: rows of the gallery.
        dim: their dimensions.
        memory: most resident bytes a vector, the stored vectors (memory-mapped) not counted: the longest code that fits is
            taken; 0: 40 bytes of code.

    Raises:
        InputError: no code is so small.
    """
    if rows < FLAT_ROWS:
        return "Flat", f"{rows} rows are fewer than {FLAT_ROWS}: each of them is compared, which is exact"
    cells = min(int(4 * rows**0.5), rows // POINTS_PER_CENTROID)
    cells = 2 ** max(0, cells.bit_length() - 1)
    lengths = [length for length in _CODES if length * _AXES_PER_BYTE <= dim]
    if not lengths:
        return "Flat", f"{dim} dimensions are too few to quantize"
    sizes = {length: resident_bytes(rows, dim, cells, length) for length in lengths}
    fitting = [length for length in lengths if (sizes[length] <= memory if memory else length <= _USUAL_CODE)]
    if not fitting:
        raise InputError(
            f"--memory-per-vector {memory:g}: the smallest code needs {min(sizes.values()):.1f} bytes a vector here"
        )
    found = fitting[0]
    return (
        f"{DEALT}{found * _AXES_PER_BYTE},IVF{cells},PQ{found * 2}x4fs",
        f"{rows} rows train {cells} cells and 4-bit codes of 2 axes each, {sizes[found]:.1f} bytes a vector",
    )


def resident_bytes(rows: int, dim: int, cells: int, length: int) -> float:
    """Bytes a vector in memory: a code of `length` bytes, its place in a list, its id, its share of what all rows share."""
    axes = length * _AXES_PER_BYTE
    shared = 4 * (cells * axes + dim * axes + 16 * axes)  # centroids, rotation, codebooks: float32
    per_list = min(rows, _full_shard(cells)) / cells
    return length * (1 + (_LIST_STEP - 1) / 2 / per_list) + 8 + shared / rows


def full_shard(factory: str) -> int:
    """Rows of a full shard: so many that its lists are long, as each of them wastes half a block of codes."""
    return _full_shard(cells_of(factory))


def _full_shard(cells: int) -> int:
    return max(_SHARD_ROWS, _ROWS_PER_LIST * cells)


def split_factory(factory: str, dim: int) -> tuple[int, str]:
    """A factory string as the axes of its `Dealt` rotation (0: none) and what faiss itself makes.

    Raises:
        InputError: `Dealt` without a number of at most `dim`.
    """
    head, _, rest = factory.partition(",")
    if not head.startswith(DEALT):
        return 0, factory
    axes = head.removeprefix(DEALT)
    if not axes.isdecimal() or not 0 < int(axes) <= dim or not rest:
        raise InputError(f"--factory {factory}: {DEALT}N,REST needs N from 1 to the {dim} dimensions")
    return int(axes), rest


def check_factory(factory: str, dim: int) -> None:
    """Refuse a factory string before anything is read for it.

    Raises:
        InputError: faiss cannot make it for `dim` dimensions, or its cells have no plain number.
    """
    axes, rest = split_factory(factory, dim)
    try:
        inner = faiss.index_factory(axes or dim, rest, faiss.METRIC_INNER_PRODUCT)
        training_rows(factory, 1)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--factory {factory}: faiss: {_last_line(error)}") from None
    if axes and not isinstance(inner, faiss.IndexIVFPQ | faiss.IndexIVFPQFastScan):
        raise InputError(f"--factory {factory}: {DEALT} deals axes to the codes of IVF...,PQ..., and {rest} has none")


def training_rows(factory: str, rows: int) -> int:
    """How many rows of a uniform sample train a factory's quantizers."""
    if factory == "Flat":
        return min(rows, 1)
    return min(rows, max(cells_of(factory) * _MAX_POINTS_PER_CELL, _MAX_PQ_POINTS))


def cells_of(factory: str) -> int:
    """Cells of a factory's inverted file; 0: it has none."""
    return max([int(piece[3:].split("_")[0]) for piece in factory.split(",") if piece.startswith("IVF")], default=0)


def train(sample_ND: Matrix, factory: str, *, seed: int = 0, threads: int = 1, gpus: int = 0) -> bytes:
    """Train the quantizers of a factory: the bytes of an empty stock faiss index.

    The same sample, seed and number of threads give the same bytes.

    Args:
        sample_ND: unit vectors, float16 or float32.
        factory: faiss factory string, or one that starts with `DealtN,`.
        seed: seed of the k-means.
        threads: OpenMP threads.
        gpus: above 0, k-means of the cells runs on the GPUs (faiss-gpu).

    Raises:
        InputError: faiss does not know the factory, or cannot train it on this sample.
    """
    faiss.omp_set_num_threads(threads)
    axes, rest = split_factory(factory, sample_ND.shape[1])
    try:
        index: Any = faiss.index_factory(axes or sample_ND.shape[1], rest, faiss.METRIC_INNER_PRODUCT)
        if axes:
            transform = principal_rotation(sample_ND, axes, index.pq.M)
            sample_ND = rotate(transform, sample_ND)
        kept = _prepare(index, seed)
        if gpus and (ivf := inverted_file(index)) is not None:
            flat = faiss.IndexFlatIP(ivf.d)
            ivf.clustering_index = faiss.index_cpu_to_all_gpus(flat, ngpu=gpus)
        index.train(np.ascontiguousarray(sample_ND, np.float32))
        del kept
        if axes:
            index = faiss.IndexPreTransform(transform, index)
    except RuntimeError as error:
        raise InputError(f"--factory {factory}: faiss: {_last_line(error)}") from None
    return bytes(faiss.serialize_index(index))


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _WHERE.sub("", lines[-1])[:200] if lines else type(error).__name__


def _prepare(index: Any, seed: int) -> list[Any]:  # noqa: ANN401 - faiss has no types
    """Seed every k-means of an index and bound the training of its rotation; what it returns must outlive the training.

    faiss's defaults train the rotation for fifty rounds with 256 centroids whatever the codes have: most of a build.
    """
    ivf = inverted_file(index)
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


def inverted_file(index: Any) -> Any:  # noqa: ANN401 - faiss has no types
    """The inverted file inside an index, or None."""
    inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
    return inner if isinstance(inner, faiss.IndexIVF) else None


def transforms(index: Any) -> list[Any]:  # noqa: ANN401 - faiss has no types
    """What a query goes through before the inverted file, in order."""
    if not isinstance(index, faiss.IndexPreTransform):
        return []
    chain = cast(Any, index.chain)
    return [chain.at(place) for place in range(chain.size())]


def build_shard(trained: bytes, blocks: Iterable[Matrix], *, threads: int = 1) -> Any:  # noqa: ANN401 - faiss.Index
    """A shard: blocks of vectors [n, D] added to the trained quantizer in order, so that row i has id i.

    Raises:
        RuntimeError: faiss lost, doubled or shifted an id (read back from the inverted lists).
    """
    faiss.omp_set_num_threads(threads)
    index = faiss.deserialize_index(np.frombuffer(trained, np.uint8))
    rows = 0
    for block in blocks:
        index.add(np.ascontiguousarray(block, np.float32))
        rows += len(block)
    if (ivf := inverted_file(index)) is not None and not np.array_equal(np.sort(_stored_ids(ivf)), np.arange(rows)):
        raise RuntimeError(f"faiss does not hold each of the ids 0..{rows - 1} once")
    return index


def _stored_ids(ivf: Any) -> Matrix:  # noqa: ANN401 - faiss.IndexIVF
    """The ids of all inverted lists, list after list."""
    lists = ivf.invlists
    sizes = [lists.list_size(cell) for cell in range(ivf.nlist)]
    ids = [faiss.rev_swig_ptr(lists.get_ids(cell), size).copy() for cell, size in enumerate(sizes) if size]
    return np.concatenate([np.empty(0, np.int64), *ids])


def quantization_error(index: Any, vectors_ND: Matrix) -> float:  # noqa: ANN401 - faiss.Index
    """Mean squared distance between unit vectors and what their codes stand for; 0 where nothing is quantized.

    Through a rotation of orthonormal rows: what it drops, plus what the codes lose.
    """
    ivf = inverted_file(index)
    if ivf is None or len(vectors_ND) == 0:
        return 0.0
    vectors = np.ascontiguousarray(vectors_ND, np.float32)
    turned = vectors
    for transform in transforms(index):
        turned = transform.apply(turned)
    decoded = _decoded(ivf, turned)
    dropped = (vectors.astype(np.float64) ** 2).sum(1) - (turned.astype(np.float64) ** 2).sum(1)
    lost = ((turned - decoded).astype(np.float64) ** 2).sum(1)
    return float(np.mean(np.maximum(dropped, 0) + lost))


def _decoded(ivf: Any, turned_ND: Matrix) -> Matrix:  # noqa: ANN401 - faiss.IndexIVF
    """What the codes of an inverted file stand for; by hand with a product quantizer (fast scan's own decoder crashes)."""
    if not hasattr(ivf, "pq"):
        decoded: Matrix = ivf.sa_decode(ivf.sa_encode(turned_ND))
        return decoded
    centres_ND = np.zeros_like(turned_ND)
    if ivf.by_residual:
        centres_ND = ivf.quantizer.reconstruct_batch(ivf.quantizer.search(turned_ND, 1)[1][:, 0])
    found: Matrix = centres_ND + ivf.pq.decode(ivf.pq.compute_codes(np.ascontiguousarray(turned_ND - centres_ND)))
    return found
