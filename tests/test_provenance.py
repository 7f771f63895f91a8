"""How much is copied from one source: measured, limited, and shown."""

from __future__ import annotations

import json
from collections import deque

import numpy as np
import pytest
from fakes import FakeVQ

import lpkernel as lp
from lpkernel.backends.base import Backend
from lpkernel.copies import TRY_OFFSET, CopyLimit, largest_areas, largest_shares, redraw
from lpkernel.errors import InputError
from lpkernel.metrics import compare, sets
from lpkernel.pictures import render

GRID = 8


@pytest.fixture(scope="module")
def bank() -> lp.Bank:
    images = np.random.default_rng(0).integers(0, 256, (30, GRID, GRID, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    return lp.Bank.build(images, FakeVQ(GRID), channels=3)


def flooded(cells: np.ndarray) -> int:
    """The largest 4-connected area of one number, by flooding."""
    seen, largest = cells < 0, 0
    for start in np.ndindex(*cells.shape):
        if seen[start]:
            continue
        queue, area = deque([start]), 0
        seen[start] = True
        while queue:
            y, x = queue.popleft()
            area += 1
            for near in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                inside = 0 <= near[0] < len(cells) and 0 <= near[1] < len(cells)
                if inside and not seen[near] and cells[near] == cells[y, x]:
                    seen[near] = True
                    queue.append(near)
        largest = max(largest, area)
    return largest


@pytest.mark.parametrize("numbers", [1, 2, 3, 20])
def test_largest_areas(numbers: int) -> None:
    maps = np.random.default_rng(numbers).integers(-1, numbers, (40, 9, 9)).astype(np.int32)
    assert largest_areas(maps).tolist() == [flooded(one) for one in maps]


def test_a_spiral_is_one_area() -> None:
    spiral = np.zeros((7, 7), np.int32)
    spiral[1, :6] = spiral[1:6, 5] = spiral[5, 1:6] = spiral[3:6, 1] = spiral[3, 1:4] = 1
    assert largest_areas(spiral[None]).tolist() == [flooded(spiral)]


def test_nothing_copied() -> None:
    empty = np.full((2, 4, 4), -1, np.int32)
    assert largest_areas(empty).tolist() == [0, 0] and largest_shares(empty).tolist() == [0, 0]


def test_shares_count_copied_cells_only() -> None:
    cells = np.array([[[-1, -1], [5, 7]], [[5, 5], [5, 7]]], np.int32)
    assert largest_shares(cells).tolist() == [0.5, 0.75]


def test_synthesis_measures_itself(bank: lp.Bank) -> None:
    made = lp.generate(bank, n=5, patch=4)
    assert made.largest_copies().tolist() == [flooded(one) for one in made.sources]


def test_an_image_and_its_mirror_image_are_one_source() -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (4, GRID, GRID, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    bank = lp.Bank.build(images, FakeVQ(GRID), channels=3, flip=True)
    assert bank.examples_of(np.array([[0, 5], [7, -1]])).tolist() == [[0, 1], [3, -1]]
    made = lp.generate(bank, n=12, k=2, patch=4, scales=[8])
    by_example = made.sources % 4
    assert made.largest_copies().tolist() == [flooded(one) for one in by_example]
    assert made.largest_copies().sum() > largest_areas(made.sources).sum()
    found = sets.of_maps(bank, made.sources, {}, "made", FakeVQ(GRID), 64)
    assert compare.by_maps(found)["copied_area"]["value"] == made.largest_copies().mean() / GRID**2
    assert compare.by_maps(found)["distinct_sources"]["value"] == np.mean([len(np.unique(one)) for one in by_example])
    cap = int(np.median(made.largest_copies()))
    limited = lp.generate(bank, n=12, k=2, patch=4, scales=[8], copy_limit=CopyLimit(area=cap, tries=15))
    over = limited.settings["copy_limit"]["still_over"]
    assert (limited.largest_copies() > cap).nonzero()[0].tolist() == over
    assert (limited.largest_copies() <= cap).sum() > (made.largest_copies() <= cap).sum()


def test_images_over_the_limit_are_redrawn(bank: lp.Bank, backend: Backend) -> None:
    free = lp.generate(bank, n=12, patch=4, scales=[8], backend=backend.name)
    cap = int(np.median(free.largest_copies()))
    limit = CopyLimit(area=cap, tries=15)
    made = lp.generate(bank, n=12, patch=4, scales=[8], backend=backend.name, copy_limit=limit)
    kept, over = made.settings["copy_limit"]["try_kept"], made.settings["copy_limit"]["still_over"]
    assert kept and (made.largest_copies() <= cap).sum() == 12 - len(over)
    for image in range(12):
        attempt = kept.get(str(image), 0)
        again = lp.generate(bank, n=1, first_image=image + attempt * TRY_OFFSET, patch=4, scales=[8])
        assert np.array_equal(again.sources[0], made.sources[image])
        assert attempt or np.array_equal(free.sources[image], made.sources[image])
    json.dumps(made.settings)
    alone = lp.generate(bank, n=2, first_image=7, patch=4, scales=[8], backend=backend.name, copy_limit=limit)
    assert np.array_equal(alone.sources, made.sources[7:9])


def test_the_least_bad_try_is_kept(bank: lp.Bank) -> None:
    made = lp.generate(bank, n=6, patch=4, scales=[8], copy_limit=CopyLimit(area=1, tries=5))
    assert made.settings["copy_limit"]["still_over"] == list(range(6))
    for image in range(6):
        tries = [
            lp.generate(bank, n=1, first_image=image + t * TRY_OFFSET, patch=4, scales=[8]).largest_copies()[0]
            for t in range(6)
        ]
        assert made.settings["copy_limit"]["try_kept"].get(str(image), 0) == int(np.argmin(tries))


def test_a_share_and_an_area_both_hold(bank: lp.Bank) -> None:
    limit = CopyLimit(share=0.4, area=20, tries=15)
    made = lp.generate(bank, n=8, patch=4, scales=[8], copy_limit=limit)
    good = [i for i in range(8) if i not in made.settings["copy_limit"]["still_over"]]
    assert good and (largest_shares(made.sources)[good] <= 0.4).all() and (made.largest_copies()[good] <= 20).all()


def test_a_limit_holds_for_edits_with_a_canvas_each(bank: lp.Bank) -> None:
    canvas = np.random.default_rng(1).integers(0, 32, (4, GRID, GRID))
    region = np.zeros((GRID, GRID), bool)
    region[2:7, 1:7] = True
    limit, plan = CopyLimit(area=6, tries=4), lp.plan.edit(region, 3)
    made = lp.generate(bank, n=4, plan=plan, canvas=canvas, copy_limit=limit)
    for image in range(4):
        alone = lp.generate(bank, n=1, first_image=image, plan=plan, canvas=canvas[image], copy_limit=limit)
        assert np.array_equal(alone.sources[0], made.sources[image])


def test_wrong_limits() -> None:
    for wrong in (
        {"share": 1.5},
        {"share": float("nan")},
        {"area": 0},
        {"area": 3, "tries": 16},
        {"area": 3, "tries": -1},
    ):
        with pytest.raises(InputError, match="copy limit"):
            CopyLimit(**wrong)
    maps = np.zeros((2, 3, 3), np.int32)
    with pytest.raises(InputError, match="below 268435456"):
        redraw(CopyLimit(area=1), maps, TRY_OFFSET - 1, lambda rows, images: maps, lambda found: found)


def picture(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


def test_overlay_tints_and_outlines_what_was_copied() -> None:
    sources = np.full((4, 4), -1)
    sources[1:3, 1:3] = 2
    sources[1, 1] = 0
    colours = render.source_colours(3)
    over = render.overlay(picture((100, 100, 100)), sources, colours)
    assert over.shape == (64, 64, 3) and over.dtype == np.uint8
    assert (over[:16] == 100).all() and (over[:, :16] == 100).all()
    assert (over[16, 16:32] == colours[0]).all() and (over[47, 32:48] == colours[2]).all()
    assert (over[24, 24] == np.rint(100 * 0.6 + colours[0] * 0.4)).all()


def test_outlines_separate_every_two_numbers() -> None:
    lines = render.outlines(np.array([[3, 3], [3, 5]]), 16, 1)
    assert lines[0].all() and lines[-1].all() and lines[8, 8:].all() and lines[7, 8:].all() and not lines[7, 1:7].any()


def test_provenance_sheet_shows_what_each_source_gave() -> None:
    sources = np.zeros((8, 8), int)
    sources[:4], sources[6:, 6:] = 4, -1
    shown = render.most_used(sources, 8)
    assert shown.tolist() == [4, 0]
    pictures = np.stack([picture((200, 0, 0)), picture((0, 0, 200))])
    sheet = render.provenance_sheet(picture((9, 9, 9)), sources, shown, pictures, ["a.png", "b" * 300])
    assert sheet.dtype == np.uint8 and sheet.ndim == 3
    red, blue = ((sheet == colour).all(2).sum() for colour in ((200, 0, 0), (0, 0, 200)))
    assert 0 < red < 64 * 64 / 2 and 0 < blue < 64 * 64 / 2  # bright where they were copied, without the outline
    assert np.array_equal(
        sheet, render.provenance_sheet(picture((9, 9, 9)), sources, shown, pictures, ["a.png", "b" * 300])
    )
    with pytest.raises(InputError, match="2 pictures and 1 names for 2 sources"):
        render.provenance_sheet(picture((9, 9, 9)), sources, shown, pictures, ["a"])


def test_provenance_of_nothing() -> None:
    nothing = np.full((8, 8), -1)
    sheet = render.provenance_sheet(picture((9, 9, 9)), nothing, [], np.empty((0, 64, 64, 3), np.uint8), [])
    assert sheet.shape[1] == 3 * 66 + 2


def test_a_sheet_with_pictures_that_have_no_map() -> None:
    maps = np.zeros((2, 4, 4), int)
    shown = np.stack([picture((0, 200, 0))])
    both = np.stack([picture((1, 1, 1))] * 2)
    plain = render.contact_sheet(shown, [0], [("results", both, maps)])
    more = render.contact_sheet(shown, [0], [("input", both[:1], None), ("results", both, maps)])
    assert more.shape[1] == plain.shape[1] and more.shape[0] > plain.shape[0]
