"""Parts of a face by name: eyes, eyebrows, nose, mouth, hair, left_half, right_half.

lpkernel/data/regions.json holds, for each layout of faces, a 16x16 mask per region, where the eyes are, and which banks
it is for: those whose photographs were cropped out of the same aligned frame (its masks are carried over to other
crops), or the one bank with its `sources_hash`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lpkernel.errors import InputError, unknown_name
from lpkernel.pictures.images import Crop

if TYPE_CHECKING:
    from lpkernel.bank import Bank

Cells = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the regions lie in one kind of face. `crop` (x0, y0, x1, y1): the pixels that the masks cover.

    frame: width and height of the pictures that the crop is cut out of. eyes: x and y of the eyes' centres, the left
    one in the picture first, in fractions of the side of the crop, or of the picture.
    """

    name: str
    frame: tuple[int, int] | None
    crop: Crop | None
    sources_hash: str | None
    eyes: tuple[float, float, float, float] | None
    regions: dict[str, Cells]

    def is_of(self, bank: Bank) -> bool:
        """Whether it was made for exactly this bank."""
        return self.sources_hash is not None and self.sources_hash == bank.sources_hash

    def fits(self, bank: Bank) -> bool:
        """Whether it is of the bank's faces: made for it, or of the same frame. Old banks do not record theirs."""
        return self.is_of(bank) or (
            self.crop is not None and bank.crop is not None and bank.source_size in (None, self.frame)
        )


@cache
def layouts() -> tuple[Layout, ...]:
    """All layouts of the data file."""
    entries = json.loads(files("lpkernel").joinpath("data/regions.json").read_text("utf-8"))
    return tuple(
        Layout(
            entry["name"],
            None if entry["frame"] is None else tuple(entry["frame"]),
            None if entry["crop"] is None else tuple(entry["crop"]),
            entry["sources_hash"],
            None if entry["eyes"] is None else tuple(entry["eyes"]),
            {
                name: np.array([[cell == "#" for cell in row] for row in rows])
                for name, rows in entry["regions"].items()
            },
        )
        for entry in entries
    )


def layout_of(bank: Bank) -> Layout:
    """The layout of a bank's faces. Raises InputError if none is known."""
    for layout in layouts():
        if layout.fits(bank):
            return layout
    raise InputError(
        "region: names are known for the embedded avatars and for banks built with a crop of photographs aligned as "
        "CelebA (178x218), and this bank is neither; give a mask or a box"
    )


def known_eyes(bank: Bank) -> tuple[float, float, float, float] | None:
    """Where the eyes are in the bank's images, as `Layout.eyes`, if they are framed in a known way."""
    for layout in layouts():
        if layout.eyes is not None and layout.is_of(bank):
            return layout.eyes
        if layout.eyes is not None and layout.crop is not None and bank.crop and bank.source_size == layout.frame:
            (left, top, side), (x, y, length) = _square(layout.crop), _square(bank.crop)
            points = [(left + side * layout.eyes[i], top + side * layout.eyes[i + 1]) for i in (0, 2)]
            places = [((a - x) / length, (b - y) / length) for a, b in points]
            return (*places[0], *places[1])
    return None


def named_region(names: str, bank: Bank) -> Cells:
    """Cells (M, M) of comma-separated region names, united, on the faces of `bank`. Raises InputError."""
    layout, cells = layout_of(bank), np.zeros((bank.grid, bank.grid), bool)
    places = [name.strip() for name in names.split(",")]
    for name in places:
        if name not in layout.regions:
            raise unknown_name("region:", name, layout.regions)
        cells |= _carried(layout.regions[name], layout.crop, bank.crop, bank.grid)
    return cells


def _carried(mask: Cells, crop: Crop | None, other: Crop | None, grid: int) -> Cells:
    """A mask of one crop on the grid of another: each cell takes the value at its centre, or at the nearest edge."""
    places = (np.arange(grid) + 0.5) / grid
    across = down = places
    if crop is not None and other is not None:
        (left, top, side), (x, y, length) = _square(crop), _square(other)
        across, down = (x + length * places - left) / side, (y + length * places - top) / side
    rows, columns = (np.clip(np.floor(axis * len(mask)), 0, len(mask) - 1).astype(int) for axis in (down, across))
    return mask[rows][:, columns]


def _square(crop: Crop) -> tuple[float, float, int]:
    """Left, top and side of the centre square of a crop."""
    x0, y0, x1, y1 = crop
    side = min(x1 - x0, y1 - y0)
    return x0 + (x1 - x0 - side) / 2, y0 + (y1 - y0 - side) / 2, side
