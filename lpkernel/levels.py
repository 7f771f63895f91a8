"""The levels of a bank: its images at smaller grid sides."""

from __future__ import annotations

import numpy as np

from lpkernel.errors import InputError

_CHUNK = 256  # images handled at once


def resize_level(full: np.ndarray, m: int) -> np.ndarray:
    """Bank images (or a reference canvas) at grid side m: (B, M, M, C) int16 -> (B, m, m, C) int16.

    rint of the float64 bilinear resize, half-pixel centres, no antialias: output o of an axis reads
    c = clamp((o + 0.5) M / m - 0.5, 0, M - 1) between i0 = floor(c) and i1 = min(i0 + 1, M - 1), weights
    1 - f and f = c - i0; rows first, then columns, each step a * (1 - f) + b * f elementwise, so no
    machine may reorder it. Raises InputError when m < 1.
    """
    if full.ndim != 4 or full.shape[1] != full.shape[2] or m < 1:
        raise InputError(f"cannot resize an array of shape {full.shape} to side {m}, expected (B, M, M, C) and m >= 1")
    count, side, _, channels = full.shape
    low, high, fraction = level_axis(side, m)
    down, across = fraction[:, None, None], fraction[:, None]
    result = np.empty((count, m, m, channels), np.int16)
    for start in range(0, count, _CHUNK):
        values = full[start : start + _CHUNK].astype(np.float64)
        values = values[:, low] * (1 - down) + values[:, high] * down
        values = values[:, :, low] * (1 - across) + values[:, :, high] * across
        result[start : start + _CHUNK] = np.rint(values)
    return result


def level_axis(side: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """i0 and i1, (m,) int64, and f, (m,) float64, of the resize of an axis that `resize_level` describes."""
    centre = np.clip((np.arange(m) + 0.5) * side / m - 0.5, 0, side - 1)
    low = np.floor(centre).astype(np.int64)
    return low, np.minimum(low + 1, side - 1), centre - low
