"""The kernels stay within tests/emulation/budgets.json, and spill nothing.

All CUDA kernels; of Triton's every eleventh, for two targets: `make kernel-report` compiles them all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import pytest
from emulation.needs import need_nvcc, need_triton
from emulation.resources import Resources, blocks_per_multiprocessor, parse_ptxas, triton_resources

SAID = """ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem
"""


def test_words_of_ptxas() -> None:
    assert parse_ptxas(SAID) == {"_Z1kv": Resources(registers=40, spilled=20, stack=16, shared=2048)}


@pytest.mark.parametrize(
    ("arch", "registers", "dynamic", "threads", "blocks"),
    [(90, 32, 0, 256, 8), (90, 128, 0, 256, 2), (80, 32, 100 << 10, 256, 1), (90, 32, 100 << 10, 256, 2)],
)
def test_occupancy(arch: int, registers: int, dynamic: int, threads: int, blocks: int) -> None:
    need_nvcc()
    assert blocks_per_multiprocessor(arch, registers, 0, dynamic, threads) == blocks


@pytest.mark.parametrize("target", [80, 90, 100, "gfx942"])
def test_resources_of_a_triton_kernel(target: int | str) -> None:
    need_triton()
    from emulation.kernels.triton_probe import row_minima

    signature = {"numbers": "*i32", "minima": "*i64", "columns": "i32", "BLOCK": "constexpr", "EXTRA": "constexpr"}
    found = triton_resources(row_minima, signature, {"BLOCK": 128, "EXTRA": 0}, target, {"num_warps": 4})
    assert 0 < found.registers < 100
    assert found.spilled == found.stack == 0


@pytest.fixture(scope="module", autouse=True)
def fresh_triton_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def test_cuda_kernels_stay_within_their_budgets() -> None:
    need_nvcc()
    import kernel_report

    with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # other tests' kernels do not count
        estimates = alone.submit(kernel_report.estimates).result()
    found = kernel_report.cuda_kernels()
    budgets = json.loads(kernel_report.BUDGETS.read_text(encoding="utf-8"))
    assert kernel_report.problems(found, estimates, budgets) == []

    name, targets = next(iter(found.items()))
    worse = {**found, name: {target: replace(one, registers=999, spilled=4) for target, one in targets.items()}}
    slower = [replace(one, per_pair=2 * one.per_pair) for one in estimates]
    assert len(kernel_report.problems(worse, [], budgets)) == 2 * len(targets)
    assert len(kernel_report.problems({}, slower, budgets)) == len(estimates)


def test_a_sample_of_the_triton_kernels_stays_within_its_budgets() -> None:
    need_triton()
    import kernel_report

    found = kernel_report.triton_kernels((90, kernel_report.AMD), every=11)
    assert len(found) > 5
    assert kernel_report.problems(found, [], json.loads(kernel_report.BUDGETS.read_text(encoding="utf-8"))) == []
