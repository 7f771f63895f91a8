"""carry, cut, hubness and mirror do what docs/method.md says, checked without the specification's own code."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
from fakes import FakeVQ, far_latents
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_scan import SPECIFICATION, region

import lpkernel as lp
from lpkernel import plan, presets
from lpkernel.backends import specification as reference
from lpkernel.backends.base import Backend, ScanRequest
from lpkernel.errors import InputError

START = np.random.default_rng(4).integers(0, 50, (3, 16, 16))
WORLD = World(40, side=16, channels=6, codes=50, seed=3)
# Source maps of the paper's method from before there was any other method.
STORED: dict[str, tuple[ScanRequest, str]] = {
    "five scales": (WORLD.request(plan.random(16, 6), range(3), 3, seed=11), "1ea25b89ac7c7ed0"),
    "codes": (
        WORLD.request(plan.random(16, 6, scales=[16]), range(3), 10, seed=12, in_codes=True),
        "d01c56bdc7297c29",
    ),
    "fill": (
        WORLD.request(plan.random(16, 4, 1, scales=[8, 16], overlap="fill"), range(3), 3, seed=13),
        "fb6d2dd02de1ced0",
    ),
    "reference": (
        WORLD.request(plan.reference(16, 5, passes=2), range(3), 3, seed=14, start=START),
        "0dc1b9210e5f0019",
    ),
    "edit": (
        WORLD.request(plan.edit(region(16), 6), range(3), 3, seed=15, start=START, in_codes=True),
        "8b42e97c4643924d",
    ),
}


@pytest.mark.parametrize("name", STORED)
def test_the_paper_s_source_maps_stay_as_they_were(backend: Backend, name: str) -> None:
    request, wanted = STORED[name]
    sources = np.ascontiguousarray(backend.scan(request), "<i4")
    assert hashlib.sha256(sources.tobytes()).hexdigest()[:16] == wanted


def test_carry_takes_the_nearest_cell() -> None:
    """Centres of output cells, (2 o + 1) / (2 m), lie in the input cells that they are carried from."""
    for n, m in itertools.product(range(1, 20), repeat=2):
        index = plan.Carry.between(n, m).index
        for o in range(m):
            assert index[o] * 2 * m <= (2 * o + 1) * n < (index[o] + 1) * 2 * m


def test_a_carried_scale_starts_from_bank_cells() -> None:
    """One patch a scale and K = 1: the second scale copies the image that the first drew, since it starts from it."""
    world = World(30, side=8, codes=200)
    made = plan.random(8, 4, 4, scales=[4, 8], start="carry")
    sources = SPECIFICATION.scan(world.request(made, range(50), 1))
    assert (sources == sources[:, :1, :1]).all()
    assert len(np.unique(sources)) > 20


def least_sum(errors: np.ndarray) -> int:
    """The least sum over all paths from top to bottom that move by at most one column per row."""
    rows, width = errors.shape
    sums = [
        sum(int(errors[row, column]) for row, column in enumerate(path))
        for path in itertools.product(range(width), repeat=rows)
        if all(abs(a - b) <= 1 for a, b in itertools.pairwise(path))
    ]
    return min(sums)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_the_boundary_is_a_path_of_least_error(rows: int, width: int, most: int, seed: int) -> None:
    errors = np.random.default_rng(seed).integers(0, most + 1, (rows, width))
    path = reference._boundary(errors)
    assert (np.abs(np.diff(path)) <= 1).all() and (path >= 0).all() and (path < width).all()
    assert errors[np.arange(rows), path].sum() == least_sum(errors)


def test_a_cut_worked_by_hand() -> None:
    """The boundary follows the zeros; cells left of a vertical boundary, and above a horizontal one, are kept."""
    errors = np.array([[9, 0, 9, 9], [9, 0, 9, 9], [0, 9, 9, 9], [0, 9, 9, 9]])
    left = [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert reference.kept_by_cut(errors, 3, 0).astype(int).tolist() == left
    assert reference.kept_by_cut(errors.T, 0, 3).astype(int).T.tolist() == left
    both = reference.kept_by_cut(np.minimum(errors, errors.T), 3, 3)
    assert (both == both.T).all() and both[0, 0]
    assert not reference.kept_by_cut(errors, 0, 0).any()


def test_cut_keeps_cells_of_the_overlap_only() -> None:
    world = World(30, side=12)
    made = plan.random(12, 6, 4, scales=[12], overlap="cut")
    whole, cut = (
        SPECIFICATION.scan(world.request(plan.random(12, 6, 4, scales=[12], overlap=overlap), range(4), 3))
        for overlap in ("replace", "cut")
    )
    assert (whole != cut).any()
    scale = made.scales[0]
    assert scale.overlap.tolist() == [[0, 0], [2, 0], [4, 0], [0, 2], [2, 2], [4, 2], [0, 4], [2, 4], [4, 4]]
    # the part of the last step that overlaps nothing: its two-by-two corner
    assert (cut[:, 10:, 10:] == cut[:, 10:11, 10:11]).all()


def test_isolation_by_brute_force() -> None:
    for size in (1, 2, 3, 16, 100, 300):
        world = World(size, side=4, channels=3, seed=size)
        cells = np.array([0, 5, 5, 6])
        content = world.full.reshape(size, 16, 3)
        found = reference.isolation(world.latents, content, cells)
        total = min(size, 256)
        nearest = max(1, (5 * total + size // 2) // size)
        chosen = [i * size // total for i in range(total)]
        for b in range(size):
            apart = sorted(
                sum(
                    int((int(x) - int(y)) ** 2)
                    for x, y in zip(content[b, cells].flat, content[r, cells].flat, strict=True)
                )
                for r in chosen
                if r != b
            )[:nearest]
            assert found[b] == (sum(apart) // len(apart) if apart else 0)


def hubs(sources: np.ndarray, size: int) -> float:
    """The share of all cells that comes from the most used twentieth of the images."""
    counts = np.sort(np.bincount(sources.ravel(), minlength=size))[::-1]
    return float(counts[: size // 20].sum() / counts.sum())


def test_hubness_spreads_the_sources() -> None:
    """A bank with hubs: a few images near the mean of all, which are the nearest to many."""
    random = np.random.default_rng(0)
    codebook = random.integers(-300, 300, (200, 8)).astype(np.int16)
    codebook[:10] //= 8
    world = World(200, side=8, channels=8, codes=200)
    world.codebook = codebook
    world.codes = np.where(np.arange(200)[:, None, None] < 10, world.codes % 10, world.codes).astype(np.int16)
    world.full = codebook[world.codes]
    made = plan.random(8, 4, scales=[8])
    shares = [hubs(SPECIFICATION.scan(world.request(made, range(40), 3, hubness=r)), 200) for r in (0, 64, 128, 256)]
    assert shares[0] > 0.5 and shares == sorted(shares, reverse=True) and shares[-1] < 0.5 * shares[0]


def test_mirrored_cells_are_those_known_beside_the_patch() -> None:
    made = plan.random(10, 4, 3, scales=[10], mirror=2)
    known = np.zeros((10, 10), bool)
    scale = made.scales[0]
    for (y, x), write, cells in zip(scale.positions, scale.write, scale.compared, strict=True):
        window = np.zeros((10, 10), bool)
        window[y : y + 4, x : x + 4] = True
        mirrored = window[:, ::-1] & known & ~window
        counts = np.bincount(cells, minlength=100).reshape(10, 10)
        np.testing.assert_array_equal(counts, (window & known) * 1 + mirrored * 2)
        known[y : y + 4, x : x + 4] |= write
    assert scale.mirror.any()


def bank() -> lp.Bank:
    images = np.random.default_rng(1).integers(0, 256, (40, 16, 16, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    return lp.Bank.build(images, FakeVQ(16, 4), channels=3)


def test_presets_are_their_options() -> None:
    default = lp.generate(bank(), 2, patch=4)
    assert np.array_equal(default.sources, lp.generate(bank(), 2, patch=4, preset="balanced").sources)
    made = lp.generate(bank(), 2, patch=4, preset="paper")
    assert np.array_equal(made.sources, lp.generate(bank(), 2, plan=plan.random(16, 4)).sources)
    for name, hubness in (("balanced", 0.375), ("diverse", 0.5)):
        made = lp.generate(bank(), 2, patch=4, preset=name)
        steps = plan.random(16, 4, None, (8, 16), "cut", "carry", mirror=1)
        assert np.array_equal(made.sources, lp.generate(bank(), 2, plan=steps, hubness=hubness, refine=True).sources)
        told = {name: made.settings[name] for name in ("scales", "start", "overlap", "mirror", "hubness", "domain")}
        assert told == {
            "scales": [8, 16],
            "start": "carry",
            "overlap": "cut",
            "mirror": 1,
            "hubness": hubness,
            "domain": "codes",
        }
    changed: dict[str, Any] = {"hubness": 0, "mirror": 1, "overlap": "replace", "scales": [16], "refine": False}
    made = lp.generate(bank(), 2, patch=4, preset="balanced", **changed)
    assert np.array_equal(
        made.sources, lp.generate(bank(), 2, plan=plan.random(16, 4, None, [16], mirror=1, start="carry")).sources
    )
    assert presets.PRESETS["balanced"].scales(16, 9) == (16,)
    assert presets.PRESETS["balanced"].scales(8, 6) == (8,)
    assert presets.PRESETS["paper"].scales(8, 6) == (6, 7, 8)


def test_domains_of_a_carried_plan_agree() -> None:
    made = [lp.generate(bank(), 3, patch=4, preset="diverse", domain=domain) for domain in ("codes", "latents")]
    assert [one.settings["domain"] for one in made] == ["codes", "latents"]
    assert np.array_equal(made[0].sources, made[1].sources)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "best"}, r"preset: got 'best', expected one of paper, balanced, diverse"),
        ({"hubness": -0.1}, "hubness: got -0.1"),
        ({"hubness": 1.5}, "hubness: got 1.5"),
        ({"hubness": float("nan")}, "hubness: got nan"),
        ({"mirror": 9}, "mirror: got 9, expected 0 to 8"),
        ({"mirror": -1}, "mirror: got -1"),
        ({"start": "jump"}, "start: got 'jump', expected one of resize, carry"),
        ({"overlap": "blend"}, "overlap: got 'blend', expected one of replace, fill, cut"),
        ({"domain": "codes", "preset": "paper"}, "plan of one scale or that carries"),
    ],
)
def test_wrong_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lp.generate(bank(), 1, patch=4, **options)  # type: ignore[arg-type]


def test_mirrored_distances_beyond_int32_are_refused() -> None:
    tight = lp.Bank.from_latents(far_latents(), channels=16, max_patch=8)
    with pytest.raises(InputError, match=r"mirror: got 8: up to \d+ cells are compared and distances may reach 2\^31"):
        lp.generate(tight, 1, patch=4, mirror=8, scales=[8])
    lp.generate(tight, 1, patch=2, mirror=1, scales=[8])
