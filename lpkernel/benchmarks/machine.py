"""The machine: threads for all libraries, facts for the record, and its peak rates, estimated or measured."""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lpkernel.benchmarks import measure
from lpkernel.info import cpu_model, info

PACKAGES = (
    "lpkernel",
    "numpy",
    "torch",
    "triton",
    "faiss-cpu",
    "faiss-gpu-cu12",
    "scikit-learn",
    "pykeops",
    "threadpoolctl",
    "matplotlib",
    "diffusers",
)
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
PEAK_IMAGES = {"cpu": 4, "cuda": 64}  # of 64x64 and 256 channels
COPIED = {"cpu": 128 << 20, "cuda": 1 << 30}  # bytes, for the bandwidth
ADDS_A_CYCLE = 32  # table entries added by a core in a cycle: 16-bit lanes of one 512-bit register


@contextmanager
def threads(count: int) -> Iterator[None]:
    """`count` threads for torch, lpkernel (which follows torch) and every OpenMP and BLAS library loaded by now."""
    before = torch.get_num_threads()
    with ExitStack() as stack:
        with suppress(ImportError):
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(limits=count))
        with suppress(ImportError):
            import faiss

            faiss.omp_set_num_threads(count)
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def threads_missing() -> str:
    """Why not every library's threads can be set; "" if they can."""
    try:
        import threadpoolctl  # noqa: F401
    except ImportError:
        return "the package threadpoolctl is not installed, so scikit-learn and pykeops choose their own threads"
    return ""


class Limits(Protocol):
    """Lower bounds on the seconds of a search, by name."""

    def step(self, queries: int, bank: int, cells: int, width: int) -> dict[str, float]:
        """Bounds for a search step over codes (cells of 2 bytes) or float32 vectors (`width`)."""
        ...

    def vectors(self, queries: int, bank: int, width: int) -> dict[str, float]: ...


@dataclass(frozen=True)
class CpuLimits:
    """For all threads together; estimates, except for the bandwidth, which is measured."""

    hertz: float
    adds: float  # table entries a second
    multiply_adds: float  # float32 a second
    bandwidth: float  # bytes a second

    def step(self, queries: int, bank: int, cells: int, width: int) -> dict[str, float]:
        return {
            "table adds": queries * bank * cells / self.adds,
            "codes read once": bank * cells * 2 / self.bandwidth,
            **self.vectors(queries, bank, width),
        }

    def vectors(self, queries: int, bank: int, width: int) -> dict[str, float]:
        return {
            "float32 multiply-adds": queries * bank * width / self.multiply_adds,
            "float32 vectors read once": bank * width * 4 / self.bandwidth,
        }


@dataclass(frozen=True)
class GpuLimits:
    """Measured on the card: large matrix products, and a copy."""

    float32: float  # multiply-adds a second, without TF32
    float16: float  # the same by tensor cores
    bandwidth: float  # bytes a second

    def step(self, queries: int, bank: int, cells: int, width: int) -> dict[str, float]:
        return {"codes read once": bank * cells * 2 / self.bandwidth, **self.vectors(queries, bank, width)}

    def vectors(self, queries: int, bank: int, width: int) -> dict[str, float]:
        return {
            "float32 multiply-adds": queries * bank * width / self.float32,
            "float16 multiply-adds": queries * bank * width / self.float16,
            "float32 vectors read once": bank * width * 4 / self.bandwidth,
        }


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        pairs = (line.partition(":") for line in text.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def hertz() -> float:
    """The highest frequency that the system reports: cpufreq, or /proc/cpuinfo (in a virtual machine, the nominal)."""
    with suppress(OSError, ValueError):
        return 1e3 * float(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text(encoding="ascii"))
    with suppress(KeyError, ValueError):
        return 1e6 * float(_cpuinfo()["cpu MHz"])
    return 2e9


def vector_lanes() -> int:
    """float32 lanes of the widest vectors: 16 (AVX-512), 8 (AVX2) or 4."""
    flags = _cpuinfo().get("flags", "").split()
    return 16 if "avx512f" in flags else 8 if "avx2" in flags else 4


def bandwidth(device: str) -> float:
    """Bytes read and written per second in the best of six large copies, with torch's threads."""
    size = COPIED[torch.device(device).type]
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return 2 * size / measure.best_of(lambda: target.copy_(source), math.inf, 6, device)


@cache
def peaks(device: str, dtype: torch.dtype) -> dict[str, float]:
    """Floating-point operations per second of a large matrix product and of a 3x3 convolution: the best of five."""
    kind = torch.device(device).type
    side, images = PEAK_SIDE[kind], PEAK_IMAGES[kind]
    with torch.inference_mode(), tf32(False):
        square = torch.randn(side, side, device=device).to(dtype)
        x = torch.randn(images, 256, 64, 64, device=device).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(256, 256, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
        work: dict[str, tuple[float, Callable[[], Tensor]]] = {
            "matrix product": (2.0 * side**3, lambda: square @ square),
            "convolution": (2.0 * x.numel() * 256 * 9, lambda: nn.functional.conv2d(x, weight, padding=1)),
        }
        return {name: flops / measure.best_of(call, math.inf, 5, device) for name, (flops, call) in work.items()}


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Turns TF32, which keeps 10 bits of each factor, on or off for float32 products and convolutions on a GPU."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def limits(count: int, device: str = "cpu") -> CpuLimits | GpuLimits:
    """For a CPU: two vector multiply-adds per cycle and core, and ADDS_A_CYCLE table adds; fewer on narrow vectors."""
    if measure.on_gpu(device):
        float32, float16 = (peaks(device, kind)["matrix product"] / 2 for kind in (torch.float32, torch.float16))
        return GpuLimits(float32, float16, bandwidth(device))
    frequency, lanes = hertz(), vector_lanes()
    with threads(count):
        measured = bandwidth(device)
    return CpuLimits(frequency, ADDS_A_CYCLE * lanes / 16 * frequency * count, 2 * lanes * frequency * count, measured)


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit(root: Path = Path(__file__).parents[2]) -> str | None:
    """The commit of a source tree, with "+" if files differ; None if it is not a clone. root: of this package's own."""
    if not (root / ".git").exists():
        return None
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout
            for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.strip() + ("+" if changes.strip() else "")


@cache
def device_name(device: str) -> str:
    """The device's product name."""
    return torch.cuda.get_device_name(device) if measure.on_gpu(device) else cpu_model()


def card(device: str) -> dict[str, Any]:
    """A GPU, for the record."""
    found = torch.cuda.get_device_properties(device)
    return {
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "cache_bytes": found.L2_cache_size,
        "cuda": torch.version.cuda,
    }


def facts(count: int, bounds: CpuLimits | GpuLimits, device: str = "cpu") -> dict[str, Any]:
    """The machine, for the record. device: the card where there is one, else the CPU."""
    found = info()
    gpu = measure.on_gpu(device)
    what = "measured" if gpu else "estimates from the frequency the system reports; the bandwidth is that of a copy"
    return {
        "device": device_name(device),
        "cpu": found["cpu"]["model"],
        "gpu": card(device) if gpu else None,
        "platform": found["platform"],
        "usable_cores": found["cpu"]["usable_cores"],
        "threads": count,
        "build": found["build"],
        "limits": {"what": f"{what}; multiply-adds and bytes a second", **asdict(bounds)},
    }
