"""Native build of lpkernel; everything else is in pyproject.toml.

    LPKERNEL_CPP   auto (default): build lpkernel._cpu, and go on without it if that fails; 0: do not; 1: must build
    LPKERNEL_CUDA  the same for CUDA, of which this version has no sources
    MAX_JOBS       files compiled at once (default: all cores)
    LPKERNEL_SANITIZE  what -fsanitize= takes, for `make sanitize`
    DEBUG          1: no optimisation, debug symbols, assertions
    CC, CXX, CXXFLAGS as usual

What was built, how, or why not goes to lpkernel/_build.json, which `lpkernel info` shows. Building needs no torch.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CCompilerError, ExecError, PlatformError

SANITIZERS = os.environ.get("LPKERNEL_SANITIZE", "")
NO_CUDA = "this version of lpkernel has no CUDA sources"


def switch(name: str) -> str:
    """The value of one of the two build switches: auto, 0 or 1."""
    value = os.environ.get(name, "auto").strip().lower() or "auto"
    if value not in ("auto", "0", "1"):
        raise SystemExit(f"{name} is {value!r}; expected auto, 0 or 1")
    return value


def compile_flags() -> list[str]:
    """Flags of every C++ file. No fused multiply-add, no fast-math, no -march: same bits on every machine."""
    level = ["-O0", "-g", "-UNDEBUG"] if os.environ.get("DEBUG", "0") not in ("", "0") else ["-O3"]
    checks = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-fno-wrapv", "-g"] if SANITIZERS else []
    return [*level, *checks, "-Wall", "-Wextra", "-ffp-contract=off"]


# Flags of the files that are compiled for one instruction set; which of them runs is asked of the machine.
ISA_FLAGS = {
    "kernels_avx2.cpp": ["-mavx2", "-mfma"],
    "kernels_avx512.cpp": [
        *("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mavx512vbmi"),
        "-mprefer-vector-width=512",
    ],
}
X86 = platform.machine().lower() in ("x86_64", "amd64")


def compiler_version(command: str) -> str:
    """First line of `command --version`, or the command where it has no such option."""
    try:
        answer = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return Path(command).name
    return answer.partition("\n")[0].strip() or Path(command).name


def write_stamp(folder: Path, version: str, cpp: dict[str, Any]) -> None:
    """Writes _build.json into the package at `folder`."""
    cuda = "switched off by LPKERNEL_CUDA=0" if CUDA == "0" else NO_CUDA
    record = {"version": version, "cpp": cpp, "cuda": {"built": False, "reason": cuda}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_build.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def remove_native(folder: Path) -> None:
    """Removes what an earlier build left in `folder`; setuptools would ship it, or the loader find it."""
    for old in folder.glob("_cpu.*"):
        old.unlink()


class BuildPython(build_py):
    """Writes the stamp when no extension is asked for; otherwise BuildNative does."""

    def run(self) -> None:
        super().run()
        if not self.distribution.has_ext_modules():
            folder = Path("lpkernel") if self.editable_mode else Path(self.build_lib, "lpkernel")
            remove_native(folder)
            reason = "switched off by LPKERNEL_CPP=0"
            write_stamp(folder, self.distribution.get_version(), {"built": False, "reason": reason})


class BuildNative(build_ext):
    """Builds lpkernel._cpu; under LPKERNEL_CPP=auto a failure is recorded and the install goes on."""

    def run(self) -> None:
        folder = Path("lpkernel") if self.inplace else Path(self.build_lib, "lpkernel")
        remove_native(folder)
        try:
            super().run()
        except (CCompilerError, ExecError, PlatformError) as error:
            if CPP == "1":
                raise SystemExit(f"LPKERNEL_CPP=1, but lpkernel._cpu does not build: {error}") from error
            cpp = {"built": False, "reason": f"the C++ build failed: {' '.join(str(error).split())}"}
        else:
            cpp = self._how()
        write_stamp(folder, self.distribution.get_version(), cpp)

    def build_extension(self, ext: Any) -> None:
        """As always, but with OpenMP where the compiler has it, and each file with its own instruction set."""
        plain = self.compiler._compile

        def compile_one(obj: str, src: str, kind: str, cc_args: list[str], postargs: list[str], pp_opts: Any) -> None:
            own = ISA_FLAGS.get(Path(src).name, []) if X86 else []
            plain(obj, src, kind, cc_args, [*postargs, *own], pp_opts)

        if self._has_openmp():
            ext.extra_compile_args.append("-fopenmp")
            ext.extra_link_args.append("-fopenmp")
        if SANITIZERS:
            ext.extra_link_args.append(f"-fsanitize={SANITIZERS}")
        self.compiler._compile = compile_one
        try:
            super().build_extension(ext)
        finally:
            self.compiler._compile = plain

    def _has_openmp(self) -> bool:
        """Whether a program with OpenMP compiles and links."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "try_openmp.cpp")
            source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n", encoding="utf-8")
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_shared_object(objects, str(Path(folder, "try.so")), extra_postargs=["-fopenmp"])
            except (CCompilerError, ExecError, PlatformError):
                return False
        return True

    def _how(self) -> dict[str, Any]:
        """Compiler and flags used, without the paths of the machine."""
        command = getattr(self.compiler, "compiler_so_cxx", None) or getattr(self.compiler, "compiler_so", ["msvc"])
        flags = [*command[1:], *self.extensions[0].extra_compile_args]
        return {
            "built": True,
            "compiler": compiler_version(command[0]),
            "flags": [flag for flag in flags if flag.startswith("-") and "/" not in flag],
        }


CPP = switch("LPKERNEL_CPP")
CUDA = switch("LPKERNEL_CUDA")
if CUDA == "1":
    raise SystemExit(f"LPKERNEL_CUDA=1, but {NO_CUDA}: unset it or set LPKERNEL_CUDA=auto")

cpu = Pybind11Extension(
    "lpkernel._cpu",
    ["csrc/bind_cpu.cpp", *(path.as_posix() for path in sorted(Path("csrc/cpu").glob("*.cpp")))],
    include_dirs=["csrc"],
    depends=[path.as_posix() for path in sorted(Path("csrc").rglob("*.h"))],
    cxx_std=17,
    extra_compile_args=compile_flags(),
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
    package_data={"lpkernel": ["py.typed", *(f"data/*{end}" for end in (".safetensors", ".lpbank", ".json", ".md"))]},
    ext_modules=[] if CPP == "0" else [cpu],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
)
