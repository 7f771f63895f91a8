"""The emulation does its work: right kernels give right answers, and every planted mistake is caught.

Kernels run in processes of their own, since a mistake that is found ends the process.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulation.build import cuda_module, translated_kernels
from emulation.compile import HERE, compile_ptx, library
from emulation.needs import need_compiler, need_nvcc, need_triton, sanitizer_libraries
from emulation.ptx import Module, PtxError, Translator

from lpkernel.backends.base import TopkRequest
from lpkernel.backends.cuda import CudaBackend

pytestmark = pytest.mark.thorough

KERNELS = HERE / "kernels"
ORDERS = ("fwd", "rev", "11", "12", "13")
WARNINGS = ("-O1", "-g", "-Wall", "-Wextra", "-Wno-unknown-pragmas")


def build(sanitize: str = "") -> Path:
    need_compiler()
    return library("probe", {"probe.cu": KERNELS / "probe.cu"}, WARNINGS, [KERNELS], sanitize)


@pytest.fixture(scope="module")
def plain() -> Path:
    return build()


@pytest.fixture(scope="module")
def checked() -> Path:
    return build("address,undefined")


@pytest.fixture(scope="module")
def threaded() -> Path:
    return build("thread")


@pytest.fixture(scope="module")
def translated() -> Path:
    need_nvcc()
    return Module(compile_ptx(KERNELS / "probe.cu", 80, [KERNELS])).path


def run(
    path: Path, kernel: str, bug: str = "none", order: str = "fwd", ptx: Path | None = None, preloaded: str = ""
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SIMT_ORDER": order, "LD_PRELOAD": preloaded, "ASAN_OPTIONS": "detect_leaks=0"}
    command = [sys.executable, str(HERE / "run_probe.py"), str(path), str(ptx or "-"), kernel, bug]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def answers(path: Path, kernel: str, bug: str, ptx: Path | None = None) -> set[str]:
    """The kernel's answers in all thread orders."""
    done = [run(path, kernel, bug, order, ptx) for order in ORDERS]
    assert all(one.returncode == 0 for one in done), done[0].stderr
    return {one.stdout.strip() for one in done}


@pytest.mark.parametrize("kernel", ["row_sums", "copied_sums", "group_sums"])
def test_right_kernels_are_right_in_every_order(plain: Path, kernel: str) -> None:
    assert answers(plain, kernel, "none") == {"right"}


@pytest.mark.parametrize("kernel", ["row_sums", "copied_sums", "group_sums"])
def test_right_kernels_are_right_as_ptx(plain: Path, translated: Path, kernel: str) -> None:
    assert answers(plain, kernel, "none", translated) == {"right"}


def test_source_and_ptx_agree_on_every_operation(plain: Path, translated: Path) -> None:
    source, ptx = run(plain, "operations"), run(plain, "operations", ptx=translated)
    assert source.returncode == 0, source.stderr
    assert ptx.returncode == 0, ptx.stderr
    assert source.stdout.splitlines() == ptx.stdout.splitlines()


def test_source_and_ptx_side_by_side() -> None:
    """In one process, either module runs its own kernels."""
    need_nvcc()
    rows = np.eye(9, dtype=np.float32)
    ran = []
    for module in (cuda_module(), cuda_module(80)):
        before = translated_kernels(80).counts()
        CudaBackend(module, "cpu").masked_topk(TopkRequest(rows, rows, 3, None, None))
        ran.append(translated_kernels(80).counts() != before)
    assert ran == [False, True]


@pytest.mark.parametrize("kernel", ["row_sums", "copied_sums", "group_sums"])
def test_right_kernels_are_clean(checked: Path, threaded: Path, kernel: str) -> None:
    for path, preloaded in (
        (checked, sanitizer_libraries("libasan.so", "libstdc++.so")),
        (threaded, sanitizer_libraries("libtsan.so")),
    ):
        done = run(path, kernel, order="rev", preloaded=preloaded)
        assert (done.returncode, done.stdout.strip()) == (0, "right"), done.stderr


WRONG = [("row_sums", "no_barrier"), ("copied_sums", "short_wait"), ("group_sums", "no_group_barrier")]


@pytest.mark.parametrize(("kernel", "bug"), WRONG)
def test_what_is_out_of_order_gives_a_wrong_answer(plain: Path, kernel: str, bug: str) -> None:
    assert "wrong" in answers(plain, kernel, bug)


