"""Wheel, source distribution and the build switches, each built from a copy of the source tree."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE")
FOLDERS = ("csrc", "triton_kernels", "lpkernel", "tests", "scripts", "examples")
REQUIRED = os.environ.get("LPKERNEL_REQUIRE_GPU_CHECKS") == "1"
BUILD = "import sys; from setuptools import build_meta; print(build_meta.{0}(sys.argv[1]))"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources; build leftovers stay in it from one test to the next, as in a developer's folder."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("Makefile", "constraints.txt", *SOURCES):
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "_cpu.*", "_cuda.*", "_build.json")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    return copy


def build(tree: Path, out: Path, hook: str = "build_wheel", **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs the build as pip does, without isolation, so that nothing is downloaded."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LPKERNEL_")}
    out.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", BUILD.format(hook), str(out)],
        cwd=tree,
        env={**environment, **variables},
        capture_output=True,
        text=True,
    )


def only_file(folder: Path, answer: subprocess.CompletedProcess[str]) -> Path:
    assert answer.returncode == 0, answer.stdout + answer.stderr
    (path,) = folder.iterdir()
    return path


def stamp(wheel: Path) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        record: dict[str, Any] = json.loads(archive.read("lpkernel/_build.json"))
    return record


def has_extension(wheel: Path, name: str = "_cpu") -> bool:
    return any(file.startswith(f"lpkernel/{name}.") for file in zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def full_wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With both extensions, not optimised: the optimised build is compiled on installation and need not be repeated."""
    folder = tmp_path_factory.mktemp("full")
    quick = {"DEBUG": "1", "NVCC_FLAGS": "-Xcicc -O1 -Xptxas -O0"}
    return only_file(folder, build(tree, folder, TORCH_CUDA_ARCH_LIST="8.0", **quick))


