"""What only a GPU can tell: `make gpu-check`. Prints one report and writes it to out/gpu-check.md.

Without a GPU it lists what was not run and ends with status 2. With one:
    tests     the whole test suite, the cuda and triton backends required
    memcheck, racecheck, synccheck, initcheck   NVIDIA's compute-sanitizer over small problems of every kind
    speed     the shapes of docs/kernels.md beside what the hardware allows, answers compared first
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

import lpkernel
from lpkernel import files, plan
from lpkernel.backends import registry
from lpkernel.backends.base import Backend, CodeBank, LatentBank, ScanRequest
from lpkernel.bank import resize_level
from lpkernel.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
GPU_BACKENDS = ("cuda", "triton")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
RUNS = 5  # of each timed call; the median counts


@dataclass(frozen=True)
class Case:
    """A scan to time, and the seconds below which an H100 cannot go (arithmetic; docs/kernels.md)."""

    label: str
    images: int
    bank: int
    plan: Plan
    k: int
    in_codes: bool
    floor: float


CASES = (
    Case("16 images, B=16, five scales", 16, 16, plan.random(), 3, False, 122 * 2e-6),
    Case("16 images, B=1,000, five scales", 16, 1000, plan.random(), 3, False, 122 * 2e-6),
    Case("16 images, B=30,000, one scale, codes", 16, 30_000, plan.random(scales=[16]), 10, True, 36 * 2e-6),
    Case("16 images, B=30,000, one scale, latents", 16, 30_000, plan.random(scales=[16]), 10, False, 36 * 9e-6),
    Case("10,000 images, B=30,000, one scale, codes", 10_000, 30_000, plan.random(scales=[16]), 10, True, 47e-3),
)


def request(case: Case, codes: int = 1024, channels: int = 16) -> ScanRequest:
    """Random code maps: the worst case, since nothing can be ruled out early."""
    random = np.random.default_rng(0)
    maps = random.integers(0, codes, (case.bank, 16, 16)).astype(np.int16)
    codebook = random.integers(-700, 701, (codes, channels)).astype(np.int16)
    bank: CodeBank | LatentBank
    if case.in_codes:
        wide = codebook.astype(np.float64)
        norms = np.square(wide).sum(1)
        table = (norms[:, None] + norms[None] - 2 * wide @ wide.T).astype(np.int32)
        bank = CodeBank(maps, codebook, table)
    else:
        full = codebook[maps]
        levels = {side: full if side == 16 else resize_level(full, side) for side in case.plan.sides}
        bank = LatentBank(levels.__getitem__, case.bank)
    return ScanRequest(
        plan=case.plan,
        bank=bank,
        canvas=(None,) * len(case.plan.scales),
        candidates=np.arange(case.bank),
        images=np.arange(case.images),
        k=case.k,
        seed=0,
    )


def seconds(call: Callable[[], object]) -> float:
    """The median of some runs after one that warms up."""
    call()
    times = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def speed(backends: list[Backend]) -> Iterator[str]:
    """A row for each case and backend; source maps are compared with the torch path's before anything is timed."""
    torch_path = registry.BACKENDS["torch"]
    yield "| case | backend | ms | times the floor | torch on the same GPU, ms |"
    yield "|---|---|---|---|---|"
    for case in CASES:
        asked = request(case)
        expected = torch_path.scan(asked, "cuda")
        theirs = seconds(lambda: torch_path.scan(asked, "cuda"))  # noqa: B023
        for backend in backends:
            if not np.array_equal(backend.scan(asked, "cuda"), expected):
                raise SystemExit(f"{backend.name}: {case.label}: source maps differ from the torch path's")
            ours = seconds(lambda: backend.scan(asked, "cuda"))  # noqa: B023
            ratio = ours / case.floor
            yield f"| {case.label} | {backend.name} | {ours * 1e3:.2f} | {ratio:.1f} | {theirs * 1e3:.2f} |"


