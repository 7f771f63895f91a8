"""masked_topk of int16 rows by rounded comparisons, which must not show: the answer is that of whole numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_topk_floats import ISAS, check

from lpkernel import _native
from lpkernel.backends.base import TopkRequest
from lpkernel.backends.cpp import CppBackend, Tuning
from lpkernel.errors import InputError
from lpkernel.search.ops import masked_topk


def rows_of(kind: str, random: np.random.Generator, size: int, width: int) -> NDArray[np.int16]:
    """Rows among which a rounded comparison would often choose wrongly; width * (max - min)^2 stays below 2^31."""
    span = min(2**16 - 1, math.isqrt((2**31 - 1) // width))
    low = max(-(2**15), 2**15 - 1 - span)  # so that the largest are far from 0
    if kind == "ties":
        values = random.integers(-1, 2, (size, width))
    elif kind == "widest":
        values = random.choice([low, low + 1, low + span - 1, low + span], (size, width))
    elif kind == "far":
        values = 2**15 - 1 - random.integers(0, 3, (size, width))
    elif kind == "nearly equal":
        values = random.integers(low, low + span, width) + random.integers(0, 2, (size, width))
    else:  # "single": one value of a row
        values = np.eye(width, dtype=int)[random.integers(width, size=size)] * random.integers(1, span + 1, (size, 1))
        values = np.minimum(values, 2**15 - 1)
    return values.astype(np.int16)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["ties", "widest", "far", "nearly equal", "single"])
@pytest.mark.parametrize("widths", [(1, 8), (9, 140)])
def test_many_queries(isa: str, kind: str, widths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    backend = CppBackend()
    backend.tuning = Tuning(packed=1)

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        count=st.integers(1, 120),
        rows=st.integers(1, 150),
        width=st.integers(*widths),
        k=st.integers(1, 150),
        mask=st.sampled_from(["none", "shared", "own"]),
        allowed=st.sampled_from([1.0, 0.7, 0.0]),
    )
    def any_request(seed: int, count: int, rows: int, width: int, k: int, mask: str, allowed: float) -> None:
        random = np.random.default_rng(seed)
        both = rows_of(kind, random, count + rows, width)
        marked = {"none": None, "shared": random.random(width) < 0.9, "own": random.random((count, width)) < 0.9}[mask]
        candidates = None if allowed == 1 else random.random(rows) < allowed
        check(backend, TopkRequest(both[:count], both[count:], min(k, rows), marked, candidates))

    any_request()


@pytest.mark.skipif(not ISAS, reason=f"cpp: {_native.cpu_reasons()}")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(1, 1), (1, 2**18 - 1), (2, 2**17), (3, 100_003)])
def test_ends_of_rows(shape: tuple[int, int], threads: int) -> None:
    rows = np.random.default_rng(0).integers(-(2**15) + 1, 2**15 - 1, shape).astype(np.int16)
    assert _native.cpu().ends(rows, threads) == (rows.min(), rows.max())
    rows[-1, -1], rows[0, 0] = 2**15 - 1, -(2**15)
    assert _native.cpu().ends(rows, threads) == (rows.min(), rows.max())


def test_a_value_anywhere_in_a_large_bank_counts() -> None:
    bank = np.zeros((20_000, 4), np.int16)
    masked_topk(bank[:3], bank, 2)
    bank[-1, -1] = 23171  # 4 * 23171^2 is above 2^31
    with pytest.raises(InputError, match="span 23171 over D = 4"):
        masked_topk(bank[:3], bank, 2)


@pytest.mark.skipif(not ISAS, reason=f"cpp: {_native.cpu_reasons()}")
@pytest.mark.parametrize("threads", [1, 3])
def test_every_small_number_is_widened(threads: int) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    halves = np.tile(bits, 5).view(np.float16).reshape(5, 2**16)
    wide = _native.cpu().widened(halves, threads)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(halves))
    told = ~np.isnan(halves)
    np.testing.assert_array_equal(wide[told].view(np.int32), halves[told].astype(np.float32).view(np.int32))
    brains = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(_native.cpu().widened(bits, threads).view(np.int32), brains.view(np.int32))
    for kind in (np.uint8, np.int8):
        small = bits.astype(kind)
        assert np.array_equal(_native.cpu().widened(small, threads), small.astype(np.int16))
    for wrong in (halves.T, halves[:, ::2], bits.astype(np.int32), halves.astype(np.float64)):
        with pytest.raises(ValueError, match="values: expected"):
            _native.cpu().widened(wrong, threads)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8", "int8"])
def test_many_small_numbers_are_ranked_as_wider_ones(dtype: str) -> None:
    random = torch.Generator().manual_seed(0)
    bank = torch.randint(-100, 100, (2000, 40), generator=random).to(getattr(torch, dtype))
    wide = bank.to(torch.float32 if "float" in dtype else torch.int16)
    wanted = masked_topk(wide[:5], wide, 7)
    rows = [bank, bank.T.contiguous().T] + ([] if dtype == "bfloat16" else [bank.numpy()])
    for one in rows:
        found = masked_topk(one[:5], one, 7)
        for got, want in zip(found, wanted, strict=True):
            assert type(got) is type(one) and np.array_equal(got, want)
