"""Runs every kind of GPU kernel once, on problems small enough for compute-sanitizer, against the specification.

python scripts/gpu_problems.py     # on a GPU; scripts/gpu_check.py runs it under the sanitizers and the profiler
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import numpy as np
import torch

import lpkernel
from lpkernel import Bank, plan, synthesis
from lpkernel.backends import registry
from lpkernel.backends.base import Backend, ScanRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.cuda_launches import STEP_TILES

GPU_BACKENDS = ("cuda", "triton")
PROBLEMS = ((5, 3, False), (70, 9, False), (3000, 5, True), (40, 2, True))  # bank, images, of codes or latents
SIDE, PATCH, NEIGHBOURS = 8, 4, 3


def request(size: int, images: int, in_codes: bool, device: str = "auto") -> ScanRequest:
    random = np.random.default_rng(0)
    if in_codes:
        bank = Bank.from_codes(random.integers(0, 64, (size, SIDE, SIDE)), random.normal(size=(64, 16)), 16, PATCH)
    else:
        bank = Bank.from_latents(random.normal(size=(size, SIDE, SIDE, 5)), 5, PATCH)
    made = plan.random(SIDE, PATCH, scales=[SIDE] if in_codes else [5, SIDE])
    return synthesis.request(bank, made, images, NEIGHBOURS, device=device)


def ways(backend: Backend, refine: bool) -> Iterator[str]:
    """The backend's own choice, one launch, and step by step by both tiles; to refine seams, only the first, and only
    where the device does that."""
    if not isinstance(backend, CudaBackend):
        if not refine:
            yield ""
        return
    backend.tuning = Tuning(refine=True)
    yield ", refined" if refine else ""
    if refine:
        backend.tuning = Tuning()
        return
    backend.tuning = Tuning(walk=False, steps=False)
    yield ", in one launch"
    for tile in STEP_TILES:
        backend.tuning = Tuning(steps=tile)
        yield f", step by step, {tile}"
    backend.tuning = Tuning()


def check(backends: list[Backend], device: str) -> None:
    """Raises SystemExit if an answer is wrong."""
    reference = registry.BACKENDS["numpy"]
    random = np.random.default_rng(0)
    for backend in backends:
        for problem, refine in product(PROBLEMS, (False, True)):
            asked = replace(request(*problem, device), refine=refine)
            maps = reference.scan(asked)
            for way in ways(backend, refine):
                if not np.array_equal(backend.scan(asked), maps):
                    raise SystemExit(f"{backend.name}{way}: source maps differ from the specification's")
        for dtype in (np.int16, np.float32):
            queries = torch.from_numpy(random.integers(-8, 9, (17, 37)).astype(dtype)).to(device)
            rows = torch.from_numpy(random.integers(-8, 9, (300, 37)).astype(dtype)).to(device)
            many = queries.repeat(3, 1), rows.repeat(15, 1)  # enough that tensor cores search
            for asked_rows, held in ((queries, rows), many):
                found = lpkernel.masked_topk(asked_rows, held, 10, backend=backend.name)
                expected = lpkernel.masked_topk(asked_rows.cpu().numpy(), held.cpu().numpy(), 10, backend="numpy")
                if not np.array_equal(found[1].cpu().numpy(), expected[1]):
                    raise SystemExit(f"{backend.name}: masked_topk differs from the specification")


def usable() -> tuple[list[Backend], list[str]]:
    """The GPU backends that can run, and the reasons why the others cannot."""
    reasons = {name: registry.BACKENDS[name].unavailable("cuda") for name in GPU_BACKENDS}
    backends = [registry.BACKENDS[name] for name, why in reasons.items() if not why]
    return backends, [f"{name}: {'; '.join(why)}" for name, why in reasons.items() if why]


def main() -> int:
    backends, reasons = usable()
    print("\n".join([*(f"not run: {why}" for why in reasons), *(f"run: {backend.name}" for backend in backends)]))
    check(backends, "cuda")
    return 0 if backends else 2


if __name__ == "__main__":
    sys.exit(main())
