"""Every backend, called from several threads at once, gives the same results as alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from emulation.build import cuda_module
from emulation.needs import need_compiler
from scans import World

from lpkernel import plan
from lpkernel.backends.base import Backend, ScanRequest, TopkRequest
from lpkernel.backends.cuda import CudaBackend
from lpkernel.backends.specification import NumpyBackend
from lpkernel.backends.store import Store

THREADS, ROUNDS = 4, 3
SPECIFICATION = NumpyBackend()


def scans(in_codes: bool) -> list[ScanRequest]:
    """One per thread: the same bank and plan for two of them, others for the rest; more than one image each."""
    worlds, scales = [World(40, 6, seed=0), World(23, 6, seed=1)], [6] if in_codes else [4, 6]
    plans = [plan.random(6, 3, 2, scales), plan.random(6, 3, 3, scales)]
    pairs = [(0, 0), (0, 0), (0, 1), (1, 0)]
    return [
        worlds[world].request(plans[way], range(2), 3, seed, in_codes=in_codes)
        for seed, (world, way) in enumerate(pairs)
    ]


def searches() -> list[TopkRequest]:
    random = np.random.default_rng(0)
    held = random.standard_normal((300, 20)).astype(np.float32)
    asked = [random.standard_normal((count, 20)).astype(np.float32) for count in (1, 5, 5, 40)]
    return [TopkRequest(one, held, 4, None, None) for one in asked]


def check(call: Callable[[Any], Any], asked: list[Any], wanted: list[Any]) -> None:
    together = Barrier(THREADS)

    def work(number: int) -> bool:
        together.wait(60)
        return all(np.array_equal(call(asked[number]), wanted[number]) for _ in range(ROUNDS))

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [True] * THREADS


@pytest.fixture(scope="module")
def emulated() -> CudaBackend:
    need_compiler()
    return CudaBackend(cuda_module(), "cpu")


def check_scans(backend: Backend, in_codes: bool) -> None:
    asked = scans(in_codes)
    check(backend.scan, asked, [SPECIFICATION.scan(one) for one in asked])


def check_searches(backend: Backend) -> None:
    asked = searches()
    wanted = [SPECIFICATION.masked_topk(one).indices for one in asked]
    check(lambda request: backend.masked_topk(request).indices, asked, wanted)


@pytest.mark.parametrize("in_codes", [False, True])
def test_scans(backend: Backend, in_codes: bool) -> None:
    check_scans(backend, in_codes)


@pytest.mark.parametrize("in_codes", [False, True])
def test_scans_by_the_cuda_backend(emulated: CudaBackend, in_codes: bool) -> None:
    check_scans(emulated, in_codes)


def test_searches(backend: Backend) -> None:
    check_searches(backend)


def test_searches_by_the_cuda_backend(emulated: CudaBackend) -> None:
    check_searches(emulated)


def test_a_store() -> None:
    """Values are found, made, and let go with their sources, while other threads do the same."""
    store: Store[int] = Store()
    together, interval = Barrier(THREADS), sys.getswitchinterval()

    def work(number: int) -> int:
        together.wait(60)
        wrong = 0
        for i in range(3000):
            plan_like = np.empty(1)
            store.find((number, i - 1))
            found = store.get((number, i), [plan_like], 100, lambda _: 1, partial(int, i))
            wrong += found != i or store.get((number, i), [plan_like], 100, lambda _: 1, lambda: -1) != i
        return wrong

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            assert list(pool.map(work, range(THREADS))) == [0] * THREADS
    finally:
        sys.setswitchinterval(interval)
