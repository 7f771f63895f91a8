"""Whole generations without decoding: 16 images from the embedded avatars, every usable backend.

    make bench          # table with ratios, and out/bench.json

Each backend's source maps are compared with the specification's before it is timed.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import lpkernel as lp
from lpkernel.backends import registry

# name -> (images of the bank allowed, P, scales, preset)
CASES: dict[str, tuple[int, int, tuple[int, ...] | None, str]] = {
    "B=16 P=6 balanced": (16, 6, None, "balanced"),
    "B=16 P=6 five scales": (16, 6, None, "paper"),
    "B=16 P=4 w=1 five scales": (16, 4, None, "paper"),
    "B=1200 P=6 balanced": (1200, 6, None, "balanced"),
    "B=1200 P=6 five scales": (1200, 6, None, "paper"),
    "B=1200 P=6 one scale": (1200, 6, (16,), "paper"),
}
USABLE = [name for name, backend in registry.BACKENDS.items() if not backend.unsupported(None)]


@functools.cache
def bank() -> lp.Bank:
    return lp.Bank.default()


def generate(case: str, backend: str) -> np.ndarray:
    sources, patch, scales, preset = CASES[case]
    return lp.generate(
        bank(), 16, patch, scales=scales, candidates=np.arange(sources), backend=backend, preset=preset
    ).sources


@functools.cache
def expected(case: str) -> np.ndarray:
    return generate(case, "numpy")


@pytest.mark.parametrize("backend", USABLE)
@pytest.mark.parametrize("case", CASES)
def test_generate(benchmark: BenchmarkFixture, case: str, backend: str) -> None:
    assert np.array_equal(generate(case, backend), expected(case))
    benchmark.group = case
    benchmark.extra_info.update(case=case, backend=backend, metric="seconds for 16 images")
    rounds = 1 if backend == "numpy" else 5
    benchmark.pedantic(generate, (case, backend), rounds=rounds)  # type: ignore[no-untyped-call]
