"""scan(): every backend equals the specification, bit for bit; and the specification does what the method says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World

from lpkernel import philox, plan
from lpkernel.backends import specification as reference
from lpkernel.backends.base import Backend, LatentBank, ScanRequest
from lpkernel.plan import Plan

SPECIFICATION = reference.NumpyBackend()


def region(side: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[side // 3 : 2 * side // 3, side // 4 : 3 * side // 4] = True
    return mask


def make(kind: str, side: int, patch: int, stride: int | None, scales: list[int] | None, **options: Any) -> Plan:
    if kind == "reference":
        return plan.reference(side, patch, stride, scales, **options)
    if kind.startswith("edit"):
        return plan.edit(region(side), patch, stride, kind.removeprefix("edit-"), scales, **options)
    return plan.random(side, patch, stride, scales or [side], **{"overlap": kind.removeprefix("random-"), **options})


KINDS = ["random-replace", "random-fill", "reference", "edit-free", "edit-guided"]
# The options beyond the paper, each alone and together (docs/method.md).
BEYOND: list[tuple[dict[str, Any], int]] = [
    ({"start": "carry"}, 0),
    ({"overlap": "cut"}, 0),
    ({"mirror": 2}, 0),
    ({}, 64),
    ({"start": "carry", "overlap": "cut", "mirror": 1}, 200),
]


@pytest.mark.parametrize("size", [1, 2, 16, 257])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scales", [None, [8, 9, 12]])
def test_equals_the_specification(fast_backend: Backend, kind: str, size: int, scales: list[int] | None) -> None:
    for request, wanted in plain_cases(kind, size, None if scales is None else tuple(scales)):
        assert np.array_equal(fast_backend.scan(request), wanted)


@cache
def plain_cases(kind: str, size: int, scales: tuple[int, ...] | None) -> list[tuple[ScanRequest, np.ndarray]]:
    """Requests of a kind and their results, computed once for all backends."""
    world, found = World(size, side=12, seed=size), []
    for patch, k in [(1, 1), (2, 3), (3, 128), (4, 10), (5, 3), (6, 3), (7, 2), (8, 10)]:
        made = make(kind, 12, patch, None, None if scales is None else list(scales))
        start = world.start(3) if made.starts_known or kind == "edit-free" else None
        request = world.request(made, [0, 1, 7], k, seed=patch, start=start)
        found.append((request, SPECIFICATION.scan(request)))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_codes_equal_latents(backend: Backend, kind: str) -> None:
    world = World(40, side=12)
    for patch in (2, 5):
        made = make(kind, 12, patch, None, None)
        start = world.start(4) if made.starts_known or kind == "edit-free" else None
        requests = [world.request(made, range(4), 3, start=start, in_codes=in_codes) for in_codes in (False, True)]
        latent, code = (backend.scan(request) for request in requests)
        assert np.array_equal(latent, code)
        assert np.array_equal(code, SPECIFICATION.scan(requests[1]))


@pytest.mark.parametrize("size", [1, 2, 16, 40, 300])
@pytest.mark.parametrize("kind", ["random-replace", "reference", "edit-free"])
@pytest.mark.parametrize("beyond", range(len(BEYOND)))
def test_options_beyond_the_paper_equal_the_specification(
    fast_backend: Backend, kind: str, size: int, beyond: int
) -> None:
    for request, wanted in cases_beyond(kind, size, beyond):
        assert np.array_equal(fast_backend.scan(request), wanted)


@cache
def cases_beyond(kind: str, size: int, beyond: int) -> list[tuple[ScanRequest, np.ndarray]]:
    """Like `plain_cases`; a plan's request in latents and, where possible, in codes, with the result of the former."""
    (options, hubness), world, found = BEYOND[beyond], World(size, side=12, seed=size), []
    for patch, k, scales in [(2, 3, [6, 12]), (4, 10, [12]), (5, 3, [6, 9, 12]), (6, 1, [6, 12])]:
        made = make(kind, 12, patch, None, scales, **options)
        start = world.start(3) if made.starts_known or kind == "edit-free" else None
        domains = [False, True] if len(scales) == 1 or made.start == "carry" else [False]
        requests = [
            world.request(made, [0, 1, 7], k, seed=patch, start=start, in_codes=in_codes, hubness=hubness)
            for in_codes in domains
        ]
        wanted = SPECIFICATION.scan(requests[0])
        found += [(request, wanted) for request in requests]
    return found


