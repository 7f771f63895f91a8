"""How well pictures are reconstructed: PSNR and SSIM of (N, H, W, 3) uint8 images, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lpkernel.errors import InputError

Pixels = NDArray[np.uint8]

SIGMA, REACH = 1.5, 5  # of SSIM's Gaussian window: 11 x 11
K1, K2 = 0.01, 0.03
LUMA = (0.299, 0.587, 0.114)


def squared_errors(a: Pixels, b: Pixels) -> NDArray[np.float64]:
    """(N,): mean squared difference of two stacks of images, in grey levels squared."""
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"images have shapes {a.shape} and {b.shape}, expected the same (N, H, W, 3)")
    return np.array([np.square(x.astype(np.float64) - y).mean() for x, y in zip(a, b, strict=True)])


def psnr(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio in dB of squared errors; at most 78, for equal images."""
    return 10 * np.log10(255**2 / np.maximum(errors, 1e-3))


def ssim(a: Pixels, b: Pixels) -> NDArray[np.float64]:
    """(N,): mean structural similarity (Wang et al. 2004) of the luma: Gaussian window of 11 x 11, whole windows only.

    Raises InputError for sides below 11.
    """
    if min(a.shape[1:3]) < 2 * REACH + 1:
        raise InputError(f"images have {a.shape[1]}x{a.shape[2]} pixels, SSIM takes at least {2 * REACH + 1} a side")
    return np.array([_similarity(x @ np.array(LUMA), y @ np.array(LUMA)) for x, y in zip(a, b, strict=True)])


def _similarity(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    c1, c2 = (255 * K1) ** 2, (255 * K2) ** 2
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    similar = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


def _blurred(grey: NDArray[np.float64]) -> NDArray[np.float64]:
    window = np.exp(-np.square(np.arange(-REACH, REACH + 1)) / (2 * SIGMA**2))
    window /= window.sum()
    for _ in range(2):  # down the rows, then, turned, down the columns
        grey = np.lib.stride_tricks.sliding_window_view(grey, len(window), axis=0) @ window
        grey = grey.T
    return grey
