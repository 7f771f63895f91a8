"""Banks of any size and queries for them, deterministic and offline.

"bank" data: real code maps. Beyond the bank's own images come copies shifted by one cell (edges repeated),
then mosaics of four of all these, cut at a random cell. Queries are mosaics of four bank images, as the
canvas of a generation is. "random" data: every code uniform and independent, where no bound prunes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lpkernel import plan as plans
from lpkernel.bank import TABLE_ROWS, Bank
from lpkernel.errors import InputError
from lpkernel.plan import Plan

DATA = ("bank", "random")
SHIFTS = [(dy, dx) for dy in (0, 1, -1) for dx in (0, 1, -1)]  # the first does not move
Codes = NDArray[np.integer]


def shift(codes: Codes, dy: int, dx: int) -> Codes:
    """Code maps (B, M, M) moved down by dy and right by dx cells, the edge repeated."""
    side = codes.shape[1]
    rows = np.clip(np.arange(side) - dy, 0, side - 1)
    columns = np.clip(np.arange(side) - dx, 0, side - 1)
    return codes[:, rows[:, None], columns]


def mosaics(codes: Codes, count: int, random: np.random.Generator) -> Codes:
    """(count, M, M): four maps each, meeting at a cell within the middle half of the grid."""
    size, side = codes.shape[:2]
    cuts = random.integers(side // 4, side - side // 4 + 1, (count, 2))
    cells = np.arange(side)
    below = (cells >= cuts[:, :1])[:, :, None]
    right = (cells >= cuts[:, 1:])[:, None, :]
    picked = random.integers(0, size, (count, 4))
    part = (below * 2 + right).reshape(count, -1)
    sources = np.take_along_axis(picked, part, axis=1).reshape(count, side, side)
    return codes[sources, cells[:, None], cells]


def extend(codes: Codes, size: int, seed: int = 0) -> Codes:
    """`size` maps: the given ones, then their eight shifts, then mosaics of all those."""
    parts: list[Codes] = []
    missing = size
    for dy, dx in SHIFTS:
        if missing <= 0:
            break
        parts.append(shift(codes, dy, dx)[:missing])
        missing -= len(parts[-1])
    if missing > 0:
        parts.append(mosaics(np.concatenate(parts), missing, np.random.default_rng((seed, 1))))
    return np.concatenate(parts)


class Maps:
    """Banks and queries made from one bank of codes. Raises InputError for a bank without codes."""

    def __init__(self, bank: Bank, seed: int = 0) -> None:
        if bank.codes is None or bank.codebook is None or len(bank.codebook) > TABLE_ROWS:
            raise InputError(f"the bank holds {bank!r}; benchmarks need one of at most {TABLE_ROWS} codes")
        self.source, self.seed = bank, seed
        self.codes, self.codebook = bank.codes, bank.codebook
        self._kept: tuple[tuple[str, int], Bank] | None = None

    def bank(self, data: str, size: int) -> Bank:
        """B = size images; the last one made is kept."""
        if self._kept is None or self._kept[0] != (data, size):
            self._kept = None
            if data == "random":
                random = np.random.default_rng((self.seed, 2))
                codes: Codes = random.integers(0, len(self.codebook), (size, *self.codes.shape[1:]), np.int16)
            else:
                codes = extend(self.codes, size, self.seed)
            made = Bank.from_codes(codes, self.codebook, self.source.channels, self.source.max_patch)
            self._kept = ((data, size), made)
        return self._kept[1]

    def queries(self, data: str, bank: Bank, count: int) -> NDArray[np.int64]:
        """(count, M, M) code maps to search for."""
        random = np.random.default_rng((self.seed, 3))
        assert bank.codes is not None
        if data == "random":
            return random.integers(0, len(self.codebook), (count, *bank.codes.shape[1:]))
        return mosaics(bank.codes, count, random).astype(np.int64)


def one_step(side: int, patch: int) -> Plan:
    """The plan of one step of the default one-scale generation: the most central with the usual known cells.

    P = 6, w = 2: all but the lower right 2 x 2 cells are known, 32 of 36. Raises InputError for a patch that fills
    the grid, where nothing is ever known.
    """
    if patch >= side:
        raise InputError(f"--p: got {patch}, expected less than the bank's grid side {side}")
    whole = plans.random(side, patch, scales=(side,))
    scale = whole.scales[0]
    usual = np.abs(scale.compare.sum(axis=(1, 2)) - (patch**2 - whole.stride**2))
    off_centre = np.abs(scale.positions - (side - patch) / 2).sum(axis=1)
    i = np.lexsort((off_centre, usual))[0]
    return replace(whole, kind="one-step", scales=(scale.part(slice(i, i + 1)),), starts_known=True)


def known_vectors(codes: Codes, bank: Bank, step: Plan) -> NDArray[np.float32]:
    """The fixed-point vectors that a step compares, cell after cell: (B, D) float32, D = known cells x C."""
    (scale,) = step.scales
    (y, x), compare = scale.positions[0], scale.compare[0]
    window = codes[:, y : y + step.patch, x : x + step.patch][:, compare]
    assert bank.fixed_codebook is not None
    return bank.fixed_codebook.astype(np.float32)[window].reshape(len(codes), -1)
