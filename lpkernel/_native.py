"""Reaching the compiled code: loaded at first use, never at import, success and failure remembered.

setup.py leaves a record of the build in _build.json beside this file:
{"version": str, "cpp": {"built": bool, "compiler": str, "flags": [str]} or {"built": false, "reason": str},
"cuda": the same}.
"""

from __future__ import annotations

import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from lpkernel.errors import BackendUnavailable

_STAMP = Path(__file__).with_name("_build.json")
_FIX = "with a C++ compiler installed: LPKERNEL_CPP=1 pip install -v . in the source folder"


@functools.cache
def build_record() -> dict[str, Any]:
    """What setup.py recorded, or the same form with a reason when there is no readable record."""
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
def _load_cpu() -> ModuleType | str:
    """The module, or why it does not load."""
    cpp = build_record()["cpp"]
    if not cpp["built"]:
        return str(cpp["reason"])
    try:
        return importlib.import_module("lpkernel._cpu")
    except ImportError as error:
        return f"lpkernel._cpu was built but does not load: {error}"


def cpu() -> ModuleType:
    """The extension lpkernel._cpu. Raises BackendUnavailable with the reason and the fixing command."""
    loaded = _load_cpu()
    if isinstance(loaded, str):
        raise BackendUnavailable(f"C++ code unavailable: {loaded}. Fix: {_FIX}")
    return loaded


def cpu_reasons() -> list[str]:
    """Why lpkernel._cpu cannot be used; [] if it can. Loads it, which costs milliseconds once."""
    loaded = _load_cpu()
    return [loaded] if isinstance(loaded, str) else []


def cuda_reasons() -> list[str]:
    """Why no CUDA code can be used; [] if it was built."""
    cuda = build_record()["cuda"]
    return [] if cuda["built"] else [str(cuda["reason"])]
