"""One search step and `masked_topk` on pytest-benchmark: every backend and peer, checked before it is timed.

    make bench          # table with ratios, and out/bench.json

A few points of the suite behind `lpkernel bench`, which sweeps more and draws plots; see docs/benchmarks.md.
"""

from __future__ import annotations

import functools

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from lpkernel import Bank
from lpkernel.backends import registry
from lpkernel.benchmarks import data, machine, points
from lpkernel.benchmarks.peers import PEERS
from lpkernel.benchmarks.points import Point

SIZE = 10_000
CASES = ["topk float32 N=16", "step bank N=1", "step bank N=64", "step random N=64"]
PROVIDERS = [f"lpkernel {name}" for name in registry.BACKENDS] + [peer.name for peer in PEERS.values()]


@functools.cache
def maps() -> data.Maps:
    return data.Maps(Bank.default())


@functools.cache
def point(case: str) -> Point:
    name, kind, count = case.split()
    n, bounds = int(count.removeprefix("N=")), machine.limits(torch.get_num_threads(), 1 << 20)
    everybody = tuple(registry.BACKENDS), tuple(PEERS.values()), bounds, 0
    if name == "topk":
        return points.topk(kind, n, SIZE, 10, *everybody)
    return points.step(maps(), kind, n, SIZE, 6, 10, *everybody)


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("case", CASES)
def test_search(benchmark: BenchmarkFixture, case: str, provider: str) -> None:
    (entrant,) = (one for one in point(case).entrants if one.name == provider)
    if entrant.reason:
        pytest.skip(entrant.reason)
    with machine.threads(torch.get_num_threads()):
        variants = entrant.prepare()
        for call in variants.values():
            entrant.check(call(0), 0)
        name, call = next(iter(variants.items()))
        benchmark.group = f"{case} B={SIZE}"
        benchmark.extra_info.update(case=case, provider=provider, variant=name, metric="seconds a call")
        benchmark.pedantic(call, (0,), rounds=5)  # type: ignore[no-untyped-call]
