"""masked_topk on tensor cores, as source and as compiled code on the CPU, has the bits of the specification."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from emulation.build import cuda_module
from emulation.needs import need_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masked_topk import integers, masks
from test_topk_floats import requests

from lpkernel import limits
from lpkernel.backends import cuda_launches, device_bank, device_steps, device_walk
from lpkernel.backends.base import TopkRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.specification import NumpyBackend

SPECIFICATION = NumpyBackend()
KINDS = [(dtype, mask) for dtype in ("float32", "int16") for mask in ("none", "shared", "own")]


def test_limits_are_those_of_python() -> None:
    names = ("CHUNK", "CODE_SHIFT", "FETCHERS", "MOST_CUT", "MOST_LISTED", "MOST_NEIGHBOURS", "MOST_ROW_CODES")
    of_python = {name: getattr(cuda_launches, name) for name in (*names, "MOST_THREADS", "REFINE_SIDE")}
    of_python |= {name: getattr(limits, name) for name in ("INT16_CODES", "MOST_SIDE")}
    of_python |= {name: getattr(device_bank, name) for name in ("CHANNEL_STEP", "CODE_STEP", "TABLE_STEP")}
    of_python |= {name: getattr(device_steps, name) for name in ("MOST_SLICED", "SLICE")}
    of_python |= {name: getattr(device_walk, name) for name in ("ROW_STEP", "WALK_IMAGES", "WALK_SIDE", "WALK_VALUES")}
    assert of_python == cuda_module().LIMITS


@pytest.fixture(scope="module")
def source() -> CudaBackend:
    """The kernels as g++ compiles them: for tests that depend on the numbers, not on the compiler."""
    need_compiler()
    return CudaBackend(cuda_module(), "cpu")


def check(cuda: CudaBackend, request: TopkRequest, stride: int = 2) -> None:
    """Distances and indices have the bits of the specification."""
    cuda.tuning = Tuning(search=(8, 2, 1, 2, stride))
    with np.errstate(all="ignore"):
        want, got = SPECIFICATION.masked_topk(request), cuda.masked_topk(request)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.distances.view(np.int32), want.distances.view(np.int32))


def survivors(cuda: CudaBackend, request: TopkRequest, stride: int = 2) -> np.ndarray:
    """(Q,) number of rows measured for each query: the counts that the kernels leave at the end of their scratch."""
    (count, width), rows, k = request.queries.shape, len(request.bank), request.k
    integer, own = request.bank.dtype == np.int16, request.patch_mask is not None and request.patch_mask.ndim == 2
    native, launch = cuda._native(), (8, 2, 1, 1, stride)
    weighted = request.weights is not None
    size = native.masked_topk_scratch(count, rows, width, k, own, weighted, launch)
    room = torch.zeros(size // 8 + 2 * count * k + 2, dtype=torch.int64)
    start = -room.data_ptr() % 16
    at, results = room.data_ptr() + start, room.data_ptr() + start + size

    def span(array: Any) -> tuple[int, int] | None:
        return None if array is None else (array.ctypes.data, array.nbytes)

    native.masked_topk(
        *(span(request.queries), span(request.bank), span(request.patch_mask), own, span(request.candidate_mask)),
        span(request.weights),
        *(count, rows, width, k, integer, (results, 4 * count * k), (results + 8 * count * k, 8 * count * k)),
        *((at, size), 0, 0, launch),
    )
    end = start + size - -(-(count + 1) * 4 // 256) * 256
    found: np.ndarray = room.view(torch.uint8)[end : end + 4 * count].numpy().view(np.uint32)
    return found


@pytest.mark.compiled
@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_ties_masks_and_candidates(cuda: CudaBackend, dtype: str, kind: str) -> None:
    """Small integers, so that most distances occur often; several tiles of queries and rows, two stages of columns."""
    queries, bank = integers(dtype, 130, 250, 40)
    candidates = None if dtype == "int16" and kind != "own" else np.random.default_rng(0).random(250) < 0.5
    check(cuda, TopkRequest(queries, bank, 10, masks(kind, 130, 40), candidates))


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
def test_few_rows_are_measured(cuda: CudaBackend, dtype: str, kind: str) -> None:
    """The screen's purpose: of rows that differ, only a small multiple of K is left, with a common offset or not."""
    random = np.random.default_rng(1)
    for offset in (0, 1000):
        queries, bank = ((random.standard_normal((n, 64)) * 90 + offset).astype(dtype) for n in (20, 512))
        request = TopkRequest(queries, bank, 3, masks(kind, 20, 64), None)
        check(cuda, request, 4)
        left = survivors(cuda, request, 4)
        assert left.min() >= 3 and left.mean() < 40, left


