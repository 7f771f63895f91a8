"""Access to the compiled code: loaded at first use, never at import; success and failure are remembered.

setup.py leaves a record of the build in _build.json beside this file:
{"version": str, "cpp": {"built": bool, "compiler": str, "flags": [str]} or {"built": false, "reason": str},
"cuda": the same, with "arch": [str] where built}.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from lpkernel.errors import BackendUnavailable

_STAMP = Path(__file__).with_name("_build.json")
_MODULES = {"cpp": "lpkernel._cpu", "cuda": "lpkernel._cuda"}
_LABELS = {"cpp": "C++", "cuda": "CUDA"}
_FIXES = {
    "cpp": "with a C++ compiler installed: LPKERNEL_CPP=1 pip install -v . in the source folder",
    "cuda": "with a CUDA toolkit installed (nvcc): LPKERNEL_CUDA=1 pip install -v . in the source folder",
}


@functools.cache
def build_record() -> dict[str, Any]:
    """What setup.py recorded, or a record of the same form with the reason why there is none."""
    try:
        record: dict[str, Any] = json.loads(_STAMP.read_text(encoding="utf-8"))
    except FileNotFoundError:
        reason = "this copy of lpkernel was not installed, so nothing was compiled"
    except (OSError, ValueError) as error:
        reason = f"the build record {_STAMP.name} is unreadable: {error}"
    else:
        return record
    return {"version": None, "cpp": {"built": False, "reason": reason}, "cuda": {"built": False, "reason": reason}}


@functools.cache
def _load(kind: str) -> ModuleType | str:
    """The module for a kind in build_record(), or why it does not load."""
    record, name = build_record()[kind], _MODULES[kind]
    if not record["built"]:
        return str(record["reason"])
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return f"{name} was built but does not load: {error}"


def _loaded(kind: str) -> ModuleType:
    loaded = _load(kind)
    if isinstance(loaded, str):
        raise BackendUnavailable(f"{_LABELS[kind]} code unavailable: {loaded}. Fix: {_FIXES[kind]}")
    return loaded


def _reasons(kind: str) -> list[str]:
    loaded = _load(kind)
    return [loaded] if isinstance(loaded, str) else []


def cpu() -> ModuleType:
    """The extension lpkernel._cpu. Raises BackendUnavailable with the reason and the command that fixes it."""
    return _loaded("cpp")


def cpu_reasons() -> list[str]:
    """Why lpkernel._cpu cannot be used; [] if it can. Loads it, which costs milliseconds once."""
    return _reasons("cpp")


def trim() -> None:
    """Give memory that was freed back to the system, where the C library holds on to it; a millisecond or two."""
    if not cpu_reasons():
        cpu().trim()


def isa() -> str:
    """The instruction set that the environment asks lpkernel._cpu to use; "" for the best of this machine."""
    return os.environ.get("LPKERNEL_ISA", "")


@functools.cache
def isa_reasons(isa: str) -> tuple[str, ...]:
    """Why lpkernel._cpu cannot be used with this instruction set; () if it can."""
    if (reasons := cpu_reasons()) or not isa:
        return tuple(reasons)
    known = cpu().build_info()["isa"]
    return () if isa in known else (f"LPKERNEL_ISA is {isa!r}, this machine runs {', '.join(known)}",)


def cuda() -> ModuleType:
    """The extension lpkernel._cuda, which loads without a GPU. Raises BackendUnavailable as `cpu`."""
    return _loaded("cuda")


def cuda_reasons() -> list[str]:
    """Why lpkernel._cuda cannot be loaded; [] if it can. Says nothing about devices."""
    return _reasons("cuda")
