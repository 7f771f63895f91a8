"""Points of the suite behind `lpkernel bench` on pytest-benchmark: every backend and peer, checked before it is timed.

    make bench          # table with ratios, and out/bench.json

The cases, their data and their checks are the suite's, which sweeps more, on a GPU too; see docs/benchmarks.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lpkernel import Bank
from lpkernel.backends import registry
from lpkernel.benchmarks import data, machine, points
from lpkernel.benchmarks.peers import PEERS
from lpkernel.benchmarks.points import Generation, Point
from lpkernel.benchmarks.torch_float32 import PATHS

SIZE = 10_000
NAMES, SEED = tuple(registry.BACKENDS), 0
PROVIDERS = [
    *(f"lpkernel {name}" for name in NAMES),
    *(peer.name for peer in PEERS.values()),
    *(path.name for path in PATHS.values()),
]


@functools.cache
def maps() -> data.Maps:
    return data.Maps(Bank.default())


@functools.cache
def bounds() -> machine.Limits:
    return machine.limits(torch.get_num_threads())


def topk(n: int) -> Point:
    return points.topk("float32", n, SIZE, 10, NAMES, tuple(PEERS.values()), bounds(), SEED)


def step(kind: str, n: int) -> Point:
    return points.step(maps(), kind, n, SIZE, 6, 10, NAMES, tuple(PEERS.values()), bounds(), SEED)


def generate(b: int, patch: int, stride: int, preset: str) -> Point:
    made = Generation(16, b, patch, stride, 3, preset=preset)
    return points.generate(maps(), made, NAMES, tuple(PATHS), SEED)


POINTS: dict[str, Callable[[], Point]] = {
    "topk float32 N=16": lambda: topk(16),
    "step bank N=1": lambda: step("bank", 1),
    "step bank N=64": lambda: step("bank", 64),
    "step random N=64": lambda: step("random", 64),
    "generate B=16 P=6 balanced": lambda: generate(16, 6, 2, "balanced"),
    "generate B=16 P=6 paper": lambda: generate(16, 6, 2, "paper"),
    "generate B=16 P=4 paper": lambda: generate(16, 4, 1, "paper"),
    "generate B=1200 P=6 balanced": lambda: generate(1200, 6, 2, "balanced"),
    "generate B=1200 P=6 paper": lambda: generate(1200, 6, 2, "paper"),
}


@functools.cache
def point(name: str) -> Point:
    return POINTS[name]()


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("name", POINTS)
def test_point(benchmark: BenchmarkFixture, name: str, provider: str) -> None:
    entrant = next((one for one in point(name).entrants if one.name == provider), None)
    if entrant is None:
        pytest.skip("does not do this")
    if entrant.reason:
        pytest.skip(entrant.reason)
    with machine.threads(torch.get_num_threads()):
        variants = entrant.prepare()
        asked = point(name).x["N"] if entrant.by_images else 0
        for call in variants.values():
            entrant.check(call(asked), 0)
        variant, call = next(iter(variants.items()))
        benchmark.group = name
        benchmark.extra_info.update(case=name, provider=provider, variant=variant, metric="seconds a call")
        slow = provider == "lpkernel numpy" and entrant.by_images
        benchmark.pedantic(call, (asked,), rounds=1 if slow else 5)  # type: ignore[no-untyped-call]
