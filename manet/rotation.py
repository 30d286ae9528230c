"""The rotation before a product quantizer: principal axes, dealt to the codes so that each carries the same share.

Source: Ge, He, Ke, Sun, *Optimized product quantization*, CVPR 2013, the parametric solution ("eigenvalue allocation"):
exact for Gaussian data, and seconds where the iterative one takes minutes.

Shape letters: N rows, D dimensions, R dimensions after the rotation, M codes.
"""

from typing import Any

import faiss
import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
MAX_POINTS = 32768  # rows that the covariance is taken from
_BLOCK = 4096  # rows widened to float32 at once
_TINY = 1e-12  # variance of an axis that has none


def principal_rotation(sample_ND: Matrix, out_dim: int, codes: int) -> Any:  # noqa: ANN401 - faiss.LinearTransform
    """A stock faiss transform to the `out_dim` axes of largest variance, `out_dim / codes` of them for each code.

    It has no bias: a shift of all vectors would change inner products by more than a constant.

    Args:
        sample_ND: rows to take the covariance from; float16 or float32.
        out_dim: R, a multiple of `codes`, at most D.
        codes: M, the codes of the product quantizer that follows.
    """
    step = max(1, -(-len(sample_ND) // MAX_POINTS))
    variance, axes_DD = np.linalg.eigh(covariance(sample_ND[::step])[1])
    variance, axes_DD = variance[::-1][:out_dim], axes_DD[:, ::-1][:, :out_dim]
    order = [axis for group in deal(variance, codes) for axis in group]
    matrix_RD = np.ascontiguousarray(axes_DD[:, order].T, np.float32)
    transform = faiss.LinearTransform(sample_ND.shape[1], out_dim, False)
    faiss.copy_array_to_vector(matrix_RD.ravel(), transform.A)
    transform.is_trained = True
    transform.is_orthonormal = True
    return transform


def deal(variance: Matrix, codes: int) -> list[list[int]]:
    """Axes, in order of falling variance, for each code: always to the code of smallest product that has a free slot."""
    logs = np.log(np.maximum(variance, _TINY))
    logs = logs - logs.min() + 1  # positive: a further axis always counts
    slots = len(variance) // codes
    dealt: list[list[int]] = [[] for _ in range(codes)]
    products = np.zeros(codes)
    for axis, weight in enumerate(logs):
        code = min((c for c in range(codes) if len(dealt[c]) < slots), key=lambda c: products[c])
        dealt[code].append(axis)
        products[code] += weight
    return dealt


def rotate(transform: Any, vectors_ND: Matrix) -> Matrix:  # noqa: ANN401 - faiss.VectorTransform
    """All rows through a transform, float32 [N, R], with a block of them widened at a time."""
    rotated = np.empty((len(vectors_ND), transform.d_out), np.float32)
    for start in range(0, len(vectors_ND), _BLOCK):
        block = np.ascontiguousarray(vectors_ND[start : start + _BLOCK], np.float32)
        rotated[start : start + _BLOCK] = transform.apply(block)
    return rotated


def covariance(sample_ND: Matrix) -> tuple[Matrix, Matrix]:
    """Mean [D] and covariance [D, D] in float64, summed over float32 blocks."""
    mean = np.zeros(sample_ND.shape[1])
    for start in range(0, len(sample_ND), _BLOCK):
        mean += sample_ND[start : start + _BLOCK].astype(np.float32).sum(0, dtype=np.float64)
    mean /= len(sample_ND)
    total = np.zeros((sample_ND.shape[1],) * 2)
    for start in range(0, len(sample_ND), _BLOCK):
        block = sample_ND[start : start + _BLOCK].astype(np.float32) - mean.astype(np.float32)
        total += block.T @ block
    return mean, total / len(sample_ND)