@pytest.mark.parametrize(("dtype", "kind"), KINDS)
@pytest.mark.parametrize("width", [132, 260, 512, 516])
def test_rows_in_registers_and_beyond(source: CudaBackend, dtype: str, kind: str, width: int) -> None:
    """Four columns a lane, rows of 8, 16 and 32 lanes, and longer rows, read again; some values NaN or infinite."""
    random = np.random.default_rng(width)
    queries, bank = ((random.standard_normal((n, width)) * 30).astype(dtype) for n in (3, 140))
    if dtype == "float32":
        bank[::7, width // 2], bank[3::11, 1] = np.nan, np.inf
    check(source, TopkRequest(queries, bank, 5, masks(kind, 3, width), None))


@pytest.mark.parametrize("k", [1, 24, 25, 128])
def test_thresholds_of_many_minima(source: CudaBackend, k: int) -> None:
    """More groups than a warp holds: the next larger minimum for small K, else bit by bit; with and without ties."""
    random = np.random.default_rng(k)
    for spread in (1000, 8):
        queries, bank = ((random.standard_normal((n, 2)) * spread).round().astype(np.float32) for n in (2, 9000))
        source.tuning = Tuning(search=(8, 1, 1, 2, 1))
        request = TopkRequest(queries, bank, k, None, None)
        want, got = SPECIFICATION.masked_topk(request), source.masked_topk(request)
        np.testing.assert_array_equal(got.indices, want.indices)


def test_many_slabs_are_merged(source: CudaBackend) -> None:
    """One query has more slabs than there are warps; their lists end early or not."""
    random = np.random.default_rng(3)
    for k, spread in ((10, 1000), (128, 9)):
        queries, bank = ((random.standard_normal((n, 1)) * spread).astype(np.float32) for n in (1, 20_000))
        source.tuning = Tuning(search=(2, 1, 1, 150, 0))
        request = TopkRequest(queries, bank, k, None, None)
        want, got = SPECIFICATION.masked_topk(request), source.masked_topk(request)
        np.testing.assert_array_equal(got.indices, want.indices)


@pytest.mark.parametrize("kind", ["none", "own"])
@pytest.mark.parametrize(
    ("low", "high"), [(1e-45, 1e-40), (1e-24, 1e-18), (1e9, 1e10), (1e17, 5e18), (1e19, 3e38), (-3e38, 3e38)]
)
def test_the_ends_of_float32(source: CudaBackend, low: float, high: float, kind: str) -> None:
    """Squares that underflow or overflow, all rows or every third."""
    random = np.random.default_rng(2)
    for every in (1, 3):
        bank = random.standard_normal((200, 9)).astype(np.float32)
        bank[::every] = random.uniform(low, high, bank[::every].shape)
        queries = np.concatenate([bank[100:104], random.standard_normal((2, 9)).astype(np.float32)])
        check(source, TopkRequest(queries, bank, 7, masks(kind, 6, 9), None))


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["none", "own"])
def test_cancellation(cuda: CudaBackend, kind: str) -> None:
    """Rows that float16 cannot tell apart, all rounded the same way, on both sides of the origin."""
    random = np.random.default_rng(3)
    steps, signs = (random.choice(values, (220, 1)) for values in (np.arange(-9, 10), [-1, 1]))
    bank = np.broadcast_to(signs * (1 + steps * 2.0**-13), (220, 33)).astype(np.float32)
    bank += random.integers(-2, 3, bank.shape).astype(np.float32) * np.float32(2.0**-15)
    check(cuda, TopkRequest(np.ascontiguousarray(bank[::7]), bank, 5, masks(kind, 32, 33), None))


@pytest.mark.parametrize("kind", ["none", "own"])
def test_rows_of_all_magnitudes(source: CudaBackend, kind: str) -> None:
    """Powers of two from 2^-60 to 2^60 within a row, and of rows and queries."""
    random = np.random.default_rng(4)
    bank, queries = (
        (
            random.standard_normal((n, 12))
            * 2.0 ** random.integers(-30, 31, (n, 12))
            * 2.0 ** random.integers(-30, 31, (n, 1))
        )
        for n in (150, 30)
    )
    check(source, TopkRequest(queries.astype(np.float32), bank.astype(np.float32), 6, masks(kind, 30, 12), None))