@pytest.mark.parametrize(("kernel", "bug"), WRONG)
def test_what_is_out_of_order_gives_a_wrong_answer_as_ptx(plain: Path, translated: Path, kernel: str, bug: str) -> None:
    assert "wrong" in answers(plain, kernel, bug, translated)


REPORTED = {
    "divergent_shuffle": ("row_sums", r"reads lane 16, which does not take part"),
    "divergent_barrier": ("row_sums", r"divergent barrier in block \(0,0,0\): thread \d+ at __syncthreads line"),
    "lost_barrier": ("row_sums", r"divergent barrier"),
    "deadlock": ("row_sums", r"deadlock: every thread waits"),
    "no_arrival": ("group_sums", r"block \(0,0,0\): .*__nanosleep[\s\S]*livelock"),
}


@pytest.mark.parametrize("bug", REPORTED)
def test_the_runtime_reports(plain: Path, bug: str) -> None:
    kernel, message = REPORTED[bug]
    done = run(plain, kernel, bug)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


REPORTED_AS_PTX = {
    "out_of_bounds": (
        "row_sums",
        r"row_sums<2>.*out of bounds.*\(probe.cuh:\d+\), block \(5,0,0\) thread",
    ),
    "misaligned": ("copied_sums", r"copied_sums<3>.*misaligned global access.*16 bytes.*\(probe.cuh:\d+\)"),
    "divergent_shuffle": ("row_sums", r"row_sums<5>.*shfl.sync from a lane that takes no part"),
    "divergent_barrier": ("row_sums", r"divergent barrier|deadlock"),
    "no_arrival": ("group_sums", r"livelock"),
}


@pytest.mark.parametrize("bug", REPORTED_AS_PTX)
def test_the_runtime_reports_of_ptx(plain: Path, translated: Path, bug: str) -> None:
    kernel, message = REPORTED_AS_PTX[bug]
    done = run(plain, kernel, bug, ptx=translated)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


def test_address_sanitizer_sees_a_read_out_of_bounds(checked: Path) -> None:
    done = run(checked, "row_sums", "out_of_bounds", preloaded=sanitizer_libraries("libasan.so", "libstdc++.so"))
    assert done.returncode != 0
    assert re.search(r"heap-buffer-overflow[\s\S]*row_sums<2>.*probe\.cuh:\d+", done.stderr), done.stderr


def test_undefined_behaviour_sanitizer_sees_a_misaligned_vector(checked: Path) -> None:
    done = run(checked, "copied_sums", "misaligned", preloaded=sanitizer_libraries("libasan.so", "libstdc++.so"))
    assert done.returncode != 0
    assert re.search(r"probe\.cuh:\d+:\d+: runtime error: .*misaligned address", done.stderr), done.stderr


@pytest.mark.parametrize(("kernel", "bug"), [("row_sums", "no_barrier"), ("group_sums", "no_group_barrier")])
def test_thread_sanitizer_names_the_line(threaded: Path, kernel: str, bug: str) -> None:
    done = run(threaded, kernel, bug, preloaded=sanitizer_libraries("libtsan.so"))
    assert done.returncode != 0
    assert re.search(r"data race[\s\S]*probe\.cuh:\d+", done.stderr), done.stderr


