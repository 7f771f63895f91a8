"""python -m lpkernel.benchmarks.resident BANK BACKEND THREADS PRESET: memory of a process that generates from a bank.

Prints {"resident": bytes, "peak": bytes, "time": seconds}: what the process holds after loading BANK and generating
from it by a preset, or at one scale, and its high-water mark meanwhile, both above what it held before, with everything
imported and the backend warm; and how long loading and the first image took.
"""

from __future__ import annotations

import gc
import json
import sys
import time

import numpy as np
import torch

from lpkernel import Bank, generate
from lpkernel.benchmarks import measure

ONE_SCALE = "one-scale"


def main(path: str, backend: str, threads: int, preset: str) -> None:
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    small = Bank.from_codes(random.integers(0, 32, (32, 16, 16)), random.standard_normal((32, 16), np.float32))
    generate(small, 16, scales=(16,), k=10, preset="paper", backend=backend)
    del small
    gc.collect()
    before = measure.resident() or 0
    kept: list[object] = []
    seconds = 0.0

    def work() -> None:
        nonlocal seconds
        started = time.perf_counter()
        bank = Bank.load(path)
        scales, name = ((bank.grid,), "paper") if preset == ONE_SCALE else (None, preset)
        kept.append(generate(bank, 1, scales=scales, k=10, preset=name, backend=backend))
        seconds = time.perf_counter() - started
        kept.append(generate(bank, 16, scales=scales, k=10, preset=name, backend=backend))

    peak, _ = measure.peak_extra(work)
    gc.collect()
    after = measure.resident() or 0
    memory = {"resident": after - before, **({} if peak is None else {"peak": peak})}
    print(json.dumps({**memory, "time": seconds}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