@pytest.mark.parametrize("hidden", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["shared", "own"])
def test_what_a_mask_hides_does_not_count(cuda: CudaBackend, hidden: float, kind: str) -> None:
    queries, bank = integers("float32", 6, 200, 20)
    mask = masks(kind, 6, 20)
    assert mask is not None
    mask[..., 3] = False
    bank[::2, 3] = queries[1, 3] = hidden
    check(cuda, TopkRequest(queries, bank, 5, mask, None))


@pytest.mark.compiled
def test_more_survivors_than_a_list_holds(cuda: CudaBackend) -> None:
    """Many equal rows overflow the lists of some queries only: those are redone."""
    queries, bank = integers("float32", 4, 1500, 8, spread=50)
    bank[:1300] = bank[0]
    queries[:2] = bank[:2] + 1
    request = TopkRequest(queries, bank, 6, None, None)
    left = survivors(cuda, request)
    assert left.max() > 1024 > left.min()
    check(cuda, request)
    check(cuda, TopkRequest(queries.astype(np.int16), np.broadcast_to(np.int16(7), (1100, 8)).copy(), 6, None, None))


@pytest.mark.parametrize(
    ("count", "rows", "k", "stride"), [(1, 1, 1, 2), (3, 5, 3, 2), (2, 129, 128, 3), (5, 130, 100, 8), (129, 40, 40, 1)]
)
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_small_banks_and_large_k(source: CudaBackend, dtype: str, count: int, rows: int, k: int, stride: int) -> None:
    """Less than a tile, more neighbours than the sample has rows, more than the allowed rows."""
    queries, bank = integers(dtype, count, rows, 5)
    for candidates in (None, np.arange(rows) % 3 == 0):
        check(source, TopkRequest(queries, bank, k, None, candidates), stride)


def test_all_of_int16(cuda: CudaBackend) -> None:
    """Values that float16 rounds, as far as distances fit int32; and an offset that leaves none to round."""
    random = np.random.default_rng(5)
    for low, high, width in ((-11000, 11001, 4), (30000, 32001, 130)):
        queries, bank = (random.integers(low, high, (n, width)).astype(np.int16) for n in (9, 260))
        check(cuda, TopkRequest(queries, bank, 4, masks("own", 9, width), None))


def test_widths_without_a_screen(cuda: CudaBackend) -> None:
    for width, own in ((0, False), (8193, False), (4097, True)):
        native = cuda._native()
        direct, screened = (native.masked_topk_scratch(3, 50, width, 2, own, False, (8, 1, 1, 1, n)) for n in (0, 2))
        assert direct == screened == 0
        queries, bank = integers("int16", 3, 50, width)
        check(cuda, TopkRequest(queries, bank, 2, masks("own", 3, width) if own else None, None))
    assert native.masked_topk_scratch(3, 50, 8192, 2, False, False, (8, 1, 1, 1, 2)) > 2 * 256 * 8192


@pytest.mark.parametrize("order", ["rev", "1", "2"])
def test_any_order_of_threads(source: CudaBackend, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_ORDER", order)
    for dtype, kind in KINDS[1:]:
        queries, bank = integers(dtype, 9, 200, 40)
        check(source, TopkRequest(queries, bank, 33, masks(kind, 9, 40), None))


@settings(max_examples=20, deadline=None)
@given(request=requests(), stride=st.integers(1, 5))
def test_special_values(source: CudaBackend, request: TopkRequest, stride: int) -> None:
    check(source, request, stride)


def test_the_screen_is_chosen_for_many_queries(cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """And it is left out where its copies would not fit."""
    assert cuda_launches.choose_stride(4096, 30_000, 10) == cuda_launches.SCREEN_STRIDE
    assert cuda_launches.choose_stride(31, 30_000, 10) == cuda_launches.choose_stride(4096, 1000, 10) == 0
    assert 30_000 // cuda_launches.choose_stride(64, 30_000, 128) >= 8 * 128
    cuda.tuning = Tuning()
    queries, bank = integers("float32", 40, 5000, 4)
    request, device = TopkRequest(queries, bank, 3, None, None), torch.device("cpu")
    screened = cuda._search_of(request, device)
    assert screened.launch[-1] == 8
    monkeypatch.setattr(cuda._store.memory, "reasons", lambda need, device: ["no"] if need > screened.scratch else [])
    direct = cuda._search_of(request, device)
    assert direct.launch == (*screened.launch[:-1], 0) and direct.scratch < screened.scratch
