"""The closing composite of an edit: the result inside the region, the photograph's own pixels outside."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lpkernel.content import ByContent

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Composite(ByContent):
    """original (S, S, 3) uint8 and weight (S, S) uint8: 255 takes the result, 0 the original, exactly."""

    original: Pixels
    weight: NDArray[np.uint8]

    @staticmethod
    def feathered(original: Pixels, inside: NDArray[np.bool_], feather: int) -> Composite:
        """The result where `inside` (S, S), fading to the original over about 2 * feather pixels around it."""
        spread = Image.fromarray(inside.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * feather + 1))
        soft = np.asarray(spread.filter(ImageFilter.BoxBlur(feather)))
        return Composite(original, np.where(inside, np.uint8(255), soft))

    def apply(self, images: Pixels) -> Pixels:
        """(N, S, S, 3) uint8 results in the original's surroundings; rounded to the nearest."""
        weight = self.weight[..., None].astype(np.uint32)
        return ((weight * images + (255 - weight) * self.original + 127) // 255).astype(np.uint8)
