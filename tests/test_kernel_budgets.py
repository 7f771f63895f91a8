"""All shipped kernels, for all targets, stay within tests/emulation/budgets.json and spill nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from emulation.build import kernel_sources
from emulation.compile import compile_cubin, ptxas_report
from emulation.needs import need_extension, need_nvcc, need_triton
from emulation.resources import (
    Resources,
    TritonKernel,
    blocks_per_multiprocessor,
    machine_code_resources,
    parse_ptxas,
    parse_usage,
    recorded,
)
from emulation.sass import inner_loop
from emulation.shipped import shipped_cubins

SAID = """ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem
"""


def test_words_of_ptxas() -> None:
    assert parse_ptxas(SAID) == {"_Z1kv": Resources(registers=40, spilled=20, stack=16, shared=2048)}


USED = """
 Function _Z1kv:
  REG:40 STACK:16 SHARED:2048 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_words_of_cuobjdump() -> None:
    assert parse_usage(USED) == {"_Z1kv": Resources(registers=40, spilled=16, stack=16, shared=2048)}
    with pytest.raises(ValueError, match="unexpected: no kernels"):
        parse_usage("no kernels")


GREEDY = """
__global__ void __launch_bounds__(1024, 2) greedy(const float* in, float* out) {
    float kept[99];
    for (int i = 0; i < 99; ++i) kept[i] = in[i * 1024 + threadIdx.x];
    __syncthreads();
    for (int round = 0; round < 9; ++round) {
#pragma unroll
        for (int i = 0; i < 98; ++i) kept[i] = kept[i] * kept[i + 1] + kept[98 - i];
    }
    for (int i = 0; i < 99; ++i) out[i * 1024 + threadIdx.x] = kept[i];
}
"""


def test_machine_code_tells_what_ptxas_tells(tmp_path: Path) -> None:
    """For a kernel with too few registers, spills are found either way."""
    need_nvcc()
    need_triton()  # it brings cuobjdump
    source = tmp_path / "greedy.cu"
    source.write_text(GREEDY, encoding="utf-8")
    (said,), (held,) = (
        found.values()
        for found in (parse_ptxas(ptxas_report(source, 80)), machine_code_resources(compile_cubin(source, 80)))
    )
    assert (held.registers, held.stack, held.shared) == (said.registers, said.stack, said.shared)
    assert said.spilled > 0 and held.spilled > 0


def test_the_extension_s_machine_code_is_what_is_looked_at() -> None:
    """If it was built with this toolkit for all targets, as in CI, nothing is compiled again."""
    need_extension()
    wanted = {(source.stem, arch) for source in kernel_sources() for arch in (80, 90)}
    assert wanted <= set(shipped_cubins())


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
    found = TritonKernel(row_minima, signature, {"BLOCK": 128, "EXTRA": 0}, target, warps=4).resources()
    assert 0 < found.registers < 100
    assert found.spilled == found.stack == 0


@pytest.mark.thorough  # compiles for sm_100
def test_cuda_kernels_stay_within_their_budgets() -> None:
    need_nvcc()
    import kernel_report

    estimates, found = kernel_report.estimates(), kernel_report.cuda_kernels()
    budgets = json.loads(kernel_report.BUDGETS.read_text(encoding="utf-8"))
    assert kernel_report.problems(found, estimates, budgets) == []

    name, targets = next(iter(found.items()))
    worse = {**found, name: {target: replace(one, registers=999, spilled=4) for target, one in targets.items()}}
    slower = [replace(one, per_pair=2 * one.per_pair) for one in estimates]
    assert len(kernel_report.problems(worse, [], budgets)) == 2 * len(targets)
    assert len(kernel_report.problems({}, slower, budgets)) == len(estimates)


LISTING = """.text._Z5outerv:
.L_x_0:
        /*0000*/                   LDS.128 R4, [R2] ;
.L_x_1:
        /*0010*/              @!P2 LDS.128 R8, [R3] ;
        /*0020*/                   IADD3 R1, R1, R4, RZ ;
        /*0030*/               @P0 BRA `(.L_x_1) ;
        /*0040*/                   BRA `(.L_x_2) ;
.L_x_2:
        /*0050*/               @P1 BRA `(.L_x_0) ;
.section        .text._Z5otherv
"""


def test_loops_of_a_listing() -> None:
    assert inner_loop(LISTING, "5outer", "LDS.128", 1) == {"LDS.128": 1, "IADD3": 1, "BRA": 1}
    assert inner_loop(LISTING, "5outer", "LDS.128", 2) == {"LDS.128": 2, "IADD3": 1, "BRA": 3}
    for kernel, count in (("5outer", 3), ("other", 1)):
        with pytest.raises(ValueError, match=r"expected one|no loop has 3"):
            inner_loop(LISTING, kernel, "LDS.128", count)


def test_the_code_kernels_inner_loop() -> None:
    """One machine instruction per lookup or add, on every target: 64 of each per cell and thread."""
    need_nvcc()
    need_triton()  # it brings the disassembler
    import kernel_report

    for loop in kernel_report.code_loops().values():
        assert loop.total() <= 132


def test_triton_kernels_stay_within_their_budgets() -> None:
    """Every configuration, for sm_80, 90, 100 and gfx942; those unchanged since are taken from the record."""
    need_triton()
    import kernel_report

    found = kernel_report.triton_kernels()
    assert len(found) > 80 and all(len(targets) == len(kernel_report.TARGETS) for targets in found.values())
    budgets = json.loads(kernel_report.BUDGETS.read_text(encoding="utf-8"))
    assert kernel_report.problems(found, [], budgets) == []
    assert set(budgets["registers"]) >= set(found)


def test_the_record_of_triton_kernels_is_true() -> None:
    """Some kernels of each target are compiled again."""
    need_triton()
    import kernel_report

    known = [kernel for _, _, kernel in kernel_report.triton_wanted() if kernel.key in recorded()][::61]
    if not known:
        pytest.skip("the record is of another version of Triton or of the kernels")
    assert [kernel.compiled() for kernel in known] == [recorded()[kernel.key] for kernel in known]
