"""The bound on distances between cells holds for every cell that a scan can compare, checked by trying them all."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import lpkernel as lp
from lpkernel.backends.specification import resize_canvas
from lpkernel.bank.extent import Extent
from lpkernel.levels import resize_level
from lpkernel.plan import Resize


def largest(a: np.ndarray, b: np.ndarray) -> int:
    a, b = (cells.reshape(-1, cells.shape[-1]).astype(np.int64) for cells in (a, b))
    return int(np.square(a[:, None] - b[None]).sum(axis=2).max())


@settings(max_examples=120, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 40),
    st.lists(st.integers(1, 6), max_size=3),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_no_cell_is_farther(size: int, channels: int, spread: int, sides: list[int], started: bool, seed: int) -> None:
    """Banks at all sides against canvases of their cells, after any resizes; values at the ends of the range abound."""
    random = np.random.default_rng(seed)
    side = 4
    full = random.choice([-spread, -1, 0, 1, spread], (size, side, side, channels)).astype(np.int16)
    extent, canvases = Extent.of(lambda: full), full
    if started:
        start = random.choice([-2 * spread, 0, 2 * spread], (1, side, side, channels)).astype(np.int16)
        extent, canvases = extent.with_cells(start), start
    bound = extent.largest_distance(2 + len(sides))
    levels = [resize_level(full, m) for m in range(1, 6)]
    for canvas in resize_level(canvases, 3):
        for n, m in zip([3, *sides], sides, strict=False):
            canvas = resize_canvas(canvas, Resize.between(n, m))
        assert max(largest(canvas, level) for level in levels) <= bound


def test_the_ball_is_closer_than_the_box() -> None:
    """With many channels, values are rarely all at the ends of their ranges."""
    values = np.random.default_rng(0).integers(-700, 701, (1000, 16)).astype(np.int16)
    box = int(np.square(np.ptp(values.astype(np.int64), axis=0)).sum())
    assert largest(values, values) < Extent.of(lambda: values[None]).largest_distance(2) < 0.65 * box


def test_a_bank_of_latents_reads_them_in_parts() -> None:
    latents = np.random.default_rng(1).normal(size=(300, 3, 3, 4)).astype(np.float32)
    bank = lp.Bank.from_latents(latents, channels=4)
    values = bank.fixed_values(slice(None))
    assert bank.largest_cell_distance() == Extent.of(lambda: [values]).largest_distance(2) >= largest(values, values)
