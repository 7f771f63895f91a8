"""Compiling for the emulation with g++ and nvcc; every result is kept in build/emulation under a hash of its inputs."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
SIMT = HERE / "simt"
CACHE = ROOT / "build" / "emulation"

# like the product's flags: no fused multiply-add, no fast-math; symbols stay separate and can be found by dladdr
BASE_FLAGS = ("-std=c++17", "-fPIC", "-pthread", "-ffp-contract=off", "-fno-gnu-unique", "-fno-ipa-icf", "-DSIMT_TEST")
SUPPORT_FLAGS = ("-O2", "-g0", "-Wall", "-Wextra")  # its debug lines would hide the kernels' from ThreadSanitizer
NVCC_FLAGS = ("-std=c++17", "-O3", "--fmad=false", "-lineinfo")


class BuildFailed(RuntimeError):
    """A compiler failed; the message contains its output."""


def digest(*pieces: str | bytes) -> str:
    total = hashlib.sha256()
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else piece
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:20]


def _folder_digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cuh"))
    return digest(*(piece for p in files for piece in (str(p.relative_to(folder)), p.read_bytes())))


@functools.cache
def _version(command: str) -> str:
    return subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def nvcc() -> str | None:
    """Path of nvcc, or None if there is none."""
    return os.environ.get("NVCC") or shutil.which("nvcc")


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _make(target: Path, command: Sequence[str]) -> Path:
    """Runs a command whose last argument is the output file, unless `target` exists already."""
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests in several processes want the same file; build it once
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=target.parent) as folder:
                result = Path(folder, target.name)
                _run([*command, str(result)])
                os.replace(result, target)
    return target


def library(
    name: str,
    sources: Mapping[str, str | Path],
    flags: Sequence[str],
    include: Sequence[Path] = (),
    sanitize: str = "",
    header: Path | None = None,
    support: Sequence[Path] = (),
) -> Path:
    """Compiles C++ sources (name -> text or file) to <name>.so in the cache; returns its path.

    `include` are folders searched for headers, besides those of the test runtime and csrc; a change of any header in
    them makes a new library. `sanitize` is what -fsanitize= takes. `header`, which all sources include first, is
    compiled once for all of them. `support` and the test runtime are linked in, compiled once whatever the `flags`.
    """
    checks = (f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-g1", "-Og") if sanitize else ()
    folders = [*include, SIMT, CSRC]
    headers = digest(*map(_folder_digest, folders))
    options = [*BASE_FLAGS, *flags, *checks]
    including = [f"-I{folder}" for folder in folders]
    common = [compiler(), *options, *including]
    if header is not None:
        key = digest(_version(compiler()), *options, headers, header.name)
        ready = CACHE / "headers" / key / f"{header.name}.gch"
        _make(ready, [*common, "-x", "c++-header", str(header), "-o"])
        common.insert(1, f"-I{ready.parent}")  # compilers other than g++ find the header itself in the next folder

    with tempfile.TemporaryDirectory() as scratch:

        def compile_one(label: str, source: str | Path, options: list[str], command: list[str]) -> Path:
            text = source if isinstance(source, str) else source.read_text(encoding="utf-8")
            key = digest(_version(compiler()), *options, headers, label, text)
            file = source if isinstance(source, Path) else Path(scratch, label)
            if isinstance(source, str):
                file.write_text(text, encoding="utf-8")
            target = CACHE / "objects" / key / f"{Path(label).stem}.o"
            return _make(target, [*command, "-x", "c++", "-c", str(file), "-o"])

        shared = [*BASE_FLAGS, *checks, *SUPPORT_FLAGS]
        wanted = [(label, source, options, common) for label, source in sources.items()]
        wanted += [
            (file.name, file, shared, [compiler(), *shared, *including]) for file in (SIMT / "runtime.cpp", *support)
        ]
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda one: compile_one(*one), wanted))
    key = digest(*map(str, objects), name)
    link = [f"-fsanitize={sanitize}"] if sanitize else []
    return _make(CACHE / key / f"{name}.so", [compiler(), "-shared", "-pthread", *link, *map(str, objects), "-o"])


def compile_ptx(source: Path, arch: int = 80, include: Sequence[Path] = ()) -> str:
    """PTX of a .cu file for compute_<arch>, with source lines. Raises BuildFailed without nvcc."""
    command = nvcc()
    if command is None:
        raise BuildFailed("there is no nvcc")
    folders = [*include, CSRC]
    options = [*NVCC_FLAGS, f"-arch=compute_{arch}"]
    key = digest(_version(command), *options, *map(_folder_digest, folders), source.read_bytes())
    target = CACHE / "ptx" / key / f"{source.stem}.ptx"
    includes = [f"-I{folder}" for folder in folders]
    return _make(target, [command, "-ptx", *options, *includes, str(source), "-o"]).read_text(encoding="utf-8")


def ptxas_report(source: Path, arch: int, include: Sequence[Path] = ()) -> str:
    """What ptxas -v says of the kernels of a .cu file compiled for sm_<arch>. Raises BuildFailed without nvcc."""
    return compile_cubin(source, arch, include).with_suffix(".txt").read_text(encoding="utf-8")


def compile_cubin(source: Path, arch: int, include: Sequence[Path] = ()) -> Path:
    """Machine code of a .cu file for sm_<arch>, ptxas -v's words beside it (.txt). Raises BuildFailed without nvcc."""
    command = nvcc()
    if command is None:
        raise BuildFailed("there is no nvcc")
    folders = [*include, CSRC]
    options = [*NVCC_FLAGS, f"-arch=sm_{arch}", "-Xptxas", "-v"]
    key = digest(_version(command), *options, *map(_folder_digest, folders), source.read_bytes())
    target = CACHE / "cubin" / key / f"{source.stem}.cubin"
    if not target.with_suffix(".txt").exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{folder}" for folder in folders]
        words = _run([command, "-cubin", *options, *includes, str(source), "-o", str(target)])
        target.with_suffix(".txt").write_text(words, encoding="utf-8")
    return target


def nvcc_library(source: Path) -> Path:
    """Host code that needs CUDA's headers, compiled by nvcc to a shared library. Raises BuildFailed without nvcc."""
    command = nvcc()
    if command is None:
        raise BuildFailed("there is no nvcc")
    options = ["-std=c++17", "-O1", "-shared", "-cudart", "none", "-Xcompiler", "-fPIC"]
    key = digest(_version(command), *options, source.read_bytes())
    return _make(CACHE / key / f"{source.stem}.so", [command, *options, str(source), "-o"])
