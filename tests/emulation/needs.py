"""Tests that need nvcc or Triton skip where it is missing, or fail if LPKERNEL_REQUIRE_GPU_CHECKS=1 (set by CI)."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from .compile import compiler, nvcc
from .shipped import shipped_cubins

REQUIRED = os.environ.get("LPKERNEL_REQUIRE_GPU_CHECKS") == "1"


def _need(present: bool, what: str) -> None:
    if not present and REQUIRED:
        pytest.fail(f"{what} is missing, and LPKERNEL_REQUIRE_GPU_CHECKS=1 asks for it")
    if not present:
        pytest.skip(f"no {what}")


def need_compiler() -> None:
    _need(shutil.which(compiler()) is not None, "C++ compiler")


def sanitizer_libraries(*names: str) -> str:
    """Paths of the compiler's libraries with these names, in the form that LD_PRELOAD takes."""
    found = [subprocess.check_output([compiler(), f"-print-file-name={name}"], text=True).strip() for name in names]
    _need(all(Path(path).is_absolute() for path in found), " ".join(names))
    return " ".join(found)


def need_nvcc() -> None:
    need_compiler()
    _need(nvcc() is not None, "nvcc")


def need_extension() -> None:
    _need(bool(shipped_cubins()), "lpkernel._cuda built from these sources, or no cuobjdump to look into it")


def need_triton() -> None:
    need_compiler()
    _need(importlib.util.find_spec("triton") is not None, "Triton")
