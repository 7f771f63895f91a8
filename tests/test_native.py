"""The compiled extension: its random numbers, its build record, and how its absence is reported."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lpkernel import _native, limits, philox
from lpkernel.backends import specification
from lpkernel.errors import BackendUnavailable

# Random123's published vectors for philox4x32, 10 rounds: counter, key, expected.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.fixture
def extension() -> ModuleType:
    if reasons := _native.cpu_reasons():
        pytest.skip(f"cpp: {reasons[0]}")
    return _native.cpu()


@pytest.fixture
def fresh() -> Iterator[None]:
    """Clears what _native caches, before and after."""
    caches = (_native.build_record, _native._load)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(extension: ModuleType, counter: str, key: str, expected: str) -> None:
    assert extension.philox4x32_10(words(counter), words(key)) == words(expected)


def test_limits_are_those_of_python(extension: ModuleType) -> None:
    of_python = {name: getattr(limits, name) for name in ("INT16_CODES", "MOST_SIDE")}
    assert of_python | {"MOST_REFERENCES": specification.MOST_REFERENCES} == extension.LIMITS


def test_philox_and_draw_agree_with_the_specification(extension: ModuleType) -> None:
    stream = np.random.default_rng(0)
    for counter, key, count in zip(
        stream.integers(0, 2**32, (50, 4)),
        stream.integers(0, 2**32, (50, 2)),
        stream.integers(1, 2**31, 50),
        strict=True,
    ):
        out = extension.philox4x32_10(counter.tolist(), key.tolist())
        assert out == philox.philox4x32(counter, key).tolist()
        assert extension.draw_index(out[0], int(count)) == philox.pick(out[0], count)


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 30_000, 2**32 - 1])
def test_draw_index_stays_below_count_and_reaches_both_ends(extension: ModuleType, count: int) -> None:
    draws = [extension.draw_index(u, count) for u in (0, 1, 2**31, 2**32 - 1)]
    assert draws == [(u * count) >> 32 for u in (0, 1, 2**31, 2**32 - 1)]
    assert draws[0] == 0
    assert draws[-1] == count - 1


@pytest.mark.parametrize("counter", [[0, 0, 0], [0, 0, 0, 2**32], [0, 0, 0, -1]])
def test_philox_refuses_what_is_not_four_words(extension: ModuleType, counter: list[int]) -> None:
    with pytest.raises(TypeError):
        extension.philox4x32_10(counter, [0, 0])


def test_build_info_agrees_with_the_record(extension: ModuleType) -> None:
    info = extension.build_info()
    assert set(info) == {"compiler", "cxx_standard", "isa", "assertions"}
    assert info["cxx_standard"] >= 201703
    record = _native.build_record()["cpp"]
    assert "-ffp-contract=off" in record["flags"]
    assert not {"-ffast-math", "-Ofast", "-march=native"} & set(record["flags"])
    assert not [flag for flag in record["flags"] if "/" in flag]


def test_cuda_code_loads_without_a_gpu_and_counts_none() -> None:
    if reasons := _native.cuda_reasons():
        if os.environ.get("LPKERNEL_REQUIRE_GPU_CHECKS") == "1":
            pytest.fail(f"the CUDA build is required: {reasons[0]}")
        pytest.skip(f"cuda: {reasons[0]}")
    assert _native.cuda().device_count() == torch.cuda.device_count()


def test_import_loads_no_native_code() -> None:
    code = "import sys, lpkernel._native; print({'lpkernel._cpu', 'lpkernel._cuda'} & set(sys.modules) != set())"
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
    assert answer.stderr == ""


def test_no_record_means_not_installed(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_native, "_STAMP", tmp_path / "_build.json")
    assert _native.cpu_reasons() == _native.cuda_reasons() == [_native.build_record()["cpp"]["reason"]]
    assert "not installed" in _native.cpu_reasons()[0]


def test_unreadable_record_is_a_reason(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stamp = tmp_path / "_build.json"
    stamp.write_text("{")
    monkeypatch.setattr(_native, "_STAMP", stamp)
    assert "unreadable" in _native.cpu_reasons()[0]


def test_reason_of_the_build_reaches_the_user(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stamp = tmp_path / "_build.json"
    skipped = {"built": False, "reason": "switched off by LPKERNEL_CPP=0"}
    stamp.write_text(json.dumps({"version": "0", "cpp": skipped, "cuda": skipped}))
    monkeypatch.setattr(_native, "_STAMP", stamp)
    with pytest.raises(BackendUnavailable, match=r"switched off by LPKERNEL_CPP=0.*Fix: .*LPKERNEL_CPP=1"):
        _native.cpu()


def test_module_that_does_not_load_is_tried_once(fresh: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stamp = tmp_path / "_build.json"
    stamp.write_text(json.dumps({"version": "0", "cpp": {"built": True}, "cuda": {"built": False, "reason": "none"}}))
    monkeypatch.setattr(_native, "_STAMP", stamp)
    tried = []

    def broken(name: str) -> ModuleType:
        tried.append(name)
        raise ImportError("undefined symbol: x")

    monkeypatch.setattr(importlib, "import_module", broken)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="undefined symbol: x"):
            _native.cpu()
    assert tried == ["lpkernel._cpu"]


def test_numbers_of_no_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="dense array"):
        _native.cpu().widened(np.empty(3, "V0"), 1)
