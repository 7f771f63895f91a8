"""python -m lpkernel.benchmarks.resident BANK BACKEND THREADS: memory of a process that generates from a bank.

Prints {"resident": bytes, "peak": bytes}: what the process holds after loading BANK and generating from it at one
scale, and its high-water mark meanwhile, both above what it held before, everything imported and the backend warm.
"""

from __future__ import annotations

import gc
import json
import sys

import numpy as np
import torch

from lpkernel import Bank, generate
from lpkernel.benchmarks import measure


def main(path: str, backend: str, threads: int) -> None:
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    small = Bank.from_codes(random.integers(0, 32, (32, 16, 16)), random.standard_normal((32, 16), np.float32))
    generate(small, 16, scales=(16,), k=10, preset="paper", backend=backend)
    del small
    gc.collect()
    before = measure.resident() or 0
    kept = []

    def work() -> None:
        bank = Bank.load(path)
        kept.append((bank, generate(bank, 16, scales=(bank.grid,), k=10, preset="paper", backend=backend)))

    peak, _ = measure.peak_extra(work)
    gc.collect()
    after = measure.resident() or 0
    print(json.dumps({"resident": after - before, **({} if peak is None else {"peak": peak})}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
