"""Are two samples of numbers drawn from one distribution? Used for memorisation, after Webster et al. 2019.

Ryan Webster et al., "Detecting overfitting of deep generative networks via latent recovery", compare how well training
images and held-out images are reconstructed: a model that remembers its training images reconstructs them better.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

SHUFFLES = 9999
_AT_ONCE = 100  # shuffles


def kolmogorov_smirnov(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """The largest difference of both distribution functions, and its asymptotic p-value (Kolmogorov's series)."""
    points = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (a, b)]
    largest = float(np.abs(below[0] - below[1]).max())
    root = math.sqrt(len(a) * len(b) / (len(a) + len(b))) * largest
    if root < 0.2:  # where the series, which alternates, is still 1
        return largest, 1.0
    terms = (2 * (-1) ** (i - 1) * math.exp(-2 * (i * root) ** 2) for i in range(1, 101))
    return largest, min(1.0, max(0.0, sum(terms)))


def rank_test(a: NDArray[np.float64], b: NDArray[np.float64], seed: int = 0) -> tuple[float, float]:
    """P(a < b) + P(a = b) / 2 (Mann and Whitney's U over all pairs), and the two-sided p-value of 9,999 shuffles.

    ½ for samples of one distribution; above it, the numbers of `a` tend to be smaller.
    """
    together = np.concatenate([a, b])
    ordered = np.sort(together)
    ranks = (np.searchsorted(ordered, together, "left") + np.searchsorted(ordered, together, "right") + 1) / 2
    smallest, pairs = len(a) * (len(a) + 1) / 2, len(a) * len(b)

    def share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 - (sums - smallest) / pairs

    found = float(share(ranks[: len(a)].sum(keepdims=True))[0])
    random = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, SHUFFLES, _AT_ONCE):
        count = min(_AT_ONCE, SHUFFLES - start)
        shuffled = random.permuted(np.broadcast_to(ranks, (count, len(ranks))), axis=1)
        # a hair less, so that rounding does not lose shuffles that are as far off
        extreme += int((np.abs(share(shuffled[:, : len(a)].sum(axis=1)) - 0.5) >= abs(found - 0.5) - 1e-12).sum())
    return found, (extreme + 1) / (SHUFFLES + 1)
