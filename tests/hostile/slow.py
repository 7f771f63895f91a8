"""A tiny autoencoder that is slow at some jobs: a job of 5 images takes ten minutes, one of 4 a moment."""

from __future__ import annotations

import time

import numpy as np
from fakes import FakeVQ

SECONDS = {5: 600.0, 4: 0.1}


class SlowVQ(FakeVQ):
    """`FakeVQ`, slowed by the number of images."""

    def decode(self, latents: np.ndarray) -> np.ndarray:
        time.sleep(SECONDS.get(len(latents), 0.0))
        return super().decode(latents)
