"""Colours matched at the seams: equal parts stay, a difference of light goes, a difference of content stays."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeContinuous, FakeVQ
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lpkernel as lp
from lpkernel.bank import Bank
from lpkernel.errors import InputError
from lpkernel.pictures import seams

SIDE = 6


def scene(seed: int, images: int = 5, n: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (n, 48, 48, 3), maps with a few large parts and some kept cells, and a bank's colours."""
    random = np.random.default_rng(seed)
    maps = random.integers(-1, images, (n, 3, 3)).repeat(2, 1).repeat(2, 2)
    return (
        random.integers(60, 190, (n, 8 * SIDE, 8 * SIDE, 3)).astype(np.uint8),
        maps.astype(np.int32),
        random.integers(0, 256, (images, SIDE, SIDE, 3)).astype(np.uint8),
    )


def test_two_lights_become_one() -> None:
    """One scene under two lights, in halves: the step between them goes, and their mean stays."""
    random = np.random.default_rng(0)
    base = random.integers(80, 120, (SIDE, SIDE, 3)).astype(np.uint8)
    colours = np.stack([base, base + np.uint8(16)])
    maps = np.zeros((1, SIDE, SIDE), np.int32)
    maps[:, :, SIDE // 2 :] = 1
    found = seams.offsets(maps, None, colours)[0]
    left, right = found[:, :, : SIDE // 2], found[:, :, SIDE // 2 :]
    assert np.ptp(left) == np.ptp(right) == 0  # one offset per part
    assert 6 < left.max() < 8 and np.allclose(left.max(), -right.max())

    picture = colours[maps[0], np.arange(SIDE)[:, None], np.arange(SIDE)].repeat(8, 0).repeat(8, 1)
    now = seams.matched(picture[None], maps, None, colours)[0].astype(int) - base.repeat(8, 0).repeat(8, 1)
    assert now[:, : 2 * 8].mean() > 6 and now[:, 4 * 8 :].mean() < 10  # 0 and 16 before


def test_another_thing_is_no_other_light() -> None:
    colours = np.stack([np.full((SIDE, SIDE, 3), 20, np.uint8), np.full((SIDE, SIDE, 3), 220, np.uint8)])
    maps = np.zeros((1, SIDE, SIDE), np.int32)
    maps[:, :, SIDE // 2 :] = 1
    assert np.abs(seams.offsets(maps, None, colours)).max() < 0.5


def test_tints_are_short() -> None:
    """A difference of colour, apart from lightness, is matched only a little."""
    base = np.full((SIDE, SIDE, 3), 100)
    colours = np.stack([base, base + np.array([30, -20, 0])]).astype(np.uint8)
    maps = np.zeros((1, SIDE, SIDE), np.int32)
    maps[:, :, SIDE // 2 :] = 1
    red, green, blue = seams.offsets(maps, None, colours)[0, :, 0, -1]
    assert red < -5 and green > 3
    assert np.hypot((red - blue) / 2, (2 * green - red - blue) / 4) == pytest.approx(seams.TINT)


@pytest.mark.parametrize("source", [-1, 0, 4])
def test_one_source_stays_as_it_is(source: int) -> None:
    images, maps, colours = scene(1)
    maps[:] = source
    assert np.array_equal(seams.matched(images, maps, None, colours), images)


def test_kept_cells_do_not_move() -> None:
    _, maps, colours = scene(2, n=40)
    moved = np.abs(seams.offsets(maps, None, colours)).max(1)
    assert moved[maps < 0].max() == 0 and moved[maps >= 0].max() > 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(0, 3))
def test_an_image_depends_on_itself_alone(seed: int, first: int) -> None:
    images, maps, colours = scene(seed, n=4)
    shifts = np.random.default_rng(seed).integers(-1, 2, (4, 3, 3, 2)).repeat(2, 1).repeat(2, 2).astype(np.int8)
    for moved in (None, shifts):
        whole = seams.matched(images, maps, moved, colours)
        some = slice(first, first + 1)
        alone = seams.matched(images[some], maps[some], None if moved is None else moved[some], colours)
        assert whole.dtype == np.uint8 and np.array_equal(whole[some], alone)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_shifts_look_where_they_copied(seed: int) -> None:
    """A shifted source is treated like a source from a bank whose images were moved beforehand."""
    _, maps, colours = scene(seed)
    shift = np.random.default_rng(seed).integers(-2, 3, 2)
    y, x = ((np.arange(SIDE) + one).clip(0, SIDE - 1) for one in shift)
    moved = np.broadcast_to(shift, (*maps.shape, 2))
    assert np.array_equal(
        seams.offsets(maps, moved, colours), seams.offsets(maps, None, np.ascontiguousarray(colours[:, y][:, :, x]))
    )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6))
def test_areas_are_those_that_a_flood_finds(seed: int) -> None:
    sources = np.random.default_rng(seed).integers(0, 3, (1, 5, 7))
    expected = np.full((5, 7), -1)
    for start in np.ndindex(5, 7):
        stack = [start]
        while stack:
            y, x = stack.pop()
            if expected[y, x] < 0:
                expected[y, x] = start[0] * 7 + start[1]
                near = [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
                inside = [(v, u) for v, u in near if 0 <= v < 5 and 0 <= u < 7]
                stack += [one for one in inside if sources[0][one] == sources[0][start]]
    assert np.array_equal(seams.areas(sources)[0], expected)


@pytest.mark.parametrize("size", [48, 50])
def test_colours_of_cells(size: int) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (2, size, size, 3)).astype(np.uint8)
    edges = np.arange(SIDE + 1) * size // SIDE
    expected = [
        [[one[a:b, c:d].mean((0, 1)) for c, d in pairwise(edges)] for a, b in pairwise(edges)] for one in pictures
    ]
    assert np.array_equal(seams.cell_colours(pictures, SIDE), np.rint(expected))


def photographs(folder: Path, n: int = 8) -> Path:
    """One face under n lights, as files."""
    folder.mkdir()
    base = np.random.default_rng(0).integers(60, 130, (64, 64, 3))
    for i in range(n):
        lit = base + np.random.default_rng(i).integers(0, 60, (64, 64, 1)) // 4 + 6 * i
        Image.fromarray(lit.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("network", [FakeVQ(), FakeContinuous()], ids=["codes", "latents"])
def test_built_banks_know_their_colours(network: FakeVQ | FakeContinuous, tmp_path: Path) -> None:
    """Through cache, file, subset, merge and flip; results are matched if the preset says so, and record it."""
    folder = photographs(tmp_path / "faces")
    bank = Bank.build(folder, network, cache=tmp_path / "cache", flip=True)
    assert bank.colours is not None and bank.colours.shape == (16, 8, 8, 3)
    assert np.array_equal(bank.colours[8:], bank.colours[:8, :, ::-1])
    assert Bank.build(folder, network, cache=tmp_path / "cache", flip=True) == bank
    bank.save(tmp_path / "a.lpbank")
    assert Bank.load(tmp_path / "a.lpbank") == bank
    halves = [bank.subset(np.arange(8)), bank.subset(np.arange(8, 16))]
    merged = Bank.merge(halves).colours
    assert merged is not None and np.array_equal(merged, bank.colours)
    halves[1].colours = None
    assert Bank.merge(halves).colours is None

    plain, matched = (lp.generate(bank, 6, patch=3, match_colours=wanted) for wanted in (False, True))
    assert np.array_equal(plain.sources, matched.sources)
    assert lp.generate(bank, 6, patch=3) == matched and matched.settings["match_colours"] is True
    assert lp.generate(bank, 6, patch=3, preset="paper").settings["match_colours"] is False
    expected = seams.matched(plain.decode(network), plain.sources, None, bank.colours)
    assert np.array_equal(matched.decode(network), expected) and not np.array_equal(expected, plain.decode(network))
    assert np.array_equal(matched[2].decode(network)[0], expected[2])
    shifted = lp.generate(bank, 2, patch=3, search_radius=1)
    assert shifted.decode(network).shape == (2, 64, 64, 3)


def test_banks_without_colours_say_so() -> None:
    bank = Bank.from_codes(np.zeros((4, 8, 8), int), np.eye(4, 6, dtype=np.float32))
    assert lp.generate(bank, 1, patch=3).settings["match_colours"] is False
    with pytest.raises(InputError, match="holds no colours of its pictures; build it again from them"):
        lp.generate(bank, 1, patch=3, match_colours=True)
    with pytest.raises(InputError, match="match_colours: got 1, expected True, False or None"):
        lp.generate(bank, 1, patch=3, match_colours=1)  # type: ignore[arg-type]
