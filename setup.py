"""Native build of lpkernel; everything else is in pyproject.toml.

    LPKERNEL_CPP   auto (default): build lpkernel._cpu, or go on without it if that fails; 0: do not; 1: fail instead
    LPKERNEL_CUDA  the same for lpkernel._cuda, which needs nvcc (but no GPU); FORCE_CUDA=1 means LPKERNEL_CUDA=1
    CUDA_HOME      where CUDA is; CUDA_PATH, too (default: the nvcc on the PATH, then /usr/local/cuda)
    TORCH_CUDA_ARCH_LIST  GPU architectures, in torch's format (default: those of 8.0;9.0;10.0+PTX that nvcc knows)
    NVCC_FLAGS     more flags for nvcc
    MAX_JOBS       files compiled at once (default: all cores)
    LPKERNEL_SANITIZE  the value of -fsanitize=, set by `make sanitize`
    DEBUG          1: no optimisation, debug symbols, assertions
    CC, CXX, CXXFLAGS as usual

What was built and how, or why it was not, is recorded in lpkernel/_build.json, which `lpkernel info` shows. Building
needs no torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pybind11
from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, CompileError, ExecError, PlatformError

SANITIZERS = os.environ.get("LPKERNEL_SANITIZE", "")
ARCHITECTURES = ("8.0", "9.0", "10.0")


def switch(name: str) -> str:
    """The value of one of the two build switches: auto, 0 or 1."""
    value = os.environ.get(name, "auto").strip().lower() or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} is {value!r}; expected auto, 0 or 1")
    return value


DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")


def compile_flags() -> list[str]:
    """Flags of every C++ file. No fused multiply-add, no fast-math, no -march: the same bits on every machine."""
    level = ["-O0", "-g", "-UNDEBUG"] if DEBUG else ["-O3"]
    checks = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-fno-wrapv", "-g"] if SANITIZERS else []
    return [*level, *checks, "-pthread", "-Wall", "-Wextra", "-ffp-contract=off"]


# Flags of the files that are compiled for one instruction set; which of them runs is decided at run time.
ISA_FLAGS = {
    "kernels_avx2.cpp": "-mavx2 -mfma",
    "kernels_avx512.cpp": "-mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512vnni -mavx512vbmi "
    "-mprefer-vector-width=512",
}
X86 = platform.machine().lower() in ("x86_64", "amd64")


def compiler_version(command: str) -> str:
    """First line of `command --version`, or the command's name where it has no such option."""
    try:
        answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return Path(command).name
    return answer.partition("\n")[0].strip() or Path(command).name


def find_nvcc() -> str | None:
    """The nvcc in CUDA_HOME or CUDA_PATH, on the PATH, or in the usual place."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")):
        if home:
            return shutil.which("nvcc", path=str(Path(home, "bin")))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def architectures(nvcc: str) -> list[str]:
    """GPU architectures to compile for, as in TORCH_CUDA_ARCH_LIST: "9.0", or "9.0+PTX" to also carry its PTX."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if wrong := [arch for arch in asked if not re.fullmatch(r"\d+\.\d[a-z]?(\+PTX)?", arch)]:
        raise SystemExit(f"TORCH_CUDA_ARCH_LIST has {wrong[0]!r}; expected e.g. 8.0;9.0+PTX")
    if asked:
        return asked
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    found = [arch for arch in ARCHITECTURES if f"compute_{arch.replace('.', '')}" in known]
    return [*found[:-1], f"{found[-1]}+PTX"] if found else []


def target_flags(archs: list[str]) -> list[str]:
    """nvcc's flags for these architectures."""
    flags = []
    for arch in archs:
        number = arch.removesuffix("+PTX").replace(".", "")
        codes = [f"sm_{number}", *([f"compute_{number}"] if arch.endswith("+PTX") else [])]
        flags += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return flags


def cuda_flags() -> list[str]:
    """Flags of every file that nvcc compiles; compare compile_flags."""
    level = ["-O0", "-g"] if DEBUG else ["-O3", "-lineinfo"]
    return [*level, "-std=c++17", "--fmad=false", *shlex.split(os.environ.get("NVCC_FLAGS", ""))]


def write_stamp(folder: Path, version: str, built: dict[str, dict[str, Any]]) -> None:
    """Writes _build.json into the package at `folder`: what was built, and why the rest was not."""
    record = {"version": version, "cpp": NOT_ASKED.get("cpp"), "cuda": NOT_ASKED.get("cuda"), **built}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def remove_native(folder: Path) -> None:
    """Removes what an earlier build left in `folder`, which setuptools would ship or the loader find."""
    for old in (*folder.glob("_cpu.*"), *folder.glob("_cuda.*")):
        old.unlink()


class BuildPython(build_py):
    """Writes the stamp when no extension is asked for; otherwise BuildNative does."""

    def run(self) -> None:
        super().run()
        if not self.distribution.has_ext_modules():
            folder = Path("lpkernel") if self.editable_mode else Path(self.build_lib, "lpkernel")
            remove_native(folder)
            write_stamp(folder, self.distribution.get_version(), {})