def small_problems(backends: list[Backend], device: str) -> None:
    """Every kind of kernel once, small enough for compute-sanitizer, against the specification. Raises SystemExit."""
    reference = registry.BACKENDS["numpy"]
    random = np.random.default_rng(0)
    for backend in backends:
        for bank, images, in_codes in ((5, 3, False), (70, 9, False), (3000, 5, True), (40, 2, True)):
            shape = plan.random(8, 4, scales=[8] if in_codes else [5, 8])
            case = Case("", images, bank, shape, 3, in_codes, 0)
            asked = request(case, codes=64)
            if isinstance(asked.bank, CodeBank):
                small = CodeBank(asked.bank.codes[:, :8, :8].copy(), asked.bank.vectors, asked.bank.table)
                asked = replace(asked, bank=small)
            else:
                full = random.integers(-500, 501, (bank, 8, 8, 5)).astype(np.int16)
                levels = {8: full, 5: resize_level(full, 5)}
                asked = replace(asked, bank=LatentBank(levels.__getitem__, bank))
            if not np.array_equal(backend.scan(asked, device), reference.scan(asked)):
                raise SystemExit(f"{backend.name}: source maps differ from the specification's")
        for dtype in (np.int16, np.float32):
            queries = torch.from_numpy(random.integers(-8, 9, (17, 37)).astype(dtype)).to(device)
            rows = torch.from_numpy(random.integers(-8, 9, (300, 37)).astype(dtype)).to(device)
            found = lpkernel.masked_topk(queries, rows, 10, backend=backend.name)
            expected = lpkernel.masked_topk(queries.cpu().numpy(), rows.cpu().numpy(), 10, backend="numpy")
            if not np.array_equal(found[1].cpu().numpy(), expected[1]):
                raise SystemExit(f"{backend.name}: masked_topk differs from the specification")


def usable() -> tuple[list[Backend], list[str]]:
    """The GPU backends that can run, and the reasons of the others."""
    reasons = {name: registry.BACKENDS[name].unsupported(None, "cuda") for name in GPU_BACKENDS}
    backends = [registry.BACKENDS[name] for name, why in reasons.items() if not why]
    return backends, [f"{name}: {'; '.join(why)}" for name, why in reasons.items() if why]


def stages(backends: list[Backend]) -> Iterator[tuple[str, Callable[[], str]]]:
    names = ",".join(backend.name for backend in backends)

    def run(*command: str, **variables: str) -> Callable[[], str]:
        def call() -> str:
            if shutil.which(command[0]) is None:
                raise SystemExit(f"{command[0]} is not on the PATH; it comes with the CUDA toolkit")
            done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
            words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
            if done.returncode:
                raise SystemExit(words)
            return words

        return call

    yield "tests", run(sys.executable, "-m", "pytest", "-q", LPKERNEL_REQUIRE_BACKENDS=f"numpy,torch,cpp,{names}")
    own = (sys.executable, str(Path(__file__)), "--small")
    for tool in TOOLS:
        yield tool, run("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *own)
    yield "speed", lambda: "\n".join(speed(backends))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only the small problems, for compute-sanitizer")
    args = parser.parse_args()
    backends, reasons = usable()
    if args.small and backends:
        small_problems(backends, "cuda")
        return 0
    if not backends:
        print("No GPU was checked. " + " | ".join(reasons))
        print(f"Not run: tests on the GPU, {', '.join(TOOLS)}, speed.")
        return 2
    lines = [f"# GPU check: {torch.cuda.get_device_name()}, torch {torch.__version__}", "", *reasons]
    failed = 0
    for name, stage in stages(backends):
        try:
            outcome, words = "passed", stage()
        except SystemExit as error:
            outcome, words = "FAILED", str(error)
            failed = 1
        lines += [f"## {name}: {outcome}", "", words, ""]
        print("\n".join(lines[-4:]), flush=True)
    (ROOT / "out").mkdir(exist_ok=True)
    with files.atomic_path(ROOT / "out" / "gpu-check.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
