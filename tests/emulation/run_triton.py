"""Runs the kernels of kernels/triton_probe.py through the driver, in a process of its own.

run_triton.py bug | ORDER...     the thread orders of simt.h to run
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from emulation.kernels.triton_probe import histogram_and_ranks, product, row_minima
from emulation.triton_driver import install


def minima(extra: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 50, (5, 300), generator=generator, dtype=torch.int32)
    found = torch.zeros(5, dtype=torch.int64)
    row_minima[(5,)](numbers, found, 300, BLOCK=128, EXTRA=extra)
    wanted = numbers.long() * 2**32 + torch.arange(300)
    return torch.equal(found, wanted.amin(dim=1))


def products(kind: torch.dtype) -> bool:
    generator = torch.Generator().manual_seed(1)
    shape = (32, 16, 128)
    a = torch.randint(-8, 9, (shape[0], shape[2]), generator=generator)
    b = torch.randint(-8, 9, (shape[2], shape[1]), generator=generator)
    found = torch.zeros(shape[:2], dtype=torch.float32 if kind.is_floating_point else torch.int32)
    product[(1,)](a.to(kind), b.to(kind), found, M=shape[0], N=shape[1], K=shape[2], STEP=64)
    return torch.equal(found.long(), a @ b)


def histograms() -> bool:
    values = torch.randint(0, 9, (4 * 256,), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    counts, ranks = torch.zeros(9, dtype=torch.int32), torch.zeros_like(values)
    histogram_and_ranks[(4,)](values, counts, ranks, BLOCK=256)
    odd = (values % 2).view(4, 256)
    wanted = torch.cumsum(odd, dim=1) - odd
    return torch.equal(counts.long(), torch.bincount(values.long(), minlength=9)) and torch.equal(
        ranks.view(4, 256).long(), wanted
    )


def main() -> None:
    torch.set_num_threads(1)
    driver = install(arch=80, counts=True)
    if sys.argv[1:] == ["bug"]:
        minima(extra=7)
        return
    for order in sys.argv[1:]:
        os.environ["SIMT_ORDER"] = order
        print("minima", minima(extra=0))
        for kind in (torch.int8, torch.float16, torch.bfloat16, torch.float32):
            print(kind, products(kind))
        print("histogram", histograms())
    counts = driver.counts()
    print("mma", any(opcode.startswith("mma.") and number for opcode, number in counts.items()))


if __name__ == "__main__":
    main()
