"""Principal components in float64: they shorten a latent vector of width L to C channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lpkernel.content import ByContent
from lpkernel.errors import InputError

_ROWS_AT_ONCE = 1 << 14  # of the cells: bounds the float64 copies


@dataclass(frozen=True, eq=False)
class PCA(ByContent):
    """A fitted projection. `mean` (L,), `components` (C, L) with orthonormal rows, both float64.

    `explained` (C,) float64: share of the total variance that each component carries, descending.
    """

    mean: np.ndarray
    components: np.ndarray
    explained: np.ndarray

    @property
    def explained_share(self) -> float:
        """Share of the variance that all C components keep, 0 to 1 (1 for vectors that never vary)."""
        return float(self.explained.sum())

    def project(self, vectors: np.ndarray) -> np.ndarray:
        """(..., L) any real dtype -> (..., C) float64.

        Sums run over L in order, one elementwise operation at a time, so a vector's projection does
        not depend on what else is projected with it, nor on the machine. Raises InputError on a wrong L.
        """
        channels, width = self.components.shape
        if vectors.ndim < 1 or vectors.shape[-1] != width:
            raise InputError(f"vectors to project have shape {vectors.shape}, expected (..., {width})")
        flat = vectors.reshape(-1, width)
        result = np.zeros((len(flat), channels))
        for start in range(0, len(flat), _ROWS_AT_ONCE):
            rows = flat[start : start + _ROWS_AT_ONCE].astype(np.float64) - self.mean
            part = result[start : start + _ROWS_AT_ONCE]
            for j in range(width):
                part += rows[:, j, None] * self.components[:, j]
        return result.reshape(*vectors.shape[:-1], channels)


def fit(vectors: np.ndarray, weights: np.ndarray | None, channels: int) -> PCA:
    """PCA of (n, L) real vectors, each counted `weights` (n,) times (None: once).

    float64 eigendecomposition of the population covariance, accumulated over blocks of rows. Signs are
    fixed: the entry of largest magnitude of each component (the first on ties) is positive.
    Raises InputError when L < channels or when no weight is positive.
    """
    if vectors.ndim != 2 or len(vectors) == 0:
        raise InputError(f"PCA got vectors of shape {vectors.shape}, expected (n, L) with n >= 1")
    n, width = vectors.shape
    if not 1 <= channels <= width:
        raise InputError(f"channels={channels}, expected 1 to {width}, the width of the latent vectors; lower channels")
    counts = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if counts.shape != (n,) or counts.min() < 0 or counts.sum() <= 0:
        raise InputError(f"PCA weights of shape {counts.shape} must be ({n},), none negative and some positive")
    total = counts.sum()
    blocks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, n, _ROWS_AT_ONCE)]
    mean = sum((counts[b] @ vectors[b].astype(np.float64) for b in blocks), np.zeros(width)) / total
    covariance = np.zeros((width, width))
    for block in blocks:
        rows = vectors[block].astype(np.float64) - mean
        covariance += (rows * counts[block, None]).T @ rows
    values, columns = np.linalg.eigh(covariance / total)  # ascending
    values = np.maximum(values, 0)
    components = np.ascontiguousarray(columns[:, ::-1][:, :channels].T)
    largest = np.abs(components).argmax(axis=1)
    components *= np.where(components[np.arange(channels), largest] < 0, -1.0, 1.0)[:, None]
    variance = values.sum()
    top = values[::-1][:channels]
    explained = top / variance if variance > 0 else np.eye(channels)[0]
    return PCA(mean, components, explained)
