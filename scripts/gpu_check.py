"""What only a GPU can tell: `make gpu-check`. Prints each part when it ends and writes all to out/gpu-check.md.

Without a GPU it lists what was not run and ends with status 2. With one, each part within its time (`PARTS`), whatever
became of the one before:
    build        for the card at hand only, with what is installed: no package index is asked
    tests        those of the backends, cuda and triton required, side by side where pytest-xdist is
    sanitizers   NVIDIA's compute-sanitizer (`TOOLS`), side by side, over small problems of every kind
    speed        scans and searches beside torch on the same card, answers compared first
    decoding     images a second of the embedded autoencoder and a VQ-GAN with random weights, GroupNorm and SiLU by
                 torch and in one kernel; pixels compared first, and an image alone with itself in batches
    profile      Nsight Compute's, of the small problems, in out/gpu-check.ncu-rep; where ncu is present
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import lpkernel
from lpkernel import Autoencoder, files, load_autoencoder, plan
from lpkernel.backends import registry
from lpkernel.backends.base import Backend, CodeBank, LatentBank, ScanRequest
from lpkernel.levels import resize_level
from lpkernel.plan import Plan

ROOT = Path(__file__).resolve().parents[1]
GPU_BACKENDS = ("cuda", "triton")
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
PARTS = {
    "build": 120,
    "tests": 150,
    "sanitizers": 120,
    "speed": 180,
    "decoding": 150,
    "profile": 60,
}  # seconds that each may take
TESTS = ("scan", "masked_topk", "topk_floats", "modes", "modes_backends", "synthesis")
RUNS = 5  # of each timed call; the median counts
BANK, WIDTH, NEIGHBOURS = 30_000, 512, 10  # of the timed searches
QUERIES = (1, 16, 64, 256, 1024, 4096)


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


def searches(backends: list[Backend]) -> Iterator[str]:
    """A row for each type and number of queries: `masked_topk` of every backend beside products and topk of torch."""
    names = [backend.name for backend in backends]
    yield f"| masked_topk, ms | Q | {' | '.join(names)} | torch float32 | torch TF32, not exact |"
    yield "|---" * (4 + len(names)) + "|"
    random = torch.Generator("cuda").manual_seed(0)
    for dtype in (torch.float32, torch.int16):
        rows = _rows(BANK, dtype, random)
        for count in QUERIES:
            queries = _rows(count, dtype, random)
            answers = [lpkernel.masked_topk(queries, rows, NEIGHBOURS, backend=name) for name in names]
            expected = lpkernel.masked_topk(queries, rows, NEIGHBOURS, backend="torch")
            for name, answer in zip(names, answers, strict=True):
                if not all(torch.equal(mine, theirs) for mine, theirs in zip(answer, expected, strict=True)):
                    raise SystemExit(f"{name}: masked_topk of {count} {dtype} queries differs from the torch path's")
            times = [seconds(lambda: lpkernel.masked_topk(queries, rows, NEIGHBOURS, backend=n)) for n in names]  # noqa: B023
            for tf32 in (False, True):
                torch.backends.cuda.matmul.allow_tf32 = tf32
                times.append(seconds(lambda: _by_products(queries.float(), rows.float())))  # noqa: B023
            torch.backends.cuda.matmul.allow_tf32 = False
            yield f"| {dtype} | {count} | {' | '.join(f'{1e3 * one:.3f}' for one in times)} |"


VQGAN = {  # taming's f16 of 1,024 codes
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 256,
    "vq_embed_dim": 256,
    "num_vq_embeddings": 1024,
    "sample_size": 256,
}
GFLOP = {"VQ-GAN": 252.7}  # an image
DECODED = (1, 16, 64, 256)  # images a call


def decoders(device: str, config: dict[str, Any]) -> Iterator[str]:
    """A row for each autoencoder, kind of GroupNorm and number of images; bits and pixels are compared before."""
    yield "| decoder | GroupNorm and SiLU | images | ms | images/s | TFLOP/s |"
    yield "|---" * 6 + "|"
    with tempfile.TemporaryDirectory() as folder:
        sources = {"embedded": "default"}
        if importlib.util.find_spec("diffusers"):
            _vqgan(folder, config)
            sources["VQ-GAN"] = folder
        for name, source in sources.items():
            joined = load_autoencoder(source, device)
            with patch("lpkernel.autoencoder.base.fuse", lambda network: 0):
                apart = load_autoencoder(source, device)
            assert joined.codebook is not None
            shape = (DECODED[-1], joined.grid, joined.grid)
            codes = np.random.default_rng(0).integers(0, len(joined.codebook), shape).astype(np.int64)
            _check_pixels(name, joined, apart, codes)
            for kind, autoencoder in (("torch", apart), ("one kernel", joined)):
                for count in DECODED:
                    took = seconds(lambda: autoencoder.decode(codes[:count]))  # noqa: B023
                    tera = f"{GFLOP[name] * count / took / 1e3:.0f}" if name in GFLOP else ""
                    yield f"| {name} | {kind} | {count} | {took * 1e3:.1f} | {count / took:.0f} | {tera} |"


def _vqgan(folder: str, config: dict[str, Any]) -> None:
    diffusers: Any = importlib.import_module("diffusers")  # whose types are partial
    torch.manual_seed(0)
    levels = len(config["block_out_channels"])
    kinds = ("DownEncoderBlock2D",) * (levels - 1), ("UpDecoderBlock2D",) * (levels - 1)
    network = diffusers.VQModel(
        **config,
        down_block_types=(*kinds[0], "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *kinds[1]),
    )
    network.quantize.embedding.weight.data.normal_()
    network.save_pretrained(folder)


def _check_pixels(name: str, joined: Autoencoder, apart: Autoencoder, codes: np.ndarray) -> None:
    """Raises SystemExit where an image depends on its batch, or joined layers move more than 1 in 100 values by 2."""
    many = joined.decode(codes[:32])
    for batch in (1, 3, 7):
        parts = [joined.decode(codes[start : min(start + batch, 7)]) for start in range(0, 7, batch)]
        if not np.array_equal(np.concatenate(parts), many[:7]):
            raise SystemExit(f"{name}: an image decoded with {batch - 1} others is not the one decoded with 31")
    difference = np.abs(many.astype(int) - apart.decode(codes[:32]))
    if (difference > 1).mean() > 0.01:
        raise SystemExit(f"{name}: {(difference > 1).mean():.2%} of the values differ by more than 1 from torch's")


def _rows(count: int, dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    return (torch.randn(count, WIDTH, generator=random, device="cuda") * 200).to(dtype)


def _by_products(queries: torch.Tensor, rows: torch.Tensor) -> torch.return_types.topk:
    """As a torch user would search: no tie rule, distances less |q|^2."""
    return torch.topk(torch.addmm(rows.square().sum(1), queries, rows.T, alpha=-2), NEIGHBOURS, largest=False)


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
            many = queries.repeat(3, 1), rows.repeat(15, 1)  # what tensor cores search
            for asked_rows, held in ((queries, rows), many):
                found = lpkernel.masked_topk(asked_rows, held, 10, backend=backend.name)
                expected = lpkernel.masked_topk(asked_rows.cpu().numpy(), held.cpu().numpy(), 10, backend="numpy")
                if not np.array_equal(found[1].cpu().numpy(), expected[1]):
                    raise SystemExit(f"{backend.name}: masked_topk differs from the specification")


def usable() -> tuple[list[Backend], list[str]]:
    """The GPU backends that can run, and the reasons of the others."""
    reasons = {name: registry.BACKENDS[name].unsupported(None, "cuda") for name in GPU_BACKENDS}
    backends = [registry.BACKENDS[name] for name, why in reasons.items() if not why]
    return backends, [f"{name}: {'; '.join(why)}" for name, why in reasons.items() if why]


def run(seconds: float, *command: str, **variables: str) -> subprocess.Popen[str]:
    """A command started in the repository, which `timeout` ends."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is not on the PATH")
    limited = ("timeout", "--kill-after=5", f"{seconds:g}", *command)
    environment = {**os.environ, **variables}
    return subprocess.Popen(
        limited, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def words(process: subprocess.Popen[str], lines: int = 15) -> str:
    """The last lines of what a command said. Raises SystemExit with them where it failed or was ended."""
    said = "\n".join(process.communicate()[0].strip().splitlines()[-lines:])
    if process.returncode == 124:
        raise SystemExit(f"{said}\ncut off: its time was up")
    if process.returncode:
        raise SystemExit(said)
    return said


def build() -> str:
    major, minor = torch.cuda.get_device_capability()
    command = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-e", "."]
    variables = {"LPKERNEL_CPP": "1", "LPKERNEL_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    variables["MAX_JOBS"] = str(os.cpu_count())
    return words(run(PARTS["build"], sys.executable, *command, **variables))


def tests() -> str:
    side_by_side = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    files = [f"tests/test_{name}.py" for name in TESTS]
    required = ["numpy", "torch", "cpp", "cuda", *(["triton"] if importlib.util.find_spec("triton") else [])]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *side_by_side, *files]
    return words(run(PARTS["tests"], *command, LPKERNEL_REQUIRE_BACKENDS=",".join(required)))


def sanitizers() -> str:
    own = (sys.executable, str(Path(__file__)), "--small")
    started = {
        tool: run(PARTS["sanitizers"], "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *own)
        for tool in TOOLS
    }
    said, failed = [], False
    for tool, process in started.items():
        try:
            said.append(f"{tool}: {words(process, 3)}")
        except SystemExit as error:
            said.append(f"{tool} FAILED: {error}")
            failed = True
    if failed:
        raise SystemExit("\n".join(said))
    return "\n".join(said)


def timed() -> str:
    return words(run(PARTS["speed"], sys.executable, str(Path(__file__)), "--speed"), 100)


def decoding() -> str:
    return words(run(PARTS["decoding"], sys.executable, str(Path(__file__)), "--decoding"), 100)


def profile() -> str:
    if shutil.which("ncu") is None:
        return "not run: ncu is not on the PATH"
    kernels = ("-k", "regex:screen_kernel|scan_kernel", "-c", "8")
    options = ("--clock-control", "none", "--set", "full", "--import-source", "on", "-f", *kernels)
    report = str(ROOT / "out" / "gpu-check")
    own = (sys.executable, str(Path(__file__)), "--small")
    return words(run(PARTS["profile"], "ncu", *options, "-o", report, *own), 3)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only the small problems, for compute-sanitizer")
    parser.add_argument("--speed", action="store_true", help="only the timed problems")
    parser.add_argument("--decoding", action="store_true", help="only the decoders")
    args = parser.parse_args()
    if args.decoding:
        for line in decoders("cuda", VQGAN):
            print(line, flush=True)
        return 0
    if args.small or args.speed:
        backends, _ = usable()
        if args.small:
            small_problems(backends, "cuda")
        for rows in (speed, searches) if args.speed else ():
            for line in rows(backends):
                print(line, flush=True)
            print(flush=True)
        return 0
    if not torch.cuda.is_available():
        print("No GPU was checked. " + " | ".join(usable()[1]))
        print(f"Not run: tests on the GPU, {', '.join(TOOLS)}, speed, decoding.")
        return 2
    lines = [f"# GPU check: {torch.cuda.get_device_name()}, torch {torch.__version__}", ""]
    failed = 0
    (ROOT / "out").mkdir(exist_ok=True)
    for part in (build, tests, sanitizers, timed, decoding, profile):
        began = time.perf_counter()
        try:
            outcome, said = "passed", part()
        except SystemExit as error:
            outcome, said = "FAILED", str(error)
            failed = 1
        lines += [f"## {part.__name__}: {outcome}, {time.perf_counter() - began:.0f} s", "", said, ""]
        print("\n".join(lines[-4:]), flush=True)
        with files.atomic_path(ROOT / "out" / "gpu-check.md") as path:
            path.write_text("\n".join(lines), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
