"""Every mode gives the same source maps on every backend, the emulated CUDA and (triton_checks.py) Triton included.

The bank is small, a side of 6 cells and 4 patches a scale, since the emulations take milliseconds a step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from fakes import FakeContinuous, FakeVQ

import lpkernel as lp
from lpkernel.backends import registry
from lpkernel.backends.base import Backend
from lpkernel.backends.cuda import CudaBackend, Tuning

GRID, CELL = 6, 4
SIDE = GRID * CELL
KINDS = ("codes", "latents")


@cache
def small(kind: str) -> tuple[lp.Bank, Any, np.ndarray]:
    """A bank of 30 images, its autoencoder, and an image that is not in it."""
    autoencoder = FakeVQ(GRID, CELL) if kind == "codes" else FakeContinuous(GRID, CELL)
    images = np.random.default_rng(0).integers(0, 256, (31, GRID, GRID, 3), np.uint8).repeat(CELL, 1).repeat(CELL, 2)
    bank = lp.Bank.build(images[:30], autoencoder, channels=3, attributes={"Odd": np.arange(30) % 2 == 1})
    return bank, autoencoder, images[30]


def mask() -> np.ndarray:
    painted = np.zeros((SIDE, SIDE), bool)
    painted[9:15, 6:14] = True
    return painted


MODES: dict[str, Callable[..., lp.Synthesis]] = {
    "where": lambda b, a, i, **o: lp.generate(b, candidates=b.where("Odd"), **o),
    "diverse": lambda b, a, i, **o: lp.generate(b, **{**o, "preset": "diverse", "mirror": 1, "stride": 2}),
    "diverse, halved": lambda b, a, i, **o: lp.generate(
        b, **{**o, "preset": "diverse", "stride": 2, "scales": [3, GRID]}
    ),
    "copy limit": lambda b, a, i, **o: lp.generate(b, copy_limit=lp.CopyLimit(area=6, tries=2), **o),
    "reference": lambda b, a, i, **o: lp.reference(b, i, a, **o),
    "reference, two passes": lambda b, a, i, **o: lp.reference(b, i, a, strength=2, **o),
    "edit free": lambda b, a, i, **o: lp.edit(b, i, a, mask=mask(), **o),
    "edit guided": lambda b, a, i, **o: lp.edit(b, i, a, mask=mask(), mode="guided", **o),
    "inpaint": lambda b, a, i, **o: lp.inpaint(b, i, a, mask(), **o),
    "harmonize": lambda b, a, i, **o: lp.harmonize(b, i, a, mask(), **o),
}


def make(mode: str, kind: str, backend: str) -> lp.Synthesis:
    scales = [GRID] if kind == "codes" else [4, GRID]
    return MODES[mode](*small(kind), n=2, patch=3, stride=3, scales=scales, seed=5, backend=backend)


@cache
def specified(mode: str, kind: str) -> lp.Synthesis:
    return make(mode, kind, "numpy")


def check(mode: str, kind: str, backend: str) -> None:
    made, wanted = make(mode, kind, backend), specified(mode, kind)
    assert made.settings["backend"] == backend and made.settings["domain"] == kind
    assert np.array_equal(made.sources, wanted.sources)
    assert made.settings["copy_limit"] == wanted.settings["copy_limit"]
    mine, theirs = ((one.codes if kind == "codes" else one.latents) for one in (made, wanted))
    assert mine is not None and theirs is not None and np.array_equal(mine, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_same(mode: str, kind: str, backend: Backend) -> None:
    check(mode, kind, backend.name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_the_same_on_cuda(
    mode: str, kind: str, cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda.tuning = Tuning(walk=False)  # test_cuda_walk.py covers walks
    monkeypatch.setitem(registry.BACKENDS, "cuda", cuda)
    check(mode, kind, "cuda")


def test_the_cases_do_what_they_are_named_for() -> None:
    for kind in KINDS:
        assert (specified("where", kind).sources % 2 == 1).all()
        assert specified("copy limit", kind).settings["copy_limit"]["try_kept"]
        for mode in ("edit free", "edit guided", "inpaint", "harmonize"):
            sources = specified(mode, kind).sources
            assert (sources == -1).any() and (sources >= 0).any()
        one, two = (specified(mode, kind).sources for mode in ("reference", "reference, two passes"))
        assert (one >= 0).all() and (two >= 0).all() and (one != two).any()
