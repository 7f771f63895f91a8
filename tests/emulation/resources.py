"""What compiled kernels use: registers, spills, shared memory and occupancy, found without a GPU."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lpkernel.files import atomic_path

from .compile import CACHE, HERE, digest, nvcc_library, ptxas_report
from .shipped import shipped_cubins, tool

ARCHITECTURES = (80, 90, 100)
# What the Triton kernels used when last compiled, keyed by hashes of everything it depends on: 492 compilations take
# minutes, and only what has changed since is compiled again. scripts/kernel_report.py --write-budgets renews it.
RECORD = HERE / "triton_resources.json"


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel for one target: registers per thread, the rest in bytes.

    spilled: stores and loads; for machine code without ptxas's report, the stack, which holds everything spilled.
    """

    registers: int
    spilled: int
    stack: int
    shared: int  # static; for Triton, all of it


def demangle(name: str) -> str:
    """`lpkernel::cuda::name<...>(...)` without namespace and arguments; other names are returned unchanged."""
    words = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()
    words = words.replace("lpkernel::cuda::", "").removeprefix("void ")
    return re.sub(r"\(.*\)$", "", words).replace("> >", ">>")


def parse_ptxas(report: str) -> dict[str, Resources]:
    """Kernel -> resources, from the output of ptxas -v."""
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


def parse_usage(listing: str) -> dict[str, Resources]:
    """Kernel -> resources, from the output of cuobjdump -res-usage."""
    found: dict[str, Resources] = {}
    for name, words in re.findall(r"Function ([^:\n]+):\s*\n\s*(REG:.*)", listing):
        values = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", words)}
        spilled = values["STACK"] + values["LOCAL"]
        found[name] = Resources(values["REG"], spilled, values["STACK"], values["SHARED"])
    if not found:
        raise ValueError(f"cuobjdump said something unexpected: {listing[:200]}")
    return found


def machine_code_resources(cubin: Path) -> dict[str, Resources]:
    """Mangled kernel -> resources, of machine code. Raises FileNotFoundError without cuobjdump."""
    command = tool("cuobjdump")
    if command is None:
        raise FileNotFoundError("there is no cuobjdump")
    return parse_usage(subprocess.run([command, "-res-usage", str(cubin)], capture_output=True, text=True).stdout)


def cuda_resources(source: Path, arch: int) -> dict[str, Resources]:
    """Demangled kernel -> resources of a .cu file of csrc/cuda: from the extension, or from nvcc now."""
    shipped = shipped_cubins().get((source.stem, arch))
    found = parse_ptxas(ptxas_report(source, arch)) if shipped is None else machine_code_resources(shipped)
    return {demangle(name): resources for name, resources in found.items()}


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


@functools.cache
def recorded() -> dict[str, Resources]:
    """`TritonKernel.key` -> resources, of `RECORD`."""
    return {key: Resources(*numbers) for key, numbers in json.loads(RECORD.read_text(encoding="utf-8")).items()}


def record_resources(kernels: Iterable[TritonKernel]) -> None:
    """Writes `RECORD` anew, with these kernels only."""
    rows = {kernel.key: list(asdict(kernel.resources()).values()) for kernel in kernels}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(rows[key])}" for key in sorted(rows))
    with atomic_path(RECORD) as path:
        path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    recorded.cache_clear()


@dataclass(frozen=True)
class TritonKernel:
    """A @triton.jit kernel for one target.

    signature: argument -> type ("*fp32", "i32", "constexpr"); pointers are multiples of 16, as torch allocates. target:
    an NVIDIA compute capability (80, 90, 100) or an AMD target ("gfx942").
    """

    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    target: str | int
    warps: int
    stages: int = 1

    @property
    def _options(self) -> dict[str, Any]:
        return {"enable_fp_fusion": False, "num_warps": self.warps, "num_stages": self.stages}

    @functools.cached_property
    def _source(self) -> Any:
        from triton.compiler import ASTSource

        pointers = [i for i, kind in enumerate(self.signature.values()) if kind.startswith("*")]
        attributes = {(i,): [["tt.divisibility", 16]] for i in pointers}
        return ASTSource(self.kernel, dict(self.signature), constexprs=dict(self.constexprs), attrs=attributes)

    @functools.cached_property
    def key(self) -> str:
        """A hash of source, options, target and Triton's version, which brings the compilers."""
        import triton

        return digest(self._source.hash(), triton.__version__, str(self.target), str(sorted(self._options.items())))

    @property
    def _kept(self) -> Path:
        return CACHE / "triton" / f"{self.key}.json"

    @property
    def known(self) -> bool:
        """Whether `resources` needs no compilation."""
        return self.key in recorded() or self._kept.exists()

    def resources(self) -> Resources:
        """What the kernel uses; compiles it if that is not known yet."""
        if self.key in recorded():
            return recorded()[self.key]
        if not self._kept.exists():
            self._kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._kept) as path:
                path.write_text(json.dumps(asdict(self.compiled())), encoding="utf-8")
        return Resources(**json.loads(self._kept.read_text(encoding="utf-8")))

    def compiled(self) -> Resources:
        """As `resources`, but always compiled anew."""
        import triton
        from triton.backends.compiler import GPUTarget

        nvidia = isinstance(self.target, int)
        goal = GPUTarget("cuda", self.target, 32) if nvidia else GPUTarget("hip", self.target, 64)
        said = io.StringIO()
        # a separate cache, since for a cached kernel nothing is reported
        with (
            tempfile.TemporaryDirectory() as folder,
            triton.knobs.cache.scope(),
            triton.knobs.nvidia.scope(),
            contextlib.redirect_stdout(said),
        ):
            triton.knobs.cache.dir, triton.knobs.nvidia.dump_ptxas_log = folder, True
            compiled = triton.compile(self._source, target=goal, options=self._options)
        if not nvidia:
            return _of_amd(compiled)
        (found,) = parse_ptxas(said.getvalue()).values()
        return replace(found, shared=compiled.metadata.shared)


def _of_amd(compiled: Any) -> Resources:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        match = re.search(rf"^\s*\.{key}:\s+(\d+)", text, re.M)
        return int(match[1]) if match else 0

    spilled = 4 * (number("vgpr_spill_count") + number("sgpr_spill_count"))
    return Resources(number("vgpr_count"), spilled, number("private_segment_fixed_size"), compiled.metadata.shared)
