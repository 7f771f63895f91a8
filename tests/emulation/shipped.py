"""The machine code in lpkernel._cuda as built in this checkout, which need not be compiled again."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from .compile import CACHE, CSRC, NVCC_FLAGS, ROOT, compile_cubin, digest


def tool(name: str) -> str | None:
    """Path of a program of the CUDA toolkit, possibly from Triton's wheel; None if there is none."""
    found = shutil.which(name)
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / name
        found = str(file) if file.exists() else None
    return found


def _module() -> Path | None:
    """The built extension, unless a source has changed since or it was built with other flags."""
    stamp = ROOT / "lpkernel" / "_build.json"
    built = next((ROOT / "lpkernel").glob("_cuda.*.so"), None)
    if built is None or not stamp.exists():
        return None
    flags = (json.loads(stamp.read_text(encoding="utf-8"))["cuda"] or {}).get("flags", [])
    others = {flag for flag in flags if not flag.startswith("-gencode")} - set(NVCC_FLAGS)
    changed = max(path.stat().st_mtime for path in (ROOT / "setup.py", *CSRC.rglob("*.*")))
    return None if others or not set(NVCC_FLAGS) <= set(flags) or changed > built.stat().st_mtime else built


@functools.cache
def shipped_cubins() -> dict[tuple[str, int], Path]:
    """(stem of a .cu file, architecture) -> its machine code, extracted from the extension; {} if not possible."""
    built, command = _module(), tool("cuobjdump")
    if built is None or command is None:
        return {}
    folder = CACHE / "shipped" / digest(built.read_bytes())
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as made:
            subprocess.run([command, "-xelf", "all", str(built)], cwd=made, capture_output=True, check=True)
            if not folder.exists():
                os.rename(shutil.copytree(made, f"{made}.whole"), folder)
    names = {path: re.fullmatch(r"(\w+)\.sm_(\d+)\.cubin", path.name) for path in sorted(folder.iterdir())}
    return {(name[1], int(name[2])): path for path, name in names.items() if name}


def cubin(source: Path, arch: int) -> Path:
    """Machine code of a .cu file of csrc/cuda for sm_<arch>: from the extension, or compiled if it has none."""
    return shipped_cubins().get((source.stem, arch)) or compile_cubin(source, arch)
