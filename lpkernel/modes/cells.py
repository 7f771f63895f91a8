"""From masks in pixels to masks in grid cells. Masks are (S, S) bool at the autoencoder's side, cells (M, M) bool."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lpkernel.plan import grown as grown

Bools = NDArray[np.bool_]


def touched(mask: Bools, grid: int) -> Bools:
    """Cells of which at least one pixel is set."""
    member = np.arange(len(mask)) * grid // len(mask) == np.arange(grid)[:, None]
    return member @ mask @ member.T


def covered(mask: Bools, grid: int) -> Bools:
    """Cells of which every pixel is set."""
    return ~touched(~mask, grid)


def near(mask: Bools, grid: int) -> Bools:
    """Cells whose centre, which is that of their receptive field, lies in the mask or within one cell of it.

    The distance is taken along the axes: a square of two cells' side around the centre must meet the mask.
    """
    cell = len(mask) / grid
    centre = (np.arange(grid) + 0.5) * cell
    reach = np.abs(np.arange(len(mask)) + 0.5 - centre[:, None]) <= cell
    return reach @ mask @ reach.T


def pixels(cells: Bools, side: int) -> Bools:
    """The pixels (side, side) of the cells."""
    place = np.arange(side) * len(cells) // side
    return cells[place][:, place]
