"""Backends as a fixture: one that cannot run here skips with its own reason, or fails if it was required.

LPKERNEL_REQUIRE_BACKENDS (comma-separated names, set by .ci/run) lists those that must not skip.
"""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from emulation.build import cuda_module
from emulation.needs import need_compiler, need_nvcc

from lpkernel.backends import registry
from lpkernel.backends.base import Backend
from lpkernel.backends.cuda import CudaBackend

REQUIRED = [name for name in os.environ.get("LPKERNEL_REQUIRE_BACKENDS", "").split(",") if name]
# Without a GPU, the GPU backends have tests of their own, on emulations: test_cuda_*.py and test_triton.py.
NAMES = [
    name
    for name, backend in registry.BACKENDS.items()
    if name not in ("cuda", "triton") or name in REQUIRED or not backend.unavailable()
]

# Started first: with pytest-xdist a worker takes a file at a time, and the run should not end waiting for one of these.
LONGEST = [
    *("test_triton", "test_kernel_budgets", "test_cuda_scan", "test_cuda_topk"),
    *("test_cuda_sanitizers", "test_emulation", "test_packaging", "test_kernel_tables"),
]


def pytest_configure(config: pytest.Config) -> None:
    """Gradio makes a folder when it is imported, by some tests in this process: not one that stays."""
    folder = tempfile.TemporaryDirectory(prefix="lpkernel-tests-")
    config.add_cleanup(folder.cleanup)
    os.environ["GRADIO_TEMP_DIR"] = folder.name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-rungs", action="store_true", help="all tests of CUDA kernels with what nvcc makes of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort the longest first; run CUDA kernels as PTX only in tests marked `compiled`, unless --all-rungs is given."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
    if config.getoption("--all-rungs"):
        return
    left_out = {one for one in items if _as_ptx(one) and not one.get_closest_marker("compiled")}
    config.hook.pytest_deselected(items=[one for one in items if one in left_out])
    items[:] = [one for one in items if one not in left_out]


def _as_ptx(item: pytest.Item) -> bool:
    return isinstance(item, pytest.Function) and hasattr(item, "callspec") and item.callspec.params.get("cuda") == "ptx"


# A process has one thread unless it asks for more: tests run side by side, and in tiny problems a second thread costs
# more than it gains.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def usable(name: str) -> Backend:
    backend = registry.BACKENDS[name]
    reasons = backend.unavailable()
    if reasons and name in REQUIRED:
        pytest.fail(f"backend {name} is required but cannot run: {'; '.join(reasons)}")
    if reasons:
        pytest.skip(f"backend {name}: {'; '.join(reasons)}")
    return backend


def home(backend: Backend) -> str:
    """The device on which a backend wants its tensors."""
    return "cpu" if backend.unavailable("cpu") == [] else "cuda"


# session scope, since hypothesis runs many examples with one fixture value
@pytest.fixture(scope="session", params=NAMES)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend in turn."""
    return usable(request.param)


@pytest.fixture(scope="session", params=[name for name in NAMES if name != "numpy"])
def fast_backend(request: pytest.FixtureRequest) -> Backend:
    """Every backend except the specification, to be compared with it."""
    return usable(request.param)


@pytest.fixture(scope="module", params=["simt", pytest.param("ptx", marks=pytest.mark.thorough)])
def cuda(request: pytest.FixtureRequest) -> CudaBackend:
    """The CUDA kernels as g++ compiles them, and as nvcc does (PTX for sm_80, translated), run on the CPU."""
    need_compiler()
    if request.param == "ptx":
        need_nvcc()
    return CudaBackend(cuda_module(80 if request.param == "ptx" else None), "cpu")
