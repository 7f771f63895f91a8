"""Views: the images of a bank, each moved by up to r cells, as the images of a larger bank.

View v of a bank of B images is image v % B moved by shift v // B of `shifts(r)`: its cell (y, x) is the image's cell
(y + dy, x + dx), or the nearest there is where that lies outside the grid (edge replication). Shifts are whole cells of
the full side M; a view at a smaller side is the resize of the moved image, as if the bank held it. So everything that
holds for a bank holds for its views: levels, distances, ties, isolation.

Nothing is copied: `Views` makes what is asked of it from the bank's own cells.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel import checks
from lpkernel.errors import InputError
from lpkernel.levels import level_axis

Array = NDArray[Any]

MAX_RADIUS = 4  # 81 views per image
_CHUNK = 256  # views made at once


def looked_up(vectors: Array, codes: Array) -> Array:
    """The vectors (V, C) of codes (...) that were read from a bank, whose mapped file may have changed: (..., C).

    Raises InputError for codes outside the codebook.
    """
    checks.check_codes(codes, len(vectors), "; the bank is damaged or has changed")
    return vectors[codes]


@lru_cache(maxsize=16)
def shifts(radius: int) -> NDArray[np.int64]:
    """(S, 2): dy and dx of the S = (2 r + 1)^2 views of an image, (0, 0) first, then in raster order."""
    reach = range(-radius, radius + 1)
    found = np.array(sorted(((dy, dx) for dy in reach for dx in reach), key=lambda shift: shift != (0, 0)), np.int64)
    found.flags.writeable = False
    return found


def checked_radius(radius: int, bank_images: int) -> int:
    """The search_radius, checked for a bank of so many images. Raises InputError."""
    if not 0 <= checks.integer("search_radius", radius) <= MAX_RADIUS:
        raise InputError(f"search_radius: got {radius}, expected 0 to {MAX_RADIUS} cells")
    if (count := len(shifts(int(radius))) * bank_images) >= 2**31:
        raise InputError(f"search_radius: got {radius}: {count} views, expected fewer than 2^31; lower it")
    return int(radius)


def of_images(images: NDArray[np.int64], bank_images: int, radius: int) -> NDArray[np.int64]:
    """All views of some images of a bank, ascending if these are."""
    return (np.arange(len(shifts(radius)))[:, None] * bank_images + images).ravel()


def images_of(maps: NDArray[np.integer], bank_images: int) -> NDArray[np.int32]:
    """The bank images that a map of views has copied; -1 stays."""
    return np.where(maps < 0, maps, maps % bank_images).astype(np.int32)


def taken_apart(maps: NDArray[np.int32], bank_images: int, radius: int) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """The images and shifts (..., 2) of a map of views; -1 stays, with shift 0."""
    views = np.maximum(maps, 0)
    moved = shifts(radius)[views // bank_images] * (maps >= 0)[..., None]
    return images_of(maps, bank_images), moved.astype(np.int8)


def places(moved: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """y and x, (..., M, M) each, of the cells that maps with shifts (..., M, M, 2) have copied."""
    side = moved.shape[-2]
    y, x = (np.indices((side, side))[axis] + moved[..., axis].astype(np.int64) for axis in (0, 1))
    return y.clip(0, side - 1), x.clip(0, side - 1)


def copied_from(number: int, sources: NDArray[np.integer], moved: NDArray[np.integer] | None) -> NDArray[np.bool_]:
    """(M, M): the cells of bank image `number` that a map (M, M), with shifts (M, M, 2) or None, has copied."""
    chosen = sources == number
    if moved is None:
        return chosen
    y, x = places(moved)
    copied = np.zeros_like(chosen)
    copied[y[chosen], x[chosen]] = True
    return copied


class Views:
    """The views of a bank's images at one side m, to be read like an array (S * B, m, m, ...).

    `views[numbers]` gives some of them whole, `views[numbers, y, x]` single cells, `np.asarray(views)` all.

    cells: (B, M, M) integer codes, or (B, M, M, C) int16. vectors: (V, C) int16, what the codes stand for, if the
    views are of that and not of the codes. Codes themselves are moved, never resized.
    """

    def __init__(self, cells: Array, radius: int, side: int, vectors: Array | None = None) -> None:
        self.cells, self.radius, self.side, self.vectors = cells, radius, side, vectors
        self.full = cells.shape[1]
        count = len(shifts(radius)) * len(cells)
        self.shape = (count, side, side, *(cells.shape[3:] if vectors is None else vectors.shape[1:]))
        self.dtype = cells.dtype if vectors is None else vectors.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Array:
        if isinstance(index, tuple):
            return self._at(*np.broadcast_arrays(*index))
        numbers = np.arange(len(self))[index]
        cell = np.arange(self.side)
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        for first in range(0, len(numbers), _CHUNK):
            part = slice(first, first + _CHUNK)
            found[part] = self._at(numbers[part, None, None], cell[:, None], cell)
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:] if dtype is None else self[:].astype(dtype)

    @cached_property
    def whole(self) -> Array:
        """All of them, made once and kept, for a backend that needs them whole."""
        return np.asarray(self)

    def _at(self, views: Array, y: Array, x: Array) -> Array:
        shift, image = np.divmod(views, len(self.cells))
        dy, dx = np.moveaxis(shifts(self.radius)[shift], -1, 0)

        def read(rows: Array, columns: Array) -> Array:
            last = self.full - 1
            found = self.cells[image, (rows + dy).clip(0, last), (columns + dx).clip(0, last)]
            return found if self.vectors is None else looked_up(self.vectors, found)

        if self.side == self.full:
            return read(y, x)
        low, high, fraction = level_axis(self.full, self.side)  # and in the same order as `levels.resize_level`
        down, across = fraction[y][..., None], fraction[x][..., None]
        left, right = (
            read(low[y], columns) * (1 - down) + read(high[y], columns) * down for columns in (low[x], high[x])
        )
        found: Array = np.rint(left * (1 - across) + right * across).astype(np.int16)
        return found


class BankViews:
    """What backends read of a bank, for its views: each made once and kept; backends recognise arrays by identity.

    cells: codes (B, M, M), with the vectors (V, C) int16 that they stand for; or (B, M, M, C) int16.
    """

    def __init__(self, radius: int, cells: Array, vectors: Array | None = None) -> None:
        self.size = len(cells) * len(shifts(radius))
        self.codes = None if vectors is None else Views(cells, radius, cells.shape[1])
        self._radius, self._cells, self._vectors = radius, cells, vectors
        self._levels: dict[int, Views] = {}

    def level(self, side: int) -> Views:
        if side not in self._levels:
            self._levels[side] = Views(self._cells, self._radius, side, self._vectors)
        return self._levels[side]