def any_request(
    data: st.DataObject, side: int, patch: int, size: int, channels: int, images: int, k: int
) -> ScanRequest:
    """A request of any kind, drawn; the numbers are upper limits."""
    side = data.draw(st.integers(3, side), "side")
    patch = data.draw(st.integers(1, min(side, patch)), "patch")
    stride = data.draw(st.integers(1, patch), "stride")
    scales = sorted({*data.draw(st.sets(st.integers(patch, side), max_size=2), "scales"), side})
    kind = data.draw(st.sampled_from(KINDS), "kind")
    size = data.draw(st.integers(1, size), "B")
    world = World(size, side, data.draw(st.integers(1, channels), "C"), data.draw(st.integers(1, 6), "V"), seed=side)
    options: dict[str, Any] = {"start": data.draw(st.sampled_from(plan.STARTS), "start")}
    options["mirror"] = data.draw(st.sampled_from([0, 0, 1, 3]), "mirror")
    if data.draw(st.booleans(), "cut"):
        options["overlap"] = "cut"
    by_codes = len(scales) == 1 or options["start"] == "carry"
    allowed = np.flatnonzero(np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size), "allowed")))
    return world.request(
        make(kind, side, patch, stride, scales, **options),
        data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=images), "images"),
        data.draw(st.integers(1, k), "K"),
        data.draw(st.integers(0, 2**64 - 1), "seed"),
        world.start(1) if not kind.startswith("random") else None,
        allowed if len(allowed) else None,
        in_codes=by_codes and data.draw(st.booleans(), "codes"),
        hubness=data.draw(st.sampled_from([0, 0, 64, 256]), "hubness"),
    )


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_equals_the_specification_on_any_plan(fast_backend: Backend, data: st.DataObject) -> None:
    request = any_request(data, side=12, patch=8, size=40, channels=5, images=4, k=50)
    assert np.array_equal(fast_backend.scan(request), SPECIFICATION.scan(request))


@pytest.mark.parametrize("in_codes", [False, True])
def test_an_image_is_the_same_alone_or_in_a_batch(backend: Backend, in_codes: bool) -> None:
    world = World(30, side=10)
    made = plan.random(10, 4, scales=[10])
    together = backend.scan(world.request(made, range(64), 3, seed=5, in_codes=in_codes))
    for image in (0, 1, 31, 63):
        alone = backend.scan(world.request(made, [image], 3, seed=5, in_codes=in_codes))
        assert np.array_equal(alone[0], together[image])
    assert len({together[i].tobytes() for i in range(64)}) > 60


def test_only_candidates_are_copied(backend: Backend) -> None:
    world = World(50, side=10)
    allowed = np.array([3, 11, 12, 49])
    made = plan.random(10, 3, scales=[7, 10])
    sources = backend.scan(world.request(made, range(20), 10, candidates=allowed))
    assert set(np.unique(sources)) == set(allowed)


def test_subset_equals_a_bank_of_that_subset(backend: Backend) -> None:
    world = World(50, side=10)
    allowed = np.array([3, 11, 12, 30, 49])
    small = World(1, side=10)
    small.codes, small.codebook, small.full = world.codes[allowed], world.codebook, world.full[allowed]
    made = plan.random(10, 3, scales=[7, 10])
    of_subset = backend.scan(world.request(made, range(5), 2, candidates=allowed))
    assert np.array_equal(of_subset, allowed[backend.scan(small.request(made, range(5), 2))])


def test_k_beyond_the_allowed_images_means_all(backend: Backend) -> None:
    world = World(7, side=8)
    made = plan.random(8, 3, scales=[8])
    assert np.array_equal(
        backend.scan(world.request(made, range(5), 7)), backend.scan(world.request(made, range(5), 1000))
    )


def test_ties_go_to_the_lowest_index(backend: Backend) -> None:
    """All images equal: the K nearest are always images 0 .. K-1."""
    world = World(20, side=8, codes=1)
    made = plan.random(8, 4, scales=[8])
    sources = backend.scan(world.request(made, range(30), 3))
    first = sources[:, :2, :2]  # never overwritten after the free first draw
    assert sources[:, 4:, 4:].max() == 2
    assert first.max() > 2


