"""The Triton engine without a GPU: its kernels in processes of their own, its choices and refusals here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from emulation.needs import need_triton
from lpkernel.triton_kernels import configs
from scans import World

from lpkernel import plan
from lpkernel.backends import registry, triton_lang
from lpkernel.backends.base import CodeBank, ScanRequest, TopkRequest
from lpkernel.backends.device_bank import search_bytes
from lpkernel.backends.triton_lang import TritonBackend
from lpkernel.errors import BackendUnavailable, InputError
from lpkernel.info import info

HERE = Path(__file__).parent
# Tests of the op around the kernels: running them once is enough, and each has kernels of its own to compile.
AROUND = (
    "not (opcheck or callers_kind or graph_breaks or non_contiguous or overflow or split_and_merge or gradient"
    " or special or every_mode or equal_rows or search_radius)"
)


@pytest.mark.parametrize("rung", ["interpreter", pytest.param("ptx", marks=pytest.mark.thorough)])
def test_kernels_equal_the_specification(rung: str, tmp_path: Path) -> None:
    """triton_checks.py in Triton's interpreter, and as PTX for sm_80 executed on the CPU."""
    need_triton()
    environment = {**os.environ, "LPKERNEL_TRITON": rung, "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    environment |= {"TRITON_INTERPRET": "1"} if rung == "interpreter" else {}
    for name in ("LPKERNEL_BACKEND", "LPKERNEL_REQUIRE_BACKENDS"):
        environment.pop(name, None)
    if rung == "ptx":
        environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "triton_checks.py")]
    command += ["-k", AROUND] if rung == "ptx" else []
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    counts = re.search(r"^(\d+) passed(?!.*skipped)", done.stdout, re.M)
    assert counts and int(counts[1]) >= {"interpreter": 65, "ptx": 35}[rung], done.stdout[-2000:]


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> TritonBackend:
    """A backend that believes in a device with 1 GiB free."""
    monkeypatch.setattr(triton_lang, "_installed", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        current_device=lambda: 0,
        mem_get_info=lambda device: (1 << 30, 2 << 30),
        memory_reserved=lambda device: 0,
        memory_allocated=lambda device: 0,
        get_device_properties=lambda device: SimpleNamespace(multi_processor_count=100),
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    return TritonBackend()


def scan_request(**change: Any) -> ScanRequest:
    made = World(9, 6).request(plan.random(6, 3, scales=[6]), [0], 3, in_codes=True)
    return replace(made, **change)


def test_it_runs_where_there_is_a_gpu(a_gpu: TritonBackend) -> None:
    assert a_gpu.unavailable() == a_gpu.unsupported(scan_request()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: {"k": 129, "candidates": np.arange(200)}, "up to 128 neighbours, got k = 129"),
        (
            lambda: {"images": np.arange(10**6), "plan": plan.random(1024, 3, 3, [1024])},
            r"needs \d+ MiB on cuda:0, where 1024",
        ),
        (
            lambda: {
                "bank": CodeBank(
                    np.zeros((9, 6, 6), np.int16), np.zeros((1, 1), np.int16), np.zeros((32769, 1), np.int32)
                )
            },
            "32768 codes by table, got 32769",
        ),
    ],
)
def test_refusals(a_gpu: TritonBackend, change: Callable[[], dict[str, Any]], words: str) -> None:
    (reason,) = a_gpu.unsupported(scan_request(**change()))
    assert re.search(words, reason)


def test_neighbours_beyond_the_allowed_images_are_no_reason(a_gpu: TritonBackend) -> None:
    assert a_gpu.unsupported(scan_request(k=1000)) == []


def test_tensors_must_be_on_the_device(a_gpu: TritonBackend) -> None:
    queries: Any = torch.zeros(1, 2)
    (reason,) = a_gpu.unsupported(TopkRequest(queries, queries, 1, None, None))
    assert reason.startswith("runs on cuda devices only, not on cpu: move the tensors (.to('cuda')), or pass NumPy")
    assert a_gpu.unsupported(scan_request(device="cpu")) == ["runs on cuda devices only, not on cpu"]


