"""The CUDA masked_topk, as source and as compiled code on the CPU, against the specification."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from emulation.build import cuda_module
from emulation.needs import need_compiler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masked_topk import integers, masks, oracle

from lpkernel.backends import cuda_launches, device_bank
from lpkernel.backends.base import TopkRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.specification import NumpyBackend

SPECIFICATION = NumpyBackend()
Launch = tuple[int, int, int, int, int]  # tile, query warps, bank warps, slabs; no screen
# None is the launch table's choice; the others put edges of tiles, warps and slabs inside small problems.
LAUNCHES: list[Launch | None] = [
    None,
    (8, 1, 1, 1, 0),
    (2, 1, 2, 3, 0),
    (8, 2, 2, 2, 0),
    (8, 8, 1, 1, 0),
    (2, 2, 1, 7, 0),
    (2, 1, 4, 1, 0),
]
KINDS = [(dtype, mask) for dtype in ("float32", "int16") for mask in ("none", "shared", "own")]
NEIGHBOURS = (1, 2, 7, 16, 31, 32, 33, 64, 127, 128)


def search(cuda: CudaBackend, request: TopkRequest, launch: Launch | None = None) -> tuple[Any, Any]:
    cuda.tuning = Tuning(search=launch)
    return cuda.masked_topk(request)


def check(cuda: CudaBackend, request: TopkRequest, launch: Launch | None = None) -> None:
    """The bits of the specification, for integers and for floats whose sums are exact in any order."""
    want, got = SPECIFICATION.masked_topk(request), search(cuda, request, launch)
    shapes = request.queries.shape, request.bank.shape
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs), (shapes, request.k, launch)


@pytest.mark.parametrize("count", [1, 3, 16, 70])
@pytest.mark.parametrize("rows", [1, 5, 63, 64, 65, 1000, 5000])
def test_shapes_and_launches(cuda: CudaBackend, count: int, rows: int) -> None:
    """Every width, type and mask; launches, K and candidates alternate, differently for each shape."""
    turns = itertools.count(count + rows)
    for width in (0, 1, 3, 31, 32, 64, 100):
        if count * rows * max(width, 8) > 1_500_000:
            continue
        for dtype, kind in KINDS:
            turn = next(turns)
            queries, bank = integers(dtype, count, rows, width, seed=turn)
            allowed = np.random.default_rng(turn).random(rows) < 0.5 if turn % 3 == 0 else None
            k = min(rows, NEIGHBOURS[turn % len(NEIGHBOURS)])
            mask = masks(kind, count, width, turn)
            check(cuda, TopkRequest(queries, bank, k, mask, allowed), LAUNCHES[turn % len(LAUNCHES)])


@pytest.mark.compiled
@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_every_k(cuda: CudaBackend, dtype: str, launch: Launch | None) -> None:
    queries, bank = integers(dtype, 5, 400, 6)
    for k in NEIGHBOURS:
        check(cuda, TopkRequest(queries, bank, k, masks("own", 5, 6), None), launch)


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_equal_rows_and_few_candidates(cuda: CudaBackend, dtype: str, launch: Launch | None) -> None:
    """Nothing but ties, and fewer allowed rows than neighbours, or none."""
    queries, bank = integers(dtype, 3, 600, 5)
    bank[:] = bank[0]
    for allowed in (None, np.arange(600) > 590, np.zeros(600, bool), np.arange(600) % 7 == 3):
        check(cuda, TopkRequest(queries, bank, 20, None, allowed), launch)


@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("kind", ["none", "shared", "own"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_floats_equal_the_specification(cuda: CudaBackend, launch: Launch | None, kind: str, offset: float) -> None:
    """Duplicates and near ties: float32 sums could not tell them apart, float64 ones do."""
    random = np.random.default_rng(3)
    bank = (random.standard_normal((700, 48)) + offset).astype(np.float32)
    bank[350:500] = bank[:150]
    bank[500:600] = bank[:100] + random.standard_normal((100, 48)).astype(np.float32) * np.float32(1e-4)
    queries = np.concatenate([bank[:6], bank[100:104] + np.float32(0.01)])
    request = TopkRequest(queries, bank, 12, masks(kind, len(queries), 48), None)
    (distances, indices), want = search(cuda, request, launch), SPECIFICATION.masked_topk(request)
    np.testing.assert_allclose(distances, want.distances, rtol=2.0**-23)
    assert np.array_equal(indices, want.indices)
    assert (distances[:6, 0] == 0).all()


def test_many_near_ties(cuda: CudaBackend) -> None:
    """Rows that a float32 sum orders wrongly: all are measured again, and the order is that of float64."""
    random = np.random.default_rng(4)
    bank = np.full((1500, 100), 3000, np.float32)
    bank[np.arange(1500), random.integers(0, 100, 1500)] += np.float32(2.0**-11) * random.integers(-3, 4, 1500)
    check(cuda, TopkRequest(bank[:2] + np.float32(0.5), bank, 50, None, None))


@pytest.mark.parametrize("hidden", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["shared", "own"])
def test_what_a_mask_hides_does_not_count(cuda: CudaBackend, hidden: float, kind: str) -> None:
    for width in (8, 33):
        queries, bank = integers("float32", 4, 300, width)
        mask = masks(kind, 4, width)
        assert mask is not None
        mask[..., 3] = False
        want = oracle(queries, bank, 5, mask)
        bank[::2, 3] = hidden
        queries[1, 3] = hidden
        for launch in LAUNCHES:
            got = search(cuda, TopkRequest(queries, bank, 5, mask, None), launch)
            assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


@pytest.mark.compiled
@pytest.mark.parametrize("k", [2, 6, 40])
def test_nan_infinity_and_the_ends_of_float32(cuda: CudaBackend, k: int) -> None:
    """NaN after infinity, both after the rest; sums that overflow or underflow; ties go to the lowest row."""
    values = [np.nan, np.inf, 3e38, 1e19, 1.9e19, 1e-30, 1e-23, 3e-23, 1e-45, 0, -np.inf, -0.0, np.nan, 2e-23, 1]
    bank = np.array(values * 20, np.float32)[:, None]
    queries = np.array([[0.0], [1e19], [np.inf], [np.nan]], np.float32)
    for launch in LAUNCHES:
        request = TopkRequest(queries, bank, k, None, None)
        with np.errstate(invalid="ignore", over="ignore"):
            want = SPECIFICATION.masked_topk(request)
        distances, indices = search(cuda, request, launch)
        np.testing.assert_array_equal(distances, want.distances)
        assert np.array_equal(indices, want.indices)


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_rows_at_any_address(cuda: CudaBackend, dtype: str) -> None:
    """Banks that begin at odd places of memory are read in smaller units."""
    for width in (8, 6, 5):
        queries, bank = (torch.from_numpy(array) for array in integers(dtype, 3, 200, width))
        want = SPECIFICATION.masked_topk(TopkRequest(queries.numpy(), bank.numpy(), 9, None, None))
        for offset in (0, 1, 2, 4):
            room = torch.zeros(bank.numel() + offset, dtype=bank.dtype)
            moved = room[offset:].view(bank.shape)
            moved.copy_(bank)
            got = search(cuda, TopkRequest(queries, moved, 9, None, None))  # type: ignore[arg-type]
            assert isinstance(got[0], torch.Tensor)
            assert np.array_equal(got[0], want.distances) and np.array_equal(got[1], want.indices)


def test_widest_int16(cuda: CudaBackend) -> None:
    """The whole range of int16, as far as distances fit int32."""
    bank = np.array([[-23170], [0], [23170], [23169]], np.int16)
    check(cuda, TopkRequest(bank[[0, 2]], bank, 4, None, None))


@pytest.mark.parametrize("order", ["rev", "1", "2", "3"])
def test_any_order_of_threads(cuda: CudaBackend, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_ORDER", order)
    for launch, (dtype, kind) in itertools.product(LAUNCHES, KINDS[1:]):
        queries, bank = integers(dtype, 9, 300, 40)
        check(cuda, TopkRequest(queries, bank, 33, masks(kind, 9, 40), None), launch)


@pytest.mark.compiled
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_request(cuda: CudaBackend, data: st.DataObject) -> None:
    count, rows = data.draw(st.integers(0, 20), "Q"), data.draw(st.integers(1, 400), "B")
    width, k = data.draw(st.integers(0, 70), "D"), data.draw(st.integers(1, min(128, rows)), "K")
    dtype, kind = data.draw(st.sampled_from(KINDS), "kind")
    seed = data.draw(st.integers(0, 1000), "seed")
    queries, bank = integers(dtype, count, rows, width, data.draw(st.integers(0, 8), "spread"), seed)
    allowed = np.random.default_rng(seed).random(rows) < data.draw(st.sampled_from([0, 0.1, 1]), "allowed")
    warps = data.draw(st.sampled_from([(8, 1, 1), (2, 1, 1), (8, 3, 2), (2, 2, 3), (8, 8, 1)]), "warps")
    launch = (*warps, data.draw(st.integers(1, 5), "slabs"), 0)
    check(cuda, TopkRequest(queries, bank, k, masks(kind, count, width, seed), allowed), launch)


@pytest.mark.parametrize("shared", [99 << 10, 163 << 10, 227 << 10])
@pytest.mark.parametrize("k", [1, 16, 128])
def test_launches_fit_and_fill_the_device(shared: int, k: int) -> None:
    for count, rows in itertools.product((1, 2, 3, 16, 17, 64, 10_000), (1, 128, 129, 30_000)):
        tile = cuda_launches.choose_topk(count, rows, k, shared)
        assert cuda_launches.topk_bytes(*tile, k) <= shared and tile[1] * tile[2] <= 8
        slabs = cuda_launches.choose_slabs(count, rows, tile, 264)
        assert slabs == 1 or (slabs - 1) * 128 * tile[2] < rows
    assert cuda_launches.choose_slabs(1, 30_000, cuda_launches.choose_topk(1, 30_000, k, shared), 264) >= 117


def test_shared_memory_is_that_of_the_kernels() -> None:
    need_compiler()
    native = cuda_module()
    for tile, query_warps, bank_warps, k in itertools.product((2, 8), range(1, 9), range(1, 9), (1, 3, 16, 127, 128)):
        if query_warps * bank_warps > 8:
            continue
        launch, kinds = (tile, query_warps, bank_warps, 1, 0), itertools.product((False, True), repeat=2)
        most = max(native.masked_topk_bytes(k, *kind, launch) for kind in kinds)
        assert most == cuda_launches.topk_bytes(tile, query_warps, bank_warps, k)


def test_wrong_buffers_are_refused(cuda: CudaBackend) -> None:
    """What Python passes is checked before a kernel sees it."""
    native = cuda._native()
    tensor = torch.zeros(64, dtype=torch.int64)
    room = (tensor.data_ptr(), tensor.nbytes)

    def call(**changes: Any) -> None:
        arguments = {
            **{"queries": room, "bank": room, "patch_mask": None, "per_query": False, "candidate_mask": None},
            **{"weights": None, "Q": 1, "B": 4, "D": 3, "K": 2, "is_int16": False, "distances": room, "indices": room},
            **{"scratch": room, "device": 0, "stream": 0, "launch": (8, 1, 1, 1, 0)},
        }
        native.masked_topk(**{**arguments, **changes})

    call()
    for changes, words in (
        ({"bank": (room[0], 4 * 3 * 4 - 1)}, "bank"),
        ({"bank": (0, 1000)}, "bank: null"),
        ({"queries": (room[0] + 2, 100)}, "queries"),
        ({"patch_mask": (room[0], 2)}, "patch_mask"),
        ({"patch_mask": (room[0], 3), "per_query": True, "Q": 2}, "patch_mask"),
        ({"candidate_mask": (room[0], 3)}, "candidate_mask"),
        ({"weights": (room[0], 31)}, "weights"),
        ({"weights": room, "is_int16": True}, "weights: of float32"),
        ({"indices": (room[0], 15)}, "indices"),
        ({"B": 1000, "bank": (room[0], 12_000), "scratch": (room[0], 8), "launch": (8, 1, 1, 2, 0)}, "scratch"),
        ({"K": 129}, "K"),
        ({"K": 0}, "K"),
        ({"Q": 0}, "Q, B or D"),
        ({"launch": (4, 1, 1, 1, 0)}, "tile"),
        ({"launch": (8, 3, 3, 1, 0)}, "warps"),
        ({"launch": (8, 1, 1, 0, 0)}, "slabs"),
        ({"launch": (8, 1, 1, 1)}, "launch"),
        ({"launch": (8, 1, 1, 1, -1)}, "stride"),
        ({"launch": (8, 1, 1, 1, 2), "scratch": (room[0], 512)}, "scratch"),
        ({"launch": (8, 1, 1, 2, 2), "scratch": (room[0] + 8, 1 << 30)}, "multiple of 16"),
    ):
        with pytest.raises(ValueError, match=words):
            call(**changes)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"):
        call(device=7)


@pytest.mark.parametrize("kind", ["numpy", "torch", "strided"])
def test_a_search_beyond_the_free_memory_is_refused(
    cuda: CudaBackend, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate counts copies to the device or made contiguous there, results, and the parts of a divided bank."""
    queries, bank = integers("float32", 5, 3000, 16)
    own = masks("own", 5, 16)
    arrays: list[Any] = [queries, bank, own]
    if kind != "numpy":
        arrays = [torch.from_numpy(array) for array in arrays]
    if kind == "strided":
        arrays[1] = torch.from_numpy(np.repeat(bank, 2, axis=1))[:, ::2]
    request = TopkRequest(arrays[0], arrays[1], 7, arrays[2], None)
    copies = {"numpy": queries.nbytes + bank.nbytes + 5 * 16, "torch": 0, "strided": bank.nbytes}[kind]
    cuda.tuning = Tuning()
    cuda._store.memory = device_bank.MemoryBudget()
    _, scratch = cuda._search_of(request, torch.device("cpu"))
    assert scratch >= 2 * 5 * 7 * 8  # the bank is divided
    need = copies + 5 * 7 * 12 + scratch
    monkeypatch.setattr(device_bank, "free_bytes", lambda device, enough: need)
    assert cuda.unsupported(request) == []
    monkeypatch.setattr(device_bank, "free_bytes", lambda device, enough: need - 1)
    (reason,) = cuda.unsupported(request)
    assert reason == f"needs {need / 2**20:.0f} MiB on cpu, where {need / 2**20:.0f} MiB are free"
