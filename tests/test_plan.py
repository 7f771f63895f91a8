"""Plans: sides, positions, masks and resize tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpkernel import plan
from lpkernel.errors import InputError


def test_paper_defaults() -> None:
    made = plan.random()
    assert made.sides == (10, 12, 13, 15, 16)
    assert (made.patch, made.stride) == (6, 2)
    assert [len(scale.positions) for scale in made.scales] == [9, 16, 25, 36, 36]
    assert made.steps == 122


@pytest.mark.parametrize(("patch", "stride"), [(1, 1), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (8, 3)])
def test_default_stride(patch: int, stride: int) -> None:
    assert plan.default_stride(patch) == stride


def test_positions_end_at_the_border_in_raster_order() -> None:
    scale = plan.random(side=9, patch=4, stride=3, scales=[9]).scales[0]
    assert scale.positions.tolist() == [[y, x] for y in (0, 3, 5) for x in (0, 3, 5)]


def test_first_scale_compares_what_is_written_and_later_scales_everything() -> None:
    made = plan.random(side=8, patch=4, stride=2, scales=[6, 8])
    first, second = made.scales
    assert not first.compare[0].any()
    expected = np.zeros((4, 4), bool)
    expected[:, :2] = True  # position (0, 2): columns 2 and 3 are known from (0, 0)
    assert (first.compare[1] == expected).all()
    assert first.write.all() and second.compare.all() and second.write.all()
    assert not made.starts_known


def test_fill_writes_each_cell_once_at_the_first_scale() -> None:
    made = plan.random(side=10, patch=4, stride=3, scales=[7, 10], overlap="fill")
    first, second = made.scales
    times = np.zeros((7, 7), int)
    for (y, x), write in zip(first.positions, first.write, strict=True):
        times[y : y + 4, x : x + 4] += write
    assert (times == 1).all()
    assert second.write.all()
    assert all(write.any() for write in first.write)


def test_equal_plans_are_one_and_cannot_be_changed() -> None:
    made = plan.random(side=8, patch=4, scales=[6, 8])
    assert plan.random(side=8, patch=4, scales=(6, 8)) is made
    scale = made.scales[1]
    assert scale.resize is not None
    for array in (scale.positions, scale.compare, scale.write, scale.kept, scale.resize.f):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_reference_knows_everything() -> None:
    made = plan.reference(side=12, patch=5)
    assert made.sides == (12,)
    assert made.scales[0].compare.all() and made.scales[0].write.all() and made.starts_known


def test_reference_in_passes_repeats_its_steps() -> None:
    once, thrice = (plan.reference(side=12, patch=5, scales=[8, 12], passes=passes) for passes in (1, 3))
    assert thrice.steps == 3 * once.steps and thrice.sides == once.sides
    for one, three in zip(once.scales, thrice.scales, strict=True):
        assert np.array_equal(three.positions, np.tile(one.positions, (3, 1)))
        assert three.compare.all() and three.write.all()
    for wrong in (0, 101):
        with pytest.raises(InputError, match="passes"):
            plan.reference(passes=wrong)


def test_a_step_that_knows_nothing_waits() -> None:
    left = np.zeros((12, 12), bool)
    left[:, :7] = True
    first = plan.edit(left, patch=4, stride=2).scales[0]
    assert first.positions[0].tolist() == [0, 4]  # (0, 0) and (0, 2) see nothing but the region
    assert all(compare.any() for compare in first.compare)
    raster = plan.edit(left, patch=4, stride=2, mode="guided").scales[0].positions.tolist()
    assert raster == sorted(raster) == sorted(first.positions.tolist())
    everything = plan.edit(np.ones((12, 12), bool), patch=4, stride=4).scales[0].positions.tolist()
    assert everything == sorted(everything)


def test_free_cells_in_a_guided_region() -> None:
    region, free = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    region[2:7, 3:7] = free[2:3, 3:7] = True
    made = plan.edit(region, patch=9, mode="guided", free=free)
    assert made.kind == "edit-mixed" and np.array_equal(made.scales[0].compare[0], ~free)
    assert np.array_equal(made.scales[0].write[0], region)
    smaller = plan.edit(region, patch=3, mode="guided", scales=[6, 9], free=free)
    assert not smaller.scales[0].compare.all() and smaller.scales[1].compare.all()
    for wrong in ({"free": ~region}, {"free": free[:8]}, {"free": free, "mode": "free"}):
        with pytest.raises(InputError, match="free"):
            plan.edit(region, 3, **{"mode": "guided", **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", plan.EDIT_MODES)
@pytest.mark.parametrize("scales", [None, [7, 12]])
def test_edit_writes_the_region_only(mode: str, scales: list[int] | None) -> None:
    region = np.zeros((12, 12), bool)
    region[4:7, 5:9] = True
    made = plan.edit(region, patch=4, stride=2, mode=mode, scales=scales)
    last = made.scales[-1]
    assert (last.kept == ~region).all()
    for (y, x), compare, write in zip(last.positions, last.compare, last.write, strict=True):
        assert write.any()
        assert (write == region[y : y + 4, x : x + 4]).all()
        if mode == "guided" or scales:
            assert compare.all()
    if mode == "free" and not scales:
        y, x = last.positions[0]
        assert (last.compare[0] == ~region[y : y + 4, x : x + 4]).all()
    assert made.starts_known


def test_region_at_a_smaller_side_covers_every_region_cell() -> None:
    region = np.zeros((16, 16), bool)
    region[3, 9] = True
    made = plan.edit(region, patch=4, scales=[10, 16])
    small = ~made.scales[0].kept
    ys, xs = np.nonzero(small)
    assert ys.min() * 16 <= 3 * 10 < (ys.max() + 1) * 16  # output cells that touch row 3 of 16
    assert xs.min() * 16 <= 9 * 10 < (xs.max() + 1) * 16
    assert small.sum() <= 4


@given(st.integers(1, 40), st.integers(1, 40))
def test_resize_tables(n: int, m: int) -> None:
    table = plan.Resize.between(n, m)
    assert ((table.i0 >= 0) & (table.i0 < n) & (table.i1 >= table.i0) & (table.i1 <= table.i0 + 1)).all()
    assert (table.i1 < n).all()
    assert ((table.f >= 0) & (table.f <= 256)).all()
    if n == m:
        assert (table.i0 == np.arange(n)).all() and (table.f == 0).all()
    position = (256 * table.i0 + table.f) / 256  # where the table reads from
    centre = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    assert np.abs(position - centre).max() <= 0.5 / 256 + 1e-9


@given(
    side=st.integers(4, 20),
    patch=st.integers(1, 8),
    stride=st.integers(1, 8),
    overlap=st.sampled_from(plan.OVERLAPS),
    data=st.data(),
)
def test_every_cell_of_every_scale_is_written(
    side: int, patch: int, stride: int, overlap: str, data: st.DataObject
) -> None:
    patch, stride = min(patch, side), min(stride, patch, side)
    smaller = data.draw(st.sets(st.integers(patch, side), max_size=3))
    made = plan.random(side, patch, stride, sorted({*smaller, side}), overlap)
    for scale in made.scales:
        assert not scale.kept.any()
        assert (scale.positions >= 0).all() and (scale.positions + patch <= scale.side).all()
        known = np.zeros((scale.side, scale.side), bool)
        if scale is not made.scales[0]:
            known[:] = True
        for (y, x), compare, write in zip(scale.positions, scale.compare, scale.write, strict=True):
            window = known[y : y + patch, x : x + patch]
            assert (compare == window).all()
            window |= write


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"patch": 0}, "patch"),
        ({"patch": 11, "scales": [10, 16]}, "larger than the smallest scale 10"),
        ({"patch": 17, "scales": [16]}, "patch"),
        ({"stride": 0}, "stride"),
        ({"stride": 7}, "stride"),
        ({"scales": [10, 12]}, "ending at the grid side 16"),
        ({"scales": [12, 10, 16]}, "increasing"),
        ({"scales": [16, 16]}, "increasing"),
        ({"overlap": "blend"}, "overlap"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        plan.random(**arguments)


@pytest.mark.parametrize(
    ("region", "mode"),
    [
        (np.zeros((16, 16), bool), "free"),
        (np.ones((16, 15), bool), "free"),
        (np.ones((16, 16), int), "free"),
        (np.ones((16, 16), bool), "bold"),
    ],
)
def test_wrong_edits(region: np.ndarray, mode: str) -> None:
    with pytest.raises(InputError):
        plan.edit(region, mode=mode)


@pytest.mark.parametrize("overlap", plan.OVERLAPS)
def test_flat_plan_says_the_same(overlap: str) -> None:
    region = np.zeros((9, 9), bool)
    region[2:5, 3:7] = True
    for made in (plan.random(9, 4, scales=[5, 9], overlap=overlap), plan.edit(region, 3, scales=[7, 9])):
        flat, step = made.flat, 0
        for s, scale in enumerate(made.scales):
            side, first, count, kept, kept_count = flat.scales[s]
            assert (side, first, count) == (scale.side, step, len(scale.positions))
            assert flat.cells[kept : kept + kept_count].tolist() == np.flatnonzero(scale.kept).tolist()
            for (y, x), *masks in zip(scale.positions, scale.compare, scale.write, strict=True):
                runs = flat.steps[step].reshape(2, 2)
                for mask, (begin, length) in zip(masks, runs, strict=True):
                    whole = np.zeros((scale.side, scale.side), bool)
                    whole[y : y + made.patch, x : x + made.patch] = mask
                    assert flat.cells[begin : begin + length].tolist() == np.flatnonzero(whole).tolist()
                step += 1
            if scale.resize is not None:
                expected = np.stack([scale.resize.i0, scale.resize.i1, scale.resize.f])
                assert (flat.resize[s, :, :side] == expected).all()
        assert step == len(flat.steps) == made.steps


def test_a_transplant_is_one_step_with_a_ring() -> None:
    region = np.zeros((16, 16), bool)
    region[7:10, 3:13] = True
    made = plan.transplant(region)
    (scale,) = made.scales
    assert made.steps == 1 and made.starts_known and (scale.kept == ~region).all()
    compared = np.zeros((16, 16), bool)
    compared.ravel()[scale.compared[0]] = True
    ring = np.zeros((16, 16), bool)
    ring[5:12, 1:15] = True
    assert (compared == ring & ~region).all()


@given(st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_any_transplant_writes_its_region(side: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    region = random.random((side, side)) < random.random()
    region[tuple(random.integers(side, size=2))] = True
    if region.all():
        with pytest.raises(InputError, match="holds every cell"):
            plan.transplant(region)
        return
    (scale,) = plan.transplant(region).scales
    assert (scale.kept == ~region).all()
    far = np.indices(region.shape)[:, :, :, None] - np.argwhere(region).T[:, None, None]
    near = (np.abs(far).max(0) <= plan.RING).any(2) & ~region
    assert np.array_equal(scale.compared[0], np.flatnonzero(near))


def test_default_scales_are_those_that_a_patch_fits() -> None:
    assert plan.random(8).sides == (6, 7, 8) and plan.random(6).sides == (6,)
    assert plan.random(16).sides == plan.default_scales(16)
