"""generate(): settings, content and errors, on real Bank objects; scans themselves are tested in test_scan.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeContinuous, FakeVQ, far_latents

import lpkernel as lp
from lpkernel.backends.base import Backend
from lpkernel.errors import InputError

GRID = 8


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """30 pictures of random cells, so that every code map is rich."""
    return np.random.default_rng(0).integers(0, 256, (30, GRID, GRID, 3), np.uint8).repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope="module")
def bank(images: np.ndarray) -> lp.Bank:
    return lp.Bank.build(images, FakeVQ(GRID), channels=3)


@pytest.fixture(scope="module")
def continuous(images: np.ndarray) -> lp.Bank:
    return lp.Bank.build(images, FakeContinuous(GRID), channels=3)


def region() -> np.ndarray:
    mask = np.zeros((GRID, GRID), bool)
    mask[3:6, 2:7] = True
    return mask


def test_codes_are_the_sources_cells(bank: lp.Bank, backend: Backend) -> None:
    made = lp.generate(bank, n=5, patch=4, k=3, scales=[6, 8], seed=4, backend=backend.name)
    assert made.sources.shape == (5, GRID, GRID) and made.sources.dtype == np.int32
    assert made.codes is not None and made.latents is None and bank.codes is not None
    y, x = np.mgrid[:GRID, :GRID]
    assert np.array_equal(made.codes, bank.codes[made.sources, y, x])
    assert made.settings["backend"] == backend.name
    json.dumps(made.settings)


def test_defaults(bank: lp.Bank) -> None:
    made = lp.generate(bank, n=2, patch=4)
    assert made.plan.sides == (4, 8)
    paper = lp.generate(bank, n=2, patch=4, preset="paper")
    assert paper.plan.sides == (5, 6, 7, 8)  # 10/16 of the grid upwards; two of the five sides coincide
    assert made.settings["stride"] == 1
    assert made.settings["k"] == 3


def test_continuous_bank(continuous: lp.Bank, backend: Backend) -> None:
    made = lp.generate(continuous, n=3, patch=4, scales=[6, 8], backend=backend.name)
    reference = lp.generate(continuous, n=3, patch=4, scales=[6, 8], backend="numpy")
    assert np.array_equal(made.sources, reference.sources)
    assert made.codes is None and made.latents is not None and continuous.latents is not None
    y, x = np.mgrid[:GRID, :GRID]
    assert np.array_equal(made.latents, continuous.latents[made.sources, y, x].astype(np.float32))
    assert made.decode(FakeContinuous(GRID)).shape == (3, 64, 64, 3)


def test_domains_agree(bank: lp.Bank, backend: Backend) -> None:
    codes, latents = (
        lp.generate(bank, n=6, patch=3, scales=[8], domain=domain, backend=backend.name)
        for domain in ("codes", "latents")
    )
    assert np.array_equal(codes.sources, latents.sources)
    assert (codes.settings["domain"], latents.settings["domain"]) == ("codes", "latents")


def test_a_slice_of_the_series_is_the_same(bank: lp.Bank, backend: Backend) -> None:
    whole = lp.generate(bank, n=9, patch=3, seed=2**63 + 5, backend=backend.name).sources
    part = lp.generate(bank, n=4, patch=3, seed=2**63 + 5, first_image=3, backend=backend.name).sources
    assert np.array_equal(part, whole[3:7])


def test_saved_and_loaded_banks_give_the_same(
    bank: lp.Bank, continuous: lp.Bank, backend: Backend, tmp_path: Path
) -> None:
    for original in (bank, continuous):
        original.save(tmp_path / "x.lpbank")
        loaded = lp.Bank.load(tmp_path / "x.lpbank")
        before, after = (lp.generate(b, n=3, patch=3, backend=backend.name).sources for b in (original, loaded))
        assert np.array_equal(before, after)


@pytest.mark.parametrize("scales", [None, [6, 8]])
@pytest.mark.parametrize("kind", ["bank", "continuous"])
def test_edit_keeps_the_outside(
    request: pytest.FixtureRequest, backend: Backend, kind: str, scales: list[int] | None
) -> None:
    bank = request.getfixturevalue(kind)
    autoencoder = FakeVQ(GRID) if kind == "bank" else FakeContinuous(GRID)
    picture = np.random.default_rng(9).integers(0, 256, (1, GRID, GRID, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    canvas = autoencoder.encode(picture)
    made = lp.generate(bank, n=4, plan=lp.plan.edit(region(), 3, scales=scales), canvas=canvas, backend=backend.name)
    content = made.codes if made.codes is not None else made.latents
    assert content is not None
    assert np.array_equal(content[:, ~region()], np.broadcast_to(canvas, content.shape)[:, ~region()])
    assert ((made.sources >= 0) == region()).all()
    other = lp.generate(bank, n=4, plan=lp.plan.edit(region(), 3, scales=scales), canvas=canvas, backend="numpy")
    assert np.array_equal(made.sources, other.sources)


def test_reference_of_the_bank_with_k_one_is_itself(bank: lp.Bank, backend: Backend) -> None:
    assert bank.codes is not None
    plan = lp.plan.reference(GRID, 4)
    made = lp.generate(bank, n=1, k=1, plan=plan, canvas=bank.codes[7], backend=backend.name)
    assert made.codes is not None and np.array_equal(made.codes[0], bank.codes[7])
    others = np.arange(30) != 7
    elsewhere = lp.generate(bank, n=1, k=1, plan=plan, canvas=bank.codes[7], candidates=others, backend=backend.name)
    assert (elsewhere.sources != 7).all()


def test_candidates_by_mask_and_by_index(bank: lp.Bank) -> None:
    mask = np.zeros(30, bool)
    mask[[2, 5, 20]] = True
    by_mask = lp.generate(bank, n=3, patch=3, candidates=mask)
    by_index = lp.generate(bank, n=3, patch=3, candidates=[20, 5, 2, 5])
    assert np.array_equal(by_mask.sources, by_index.sources)
    assert set(np.unique(by_mask.sources)) <= {2, 5, 20}
    assert by_index.settings["candidates"] == 3


def test_shares(bank: lp.Bank) -> None:
    made = lp.generate(bank, n=4, patch=3)
    shares = made.shares()
    assert shares.shape == (4, 30)
    assert np.allclose(shares.sum(1), 1)
    assert shares[2, made.sources[2, 0, 0]] >= 1 / 64


def test_decode_refuses_another_autoencoder(bank: lp.Bank) -> None:
    made = lp.generate(bank, n=1, patch=3)
    assert made.decode(FakeVQ(GRID)).shape == (1, 64, 64, 3)
    with pytest.raises(InputError, match="does not fit"):
        made.decode(FakeVQ(GRID, seed=5))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": 0}, "n: got 0"),
        ({"k": 0}, "k: got 0"),
        ({"patch": 9}, "patch"),
        ({"scales": [5, 7]}, "grid side 8"),
        ({"seed": -1}, "seed"),
        ({"first_image": -1}, "first_image"),
        ({"first_image": 2**32}, "first_image"),
        ({"candidates": []}, "no bank image"),
        ({"candidates": [30]}, "expected 0 to 29"),
        ({"candidates": [-1]}, "expected 0 to 29"),
        ({"candidates": np.ones(29, bool)}, "mask of shape"),
        ({"candidates": [0.5]}, "integer indices"),
        ({"backend": "fpga"}, "backend"),
        ({"domain": "pixels"}, "domain"),
        ({"domain": "codes", "scales": [6, 8], "start": "resize"}, "one scale"),
        ({"plan": lp.plan.random(16)}, "grid side 8"),
        ({"plan": lp.plan.reference(8, 3)}, "needs a starting canvas"),
        ({"plan": lp.plan.edit(region(), 3)}, "needs a starting canvas"),
        ({"plan": lp.plan.reference(8, 3), "canvas": np.zeros((7, 8), int)}, "canvas"),
        ({"plan": lp.plan.reference(8, 3), "canvas": np.full((8, 8), 32)}, "codes in"),
        ({"plan": lp.plan.reference(8, 3), "canvas": np.zeros((8, 8))}, "integer codes"),
    ],
)
def test_wrong_arguments(bank: lp.Bank, arguments: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        lp.generate(bank, **{"n": 2, "patch": 3, **arguments})


def test_patch_beyond_the_banks_exact_range() -> None:
    """Refused where the distances that the bank itself has room for reach 2^31, taken where they do not."""
    wide = lp.Bank.from_latents(far_latents(), channels=16, max_patch=3)
    with pytest.raises(InputError, match="max_patch=7"):
        lp.generate(wide, n=1, patch=7)
    lp.generate(wide, n=1, patch=4)


def test_a_missing_device_is_said(bank: lp.Bank) -> None:
    for backend in ("torch", "auto"):
        with pytest.raises(InputError, match="device: got 'abacus'"):
            lp.generate(bank, n=1, patch=3, backend=backend, device="abacus")
