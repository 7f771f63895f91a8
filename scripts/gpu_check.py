"""The checks that need a GPU: `make gpu-check`. Prints each part when it ends and writes all to out/gpu-check.md.

Without a GPU it says what was not run and ends with status 2. With one, each part is run within its time (`PARTS`),
whether or not the one before succeeded; what a part has printed when its time is up is kept:
    build        for the card at hand only, with what is installed: no package index is asked
    tests        those of the backends, cuda and triton required, side by side where pytest-xdist is installed
    sanitizers   NVIDIA's compute-sanitizer (`TOOLS`), side by side, over scripts/gpu_problems.py
    engines      the ways of running a plan, and of refining, beside each other, scripts/gpu_engines.py
    speed        `lpkernel bench` on the card: searches, steps and whole generations beside others; out/bench-gpu-*
    decoding     the same of the embedded autoencoder and a VQ-GAN with random weights; out/bench-gpu-*
    profile      by Nsight Compute, of scripts/gpu_problems.py, in out/gpu-check.ncu-rep; where ncu is present

    python scripts/gpu_check.py speed decoding     # some parts alone; all of them take up to fourteen minutes

lpkernel is not imported here: it may not be built yet.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "out"
PROBLEMS = (sys.executable, str(ROOT / "scripts" / "gpu_problems.py"))
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
TESTS = (
    *(
        "scan",
        "masked_topk",
        "topk_floats",
        "inputs",
        "bank_weights",
        "modes",
        "modes_backends",
        "synthesis",
        "threads",
    ),
    "device_decoder",
)
SHOWN = 400  # lines of a benchmark


def run(seconds: float, *command: str, **variables: str) -> subprocess.Popen[str]:
    """A command started in the repository; `timeout` ends it after `seconds`."""
    if shutil.which(command[0]) is None:
        raise SystemExit(f"{command[0]} is not on the PATH")
    limited = ("timeout", "--kill-after=5", f"{seconds:g}", *command)
    environment = {**os.environ, **variables}
    return subprocess.Popen(
        limited, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def words(process: subprocess.Popen[str], lines: int = 15, also: str = "") -> str:
    """The last lines that a command printed, and before them those that contain `also`, if that is given.

    Raises SystemExit with them if the command failed or was ended.
    """
    all_said = process.communicate()[0].strip().splitlines()
    told = [line for line in all_said[:-lines] if also and also in line]
    said = "\n".join([*told, *all_said[-lines:]])
    if process.returncode == 124:
        raise SystemExit(f"{said}\ncut off: its time was up")
    if process.returncode:
        raise SystemExit(said)
    return said


def build(seconds: float) -> str:
    major, minor = torch.cuda.get_device_capability()
    command = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-q", "-e", "."]
    variables = {"LPKERNEL_CPP": "1", "LPKERNEL_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    variables["MAX_JOBS"] = str(os.cpu_count())
    return words(run(seconds, sys.executable, *command, **variables))


def tests(seconds: float) -> str:
    side_by_side = ["-n", str(min(16, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
    files = [f"tests/test_{name}.py" for name in TESTS]
    required = ["numpy", "torch", "cpp", "cuda", *(["triton"] if importlib.util.find_spec("triton") else [])]
    # -v: a line per test, so that failures are known even if the time runs out; -rs: what was skipped, and why
    told = ["-v", "--tb=short", "-rs", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *told, *side_by_side, *files]
    return words(run(seconds, *command, LPKERNEL_REQUIRE_BACKENDS=",".join(required)), 40, "FAILED")


def one_by_one(jobs: Mapping[str, Callable[[], str]]) -> str:
    """What some jobs print, by their names. Raises SystemExit with all of it, after the last one, if any failed."""
    said, failed = [], False
    for name, job in jobs.items():
        try:
            said.append(job())
        except SystemExit as error:
            said.append(f"{name} FAILED: {error}")
            failed = True
    if failed:
        raise SystemExit("\n".join(said))
    return "\n".join(said)


def sanitizers(seconds: float) -> str:
    started = {
        tool: run(seconds, "compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *PROBLEMS) for tool in TOOLS
    }

    def outcome(tool: str) -> str:
        return f"{tool}: {words(started[tool], 3)}"

    return one_by_one({tool: partial(outcome, tool) for tool in TOOLS})


def bench(seconds: float, folder: str, *arguments: str) -> str:
    command = ("-m", "lpkernel", "bench", *arguments, "--device", "cuda", "--out", str(OUT / folder))
    return words(run(seconds, sys.executable, *command), SHOWN)


def each(seconds: float, benches: Mapping[str, tuple[str, ...]]) -> str:
    """Some benchmarks by the names of their folders, each with its share of the time. SystemExit if any failed."""
    share = seconds / len(benches)
    return one_by_one({folder: partial(bench, share, folder, *arguments) for folder, arguments in benches.items()})


def engines(seconds: float) -> str:
    return words(run(seconds, sys.executable, str(ROOT / "scripts" / "gpu_engines.py")), SHOWN)


def speed(seconds: float) -> str:
    sizes = ("--n", "1,16,64,256,1024,4096", "--b", "30000", "--k", "10", "--p", "6")
    most = ("--data", "bank", "--budget", "0.05", "--longest", "5")
    return each(
        seconds,
        {"bench-gpu-searches": ("topk", "step", *sizes, *most), "bench-gpu-generations": ("generate", *most)},
    )


VQGAN = {  # taming's f16 of 1,024 codes
    "block_out_channels": (128, 128, 256, 256, 512),
    "layers_per_block": 2,
    "latent_channels": 256,
    "vq_embed_dim": 256,
    "num_vq_embeddings": 1024,
    "sample_size": 256,
}


def vqgan(folder: str, config: dict[str, Any]) -> None:
    """Write a diffusers folder with random weights."""
    diffusers: Any = importlib.import_module("diffusers")  # its types are partial
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


def decoding(seconds: float) -> str:
    most = ("decode", "--budget", "0.2", "--longest", "10", "--autoencoder")
    benches = {"bench-gpu-embedded": (*most, "default")}
    if not importlib.util.find_spec("diffusers"):
        return f"VQ-GAN: not run, the package diffusers is not installed\n{each(seconds, benches)}"
    with tempfile.TemporaryDirectory() as folder:
        vqgan(folder, VQGAN)
        return each(seconds, {"bench-gpu-vqgan": (*most, folder), **benches})


def profile(seconds: float) -> str:
    if shutil.which("ncu") is None:
        return "not run: ncu is not on the PATH"
    kernels = ("-k", "regex:screen_kernel|scan_kernel|choose_kernel|walk_kernel|refine_kernel", "-c", "12")
    options = ("--clock-control", "none", "--set", "full", "--import-source", "on", "-f", *kernels)
    return words(run(seconds, "ncu", *options, "-o", str(OUT / "gpu-check"), *PROBLEMS), 3)


PARTS: dict[Callable[[float], str], float] = {  # seconds that each may take
    build: 60,
    tests: 180,
    sanitizers: 120,
    engines: 60,
    speed: 240,
    decoding: 150,
    profile: 40,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.__name__ for part in PARTS]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)} (default: all)")
    wanted = parser.parse_args().parts or names
    if unknown := set(wanted) - set(names):
        parser.error(f"got {', '.join(sorted(unknown))}, expected one of {', '.join(names)}")
    if not torch.cuda.is_available():
        built = "sees no CUDA device" if torch.version.cuda else "was built without CUDA"
        print(f"No GPU was checked: PyTorch {torch.__version__} {built}. Not run: {', '.join(wanted)}.")
        return 2
    lines = [f"# GPU check: {torch.cuda.get_device_name()}, torch {torch.__version__}", ""]
    failed = 0
    OUT.mkdir(exist_ok=True)
    for part, seconds in PARTS.items():
        if part.__name__ not in wanted:
            continue
        began = time.perf_counter()
        try:
            outcome, said = "passed", part(seconds)
        except SystemExit as error:
            outcome, said = "FAILED", str(error)
            failed = 1
        lines += [f"## {part.__name__}: {outcome}, {time.perf_counter() - began:.0f} s", "", said, ""]
        print("\n".join(lines[-4:]), flush=True)
        (OUT / "gpu-check.md").write_text("\n".join(lines), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
