"""Refined seams: the rule, cell by cell, in native code and in NumPy; the same maps from every backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_scan import make

import lpkernel as lp
from lpkernel import _native, refine
from lpkernel.backends.base import Backend
from lpkernel.errors import InputError
from lpkernel.presets import PRESETS
from lpkernel.views import shifts

RANDOM = np.random.default_rng(0)


def energy(maps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(N,): the cost of all seams, computed differently from `refine`."""
    found = np.zeros(len(maps), np.int64)
    side = maps.shape[1]
    for n, one in enumerate(maps):
        for y, x in np.ndindex(side, side):
            for v, u in ((y + 1, x), (y, x + 1)):
                if v < side and u < side and min(a := one[y, x], b := one[v, u]) >= 0:
                    for at in ((y, x), (v, u)):
                        found[n] += np.square(cells[a][at].astype(np.int64) - cells[b][at]).sum()
    return found


@pytest.fixture(params=["cpp", "numpy"])
def refined(request: pytest.FixtureRequest) -> Any:
    if request.param == "numpy":
        return refine.by_numpy
    if _native.cpu_reasons():
        pytest.skip("; ".join(_native.cpu_reasons()))
    return refine.refined


def test_a_cell_goes_where_seams_are_cheaper(refined: Any) -> None:
    """A cell from the one image that differs from the rest moves to the first of the equal sources, the one above."""
    cells = np.zeros((10, 6, 6, 1), np.int16)
    cells[9] = 10
    maps = (np.arange(36, dtype=np.int32) % 9).reshape(1, 6, 6)
    wanted = maps.copy()
    maps[0, 2, 2], wanted[0, 2, 2] = 9, maps[0, 1, 2]
    assert np.array_equal(refined(maps, cells), wanted)


def test_equals_stay(refined: Any) -> None:
    maps = RANDOM.integers(0, 9, (4, 6, 6)).astype(np.int32)
    assert np.array_equal(refined(maps, np.ones((9, 6, 6, 2), np.int16)), maps)


def test_a_part_goes_whole(refined: Any) -> None:
    """None of the four cells of a square is cheaper to move alone."""
    cells = np.zeros((10, 8, 8, 1), np.int16)
    cells[9, :2, :2] = 10
    maps = np.broadcast_to(np.arange(8, dtype=np.int32), (1, 8, 8)).copy()
    wanted = maps.copy()
    maps[0, :2, :2], wanted[0, :2, :2] = 9, 2  # the first neighbour met, right of the second cell
    assert np.array_equal(refined(maps, cells), wanted)
    maps[0, 2, :2] = 9  # two of these six cells cost nothing where they are; all six are too many
    assert (refined(maps, cells)[0, :3, :2] == 9).all()


