"""Distances of two sets of feature vectors, each set an (N, D) array; everything in float64.

Rows are processed in blocks, so memory grows with N·D, never with N². Every function is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpkernel.errors import InputError

Features = NDArray[np.float64]

NEIGHBOURS = 3  # of precision and recall, as in Kynkäänniemi et al. 2019
PARTS = 10  # of a set, for the standard error of the kernel distance
SMALLEST_PART = 10  # images
_ROWS_AT_ONCE = 512  # of a matrix of distances


def features(values: ArrayLike, least: int = 2) -> Features:
    """The values as (N, D) float64. Raises InputError on another shape, fewer rows than `least`, or NaN."""
    rows = np.asarray(values, np.float64)
    if rows.ndim != 2 or len(rows) < least or not rows.shape[1]:
        raise InputError(f"features: got shape {rows.shape}, expected (N, D) with N >= {least}; give more images")
    if not np.isfinite(rows).all():
        raise InputError("features: got NaN or infinity, expected finite numbers")
    return rows


@dataclass(frozen=True, eq=False)
class Gaussian:
    """The normal distribution fitted to a set. root: R (r, D) with RᵀR the unbiased covariance, r = min(N, D)."""

    mean: Features
    root: Features

    @staticmethod
    def of(values: ArrayLike) -> Gaussian:
        rows = features(values)
        mean = rows.mean(axis=0)
        root = (rows - mean) / np.sqrt(len(rows) - 1)
        if len(root) > root.shape[1]:
            eigenvalues, columns = np.linalg.eigh(root.T @ root)
            root = np.sqrt(np.maximum(eigenvalues, 0))[:, None] * columns.T
        return Gaussian(mean, root)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance |m − n|² + tr(S + T − 2 (ST)^½) of two normal distributions (Heusel et al. 2017), at least 0.

    With S = RᵀR and T = QᵀQ, tr (ST)^½ is the sum of the singular values of RQᵀ: no root of an unsymmetric matrix,
    and no loss where N < D makes S singular.
    """
    trace = np.square(a.root).sum() + np.square(b.root).sum()
    cross = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    return max(0.0, float(np.square(a.mean - b.mean).sum() + trace - 2 * cross))


def kernel_distance(a: ArrayLike, b: ArrayLike) -> tuple[float, float | None]:
    """KID (Bińkowski et al. 2018) over all pairs, and its standard error.

    The unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³: 0 on average for two samples of one
    distribution, so it may be negative. The error is that of the mean over parts of both sets (every tenth image is one
    part); None for fewer than 100 images.
    """
    rows, columns = features(a), features(b)
    parts = min(PARTS, len(rows) // SMALLEST_PART, len(columns) // SMALLEST_PART)
    error = None
    if parts == PARTS:
        estimates = [_discrepancy(rows[i::parts], columns[i::parts]) for i in range(parts)]
        error = float(np.std(estimates, ddof=1) / np.sqrt(parts))
    return _discrepancy(rows, columns), error


def _discrepancy(a: Features, b: Features) -> float:
    def within(rows: Features) -> float:
        total = sum(kernel(rows[part], rows).sum() for part in _parts(len(rows)))
        diagonal = ((np.square(rows).sum(axis=1) / rows.shape[1] + 1) ** 3).sum()
        return float(total - diagonal) / (len(rows) * (len(rows) - 1))

    def kernel(x: Features, y: Features) -> Features:
        return (x @ y.T / x.shape[1] + 1) ** 3

    between = sum(kernel(a[part], b).sum() for part in _parts(len(a))) / (len(a) * len(b))
    return within(a) + within(b) - 2 * float(between)


def mean_distance(values: ArrayLike) -> float:
    """Mean Euclidean distance of all pairs of the set."""
    rows = features(values)
    total = sum(float(block.sum()) for _, block in _blocks(rows, rows, same=True))
    return total / (len(rows) * (len(rows) - 1))


def nearest(values: ArrayLike, others: ArrayLike | None = None) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each vector, the Euclidean distance to the nearest of `others` and its row, the lowest on ties.

    others None: the nearest of the same set, the vector itself left out.
    """
    rows = features(values, 1)
    distances, numbers = np.empty(len(rows)), np.empty(len(rows), np.int64)
    for part, block in _blocks(rows, rows if others is None else features(others, 1), same=others is None):
        if others is None:
            block[np.arange(len(block)), np.arange(part.start, part.stop)] = np.inf
        numbers[part] = block.argmin(axis=1)
        distances[part] = block.min(axis=1)
    return distances, numbers


def precision_recall(real: ArrayLike, made: ArrayLike, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision and recall of Kynkäänniemi et al. 2019.

    Precision: the share of made vectors that lie within the ball of some real one, whose radius is the distance to
    its k-th nearest of the real set. Recall: the same with the sets exchanged. Raises InputError for k >= N.
    """
    rows, columns = features(real), features(made)
    return _covered(columns, rows, _radii(rows, k)), _covered(rows, columns, _radii(columns, k))


def _radii(rows: Features, k: int) -> NDArray[np.float64]:
    if not 1 <= k < len(rows):
        raise InputError(f"k: got {k} with {len(rows)} images, expected 1 to {len(rows) - 1}; give more images")
    # the vector itself is the first of the sorted ones
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for _, block in _blocks(rows, rows, same=True)])


def _covered(rows: Features, centres: Features, radii: NDArray[np.float64]) -> float:
    inside = sum(int((block <= radii).any(axis=1).sum()) for _, block in _blocks(rows, centres, same=False))
    return inside / len(rows)


def _blocks(a: Features, b: Features, same: bool) -> Iterator[tuple[slice, Features]]:
    """Distances of some rows of `a` to all of `b`, block by block. same: both are one set, so the diagonal is 0."""
    squares = np.square(b).sum(axis=1)
    for part in _parts(len(a)):
        block = np.square(a[part]).sum(axis=1)[:, None] + squares - 2 * (a[part] @ b.T)
        # equal vectors come out a rounding error apart, which the root would magnify
        scale = np.square(a[part]).sum(axis=1)[:, None] + squares
        block[block < 1e-12 * scale] = 0
        if same:
            block[np.arange(len(block)), np.arange(part.start, part.stop)] = 0
        yield part, np.sqrt(block)


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, count))