def test_k_one_on_a_reference_of_the_bank_returns_it(backend: Backend) -> None:
    world = World(25, side=12, codes=50)
    made = plan.reference(12, 5)
    sources = backend.scan(world.request(made, [0], 1, start=world.codes[17:18].astype(np.int64)))
    assert (sources == 17).all()


@pytest.mark.parametrize("scales", [[12], [8, 12]])
def test_kept_cells_are_minus_one(backend: Backend, scales: list[int]) -> None:
    world = World(25, side=12)
    made = plan.edit(region(12), 4, mode="free", scales=scales)
    sources = backend.scan(world.request(made, range(3), 3, start=world.start(3)))
    assert ((sources < 0) == ~region(12)).all()


def test_first_draw_is_uniform_over_all_allowed(backend: Backend) -> None:
    world = World(8, side=4)
    made = plan.random(4, 4, scales=[4])
    sources = backend.scan(world.request(made, range(8000), 1))
    assert (sources == sources[:, :1, :1]).all()  # one patch covers the grid
    expected = philox.pick(philox.draws(0, np.arange(8000), 0), 8)
    assert np.array_equal(sources[:, 0, 0], expected)


def test_empty_batch(backend: Backend) -> None:
    world = World(8, side=6)
    assert backend.scan(world.request(plan.random(6, 3, scales=[4, 6]), [], 1)).shape == (0, 6, 6)


def test_a_case_worked_by_hand() -> None:
    """B = 3, M = 2, P = 2x2 over a 3x3 grid, one channel, K = 1: the nearest is forced at every step."""
    values = np.zeros((3, 3, 3, 1), np.int16)
    values[0], values[1], values[2] = 0, 10, 21
    start = np.array([[[4, 4, 16], [4, 4, 16], [16, 16, 16]]], np.int16)[..., None]
    made = plan.reference(3, 2, 1)
    request = World(3, side=3).request(made, [0], 1)
    request = replace(request, bank=LatentBank(lambda side: values, 3), canvas=(start,))
    # (0,0): all 4        -> to 0: 4*16 = 64, to 10: 144, to 21: 1156               -> 0
    # (0,1): 0 16 / 0 16  -> to 0: 512, to 10: 2*100+2*36 = 272, to 21: 2*441+2*25  -> 1
    # (1,0): 0 10 / 16 16 -> to 0: 612, to 10: 100+0+36+36 = 172, to 21: 612         -> 1
    # (1,1): 10 10 / 10 16-> to 10: 36                                               -> 1
    assert SPECIFICATION.scan(request).tolist() == [[[0, 1, 1], [1, 1, 1], [1, 1, 1]]]


def test_distances_of_the_specification_are_plain_sums() -> None:
    world = World(9, side=6)
    cells = np.array([[True, False], [True, True]])
    patches = world.full[:, 2:4, 3:5][:, cells]
    got = reference.latent_distances(patches[4], patches)
    for b in range(9):
        want = 0
        for y, x in [(2, 3), (3, 3), (3, 4)]:
            for c in range(world.full.shape[-1]):
                want += (int(world.full[4, y, x, c]) - int(world.full[b, y, x, c])) ** 2
        assert got[b] == want
    codes = world.codes[:, 2:4, 3:5][:, cells]
    assert np.array_equal(reference.code_distances(codes[4], codes, world.table), got)


def test_extreme_values_stay_exact(fast_backend: Backend) -> None:
    """Values at the fixed-point limit for D = 16 * 8 * 8: distances come within 2^31."""
    world = World(12, side=8, channels=16, codes=2)
    world.codebook = np.array([[-724] * 16, [724] * 16], np.int16)
    world.full = world.codebook[world.codes]
    wide = world.codebook.astype(np.int64)
    world.table = np.square(wide[:, None] - wide[None]).sum(2).astype(np.int32)
    start = 1 - world.codes[:1].astype(np.int64)  # as far as possible from image 0
    made = plan.reference(8, 8)
    for in_codes in (False, True):
        request = world.request(made, [0, 1], 12, start=start, in_codes=in_codes)
        assert np.array_equal(fast_backend.scan(request), SPECIFICATION.scan(request))
    far = reference.latent_distances(world.codebook[start[0]].reshape(64, 16), world.full.reshape(12, 64, 16))
    assert far.max() == 4 * 724**2 * 1024 < 2**31
