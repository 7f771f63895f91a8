"""The interface of an autoencoder."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Autoencoder(Protocol):
    """What the engine asks of an autoencoder. H = W = `image_size`, M = `grid`.

    `codebook` is (V, L) float32, or None for a continuous autoencoder; `fingerprint` is a hash of the
    weights, stored in the banks made with them.
    """

    name: str
    image_size: int
    grid: int
    codebook: np.ndarray | None
    fingerprint: str

    def encode(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, 3) uint8 -> codes (N, M, M) int64, or latents (N, M, M, L) float32 if continuous."""
        ...

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """What `encode` returns -> (N, H, W, 3) uint8."""
        ...