def test_an_image_with_its_share_takes_no_more(refined: Any) -> None:
    cells = np.zeros((3, 4, 4, 1), np.int16)
    cells[2] = 10
    maps = np.array([[[1, 1, 1, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]], np.int32)
    assert refine.limits(4) == (1, 3)
    assert np.array_equal(refined(maps, cells), maps)
    maps[0, 0, 0] = 0
    assert refined(maps, cells)[0, 1, 1] == 1  # image 1 has two of sixteen cells


def test_kept_cells_stay_and_nothing_is_compared_with_them(refined: Any) -> None:
    cells = RANDOM.integers(-9, 9, (10, 6, 6, 3)).astype(np.int16)
    maps = RANDOM.integers(0, 5, (8, 6, 6)).astype(np.int32)
    maps[:, 2:4], maps[:, 4:] = -1, maps[:, 4:] + 5  # other images, so that the shares are separate
    found = refined(maps, cells)
    assert np.array_equal(found == -1, maps == -1) and not np.array_equal(found, maps)
    alone = np.where(np.arange(6)[:, None] < 2, maps, -1)  # as if there were nothing below the kept rows
    assert np.array_equal(refined(alone, cells)[:, :2], found[:, :2])


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_cpp_equals_numpy_and_seams_never_cost_more(data: st.DataObject) -> None:
    side, images, block = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    pieces = random.integers(data.draw(st.sampled_from([-1, 0])), images, (3, *[-(-side // block)] * 2))
    maps = pieces.repeat(block, 1).repeat(block, 2)[:, :side, :side].astype(np.int32)
    stray = random.random(maps.shape) < data.draw(st.sampled_from([0, 0.1, 0.4]))
    maps[stray] = random.integers(0, images, stray.sum())
    channels = data.draw(st.sampled_from([1, 3, 15, 16, 16, 17, 40]))
    vectors = random.integers(-900, 900, (data.draw(st.integers(1, 20)), channels)).astype(np.int16)
    codes = random.integers(0, len(vectors), (images, side, side)).astype(np.int16)
    by_codes, by_values = (refine.by_numpy(maps, *of) for of in ((codes, vectors), (vectors[codes], None)))
    assert np.array_equal(by_codes, by_values)
    assert (energy(by_codes, vectors[codes]) <= energy(maps, vectors[codes])).all()
    if not _native.cpu_reasons():
        assert np.array_equal(refine.refined(maps, codes, vectors), by_codes)
        assert np.array_equal(refine.refined(maps, vectors[codes]), by_codes)


def bank(kind: str, side: int = 6) -> lp.Bank:
    random = np.random.default_rng(1)
    if kind == "latents":
        return lp.Bank.from_latents(random.normal(size=(18, side, side, 4)), 3)
    codes = 40_000 if kind == "many codes" else 20
    return lp.Bank.from_codes(random.integers(0, codes, (18, side, side)), random.normal(size=(codes, 5)), 3)


@pytest.mark.parametrize("radius", [0, 1])
@pytest.mark.parametrize("kind", ["codes", "latents", "many codes"])
def test_generate_refines(kind: str, radius: int) -> None:
    """The maps without refinement, refined with the values of the cells that they name."""
    made = bank(kind)
    plain, found = (lp.generate(made, 9, patch=3, search_radius=radius, refine=wanted) for wanted in (False, True))
    assert (plain.settings["refine"], found.settings["refine"]) == (False, True)
    assert not np.array_equal(plain.sources, found.sources) and found == lp.generate(
        made, 9, patch=3, search_radius=radius
    )

    views = made.views(radius).level(6) if radius else made.level(6)
    cells = np.asarray(views)
    numbers = {origin: i for i, origin in enumerate(_places(len(cells), made.size, radius))}
    maps = np.array([[[numbers[_key(o)] for o in row] for row in one] for one in _labels(plain)], np.int32)
    wanted = refine.by_numpy(maps, cells)
    assert np.array_equal(wanted % made.size, found.sources)


def _places(views: int, images: int, radius: int) -> list[tuple[int, int, int]]:
    moved = shifts(radius).tolist()
    return [(v % images, moved[v // images][0], moved[v // images][1]) for v in range(views)]


def _labels(made: lp.Synthesis) -> np.ndarray:
    moved = np.zeros((*made.sources.shape, 2), np.int8) if made.shifts is None else made.shifts
    return np.concatenate([made.sources[..., None], moved], axis=-1)


def _key(origin: np.ndarray) -> tuple[int, int, int]:
    image, dy, dx = (int(value) for value in origin)
    return image, dy, dx


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_maps_are_the_same_on_every_backend(fast_backend: Backend, kind: str) -> None:
    made = bank(kind)
    for preset in PRESETS:
        wanted, found = (
            lp.generate(made, 7, patch=3, preset=preset, refine=True, copy_limit=lp.CopyLimit(area=6), backend=name)
            for name in ("numpy", fast_backend.name)
        )
        assert wanted == found
        alone = lp.generate(made, 1, patch=3, preset=preset, refine=True, first_image=4, backend=fast_backend.name)
        batch = lp.generate(made, 7, patch=3, preset=preset, refine=True, backend=fast_backend.name)
        assert np.array_equal(alone.sources[0], batch.sources[4])


@pytest.mark.parametrize("in_codes", [False, True])
@pytest.mark.parametrize("kind", ["random-replace", "edit-free"])
def test_a_scan_refines_what_it_ends_with(backend: Backend, kind: str, in_codes: bool) -> None:
    """Where the request says so, once, after the last scale."""
    world = World(12, side=6, codes=12)
    made = make(kind, 6, 3, None, [4, 6], overlap="cut", start="carry")
    start = world.start(1) if kind == "edit-free" else None
    request = world.request(made, range(5), 3, start=start, in_codes=in_codes)
    plain = backend.scan(request)
    wanted = refine.by_numpy(plain, world.codes, world.codebook)
    assert np.array_equal(backend.scan(replace(request, refine=True)), wanted) and not np.array_equal(plain, wanted)


def test_presets_and_plans() -> None:
    made = bank("codes")
    assert [
        lp.generate(made, 1, patch=3, preset=name).settings["refine"] for name in ("paper", "balanced", "diverse")
    ] == [
        False,
        True,
        True,
    ]
    plan = lp.plan.random(6, 3)
    assert lp.generate(made, 1, plan=plan).settings["refine"] is False
    assert lp.generate(made, 1, plan=plan, refine=True).settings["refine"] is True
    with pytest.raises(InputError, match="refine: got 1, expected True, False or None"):
        lp.generate(made, 1, patch=3, refine=1)  # type: ignore[arg-type]


def test_damaged_codes_are_refused(refined: Any) -> None:
    codes = np.zeros((7, 6, 6), np.int16)
    codes[1, 1, 1] = 7
    maps = np.arange(36, dtype=np.int32).reshape(1, 6, 6) % 7  # none has more than a fifth, so all are compared
    with pytest.raises(InputError, match="bank is damaged or has changed"):
        refined(maps, codes, np.zeros((7, 2), np.int16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": np.zeros((1, 4, 4), np.int64)}, "maps: wrong dtype"),
        ({"maps": np.zeros((1, 4, 3), np.int32)}, r"maps: expected \(N, M, M\)"),
        ({"maps": np.full((1, 4, 4), 3, np.int32)}, "maps: images"),
        ({"maps": np.full((1, 4, 4), -2, np.int32)}, "maps: images"),
        ({"cells": np.zeros((3, 4, 4), np.int32)}, "cells: wrong dtype"),
        ({"cells": np.zeros((3, 4, 4, 1), np.int16)}, "cells: expected 3 axes"),
        ({"cells": np.zeros((0, 4, 4), np.int16)}, "maps: expected"),
        ({"vectors": np.zeros((7, 0), np.int16)}, "vectors: expected"),
        ({"vectors": np.zeros((7, 2, 1), np.int16)}, "vectors: expected 2 axes"),
        ({"rounds": -1}, "expected 0 or more"),
        ({"sweeps": -1}, "expected 0 or more"),
        ({"part": -1}, "expected 0 or more"),
        ({"most": -1}, "expected 0 or more"),
        ({"threads": 0}, "threads: expected 1 to 4096"),
    ],
)
def test_cpp_checks_what_it_is_given(change: dict[str, Any], message: str) -> None:
    if _native.cpu_reasons():
        pytest.skip("; ".join(_native.cpu_reasons()))
    given = {
        "maps": np.zeros((1, 4, 4), np.int32),
        "cells": np.zeros((3, 4, 4), np.int16),
        "vectors": np.zeros((7, 2), np.int16),
        "rounds": 2,
        "sweeps": 4,
        "part": 1,
        "most": 4,
        "threads": 1,
    }
    assert _native.cpu().refine(**given).tolist() == given["maps"].tolist()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=message):
        _native.cpu().refine(**(given | change))
