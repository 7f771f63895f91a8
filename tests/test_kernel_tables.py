"""Every table of CPU kernels gives the results of the table without vectors, here and, emulated, on aarch64.

The aarch64 case needs aarch64-linux-gnu-g++ and qemu-aarch64; without them it skips, or fails if
LPKERNEL_REQUIRE_NEON=1 (set by .ci/run where it finds both).
"""

from __future__ import annotations

import ast
import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from emulation.compile import CSRC, ROOT, compiler
from emulation.needs import need_compiler

KERNELS = Path(__file__).resolve().parent / "kernels"
SOURCES = [*sorted((CSRC / "cpu").glob("kernels_*.cpp")), CSRC / "cpu" / "dispatch.cpp", *sorted(KERNELS.glob("*.cpp"))]
FLAGS = ("-std=c++17", "-ffp-contract=off")
SHIPPED, COMPARING = "-O3", "-O1"  # the kernels as setup.py compiles them, and what they are compared with
HERE = platform.machine().lower()


@dataclass(frozen=True)
class Machine:
    """compile: its compiler; run: the prefix that starts its programs here; isa_flags: file -> flags."""

    compile: str
    run: list[str]
    isa_flags: dict[str, str]


def isa_flags() -> dict[str, str]:
    """ISA_FLAGS of setup.py."""
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "ISA_FLAGS":
            flags: dict[str, str] = ast.literal_eval(node.value)
            return flags
    raise AssertionError("setup.py has no ISA_FLAGS")


def this_machine() -> Machine:
    need_compiler()
    return Machine(compiler(), [], isa_flags() if HERE in ("x86_64", "amd64") else {})


def aarch64() -> Machine:
    if HERE in ("aarch64", "arm64"):
        return this_machine()
    compile_ = shutil.which("aarch64-linux-gnu-g++")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if not compile_ or not emulator:
        missing = "aarch64-linux-gnu-g++" if not compile_ else "qemu-aarch64"
        if os.environ.get("LPKERNEL_REQUIRE_NEON") == "1":
            pytest.fail(f"{missing} is missing, and LPKERNEL_REQUIRE_NEON=1 asks for it")
        pytest.skip(f"no {missing}")
    return Machine(compile_, [emulator], {})


MACHINES = {"this machine": this_machine, "aarch64": aarch64}


def compile_one(machine: Machine, source: Path, folder: Path, *include: Path) -> Path:
    target = folder / f"{source.stem}.o"
    own = [COMPARING if source.parent == KERNELS else SHIPPED, *machine.isa_flags.get(source.name, "").split()]
    folders = [f"-I{path}" for path in (*include, CSRC)]
    subprocess.run([machine.compile, *FLAGS, *own, *folders, "-c", str(source), "-o", str(target)], check=True)
    return target


def compared(machine: Machine, objects: list[Path], folder: Path) -> subprocess.CompletedProcess[str]:
    """The finished run of the program linked from these objects."""
    program = folder / "compare"
    static = ["-static"] if machine.run else []  # an emulator has no libraries of the emulated machine
    subprocess.run([machine.compile, *static, *map(str, objects), "-o", str(program)], check=True)
    return subprocess.run([*machine.run, str(program)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", ["this machine", pytest.param("aarch64", marks=pytest.mark.thorough)])
def test_tables_of_kernels_give_what_one_lane_gives(name: str, tmp_path: Path) -> None:
    machine = MACHINES[name]()
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: compile_one(machine, source, tmp_path), SOURCES))
    done = compared(machine, objects, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "baseline: as one lane"

    # and a mistake in one lane is detected
    text = (CSRC / "cpu" / "simd.h").read_text(encoding="utf-8")
    assert text.count("half(a, 1) * half(b, 1)") == 1
    wrong = tmp_path / "wrong" / "cpu" / "simd.h"
    wrong.parent.mkdir(parents=True)
    wrong.write_text(text.replace("half(a, 1) * half(b, 1)", "half(a, 1) * half(b, 0)"), encoding="utf-8")
    compile_one(machine, KERNELS / "one_lane.cpp", tmp_path, wrong.parents[1])
    done = compared(machine, objects, tmp_path)
    assert done.returncode == 1, done.stderr
    for kernel in ("latent_block", "integer_rows", "cell_rows", "apart"):
        assert f"baseline {kernel}(" in done.stdout
    assert "float_rows" not in done.stdout
