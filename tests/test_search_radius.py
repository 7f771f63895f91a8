"""A search radius: every backend finds what a bank of explicitly shifted copies gives, and sources map back to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_scan import KINDS, SPECIFICATION, make

from lpkernel import plan, views
from lpkernel.backends.base import Backend

# The options beyond the paper, and one scale: (options, scales, hubness), at a full side of 8.
PLANS: list[tuple[dict[str, Any], list[int] | None, int]] = [
    ({}, None, 0),
    ({}, [5, 8], 0),
    ({"start": "carry", "overlap": "cut", "mirror": 1}, [4, 6, 8], 64),
]


def test_shifts_begin_with_none_and_go_on_in_raster_order() -> None:
    assert views.shifts(0).tolist() == [[0, 0]]
    assert views.shifts(1).tolist() == [[0, 0], [-1, -1], [-1, 0], [-1, 1], [0, -1], [0, 1], [1, -1], [1, 0], [1, 1]]
    assert len(views.shifts(4)) == 81


@pytest.mark.parametrize("radius", [1, 2, 4])
@pytest.mark.parametrize("of_latents", [False, True])
def test_views_are_the_shifted_images_at_every_side(radius: int, of_latents: bool) -> None:
    world = World(3, side=6)
    whole, seen = world.shifted(radius), world.latent_views(radius) if of_latents else world.views(radius)
    if seen.codes is not None:
        assert np.array_equal(np.asarray(seen.codes), whole.codes)
    for side in (1, 3, 5, 6):
        level = seen.level(side)
        assert np.array_equal(np.asarray(level), whole.level(side)) and level.shape == whole.level(side).shape
        assert np.array_equal(level.whole, level[np.arange(len(level))])
        numbers, y, x = np.array([4, 7]), np.array([0, side - 1]), np.array([side - 1, side // 2])
        assert np.array_equal(level[numbers, y, x], whole.level(side)[numbers, y, x])


@pytest.mark.parametrize("kind", ["random-replace", "reference", "edit-free"])
@pytest.mark.parametrize(("options", "scales", "hubness"), PLANS)
@pytest.mark.parametrize("size", [1, 40])
def test_equals_a_bank_of_shifted_copies(
    backend: Backend, kind: str, options: dict[str, Any], scales: list[int] | None, hubness: int, size: int
) -> None:
    world = World(size, side=8, seed=size)
    whole = world.shifted(1)
    made = make(kind, 8, 4, None, scales, **options)
    start = world.start(3) if made.starts_known or kind == "edit-free" else None
    given: dict[str, Any] = {"images": [0, 1, 7], "k": 3, "seed": 5, "start": start, "hubness": hubness}
    wanted = SPECIFICATION.scan(whole.request(made, **given))
    by_codes = scales is None or made.start == "carry"
    for in_codes, of_latents in [(False, False), (False, True), *([(True, False)] if by_codes else [])]:
        request = world.request(made, radius=1, in_codes=in_codes, of_latents=of_latents, **given)
        assert np.array_equal(backend.scan(request), wanted)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_plan_equals_a_bank_of_shifted_copies(backend: Backend, data: st.DataObject) -> None:
    side, radius = data.draw(st.integers(3, 9), "side"), data.draw(st.integers(1, 3), "radius")
    patch = data.draw(st.integers(1, min(side, 5)), "patch")
    scales = sorted({*data.draw(st.sets(st.integers(patch, side), max_size=2), "scales"), side})
    options: dict[str, Any] = {"start": data.draw(st.sampled_from(plan.STARTS), "start")}
    options["mirror"] = data.draw(st.sampled_from([0, 1]), "mirror")
    if data.draw(st.booleans(), "cut"):
        options["overlap"] = "cut"
    kind = data.draw(st.sampled_from(KINDS), "kind")
    size = data.draw(st.integers(1, 30), "B")
    world = World(size, side, data.draw(st.integers(1, 5), "C"), data.draw(st.integers(1, 6), "V"), seed=side)
    allowed = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=size, max_size=size), "allowed"))
    allowed = allowed if len(allowed) else np.arange(size)
    request: dict[str, Any] = {
        "plan": make(kind, side, patch, None, scales, **options),
        "images": data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3), "images"),
        "k": data.draw(st.integers(1, 20), "K"),
        "seed": data.draw(st.integers(0, 2**64 - 1), "seed"),
        "start": world.start(1) if not kind.startswith("random") else None,
        "hubness": data.draw(st.sampled_from([0, 64, 256]), "hubness"),
    }
    by_codes = len(scales) == 1 or options["start"] == "carry"
    in_codes = by_codes and data.draw(st.booleans(), "codes")
    of_latents = not in_codes and data.draw(st.booleans(), "latents")
    every = views.of_images(allowed, size, radius)
    wanted = SPECIFICATION.scan(world.shifted(radius).request(**request, candidates=every))
    found = backend.scan(
        world.request(**request, candidates=allowed, radius=radius, in_codes=in_codes, of_latents=of_latents)
    )
    assert np.array_equal(found, wanted)
