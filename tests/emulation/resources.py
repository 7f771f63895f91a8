"""What compiled kernels take: registers, spills, shared memory and occupancy, found without a GPU."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .compile import CACHE, HERE, nvcc_library, ptxas_report

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Resources:
    """Of one kernel for one target. Registers a thread, the rest in bytes; spilled: stored and loaded."""

    registers: int
    spilled: int
    stack: int
    shared: int  # static, or for Triton all of it


def demangle(name: str) -> str:
    """`lpkernel::cuda::name<...>(...)` without namespace and arguments; what is no C++ name comes back."""
    words = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    words = words.replace("lpkernel::cuda::", "").removeprefix("void ")
    return re.sub(r"\(.*\)$", "", words).replace("> >", ">>")


def parse_ptxas(report: str) -> dict[str, Resources]:
    """Kernel -> resources, from the words of ptxas -v."""
    found: dict[str, Resources] = {}
    for block in report.split("Compiling entry function '")[1:]:
        registers = re.search(r"Used (\d+) registers", block)
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        if registers is None or frame is None:
            raise ValueError(f"ptxas said something unexpected: {block[:200]}")
        shared = re.search(r"(\d+) bytes smem", block)
        stack, stores, loads = map(int, frame.groups())
        name = block[: block.index("'")]
        found[name] = Resources(int(registers[1]), stores + loads, stack, int(shared[1]) if shared else 0)
    return found


def cuda_resources(source: Path, arch: int, include: Sequence[Path] = ()) -> dict[str, Resources]:
    """Demangled kernel -> resources, of a .cu file as nvcc compiles it for sm_<arch>."""
    return {demangle(name): r for name, r in parse_ptxas(ptxas_report(source, arch, include)).items()}


@functools.cache
def _occupancy() -> ctypes.CDLL:
    return ctypes.CDLL(str(nvcc_library(HERE / "occupancy.cpp")))


def blocks_per_multiprocessor(arch: int, registers: int, static: int, dynamic: int, threads: int) -> int:
    """Blocks that a multiprocessor of sm_<arch> holds at once, by NVIDIA's rules; 0 when it cannot run one."""
    call = _occupancy().blocks_per_multiprocessor
    blocks = call(arch, registers, ctypes.c_size_t(static), ctypes.c_size_t(dynamic), threads)
    if blocks < 0:
        raise ValueError(f"no such launch: {registers} registers, {static}+{dynamic} bytes, {threads} threads")
    return int(blocks)


def triton_resources(
    kernel: Any,
    signature: Mapping[str, str],
    constexprs: Mapping[str, Any],
    target: str | int,
    options: Mapping[str, Any] | None = None,
) -> Resources:
    """Compiles a @triton.jit kernel for an NVIDIA compute capability (80, 90, 100) or an AMD target ("gfx942").

    signature: argument -> type ("*fp32", "i32", "constexpr"); pointers are multiples of 16, as torch allocates. The
    answer is kept in build/emulation.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
    source = ASTSource(kernel, dict(signature), constexprs=dict(constexprs), attrs=attributes)
    settings = {"enable_fp_fusion": False, **(options or {})}
    words = f"{source.hash()} {triton.__version__} {target} {sorted(settings.items())}"
    kept = CACHE / "triton" / (hashlib.sha256(words.encode()).hexdigest()[:20] + ".json")
    if not kept.exists():
        goal = GPUTarget("cuda", target, 32) if isinstance(target, int) else GPUTarget("hip", target, 64)
        compiled = triton.compile(source, target=goal, options=settings)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(_of_triton(compiled, target))), encoding="utf-8")
    return Resources(**json.loads(kept.read_text(encoding="utf-8")))


def _of_triton(compiled: Any, target: str | int) -> Resources:
    if isinstance(target, int):
        return _triton_nvidia(compiled.asm["ptx"], target, compiled.metadata.shared)
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        match = re.search(rf"^\s*\.{key}:\s+(\d+)", text, re.M)
        return int(match[1]) if match else 0

    spilled = 4 * (number("vgpr_spill_count") + number("sgpr_spill_count"))
    return Resources(number("vgpr_count"), spilled, number("private_segment_fixed_size"), compiled.metadata.shared)


def _triton_nvidia(ptx: str, arch: int, shared: int) -> Resources:
    from triton.backends.nvidia.compiler import get_ptxas

    suffix = "a" if arch >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.ptx")
        file.write_text(ptx, encoding="utf-8")
        command = [get_ptxas(arch).path, "-v", "--fmad=false", f"--gpu-name=sm_{arch}{suffix}", str(file)]
        done = subprocess.run([*command, "-o", str(file) + ".cubin"], capture_output=True, text=True, check=True)
    (resources,) = parse_ptxas(done.stdout + done.stderr).values()
    return Resources(resources.registers, resources.spilled, resources.stack, shared)
