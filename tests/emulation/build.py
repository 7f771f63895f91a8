"""The CUDA extension built for the CPU: the same csrc/bind/cuda.cpp, host code and kernels, on host memory.

cuda_module() compiles the kernels' source with the test runtime; cuda_module(ptx_arch=80) has nvcc compile it,
translates the PTX and has the same host code run that.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import sysconfig
from pathlib import Path
from types import ModuleType

from .compile import CACHE, CSRC, compile_ptx, digest, library
from .ptx import Module

FLAGS = ("-O2", "-w", "-fvisibility=default")


def kernel_sources() -> list[Path]:
    """The .cu files of csrc/cuda: kernels and the host code that launches them."""
    return sorted((CSRC / "cuda").rglob("*.cu"))


def _load(path: Path) -> ModuleType:
    # a name of its own: pybind11 returns the module that it has already made for a name, whatever the file
    spec = importlib.util.spec_from_file_location(f"emulated_{digest(str(path))}._cuda", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def translated_kernels(ptx_arch: int) -> Module:
    """nvcc's PTX of all kernels, translated; its counts() are those of cuda_module(ptx_arch)."""
    return Module([compile_ptx(source, ptx_arch) for source in kernel_sources()], counts=True)


def module_file(sanitize: str = "") -> Path:
    """The file of lpkernel._cuda on host memory, compiled when its sources changed. Raises as cuda_module."""
    import pybind11

    cpp = sorted((CSRC / "cuda").rglob("*.cpp"))
    sources: dict[str, str | Path] = {p.name: p for p in (CSRC / "bind/cuda.cpp", *cpp, *kernel_sources())}
    python = [f"-isystem{folder}" for folder in (pybind11.get_include(), sysconfig.get_paths()["include"])]
    return library("_cuda", sources, (*FLAGS, *python), sanitize=sanitize)


@functools.cache
def cuda_module(ptx_arch: int | None = None, sanitize: str = "") -> ModuleType:
    """lpkernel._cuda on host memory, compiled when its sources changed.

    ptx_arch: run nvcc's PTX for compute_<ptx_arch> instead of the C++ functions. sanitize: what -fsanitize= takes
    (address,undefined or thread); the process must then have been started with the sanitizer's library preloaded.
    Raises compile.BuildFailed where g++ or nvcc refuses or is missing, NotImplementedError for PTX that the
    translator does not know.
    """
    path = module_file(sanitize)
    if ptx_arch is None:
        return _load(path)

    translated = translated_kernels(ptx_arch)
    # a separate file, since one file is one module with one choice of kernels
    copy = CACHE / translated.path.parent.name / path.parent.name / path.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    if not copy.exists():
        shutil.copy(path, copy)
    module = _load(copy)
    native = ctypes.CDLL(str(copy))
    native.simt_set_device(ptx_arch, 8)
    if native.simt_use_ptx(str(translated.path).encode()):
        raise ImportError(f"{translated.path} does not load")
    return module
