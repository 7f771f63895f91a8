"""The ways in which the cuda backend runs a plan, and refines seams, timed side by side, to see what its launch table
should choose.

python scripts/gpu_engines.py     # on a GPU; `python scripts/gpu_check.py build engines` builds first

On random codes, with source maps on the host at the end. Every way's maps are compared before it is timed; the first
call's time includes what a bank's tables cost.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel import presets, synthesis
from lpkernel.backends import registry
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.cuda_launches import STEP_TILES
from lpkernel.bank import Bank
from lpkernel.benchmarks import measure

WAYS = {
    "tables": Tuning(walk=True),
    "one launch": Tuning(walk=False, steps=False),
    "step by step": Tuning(walk=False, steps=STEP_TILES[1]),
}
REFINING = {"not refined": None, "refined on the host": False, "refined on the device": True}
REFINED = (16, 256, 4096)  # N
SIZES = {16: (1, 16, 4096), 128: (16, 4096), 999: (16, 256, 1024, 4096)}  # B: N
PRESETS = ("paper", "balanced")
GRID, PATCH, NEIGHBOURS = 16, 6, 3


def bank_of(size: int, grid: int = GRID, codes: int = 1024) -> Bank:
    random = np.random.default_rng(0)
    return Bank.from_codes(random.integers(0, codes, (size, grid, grid)), random.normal(size=(codes, 32)), 16)


def seconds_of(call: Callable[[], object], budget: float, device: str) -> list[float]:
    return measure.repeat(lambda _: call(), 1, budget, device)


def compare(
    backend: CudaBackend, bank: Bank, counts: Iterable[int], device: str, patch: int = PATCH, budget: float = 0.05
) -> Iterator[str]:
    """A line for each preset, number of images and way. Raises SystemExit if source maps differ."""
    for name in PRESETS:
        preset = presets.find(name)
        plan = preset.plan(bank.grid, patch)
        for count in counts:
            asked = synthesis.request(bank, plan, count, NEIGHBOURS, hubness=preset.hubness, device=device)
            maps = None
            for way, tuning in WAYS.items():
                backend.tuning = tuning
                call = partial(backend.scan, asked)
                first, found = measure.timed(call, device)
                if maps is not None and not np.array_equal(found, maps):
                    raise SystemExit(f"{way}: source maps differ, B={bank.size}, N={count}, {name}")
                maps = found
                each = 1e3 * statistics.median(seconds_of(call, budget, device))
                case, of_step = f"{name:9} B={bank.size:<4} N={count:<5} {way:13}", 1e3 * each / plan.steps
                yield f"{case} {each:8.3f} ms, {of_step:7.2f} us a step, first call {1e3 * first:.1f} ms"
            backend.tuning = Tuning()


def compare_refining(
    backend: CudaBackend, bank: Bank, counts: Iterable[int], device: str, patch: int = PATCH, budget: float = 0.05
) -> Iterator[str]:
    """A line for each number of images and way of refining the maps of `balanced`. Raises SystemExit if they differ."""
    preset = presets.find("balanced")
    plan = preset.plan(bank.grid, patch)
    for count in counts:
        plain = synthesis.request(bank, plan, count, NEIGHBOURS, hubness=preset.hubness, device=device)
        maps: NDArray[np.int32] = np.empty(0, np.int32)
        for way, here in REFINING.items():
            backend.tuning = Tuning(refine=here)
            call = partial(backend.scan, plain if here is None else replace(plain, refine=True))
            _, found = measure.timed(call, device)
            if here and not np.array_equal(found, maps):
                raise SystemExit(f"{way}: source maps differ, B={bank.size}, N={count}")
            maps = found
            each = 1e3 * statistics.median(seconds_of(call, budget, device))
            yield f"balanced  B={bank.size:<4} N={count:<5} {way:21} {each:8.3f} ms"
        backend.tuning = Tuning()


def main() -> int:
    backend = registry.BACKENDS["cuda"]
    if reasons := backend.unavailable("cuda"):
        print(f"not run: {'; '.join(reasons)}")
        return 2
    assert isinstance(backend, CudaBackend)
    print(torch.cuda.get_device_name())
    for size, counts in SIZES.items():
        for line in compare(backend, bank_of(size), counts, "cuda"):
            print(line, flush=True)
        for line in compare_refining(backend, bank_of(size), REFINED, "cuda"):
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