def triton_probe(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache), "TRITON_DEFAULT_FP_FUSION": "0"}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, str(HERE / "run_triton.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_triton_kernels_run_as_ptx(tmp_path: Path) -> None:
    need_triton()
    done = triton_probe(tmp_path, *ORDERS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 6 * len(ORDERS) + 1
    assert all(line.endswith("True") for line in lines), done.stdout
    bad = triton_probe(tmp_path, "bug")
    assert bad.returncode != 0
    assert re.search(r"row_minima: global access out of bounds.*\(triton_probe.py:\d+\)", bad.stderr), bad.stderr


ENTRY = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry k(.param .u64 .ptr .align 8 out, .param .u32 n)
{
    .reg .b32 %r<8>;
    .reg .b64 %rd<4>;
    .reg .pred %p<3>;
"""


def run_text(body: str, n: int, counts: bool = False) -> tuple[list[int], Module]:
    """The 32 words that a warp of handwritten PTX leaves in `out`."""
    torch = pytest.importorskip("torch")
    need_compiler()
    module = Module(ENTRY + body + "\n}\n", counts)
    out = torch.zeros(32, dtype=torch.int32)
    module.launch("k", [1], [32], 0, [out, (n, 4)])
    return [int(word) % 2**32 for word in out], module


STORE = """
    ld.param.u64 %rd1, [out];
    cvta.to.global.u64 %rd1, %rd1;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd2, %rd1, %rd2;
    st.global.u32 [%rd2], %r2;
    ret;
"""


def test_ptx_with_a_switch_scopes_and_predicates() -> None:
    words, module = run_text(
        """
    mov.u32 %r1, %tid.x;
    ld.param.u32 %r3, [n];
    rem.u32 %r4, %r1, 3;
    $targets: .branchtargets $zero, $one, $two;
    @%p2 bra $two;
    brx.idx %r4, $targets;
$zero:
    mov.b32 %r2, 0xFF;
    bra.uni $end;
$one:
    { .reg .b32 %t; .reg .b32 %r5; mov.b32 %r5, 7; add.s32 %t, %r3, %r5; mov.b32 %r2, %t; }
    bra.uni $end;
$two:
    { .reg .b32 %t; mov.b32 %t, 3; bfi.b32 %r2, %t, %r3, 4, 8; }
$end:
    setp.gt.and.u32 %p1, %r1, 29, !%p2;
    @!%p1 add.s32 %r2, %r2, 1000;"""
        + STORE,
        9,
        counts=True,
    )
    by_case = [0xFF, 16, 0x39]
    assert words == [by_case[t % 3] + (0 if t > 29 else 1000) for t in range(32)]
    assert module.counts()["brx.idx"] == 32
    assert module.counts()["bfi.b32"] == 10


INSTRUCTIONS = {
    "bfe.s32 %r2, 0x80, 4, 4": 0xFFFFFFF8,
    "bfe.u32 %r2, 0x80, 4, 4": 8,
    "add.sat.s32 %r2, 0x7fffffff, 5": 0x7FFFFFFF,
    "shf.l.clamp.b32 %r2, 1, 2, 40": 1,
    "shr.s32 %r2, 0x80000000, 77": 0xFFFFFFFF,
    "shl.b32 %r2, 1, 32": 0,
    "cvt.rzi.s32.f32 %r2, 0fCF800000": 0x80000000,
    "cvt.rni.s32.f32 %r2, 0f40200000": 2,
    "cvt.rn.bf16x2.f32 %r2, 0f3F800000, 0f3F808000": 0x3F803F80,
    "cvt.rna.tf32.f32 %r2, 0f3F801000": 0x3F802000,
    "lop3.b32 %r2, 12, 10, 6, 0x96": 0,
    "prmt.b32 %r2, 0x44332211, 0x88776655, 0x9170": 0x00228811,
    "bfind.u32 %r2, 0x1234": 12,
    "mul.hi.s32 %r2, 0x80000000, 6": 0xFFFFFFFD,
    "redux.sync.add.s32 %r2, 3, 0xffffffff": 96,
    "match.all.sync.b32 %r2, 5, 0xffffffff": 0xFFFFFFFF,
}


def test_single_instructions() -> None:
    body = "    ld.param.u64 %rd1, [out];\n"
    body += "".join(f"    {one};\n    st.global.u32 [%rd1+{4 * k}], %r2;\n" for k, one in enumerate(INSTRUCTIONS))
    words = run_text(body + "    ret;", 0)[0]
    assert dict(zip(INSTRUCTIONS, words, strict=False)) == INSTRUCTIONS


@pytest.mark.parametrize(
    "instruction",
    ["min.s16x2 %r2, 1, 2", "fma.rz.f32 %r2, 0f3F800000, 0f3F800000, 0f3F800000", "wgmma.fence.sync.aligned"],
)
def test_unknown_instructions_are_refused_with_their_line(instruction: str) -> None:
    with pytest.raises(NotImplementedError, match=f"PTX line 11: {instruction.split()[0]}"):
        Translator().translate(f"{ENTRY}    mov.u32 %r1, %tid.x;\n    {instruction};\n    ret;\n}}")


def test_ptx_that_is_not_understood() -> None:
    with pytest.raises(PtxError, match="line 10: unknown directive"):
        Translator().translate(ENTRY + "    .texmode_independent x;\n}")
    with pytest.raises(NotImplementedError, match="functions"):
        Translator().translate(".visible .func f()\n{ ret; }\n" + ENTRY + "ret; }")