@pytest.mark.parametrize(
    ("queries", "rows", "width", "k", "keys"),
    [
        (10, 3000, 100_000, 3, 47 * 4),  # the bank, divided into its 47 tiles
        (100_000, 10, 3000, 3, 4),  # the queries
        (7_000_000, 129, 1, 15, 16),  # results and keys, one to spare
        (2000, 10, 100_000, 3, 4),
    ],
)
def test_a_search_beyond_the_free_memory(
    a_gpu: TritonBackend, queries: int, rows: int, width: int, k: int, keys: int
) -> None:
    asked, bank = (np.broadcast_to(np.float32(0), (count, width)) for count in (queries, rows))
    need = (queries + rows) * width * 4 + queries * k * 12 + queries * keys * 8
    said = [f"needs {need / 2**20:.0f} MiB on cuda:0, where 1024 MiB are free"]
    assert a_gpu.unsupported(TopkRequest(asked, bank, k, None, None)) == (said if need > 1 << 30 else [])


def test_rows_that_lie_apart_are_not_copied() -> None:
    wide = torch.zeros((30, 20))
    rows: Any
    columns: Any
    rows, columns = wide[:, :10], wide[:, ::2]
    for bank, copied in ((rows, 0), (columns, 30 * 10 * 4)):
        assert search_bytes(TopkRequest(rows, bank, 2, None, None), 5, apart=True) == copied + 30 * 2 * 12 + 5


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(triton_lang, "_installed", triton_lang._installed.__wrapped__)  # without the cache
    (reason,) = TritonBackend().unavailable()
    assert "pip install 'lpkernel[triton]'" in reason


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    (reason,) = TritonBackend().unavailable()
    assert "sees no CUDA or ROCm device" in reason and "TRITON_INTERPRET=1" in reason


def test_auto_passes_the_interpreter_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.delenv("LPKERNEL_BACKEND", raising=False)
    assert registry.choose("triton").name == "triton"
    assert registry.choose("auto").name not in ("cuda", "triton")
    assert "triton (is only for checking; ask for it by name)" in str(info()["auto"]["reason"])


def test_importing_lpkernel_leaves_triton_alone() -> None:
    code = (
        "import sys, torch; sys.modules['triton'] = None; import lpkernel.search.ops, lpkernel.triton_kernels.configs"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_seed_out_of_range() -> None:
    with pytest.raises(InputError, match="seed: got -1"):
        TritonBackend("cpu").scan(scan_request(seed=-1))


def test_too_many_neighbours_for_a_named_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BACKENDS, "triton", TritonBackend("cpu"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(BackendUnavailable, match="up to 128 neighbours"):
        registry.choose("triton", scan_request(k=500, candidates=np.arange(300)))


@pytest.mark.parametrize("family", ["cuda", "hip"])
@pytest.mark.parametrize("in_codes", [False, True])
def test_launches(family: str, in_codes: bool) -> None:
    """Every launch covers the bank with non-empty slabs, and its merge has room for their keys."""
    for images in (1, 3, 16, 200, 10_000):
        for allowed in (1, 64, 65, 1024, 1025, 30_000):
            for k in (1, 3, 16, 17, 128):
                launch = configs.choose(family, in_codes, images, allowed, k, 1000, 132)
                slab = launch.slab(allowed)
                assert (launch.slabs - 1) * slab < allowed <= launch.slabs * slab
                assert slab % launch.tile.bank == 0 and launch.slots >= k
                assert launch.slabs * launch.slots <= configs.merged_for(launch.slabs * launch.slots)
                assert not (launch.dot and in_codes)
    few = configs.choose(family, in_codes, 16, 30_000, 3, 1000, 132)
    assert few.slabs > 1, "few images and a large bank: the bank is cut"
    assert configs.choose(family, in_codes, 16, 16, 3, 1000, 132).slabs == 1
    assert configs.choose(family, in_codes, 10_000, 30_000, 3, 1000, 132).slabs == 1


def test_what_is_shipped_is_what_runs() -> None:
    """Every tile in the tables is among the kernels compiled ahead of time, with a type for every argument."""
    need_triton()
    for family in ("cuda", "hip"):
        shipped = configs.shipped(family)
        names = [name for name, *_ in shipped]
        assert len(names) == len(set(names))
        for _, kernel, signature, constexprs, *_ in shipped:
            assert list(signature) == kernel.arg_names
            assert {name for name, kind in signature.items() if kind == "constexpr"} == set(constexprs)
        walks = {name for name in names if name.startswith("walk")}
        tiles = {
            (domain, slots, tile) for (of, domain, slots), kept in configs.SCAN.items() if of == family for tile in kept
        }
        assert len(walks) == len(tiles)