@pytest.fixture(scope="module")
def pure_wheel(tree: Path, full_wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built after the full wheel in the same tree: nothing from that build may slip in."""
    folder = tmp_path_factory.mktemp("pure")
    return only_file(folder, build(tree, folder, LPKERNEL_CPP="0", LPKERNEL_CUDA="0"))


def test_wheel_has_the_whole_package_and_nothing_else(tree: Path, full_wheel: Path) -> None:
    names = set(zipfile.ZipFile(full_wheel).namelist())
    files = {name for name in names if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in files} == {"lpkernel"}
    modules = {path.relative_to(tree).as_posix() for path in (tree / "lpkernel").rglob("*.py")}
    kernels = {f"lpkernel/{path.relative_to(tree).as_posix()}" for path in (tree / "triton_kernels").rglob("*.py")}
    data = {path.relative_to(tree).as_posix() for path in (tree / "lpkernel" / "data").glob("*") if path.is_file()}
    data |= {"lpkernel/demo/page.css", "lpkernel/demo/page.js"}
    assert "lpkernel/triton_kernels/__init__.py" in kernels
    extension = {name for name in files if name.startswith(("lpkernel/_cpu.", "lpkernel/_cuda."))}
    marker = {"lpkernel/py.typed"} & files
    assert files == modules | kernels | data | extension | marker | {"lpkernel/_build.json"}


def test_wheel_declares_command_licence_and_extras(full_wheel: Path) -> None:
    with zipfile.ZipFile(full_wheel) as archive:
        info = full_wheel.name.split("-")[0] + "-0.1.0.dist-info"
        assert "lpkernel = lpkernel.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert "Apache License" in archive.read(f"{info}/licenses/LICENSE").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
    extras = {line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra")}
    assert extras == {"align", "diffusers", "demo", "triton", "evaluate", "bench", "test", "dev"}


def test_wheel_records_how_it_was_compiled(full_wheel: Path) -> None:
    record = stamp(full_wheel)
    if not record["cpp"]["built"]:
        pytest.skip(f"cpp: {record['cpp']['reason']}")
    assert has_extension(full_wheel)
    assert record["version"] == "0.1.0"
    assert record["cpp"]["compiler"]
    assert {"-O0", "-UNDEBUG", "-ffp-contract=off"} <= set(record["cpp"]["flags"])


def test_wheel_holds_cuda_code_where_there_is_nvcc(full_wheel: Path) -> None:
    cuda = stamp(full_wheel)["cuda"]
    assert has_extension(full_wheel, "_cuda") == cuda["built"]
    if not cuda["built"]:
        assert "built without nvcc" in cuda["reason"]
        if REQUIRED:
            pytest.fail(f"the CUDA build is required: {cuda['reason']}")
        pytest.skip(f"cuda: {cuda['reason']}")
    assert cuda["compiler"].startswith("nvcc ") and cuda["arch"] == ["8.0"]
    assert {"-O0", "--fmad=false", "-Xptxas"} <= set(cuda["flags"]) and "--use_fast_math" not in cuda["flags"]


def test_wheel_without_extension_is_pure_and_says_why(pure_wheel: Path) -> None:
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    assert not has_extension(pure_wheel)
    record = stamp(pure_wheel)
    assert record["cpp"] == {"built": False, "reason": "switched off by LPKERNEL_CPP=0"}
    assert record["cuda"] == {"built": False, "reason": "switched off by LPKERNEL_CUDA=0"}


def test_wheel_without_extension_installs_and_runs(pure_wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    subprocess.run([*command, str(pure_wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}

    def python(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout

    where = python("-c", "import lpkernel, lpkernel.triton_kernels as t; print(lpkernel.__file__); print(t.__file__)")
    assert all(Path(line).is_relative_to(target) for line in where.splitlines())
    assert "switched off by LPKERNEL_CPP=0" in python("-m", "lpkernel", "info")
    assert (target / "bin" / "lpkernel").is_file()


def test_missing_compiler_is_recorded_and_does_not_stop_the_build(tree: Path, full_wheel: Path, tmp_path: Path) -> None:
    answer = build(tree, tmp_path / "out", CC="no-such-compiler", CXX="no-such-compiler")
    wheel = only_file(tmp_path / "out", answer)
    assert not has_extension(wheel)
    record = stamp(wheel)
    assert not record["cpp"]["built"] and not record["cuda"]["built"]
    assert record["cpp"]["reason"].startswith("the C++ build failed: ")
    assert "no-such-compiler" in record["cpp"]["reason"]


def test_missing_nvcc_is_recorded_and_does_not_stop_the_build(tree: Path, full_wheel: Path, tmp_path: Path) -> None:
    answer = build(tree, tmp_path / "out", LPKERNEL_CPP="0", CUDA_HOME=str(tmp_path))
    assert stamp(only_file(tmp_path / "out", answer))["cuda"] == {
        "built": False,
        "reason": "built without nvcc: none in CUDA_HOME or on the PATH",
    }


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LPKERNEL_CPP": "1", "CC": "no-such-compiler", "CXX": "no-such-compiler"}, "_cpu does not build"),
        ({"LPKERNEL_CUDA": "1", "CUDA_HOME": "/nowhere"}, "LPKERNEL_CUDA=1, but there is no nvcc: set CUDA_HOME"),
        ({"FORCE_CUDA": "1", "CUDA_HOME": "/nowhere"}, "LPKERNEL_CUDA=1, but there is no nvcc: set CUDA_HOME"),
        ({"LPKERNEL_CPP": "yes"}, "LPKERNEL_CPP is 'yes'; expected auto, 0 or 1"),
    ],
)
def test_what_cannot_be_built_fails_on_demand(
    tree: Path, tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    answer = build(tree, tmp_path / "out", **variables)
    assert answer.returncode != 0
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr.partition(message)[2]
    assert not list((tmp_path / "out").iterdir())


def test_source_distribution_can_be_built_from(tree: Path, tmp_path: Path) -> None:
    path = only_file(tmp_path / "out", build(tree, tmp_path / "out", "build_sdist"))
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {*SOURCES, "csrc/bind/cpu.cpp", "csrc/common/philox.h", "csrc/cuda/scan.cu", "triton_kernels/__init__.py"}
    tests = {f"tests/{test.name}" for test in (tree / "tests").glob("*.py")}
    assert wanted | tests <= names
    assert not {name for name in names if name.endswith((".so", ".pyc", "_build.json")) or ".cache" in name}


def test_kernels_import_under_their_own_name_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert importlib.import_module("lpkernel.triton_kernels").__name__ == "lpkernel.triton_kernels"
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=r"import lpkernel\.triton_kernels"):
        importlib.import_module("triton_kernels")
