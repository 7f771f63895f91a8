"""The machine: threads for everybody, facts for the record, and estimates of what it could do at most."""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "lpkernel",
    "numpy",
    "torch",
    "faiss-cpu",
    "scikit-learn",
    "pykeops",
    "threadpoolctl",
    "matplotlib",
    "diffusers",
)
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


@dataclass(frozen=True)
class Limits:
    """Estimates, not measurements, except for the bandwidth: for all threads together."""

    hertz: float
    adds: float  # table entries a second
    multiply_adds: float  # float32 a second
    bandwidth: float  # bytes a second

    def step(self, queries: int, bank: int, cells: int, width: int) -> dict[str, float]:
        """Seconds below which a search of codes (cells of 2 bytes) or float32 vectors (`width`) cannot go."""
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


def _cpuinfo() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo."""
    with suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        pairs = (line.partition(":") for line in text.splitlines())
        return {name.strip(): value.strip() for name, _, value in pairs}
    return {}


def hertz() -> float:
    """The highest frequency that the system tells of: cpufreq, or /proc/cpuinfo (in a virtual machine, the nominal)."""
    with suppress(OSError, ValueError):
        return 1e3 * float(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").read_text(encoding="ascii"))
    with suppress(KeyError, ValueError):
        return 1e6 * float(_cpuinfo()["cpu MHz"])
    return 2e9


def vector_lanes() -> int:
    """float32 lanes of the widest vectors: 16 (AVX-512), 8 (AVX2) or 4."""
    flags = _cpuinfo().get("flags", "").split()
    return 16 if "avx512f" in flags else 8 if "avx2" in flags else 4


def bandwidth(size: int = 128 << 20) -> float:
    """Bytes read and written a second by the best of five copies of `size` bytes, with torch's threads."""
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(6):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return 2 * size / best


def limits(count: int, size: int = 128 << 20) -> Limits:
    """Two vector multiply-adds a cycle and core; ADDS_A_CYCLE table adds, scaled down for narrower vectors."""
    frequency, lanes = hertz(), vector_lanes()
    with threads(count):
        measured = bandwidth(size)
    return Limits(frequency, ADDS_A_CYCLE * lanes / 16 * frequency * count, 2 * lanes * frequency * count, measured)


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit of the source tree that this package runs from, with "+" if files differ; None if installed."""
    root = Path(__file__).parents[2]
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


def device_name(device: str) -> str:
    """As its maker calls it; "cpu" for a CPU, which `facts` names."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def facts(count: int, bounds: Limits) -> dict[str, Any]:
    """The machine, for the record."""
    from lpkernel.info import info

    found = info()
    return {
        "device": found["cpu"]["model"],
        "platform": found["platform"],
        "usable_cores": found["cpu"]["usable_cores"],
        "threads": count,
        "build": found["build"],
        "limits": {
            "what": "estimates from the frequency that the system reports; the bandwidth is that of a measured copy",
            "hertz": bounds.hertz,
            "table_adds_per_second": bounds.adds,
            "multiply_adds_per_second": bounds.multiply_adds,
            "bytes_per_second": bounds.bandwidth,
        },
    }
