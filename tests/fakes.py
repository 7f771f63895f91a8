"""Tiny deterministic autoencoders for tests: the mean colour of each cell, spread over L numbers."""

from __future__ import annotations

import hashlib

import numpy as np


class _MeanColour:
    def __init__(self, grid: int, cell: int, width: int, seed: int) -> None:
        self.grid = grid
        self.image_size = grid * cell
        self.width = width
        self.cell = cell
        random = np.random.default_rng(seed)
        self.spread = random.normal(size=(3, width)).astype(np.float32)
        self.unspread = np.linalg.pinv(self.spread.astype(np.float64))
        self.encoded = 0  # images encoded so far
        self.fingerprint = hashlib.sha256(self.spread.tobytes()).hexdigest()

    def _vectors(self, images: np.ndarray) -> np.ndarray:
        n, g, c = len(images), self.grid, self.cell
        assert images.shape == (n, g * c, g * c, 3) and images.dtype == np.uint8
        self.encoded += n
        means = images.reshape(n, g, c, g, c, 3).mean(axis=(2, 4), dtype=np.float64) / 127.5 - 1
        return (means @ self.spread).astype(np.float32)

    def _images(self, vectors: np.ndarray) -> np.ndarray:
        colours = np.clip((vectors @ self.unspread + 1) * 127.5, 0, 255).round().astype(np.uint8)
        return colours.repeat(self.cell, axis=1).repeat(self.cell, axis=2)


class FakeVQ(_MeanColour):
    """Codes (N, M, M) int64 of the nearest of V random colours; L = `width`."""

    name = "fake-vq"

    def __init__(self, grid: int = 8, cell: int = 8, rows: int = 32, width: int = 6, seed: int = 0) -> None:
        super().__init__(grid, cell, width, seed)
        colours = np.random.default_rng(seed + 1).uniform(-1, 1, size=(rows, 3))
        self.codebook: np.ndarray | None = (colours @ self.spread).astype(np.float32)

    def encode(self, images: np.ndarray) -> np.ndarray:
        difference = self._vectors(images)[..., None, :] - self.codebook
        return (difference.astype(np.float64) ** 2).sum(axis=-1).argmin(axis=-1)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        assert self.codebook is not None and latents.dtype == np.int64
        return self._images(self.codebook[latents])


class FakeContinuous(_MeanColour):
    """Latents (N, M, M, L) float32."""

    name = "fake-continuous"
    codebook: np.ndarray | None = None

    def __init__(self, grid: int = 8, cell: int = 8, width: int = 6, seed: int = 0) -> None:
        super().__init__(grid, cell, width, seed)

    def encode(self, images: np.ndarray) -> np.ndarray:
        return self._vectors(images)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._images(latents)


def far_latents() -> np.ndarray:
    """(4, 8, 8, 16) float32 whose cells are as far apart as fixed point allows: corners that PCA does not rotate."""
    signs = np.ones((1, 1))
    for _ in range(5):
        signs = np.block([[signs, signs], [signs, -signs]])  # orthogonal columns (Sylvester's Hadamard matrix)
    corners = signs[:, 1:17] * np.linspace(1, 0.99, 16)
    return np.tile(corners, (8, 1)).reshape(4, 8, 8, 16).astype(np.float32)
