"""A search radius: every backend finds what a bank of shifted copies gives, and sources map back to the bank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeVQ
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_scan import KINDS, SPECIFICATION, make

import lpkernel as lp
from lpkernel import plan, views
from lpkernel.backends.base import Backend
from lpkernel.cli import main
from lpkernel.errors import InputError
from lpkernel.metrics import compare, maps, sets
from lpkernel.metrics.cache import Cache
from lpkernel.pictures import render

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


@pytest.mark.parametrize("kind", ["random-replace", "edit-free"])
@pytest.mark.parametrize(("options", "scales", "hubness"), PLANS)
@pytest.mark.parametrize("size", [1, 15])
def test_equals_a_bank_of_shifted_copies(
    backend: Backend, kind: str, options: dict[str, Any], scales: list[int] | None, hubness: int, size: int
) -> None:
    world = World(size, side=8, seed=size)
    whole = world.shifted(1)
    made = make(kind, 8, 4, 2, scales, **options)
    start = world.start(2) if made.starts_known or kind == "edit-free" else None
    given: dict[str, Any] = {"images": [0, 7], "k": 3, "seed": 5, "start": start, "hubness": hubness}
    wanted = SPECIFICATION.scan(whole.request(made, **given))
    by_codes = scales is None or made.start == "carry"
    for in_codes, of_latents in [(False, False), (False, True), *([(True, False)] if by_codes else [])]:
        request = world.request(made, radius=1, in_codes=in_codes, of_latents=of_latents, **given)
        assert np.array_equal(backend.scan(request), wanted)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_plan_equals_a_bank_of_shifted_copies(fast_backend: Backend, data: st.DataObject) -> None:
    side, radius = data.draw(st.integers(3, 8), "side"), data.draw(st.integers(1, 2), "radius")
    patch = data.draw(st.integers(2, min(side, 5)), "patch")
    scales = sorted({*data.draw(st.sets(st.integers(patch, side), max_size=2), "scales"), side})
    options: dict[str, Any] = {"start": data.draw(st.sampled_from(plan.STARTS), "start")}
    options["mirror"] = data.draw(st.sampled_from([0, 1]), "mirror")
    if data.draw(st.booleans(), "cut"):
        options["overlap"] = "cut"
    kind = data.draw(st.sampled_from(KINDS), "kind")
    size = data.draw(st.integers(1, 12), "B")
    world = World(size, side, data.draw(st.integers(1, 5), "C"), data.draw(st.integers(1, 6), "V"), seed=side)
    allowed = np.flatnonzero(data.draw(st.lists(st.booleans(), min_size=size, max_size=size), "allowed"))
    allowed = allowed if len(allowed) else np.arange(size)
    request: dict[str, Any] = {
        "plan": make(kind, side, patch, None, scales, **options),
        "images": data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2), "images"),
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
    found = fast_backend.scan(
        world.request(**request, candidates=allowed, radius=radius, in_codes=in_codes, of_latents=of_latents)
    )
    assert np.array_equal(found, wanted)


RANDOM = np.random.default_rng(0)
BOOK = RANDOM.normal(size=(9, 5)).astype(np.float32)
BANKS = {
    "codes": lp.Bank.from_codes(RANDOM.integers(0, 9, (12, 6, 6)), BOOK, 3),
    "latents": lp.Bank.from_latents(RANDOM.normal(size=(12, 6, 6, 4)), 3),
}


def copies(bank: lp.Bank, radius: int) -> lp.Bank:
    """The bank that contains every view as an image, in the same number system."""
    cells = bank.codes if bank.codes is not None else bank.latents
    assert cells is not None
    wide = np.pad(cells, [(0, 0), (radius, radius), (radius, radius)] + [(0, 0)] * (cells.ndim - 3), mode="edge")
    moved = [wide[:, radius + dy :][:, :6, radius + dx :][:, :, :6] for dy, dx in views.shifts(radius)]
    return bank.with_images(np.concatenate(moved), [f"{name} {i}" for i in range(len(moved)) for name in bank.names])


@pytest.mark.parametrize("name", BANKS)
@pytest.mark.parametrize("preset", ["paper", "balanced"])
@pytest.mark.parametrize("radius", [1, 2])
def test_the_pictures_are_those_of_a_bank_of_shifted_copies(name: str, preset: str, radius: int) -> None:
    bank, allowed = BANKS[name], np.array([1, 2, 5, 11])
    every = views.of_images(allowed, bank.size, radius)
    made = lp.generate(bank, 3, patch=3, preset=preset, candidates=allowed, search_radius=radius)
    wanted = lp.generate(copies(bank, radius), 3, patch=3, preset=preset, candidates=every)
    content, same = (one.codes if bank.is_discrete else one.latents for one in (made, wanted))
    assert content is not None and same is not None and np.array_equal(content, same)
    assert np.array_equal(made.sources, wanted.sources % bank.size) and set(np.unique(made.sources)) <= set(allowed)
    assert made.settings["candidates"] == 4 and made.settings["search_radius"] == radius
    assert made.shifts is not None and np.abs(made.shifts).max() <= radius and made.shifts.any()
    assert np.array_equal(made.shifts, views.shifts(radius)[wanted.sources // bank.size])
    image, y, x = np.moveaxis(made.origins(), -1, 0)
    cells = bank.codes if bank.codes is not None else bank.latents
    assert cells is not None and np.array_equal(cells[image, y, x].astype(content.dtype), content)
    assert np.array_equal(made[1].origins()[0], made.origins()[1])
    alone = lp.generate(bank, 1, patch=3, preset=preset, candidates=allowed, search_radius=radius, first_image=2)
    assert alone == made[2]


def test_no_radius_changes_nothing() -> None:
    for bank in BANKS.values():
        made = lp.generate(bank, 2, patch=3, search_radius=0)
        assert made == lp.generate(bank, 2, patch=3) and made.shifts is None
        y, x = np.indices((6, 6))
        assert (made.origins() == np.stack(np.broadcast_arrays(made.sources, y, x), -1)).all()


def test_domains_agree() -> None:
    made = [lp.generate(BANKS["codes"], 3, patch=3, search_radius=1, domain=domain) for domain in ("codes", "latents")]
    assert [one.settings["domain"] for one in made] == ["codes", "latents"] and made[0] == made[1]


def test_an_image_beside_its_place_is_found() -> None:
    """A bank picture moved by one cell is followed exactly when a search of that radius is allowed."""
    bank = BANKS["codes"]
    moved = bank.views(1).codes[[7 + 12 * 8]]  # type: ignore[index]
    made = lp.reference(bank, moved[0], n=2, patch=3, k=1, search_radius=1)
    assert made.codes is not None and (made.codes == moved).all()
    assert (made.sources == 7).all() and (made.shifts == views.shifts(1)[8]).all()
    without = lp.reference(bank, moved[0], n=2, patch=3, k=1)
    assert without.codes is not None and (without.codes != moved).any()


def test_the_image_itself_is_left_out_however_shifted() -> None:
    bank, region = BANKS["codes"], np.zeros((6, 6), bool)
    region[2:4, 2:4] = True
    assert bank.codes is not None
    made = lp.edit(bank, bank.codes[4].astype(np.int64), region=region, patch=3, n=30, k=20, search_radius=1)
    assert (made.sources != 4).all() and made.shifts is not None
    assert ((made.sources < 0) == ~region).all() and not made.shifts[:, ~region].any()
    assert (made.origins()[:, ~region] == -1).all()


def test_a_copy_limit_counts_an_image_however_shifted() -> None:
    limit = lp.CopyLimit(share=0.5)
    free = lp.generate(BANKS["codes"], 12, patch=3, k=1, search_radius=1)
    made = lp.generate(BANKS["codes"], 12, patch=3, k=1, search_radius=1, copy_limit=limit)
    over = {i for i in range(12) if limit.excess(free.sources[i : i + 1])[0] > 1}
    assert over and {*map(int, made.settings["copy_limit"]["try_kept"])} <= over
    for i in set(range(12)) - {*made.settings["copy_limit"]["still_over"]}:
        assert limit.excess(made.sources[i : i + 1])[0] <= 1


@pytest.mark.parametrize(
    ("radius", "words"), [(-1, "search_radius: got -1, expected 0 to 4"), (5, "got 5, expected 0 to 4"), (1.5, "1.5")]
)
def test_wrong_radius(radius: float, words: str) -> None:
    with pytest.raises(InputError, match=words):
        lp.generate(BANKS["codes"], 1, patch=3, search_radius=radius)  # type: ignore[arg-type]


def test_wrong_shifts() -> None:
    sources = np.zeros((1, 6, 6), int)
    for shifts in (np.zeros((1, 6, 6), int), np.zeros((1, 6, 6, 2))):
        with pytest.raises(InputError, match="shifts have"):
            BANKS["codes"].gather(sources, shifts)


def test_provenance_marks_what_was_copied() -> None:
    sources, moved = np.array([[0, 1], [1, -1]]), np.zeros((2, 2, 2), int)
    moved[0, 0] = 1, 1
    assert views.copied_from(0, sources, moved).tolist() == [[False, False], [False, True]]
    assert views.copied_from(0, sources, None).tolist() == [[True, False], [False, False]]
    picture = np.zeros((256, 256, 3), np.uint8)  # large enough that each title on the page is one line
    sheets = [
        render.provenance_sheet(picture, sources, [0], picture[None], ["a"], shifts)
        for shifts in (None, 0 * moved, moved)
    ]
    assert sheets[0].shape == sheets[1].shape == sheets[2].shape
    below = [sheet[-264:] for sheet in sheets]  # the source
    assert (below[0] == below[1]).all() and (below[1] != below[2]).any()


def test_a_run_records_the_shifts(tmp_path: Path) -> None:
    command = ["generate", "--no-decode", "-n", "2", "--sources", "20", "--quiet", "--search-radius", "1"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    made = lp.generate(lp.Bank.default(), 2, candidates=np.arange(20), search_radius=1)
    assert made.shifts is not None
    lines = [json.loads(line) for line in (tmp_path / "images.jsonl").read_text().splitlines()]
    for line, moved in zip(lines, made.shifts, strict=True):
        assert np.array_equal(np.stack([line["shift_y"], line["shift_x"]], -1), moved)
    assert np.array_equal(np.load(tmp_path / "sources.npy"), made.sources)
    assert json.loads((tmp_path / "generate.json").read_text())["settings"]["search_radius"] == 1


def test_evaluate_measures_what_was_copied(tmp_path: Path) -> None:
    autoencoder = FakeVQ(6, 4)
    bank = lp.Bank.from_codes(RANDOM.integers(0, 32, (12, 6, 6)), autoencoder.codebook, 3, autoencoder=autoencoder)  # type: ignore[arg-type]
    options = {"preset": "balanced", "patch": 3, "search_radius": 1}
    made = lp.generate(bank, 5, **options)  # type: ignore[arg-type]
    for _ in range(2):  # the second time from the cache
        found = sets.of_preset(bank, "", options, "r", 5, 0, autoencoder, 24, Cache(tmp_path))
        assert np.array_equal(found.read([0, 3]), made.decode(autoencoder)[[0, 3]])
        assert np.array_equal(found.maps, made.sources) and np.array_equal(found.shifts, made.shifts)  # type: ignore[arg-type]
    assert bank.fixed_codebook is not None and made.codes is not None and made.shifts is not None
    pieces = (made.sources.astype(np.int64) + 1) * 100 + made.shifts[..., 0] * 10 + made.shifts[..., 1]
    assert compare.by_maps(found)["seam_energy"]["value"] == maps.seam_energy(pieces, bank.fixed_codebook[made.codes])
