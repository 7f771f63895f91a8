"""How far apart the cells of a bank can be: a box and a ball that hold its fixed-point values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_ROWS_AT_ONCE = 1 << 16  # of the vectors


@dataclass(frozen=True, eq=False)
class Extent:
    """low, high, centre: (C,) int64; radius: the largest squared distance from the centre."""

    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray
    radius: int

    @staticmethod
    def of(parts: Callable[[], Iterable[np.ndarray]]) -> Extent:
        """The extent of int16 values (..., C). parts() gives some at a time; it is called twice, first for the box."""
        ends = [(rows.min(axis=0), rows.max(axis=0)) for rows in _rows(parts())]
        low, high = np.min([end[0] for end in ends], axis=0), np.max([end[1] for end in ends], axis=0)
        return Extent(low, high, (low + high) // 2, 0)._grown(parts())

    def with_cells(self, cells: np.ndarray) -> Extent:
        """The extent of these cells (..., C) as well."""
        return self._grown([cells])

    def largest_distance(self, roundings: int) -> int:
        """A bound on the squared distance of two cells, in exact integers: the lesser of the box's and the ball's.

        A resized cell is a mean of cells, which box and ball hold, rounded in each channel by at most 1/2. The box
        holds the rounded one, too. roundings: r, how many both cells had together; from the ball, of radius R,
        the distance is at most 2 R + r sqrt(C) / 2.
        """
        box = int(np.square(self.high - self.low).sum())
        channels = len(self.low)
        ball = 4 * self.radius + 2 * roundings * _root(self.radius * channels) - (-(roundings**2) * channels // 4)
        return min(box, ball)

    def _grown(self, parts: Iterable[np.ndarray]) -> Extent:
        low, high, radius = self.low, self.high, self.radius
        for rows in _rows(parts):
            low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
            radius = max(radius, int(np.square(rows - self.centre).sum(axis=1).max()))
        return Extent(low, high, self.centre, radius)


def _rows(parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """As (n, C) int64, a few at a time."""
    for part in parts:
        rows = part.reshape(-1, part.shape[-1])
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            yield rows[start : start + _ROWS_AT_ONCE].astype(np.int64)


def _root(square: int) -> int:
    """The square root, rounded up."""
    return math.isqrt(square - 1) + 1 if square else 0
