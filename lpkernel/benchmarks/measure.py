"""Time and memory of a call, on the CPU or a CUDA device."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

MOST_RUNS = 2000
LEAST_RUNS = 3
WARM_UP = 0.05  # seconds of calls before those that count: a thread may be woken on its caller's core and moved later


def on_gpu(device: str) -> bool:
    """Whether calls are timed by CUDA events, and memory is the card's."""
    return torch.device(device).type == "cuda"


def timed(call: Callable[[], Any], device: str = "cpu") -> tuple[float, Any]:
    """Seconds, and what the call returned; on a CUDA device, the time between two events of its current stream."""
    if on_gpu(device):
        with torch.cuda.device(device):
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            result = call()
            after.record()
            after.synchronize()
            return before.elapsed_time(after) / 1e3, result
    started = time.perf_counter()
    result = call()
    return time.perf_counter() - started, result


@cache
def _scratch(device: str) -> torch.Tensor:
    """A buffer twice the size of the card's L2 cache."""
    size = 2 * torch.cuda.get_device_properties(device).L2_cache_size
    with torch.inference_mode(False):  # which may be on at the first call and off later
        return torch.empty(size, dtype=torch.uint8, device=device)


def cold(device: str) -> None:
    """Evict what a call will read from a GPU's cache, and wait until the stream is empty.

    So a small case is read from memory, as a large one is, and a call's own time on the host counts in full. The CPU's
    caches stay as they are: there, taking query batches in turn has this effect.
    """
    if on_gpu(device):
        _scratch(device).zero_()
        torch.cuda.synchronize(device)


def rest(device: str = "cpu") -> None:
    """Before calls on the CPU are timed: wait, at most half a second, until no thread of this process is at work.

    After its last call OpenBLAS (inside faiss) keeps threads spinning for a tenth of a second: they would slow whoever
    is timed next.
    """
    if on_gpu(device):
        return
    pause = 0.01
    for _ in range(50):
        used = time.process_time()
        time.sleep(pause)
        if time.process_time() - used < pause / 5:
            return


def repeat(call: Callable[[int], Any], batches: int, budget: float, device: str = "cpu") -> list[float]:
    """Seconds of each run: query batches in turn, until `budget` seconds are spent, but at least LEAST_RUNS runs.

    On the CPU the first WARM_UP seconds do not count. A call longer than the whole budget is run once. The garbage
    collector is off meanwhile.
    """
    times: list[float] = []
    rest(device)
    gc.disable()
    try:
        left = 0.0 if on_gpu(device) else min(WARM_UP, budget)
        while left > 0:
            left -= timed(lambda: call(0), device)[0]
        while len(times) < MOST_RUNS:
            cold(device)
            times.append(timed(lambda: call(len(times) % batches), device)[0])
            if sum(times) >= budget and (len(times) >= LEAST_RUNS or times[0] > budget):
                break
    finally:
        gc.enable()
    return times


def best_of(call: Callable[[], Any], budget: float, runs: int = 3, device: str = "cpu") -> float:
    """Seconds of the fastest of some runs, fewer once `budget` seconds are spent."""
    times: list[float] = []
    rest(device)
    while len(times) < runs and sum(times) < budget:
        cold(device)
        times.append(timed(call, device)[0])
    return min(times)


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """p20, p50 and p80."""
    low, middle, high = np.quantile(times, (0.2, 0.5, 0.8))
    return float(low), float(middle), float(high)


def _status(name: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is none."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return None


def resident(device: str = "cpu") -> int | None:
    """Resident bytes of this process, after free memory has been returned to the system; on a GPU, those allocated by
    torch."""
    if on_gpu(device):
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def peak_extra(call: Callable[[], Any], device: str = "cpu") -> tuple[int | None, float]:
    """Bytes by which `resident` rises while `call` runs, and its seconds.

    The kernel's high-water mark, or torch's, is reset before. The result counts; memory that a library keeps between
    calls does not: that is in `resident`. None where /proc/self/clear_refs cannot be written.
    """
    cold(device)
    if on_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        seconds, _ = timed(call, device)
        return torch.cuda.max_memory_allocated(device) - allocated, seconds
    before = resident()
    reset = True
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        reset = False
    seconds, kept = timed(call, device)
    highest = _status("VmHWM")
    del kept
    return None if before is None or highest is None or not reset else max(0, highest - before), seconds
