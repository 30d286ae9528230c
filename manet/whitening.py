"""PCA-whitening of descriptors: axes that vary together in the whole gallery tell little, and count less.

Source: Jegou, Chum, *Negative evidences and co-occurrences in image retrieval: the benefit of PCA and whitening*, ECCV 2012;
there axes are divided by their standard deviation, here by a power of it (BENCHMARKS.md: half of it is the better choice).

Shape letters: N rows, D dimensions, W dimensions after whitening.
"""

from typing import Any

import numpy as np

from manet.errors import InputError
from manet.rotation import covariance

Matrix = np.ndarray[Any, np.dtype[Any]]
_BLOCK = 4096  # rows widened to float64 at once
_LEAST = 1e-6  # of the largest variance: what varies less is noise, which whitening would blow up


def learn_whitening(sample_ND: Matrix, dim: int, power: float) -> Matrix:
    """What `whiten` applies, float32 [W + 1, D]: W axes, each over a power of its standard deviation, then the mean.

    Args:
        sample_ND: unit vectors, float16 or float32.
        dim: W, at most D.
        power: of the standard deviation; 1 makes all axes vary alike, 0 leaves their lengths (PCA alone).

    Raises:
        InputError: the sample does not vary in so many directions.
    """
    if dim > sample_ND.shape[1]:
        raise InputError(f"--whiten {dim}: the descriptors have {sample_ND.shape[1]} dimensions")
    mean_D, covariance_DD = covariance(sample_ND)
    variance_D, axes_DD = np.linalg.eigh(covariance_DD)
    variance_W, axes_DW = variance_D[::-1][:dim], axes_DD[:, ::-1][:, :dim]
    kept = int((variance_W > _LEAST * variance_D[-1]).sum())
    if kept < dim or len(sample_ND) <= dim:
        most = min(kept, len(sample_ND) - 1)
        raise InputError(f"--whiten {dim}: {len(sample_ND)} descriptors vary in {most} directions; ask for fewer")
    return np.concatenate([axes_DW.T / variance_W[:, None] ** (power / 2), mean_D[None]]).astype(np.float32)


def whiten(whitening_WD: Matrix, vectors_ND: Matrix) -> Matrix:
    """Whitened vectors of unit length, float32 [N, W], with a block of them widened at a time.

    Raises:
        InputError: vectors of other dimensions.
    """
    if vectors_ND.shape[1] != whitening_WD.shape[1]:
        raise InputError(f"vectors of {vectors_ND.shape[1]} dimensions for a whitening of {whitening_WD.shape[1]}")
    matrix_WD = whitening_WD.astype(np.float64)  # a row's bits do not depend on the others, float32's rounding aside
    unit_NW = np.empty((len(vectors_ND), len(matrix_WD) - 1), np.float32)
    for start in range(0, len(vectors_ND), _BLOCK):
        white_NW = (vectors_ND[start : start + _BLOCK].astype(np.float64) - matrix_WD[-1]) @ matrix_WD[:-1].T
        lengths = np.linalg.norm(white_NW, axis=1, keepdims=True)
        unit_NW[start : start + _BLOCK] = white_NW / np.maximum(lengths, 1e-12)
    return unit_NW
