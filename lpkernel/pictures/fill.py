"""Filling the unknown part of a picture with averages of what is known around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILL = "pull-push: averages of the pixels around the hole, at growing distance"


def fill_hole(image: NDArray[np.uint8], hole: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 with the hole's pixels (H, W) replaced by smooth averages of the others; those stay as they are.

    So an encoder sees nothing of what was in the hole, nor an edge where it begins. At least one pixel must lie outside
    the hole.
    """
    filled = fill(np.where(hole[..., None], 0, image).astype(np.float32), ~hole)
    return np.where(hole[..., None], np.rint(filled).clip(0, 255), image).astype(np.uint8)


def fill(values: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(H, W, 3) values with those that are not `known` (H, W) replaced by smooth averages of the others.

    Known ones are averaged two by two until every block knows one, then carried back (Gortler et al., "The
    Lumigraph", 1996). The result does not depend on the unknown values. At least one must be known.
    """
    if known.all():
        return values
    height, width = known.shape
    even = ((0, height % 2), (0, width % 2))
    blocks = ((height + 1) // 2, 2, (width + 1) // 2, 2)
    counts = np.pad(known, even).reshape(blocks).sum((1, 3))
    sums = np.pad(values * known[..., None], (*even, (0, 0))).reshape(*blocks, 3).sum((1, 3))
    coarse = fill((sums / np.maximum(counts, 1)[..., None]).astype(np.float32), counts > 0)
    size = blocks[2] * 2, blocks[0] * 2
    planes = [
        np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
        for plane in np.moveaxis(coarse, 2, 0)
    ]
    return np.where(known[..., None], values, np.stack(planes, -1)[:height, :width])
