"""Counts the Python work of a CUDA backend call, on a device that answers at once, so that it does not grow.

Counts, unlike times, are the same on every machine. Each bound is the present count plus a tenth.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scans import World

from lpkernel import plan
from lpkernel.backends import cuda_launches, device_bank, registry
from lpkernel.backends.base import TopkRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.bank import Bank
from lpkernel.errors import BackendUnavailable
from lpkernel.search.ops import masked_topk
from lpkernel.synthesis import generate


class Instant:
    """The extension's functions, which only count their calls; a scan copies image 0."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., int]:
        def call(*given: Any) -> int:
            self.calls[name] += 1
            if name in ("scan", "walk"):
                sources = given[2 if name == "scan" else 1]["sources"]
                ctypes.memset(sources[0], 0, sources[1])
            return 4096

        return call


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> Instant:
    native = Instant()
    monkeypatch.setitem(registry.BACKENDS, "cuda", CudaBackend(native, "cpu"))  # type: ignore[arg-type]
    return native


def calls(function: Callable[[], object]) -> int:
    """The number of Python and C calls in the third call of a function."""
    function()
    function()
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def bank() -> Bank:
    world = World(40, channels=16, codes=32)
    return Bank.from_codes(world.codes, world.codebook.astype(np.float32), 16)


@pytest.mark.parametrize(("dtype", "most"), [("float32", 125), ("int16", 135)])
def test_a_search(instant: Instant, dtype: str, most: int) -> None:
    queries, rows = (torch.zeros(shape, dtype=getattr(torch, dtype)) for shape in ((16, 8), (300, 8)))
    op = torch.ops.lpkernel.masked_topk
    assert calls(lambda: op(queries, rows, 10, None, None, "cuda")) <= most
    if dtype == "int16":  # for float32 the front end also checks the results
        assert calls(lambda: masked_topk(queries, rows, 10, backend="cuda")) <= most + 46
        instant.calls["masked_topk"] -= 3
    assert instant.calls["masked_topk"] == 3 and all(
        count == 1 for name, count in instant.calls.items() if name != "masked_topk"
    )


@pytest.mark.parametrize(
    ("walk", "most", "called"),
    [(False, 330, {"scan": 3, "scan_blocks": 1}), (None, 315, {"walk": 3, "walk_tables": 1})],
)
def test_a_scan(instant: Instant, walk: bool | None, most: int, called: dict[str, int]) -> None:
    backend = registry.BACKENDS["cuda"]
    backend.tuning = Tuning(walk=walk)  # type: ignore[attr-defined]
    request = World(40).request(plan.random(scales=[16]), range(16), 3, in_codes=True)
    assert calls(lambda: (backend.unsupported(request), backend.scan(request))) <= most
    assert instant.calls == called


@pytest.mark.parametrize(
    ("preset", "walk", "most", "scans"),
    [("paper", None, 580, 1), ("balanced", None, 750, 1), ("balanced", False, 1033, 2)],
)
def test_a_generation(instant: Instant, preset: str, walk: bool | None, most: int, scans: int) -> None:
    made = bank()
    registry.BACKENDS["cuda"].tuning = Tuning(walk=walk)  # type: ignore[attr-defined]
    assert calls(lambda: generate(made, 16, backend="cuda", preset=preset)) <= most
    assert instant.calls["walk" if walk is None else "scan"] == 3 * scans


def test_launches_are_chosen_once(instant: Instant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a shape, whatever the bank and the values."""
    monkeypatch.setattr(cuda_launches, "seconds", lambda *_: 1.0)
    cuda_launches.choose.cache_clear()
    registry.BACKENDS["cuda"].tuning = Tuning(walk=False)  # type: ignore[attr-defined]
    for seed in (1, 2):
        registry.BACKENDS["cuda"].scan(World(41, seed=seed).request(plan.random(scales=[16]), range(3), 3, seed))
    assert cuda_launches.choose.cache_info().misses == 1
    cuda_launches.choose.cache_clear()


def test_memory_is_asked_for_when_more_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def free(device: torch.device, enough: int) -> int:
        asked.append(enough)
        return 1000

    monkeypatch.setattr(device_bank, "free_bytes", free)
    budget, device = device_bank.MemoryBudget(), torch.device("cpu")
    assert budget.reasons(900, device) == [] and asked == [900]
    with budget.on(device, 900):
        pass
    assert budget.reasons(900, device) == [] and budget.reasons(5, device) == [] and asked == [900]
    assert "needs" in budget.reasons(1001, device)[0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 << 20, 8 << 20))
    with pytest.raises(BackendUnavailable, match="3 MiB are free"), budget.on(device, 5):
        raise torch.OutOfMemoryError
    assert budget.reasons(900, device) == [] and asked == [900, 1001, 900]


def test_tensors_must_be_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy arrays are copied over; tensors on another device are refused, with advice."""
    backend = CudaBackend(Instant(), "cuda")  # type: ignore[arg-type]
    queries: Any = torch.zeros(1, 2)
    (reason,) = backend.unsupported(TopkRequest(queries, queries, 1, None, None))
    assert "not on cpu: move the tensors (.to('cuda')), or pass NumPy arrays" in reason
    monkeypatch.setitem(registry.BACKENDS, "cuda", backend)
    with pytest.raises(BackendUnavailable, match=r"cuda cannot run this: .* move the tensors \(\.to\('cuda'\)\)"):
        masked_topk(queries, queries, 1, backend="cuda")


def test_numpy_rows_are_copied_over(instant: Instant) -> None:
    rows = np.zeros((300, 8), np.int16)
    found = masked_topk(rows[:16], rows, 10, backend="cuda")
    assert instant.calls["masked_topk"] == 1 and isinstance(found.indices, np.ndarray)
