"""Similarity transforms of images: turned, scaled and shifted, without aliasing and without empty corners.

Points are complex numbers x + iy in pixels, where pixel 0 reaches from 0 to 1. A similarity is then
w -> scale * w + shift with a complex scale: its absolute value magnifies, its angle turns (clockwise: y points down).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

REACH = 3  # pixels that bicubic interpolation may look at beyond a point


@dataclass(frozen=True)
class Similarity:
    """Where each point of the result lies in the image that it is taken from: w -> scale * w + shift."""

    scale: complex
    shift: complex

    @classmethod
    def of_points(cls, result: tuple[complex, complex], image: tuple[complex, complex]) -> Similarity:
        """The one that takes two different points of the result to two of the image."""
        scale = (image[1] - image[0]) / (result[1] - result[0])
        return cls(scale, image[0] - scale * result[0])

    def __call__(self, point: complex) -> complex:
        return self.scale * point + self.shift

    def inverse(self) -> Similarity:
        """Where each point of the image lies in the result."""
        return Similarity(1 / self.scale, -self.shift / self.scale)

    def from_corner(self, corner: complex) -> Similarity:
        """The same for the part of the result that begins at `corner`."""
        return Similarity(self.scale, self(corner))


def resample(pixels: NDArray[np.uint8], where: Similarity, size: int) -> tuple[NDArray[np.uint8], float]:
    """The square (size, size, 3) that `where` cuts out of (H, W, 3) uint8 pixels, and its share beyond their edges.

    As `cut_out`.
    """
    height, width, _ = pixels.shape
    return cut_out(pixels, where, (size, size)), _share_beyond(where, size, width, height)


def cut_out(pixels: NDArray[np.uint8], where: Similarity, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The part of `size` (width, height) that `where` cuts out of (H, W, 3) or (H, W) uint8 pixels.

    What lies beyond the image is mirrored at its edges. A shrinking transform averages: whole boxes of pixels
    first, then turned at one to four pixels for each of the result, then Pillow's bicubic filter, as in the framing
    of a bank's images. Same pixels in, same pixels out, whatever the machine's number of cores.
    """
    height, width = pixels.shape[:2]
    right, below = complex(size[0]), complex(0, size[1])
    corners = [where(corner) for corner in (0j, right, below, right + below)]
    box = max(1, int(abs(where.scale) / 2))
    pad, keep, origin = _margins(corners, (width, height), box)
    part = np.asarray(Image.fromarray(pixels).crop(keep).reduce(box))
    part = np.pad(part, (*pad, (0, 0))[: pixels.ndim], "symmetric")
    finer = max(1, math.ceil(abs(where.scale) / box))
    scale, shift = where.scale / (finer * box), (where.shift - origin) / box
    turned = Image.fromarray(part).transform(
        (size[0] * finer, size[1] * finer),
        Image.Transform.AFFINE,
        (scale.real, -scale.imag, shift.real, scale.imag, scale.real, shift.imag),
        Image.Resampling.BICUBIC,
    )
    return np.array(turned.resize(size, Image.Resampling.BICUBIC))


def _margins(
    corners: list[complex], shape: tuple[int, int], box: int
) -> tuple[list[tuple[int, int]], tuple[int, int, int, int], complex]:
    """How much to pad (rows, columns, in boxes) the part of the image to keep, and where the padded part begins."""
    pad, low, high, origin = [], [], [], []
    for axis, length in zip(([c.real for c in corners], [c.imag for c in corners]), shape, strict=True):
        first, last = math.floor(min(axis)) - REACH * box, math.ceil(max(axis)) + REACH * box
        begin = min(max(first, 0), length - 1)
        end = max(min(last, length), begin + 1)
        before = max(0, -((first - begin) // box))
        pad.append((before, max(0, -((end - last) // box))))
        low.append(begin)
        high.append(end)
        origin.append(begin - before * box)
    return pad[::-1], (low[0], low[1], high[0], high[1]), complex(*origin)


def _share_beyond(where: Similarity, size: int, width: int, height: int) -> float:
    centres = np.arange(size) + 0.5
    points = where.scale * (centres[None, :] + 1j * centres[:, None]) + where.shift
    inside = (points.real >= 0) & (points.real <= width) & (points.imag >= 0) & (points.imag <= height)
    return 1 - float(inside.mean())