class BuildNative(build_ext):
    """Builds lpkernel._cpu and lpkernel._cuda; under "auto" a failure is recorded and the build goes on."""

    def run(self) -> None:
        folder = Path("lpkernel") if self.inplace else Path(self.build_lib, "lpkernel")
        remove_native(folder)
        self.built: dict[str, dict[str, Any]] = {}
        super().run()
        write_stamp(folder, self.distribution.get_version(), self.built)

    def build_extensions(self) -> None:
        for ext in list(self.extensions):
            kind, build = ("cuda", self._build_cuda) if ext is cuda else ("cpp", self._build_cpp)
            try:
                self.built[kind] = {"built": True, **build(ext)}
            except (CCompilerError, ExecError, PlatformError) as error:
                label = {"cpp": "C++", "cuda": "CUDA"}[kind]
                if SWITCHES[kind] == "1":
                    raise SystemExit(f"LPKERNEL_{kind.upper()}=1, but {ext.name} does not build: {error}") from error
                reason = f"the {label} build failed: {' '.join(str(error).split())}"
                self.built[kind] = {"built": False, "reason": reason}
                # a new list: the distribution, which still has extensions, keeps its own
                self.extensions = [other for other in self.extensions if other is not ext]

    def _build_cpp(self, ext: Any) -> dict[str, Any]:
        """As usual, but each file with the flags of its own instruction set."""
        plain = self.compiler._compile

        def compile_one(obj: str, src: str, kind: str, cc_args: list[str], postargs: list[str], pp_opts: Any) -> None:
            own = ISA_FLAGS.get(Path(src).name, "").split() if X86 else []
            plain(obj, src, kind, cc_args, [*postargs, *own], pp_opts)

        if SANITIZERS:
            ext.extra_link_args.append(f"-fsanitize={SANITIZERS}")
        self.compiler._compile = compile_one
        try:
            self.build_extension(ext)
        finally:
            self.compiler._compile = plain
        command = getattr(self.compiler, "compiler_so_cxx", None) or getattr(self.compiler, "compiler_so", ["msvc"])
        return {"compiler": compiler_version(command[0]), "flags": plain_flags([*command[1:], *ext.extra_compile_args])}

    def _build_cuda(self, ext: Any) -> dict[str, Any]:
        """Compiles all files with nvcc and links its static runtime: the module loads without a GPU or driver."""
        assert NVCC is not None
        archs = architectures(NVCC)
        flags = [*cuda_flags(), *target_flags(archs)]
        host = ["-ccbin", os.environ["CXX"]] if "CXX" in os.environ else []
        include = ["-Icsrc", f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}"]
        command = [NVCC, *host, *flags, "-Xcompiler", "-fPIC,-fvisibility=hidden", *include, "-x", "cu", "-c"]
        temporary = Path(self.build_temp, "cuda")
        temporary.mkdir(parents=True, exist_ok=True)
        objects = {source: str(temporary / f"{Path(source).stem}.o") for source in ext.sources}
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or 0) or os.cpu_count()) as pool:
            list(pool.map(lambda source: run_nvcc([*command, source, "-o", objects[source]]), ext.sources))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        link = [NVCC, *host, "-shared", "-cudart", "static", *objects.values(), "-o", str(target)]
        run_nvcc([*link, *target_flags(archs)])
        version = re.search(
            r"release ([\d.]+)", subprocess.run([NVCC, "--version"], capture_output=True, text=True).stdout
        )
        return {"compiler": f"nvcc {version[1] if version else ''}".strip(), "flags": plain_flags(flags), "arch": archs}


def run_nvcc(command: list[str]) -> None:
    """Runs nvcc; raises CompileError with the end of its output."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(" ".join((done.stdout + done.stderr).split())[-1000:])


def plain_flags(flags: list[str]) -> list[str]:
    """The flags, less those that hold paths of this machine."""
    return [flag for flag in flags if flag.startswith("-") and "/" not in flag]


SWITCHES = {"cpp": switch("LPKERNEL_CPP"), "cuda": switch("LPKERNEL_CUDA")}
if os.environ.get("FORCE_CUDA") == "1":
    SWITCHES["cuda"] = "1"
NVCC = find_nvcc()
NOT_ASKED = {
    kind: {"built": False, "reason": f"switched off by LPKERNEL_{kind.upper()}=0"}
    for kind, value in SWITCHES.items()
    if value == "0"
}
if NVCC is None and SWITCHES["cuda"] != "0":
    NOT_ASKED["cuda"] = {"built": False, "reason": "built without nvcc: none in CUDA_HOME or on the PATH"}
    if SWITCHES["cuda"] == "1":
        raise SystemExit(
            "LPKERNEL_CUDA=1, but there is no nvcc: set CUDA_HOME to a CUDA toolkit, or LPKERNEL_CUDA=auto"
        )

cpu = Pybind11Extension(
    "lpkernel._cpu",
    ["csrc/bind/cpu.cpp", *(path.as_posix() for path in sorted(Path("csrc/cpu").glob("*.cpp")))],
    include_dirs=["csrc"],
    depends=[path.as_posix() for path in sorted(Path("csrc").rglob("*.h"))],
    cxx_std=17,
    extra_compile_args=compile_flags(),
    extra_link_args=["-pthread"],
)
cuda = Extension(
    "lpkernel._cuda", ["csrc/bind/cuda.cpp", *(p.as_posix() for p in sorted(Path("csrc/cuda").glob("*.cu")))]
)
ParallelCompile("MAX_JOBS").install()
setup(
    packages=[
        *find_packages(include=["lpkernel", "lpkernel.*"]),
        "lpkernel.triton_kernels",
        *(f"lpkernel.triton_kernels.{name}" for name in find_packages("triton_kernels")),
    ],
    # The top-level name triton_kernels belongs to another project.
    package_dir={"lpkernel.triton_kernels": "triton_kernels"},
    package_data={
        "lpkernel": ["py.typed", *(f"data/*{end}" for end in (".safetensors", ".lpbank", ".json", ".md"))],
        "lpkernel.demo": ["page.js", "page.css"],
    },
    ext_modules=[ext for kind, ext in (("cpp", cpu), ("cuda", cuda)) if kind not in NOT_ASKED],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
)
