"""The closing composite of an edit: the result inside the region, the picture's own pixels outside, no seam between.

A `Composite` does this in the framed square that the autoencoder sees, a `Whole` in the photograph that the square was
cut out of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from lpkernel.content import ByContent
from lpkernel.errors import InputError
from lpkernel.pictures.fill import fill
from lpkernel.pictures.warp import Similarity, cut_out

Pixels = NDArray[np.uint8]
Weights = NDArray[np.uint8]

STRIP = 2**20  # pixels of a photograph that are worked on at a time: the numbers of all would take gigabytes
MOST_MOVED = 48.0  # levels by which a colour is moved at most: more is not the autoencoder's error but other content


def feather(size: int, grid: int) -> int:
    """Pixels over which results fade: half a cell of a square of `size` pixels and `grid` cells a side."""
    return max(1, size // grid // 2)


@dataclass(frozen=True, eq=False)
class Composite(ByContent):
    """original (S, S, 3) uint8 and weight (S, S) uint8: 255 takes the result, 0 the original, exactly.

    feather: half the number of pixels over which the weight falls.
    """

    original: Pixels
    weight: Weights
    feather: int

    @staticmethod
    def feathered(original: Pixels, inside: NDArray[np.bool_], feather: int) -> Composite:
        """The result where `inside` (S, S), fading to the original over about 2 * feather pixels around it."""
        spread = Image.fromarray(inside.astype(np.uint8) * 255).filter(ImageFilter.MaxFilter(2 * feather + 1))
        soft = np.asarray(spread.filter(ImageFilter.BoxBlur(feather)))
        return Composite(original, np.where(inside, np.uint8(255), soft), feather)

    def apply(self, images: Pixels) -> Pixels:
        """(N, S, S, 3) uint8 results, their colours matched, in the original's surroundings; rounded to the nearest."""
        return np.stack([_mixed(self.original, self._matched(image), self.weight) for image in images])

    def _matched(self, image: Pixels) -> Pixels:
        """The image with its colours moved, smoothly, by how the original differs from it where the weight falls.

        There both show the same, so the difference is the autoencoder's error. It is averaged in squares of `feather`
        pixels and extended from there.
        """
        side, length = self.feather, len(image)
        seam = (self.weight > 0) & (self.weight < 255)
        if not seam.any():
            return image
        count = -(-length // side)
        room = (0, count * side - length)
        known = np.pad(seam, (room, room)).reshape(count, side, count, side).sum((1, 3))
        difference = (self.original.astype(np.float32) - image) * seam[..., None]
        sums = np.pad(difference, (room, room, (0, 0))).reshape(count, side, count, side, 3).sum((1, 3))
        means = (sums / np.maximum(known, 1)[..., None]).clip(-MOST_MOVED, MOST_MOVED).astype(np.float32)
        moved = [
            np.asarray(Image.fromarray(plane).resize((count * side, count * side), Image.Resampling.BILINEAR))
            for plane in np.moveaxis(fill(means, known > 0), 2, 0)
        ]
        return np.rint(image + np.stack(moved, -1)[:length, :length]).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Whole(ByContent):
    """A photograph (H, W, 3) in which the framed square lies, and where: `part` of it at `corner` (x, y) may change.

    where: from the photograph to the square. weight (h, w) uint8: as that of a `Composite`, for the part.
    """

    photograph: Pixels
    where: Similarity
    corner: tuple[int, int]
    weight: Weights
    closing: Composite

    @staticmethod
    def around(
        closing: Composite, photograph: Pixels, where: Similarity, mask: NDArray[np.bool_] | None = None
    ) -> Whole:
        """`where`: from the square to the photograph. mask: (H, W), pixels that come from the result in any case.

        The weights are those of `closing`, carried over; where a side of the square lies within the photograph they
        fall towards it. Raises InputError if there is no weight above 0 and no mask.
        """
        height, width, _ = photograph.shape
        size = len(closing.weight)
        if mask is None and not closing.weight.any():
            raise InputError("result: it is transparent all over; choose one that differs from the picture")
        used = np.argwhere(closing.weight) if mask is None else np.array([[0, 0], [size, size]])
        low, high = (complex(*edge[::-1]) for edge in (used.min(0) - 2, used.max(0) + 3))
        corners = [where(point) for point in (low, high, complex(low.real, high.imag), complex(high.real, low.imag))]
        (x0, x1), (y0, y1) = (_within(axis, end) for axis, end in zip(_axes(corners), (width, height), strict=True))
        back = where.inverse()
        part, shape = back.from_corner(complex(x0, y0)), (x1 - x0, y1 - y0)
        weight = cut_out(closing.weight, part, shape)
        if mask is not None:
            weight = np.maximum(weight, mask[y0:y1, x0:x1].astype(np.uint8) * 255)
        clear = [
            not _at_edge(begin, end, width, height)
            for begin, end in pairwise(where(complex(x, y)) for x, y in _outline(size))
        ]
        for rows in _strips(shape[1], shape[0]):
            ramp = _ramp(part, size, shape[0], rows, clear, closing.feather)
            weight[rows] = (weight[rows].astype(np.uint32) * ramp + 127) // 255
        return Whole(photograph, back, (x0, y0), weight, closing)

    def apply(self, image: Pixels) -> Pixels:
        """(H, W, 3): the photograph with a closed result (S, S, 3) in its place; unchanged where the weight is 0."""
        (x0, y0), (height, width) = self.corner, self.weight.shape
        result = cut_out(image, self.where.from_corner(complex(x0, y0)), (width, height))
        whole = self.photograph.copy()
        part = whole[y0 : y0 + height, x0 : x0 + width]
        for rows in _strips(height, width):
            part[rows] = _mixed(part[rows], result[rows], self.weight[rows])
        return whole

    def changed(self) -> NDArray[np.bool_]:
        """(H, W): where a result may differ from the photograph."""
        (x0, y0), (height, width) = self.corner, self.weight.shape
        may = np.zeros(self.photograph.shape[:2], bool)
        may[y0 : y0 + height, x0 : x0 + width] = self.weight > 0
        return may


def _mixed(original: Pixels, image: Pixels, weight: Weights) -> Pixels:
    share = weight[..., None].astype(np.uint32)
    return ((share * image + (255 - share) * original + 127) // 255).astype(np.uint8)


def _within(places: list[float], end: int) -> tuple[int, int]:
    """The range of pixels that holds these places, as far as it lies between 0 and `end`; at least one pixel."""
    first = min(max(0, math.floor(min(places))), end - 1)
    return first, max(first + 1, min(end, math.ceil(max(places))))


def _axes(points: list[complex]) -> tuple[list[float], list[float]]:
    return [point.real for point in points], [point.imag for point in points]


def _strips(height: int, width: int) -> Iterator[slice]:
    """All rows, so many at a time that they have about `STRIP` pixels."""
    some = max(1, STRIP // width)
    return (slice(first, min(first + some, height)) for first in range(0, height, some))


def _outline(size: int) -> list[tuple[int, int]]:
    """The corners of a square along its sides: top, right, bottom, left."""
    return [(0, 0), (size, 0), (size, size), (0, size), (0, 0)]


def _ramp(part: Similarity, size: int, width: int, rows: slice, clear: list[bool], feather: int) -> NDArray[np.uint32]:
    """Weights that fall to 0 at the sides of the square, over 2 * feather of its pixels, and are 0 beyond.

    Not at a side that is not `clear`: it lies on an edge of the photograph or beyond, and there is nothing to fade to.
    """
    x, y = np.arange(width) + 0.5, np.arange(rows.start, rows.stop)[:, None] + 0.5
    points = part.scale * (x + 1j * y) + part.shift
    distances = (points.imag, size - points.real, size - points.imag, points.real)  # top, right, bottom, left
    ramp = np.ones((len(y), width))
    for distance, fades in zip(distances, clear, strict=True):
        if fades:
            ramp = np.minimum(ramp, distance / (2 * feather))
    return np.rint(255 * ramp.clip(0, 1)).astype(np.uint32)


def _at_edge(begin: complex, end: complex, width: int, height: int, near: float = 0.5) -> bool:
    """Whether a side lies on an edge of the photograph, or beyond it."""
    (x0, x1), (y0, y1) = _axes([begin, end])
    return max(x0, x1) <= near or max(y0, y1) <= near or min(x0, x1) >= width - near or min(y0, y1) >= height - near
