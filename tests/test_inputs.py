"""masked_topk on users' inputs: every dtype, sets of queries, masks for single queries, metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import home
from hypothesis import given, settings
from hypothesis import strategies as st
from test_masked_topk import integers, masks, oracle

import lpkernel as lp
from lpkernel.backends.base import Backend
from lpkernel.errors import InputError
from lpkernel.search import double


def sorted_rows(numbers: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) indices by (number, index), NaN last."""
    return np.argsort(numbers, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "uint8", "int8"])
@pytest.mark.parametrize("mask_kind", ["none", "shared", "own"])
def test_small_integers_of_every_dtype(backend: Backend, dtype: str, mask_kind: str) -> None:
    queries, bank = integers("float32", 5, 200, 9)
    queries, bank = queries + 4, bank + 4
    mask = masks(mask_kind, 5, 9)
    want = oracle(queries, bank, 6, mask)
    device = home(backend)
    q, b = (torch.from_numpy(array).to(device, getattr(torch, dtype)) for array in (queries, bank))
    got = lp.masked_topk(q, b, 6, None if mask is None else torch.from_numpy(mask).to(device), None, backend.name)
    wider = {"float64": torch.float64, "uint8": torch.int32, "int8": torch.int32}
    assert got.distances.dtype == wider.get(dtype, torch.float32)
    assert np.array_equal(got.indices.cpu(), want[1]) and np.array_equal(got.distances.cpu(), want[0])
    if dtype != "bfloat16":
        own = lp.masked_topk(queries.astype(dtype), bank.astype(dtype), 6, mask, None, backend.name)
        assert isinstance(own.indices, np.ndarray)
        assert np.array_equal(own.indices, want[1]) and np.array_equal(own.distances, want[0])


@pytest.mark.parametrize("mask_kind", ["none", "shared", "own"])
@pytest.mark.parametrize("scale", [1.0, 1e-150, 1e120])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_float64_beyond_float32(backend: Backend, mask_kind: str, scale: float, offset: float) -> None:
    """Rows that differ in the 30th bit, under an offset, and of magnitudes beyond float32."""
    random = np.random.default_rng(3)
    bank = random.standard_normal((300, 12))
    bank[100:200] = bank[:100] * (1 + 1e-9)
    bank[200:230] = bank[:30]
    queries = bank[:20] + random.standard_normal((20, 12)) * 1e-8
    queries, bank = (queries + offset) * scale, (bank + offset) * scale
    mask = masks(mask_kind, 20, 12)
    used = np.ones((20, 12)) if mask is None else np.broadcast_to(mask, (20, 12))
    exact = (np.square(queries[:, None] - bank) * used[:, None]).sum(2)
    got = lp.masked_topk(queries, bank, 5, mask, None, backend.name)
    assert got.distances.dtype == np.float64
    assert np.array_equal(got.indices, sorted_rows(exact, 5))
    np.testing.assert_allclose(got.distances, np.take_along_axis(exact, got.indices, 1), rtol=1e-14)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_float64(backend: Backend, data: st.DataObject) -> None:
    """Few special values, so that ties, infinities and NaN are everywhere; with weights and candidates too."""
    values = np.array([0, 1, 1 + 2**-40, 2, -1, 1e-200, 1e200, np.inf, np.nan])[: data.draw(st.sampled_from([5, 7, 9]))]
    count, rows, width = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 40)), data.draw(st.integers(0, 4))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    queries, bank = random.choice(values, (count, width)), random.choice(values, (rows, width))
    columns = random.choice([0.5, 1.0, 3.0], width)
    allowed = random.random(rows) < 0.7
    k = data.draw(st.integers(1, rows))
    with np.errstate(all="ignore"):
        exact = (np.square(queries[:, None] - bank) * columns).sum(2)[:, allowed]
    order = sorted_rows(exact, k)
    got = lp.masked_topk(queries, bank, k, None, allowed, backend.name, column_weights=columns)
    found = order.shape[1]
    assert np.array_equal(got.indices[:, :found], np.flatnonzero(allowed)[order])
    assert (got.indices[:, found:] == -1).all() and (got.distances[:, found:] == np.inf).all()
    np.testing.assert_allclose(got.distances[:, :found], np.take_along_axis(exact, order, 1), rtol=1e-14)


@pytest.mark.parametrize(("low", "high"), [(1e-30, 3e-30), (1e-45, 1e-40), (1e20, 1e21), (1e19, 3e38)])
@pytest.mark.parametrize("weighted", [False, True])
def test_squares_beyond_float32_are_ranked(backend: Backend, low: float, high: float, weighted: bool) -> None:
    """Rows whose sums underflow or overflow, among rows whose sums do not; distances are what float32 can hold."""
    random = np.random.default_rng(5)
    bank = random.uniform(low, high, (400, 6)).astype(np.float32)
    bank[::50] = random.standard_normal((8, 6))
    queries = np.concatenate([bank[20:24], np.zeros((1, 6), np.float32), random.uniform(low, high, (3, 6))])
    queries = queries.astype(np.float32)
    weights = random.choice([0.5, 1, 4.0], 400) if weighted else np.ones(400)
    exact = np.square(queries[:, None].astype(float) - bank).sum(2) * weights
    if weighted and backend.name not in ("numpy", "torch", "cpp"):
        pytest.skip("no weights")
    got = lp.masked_topk(
        queries, bank, 12, None, None, backend.name, weights if weighted else None, return_weighted=weighted
    )
    assert np.array_equal(got.indices, sorted_rows(exact, 12))
    with np.errstate(over="ignore"):
        assert np.array_equal(got.distances, np.take_along_axis(exact, got.indices, 1).astype(np.float32))


def test_equal_rows_are_not_taken_for_an_underflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distance of 0 between equal rows is exact, so searching a bank for its own rows is not repeated in float64."""
    bank = np.random.default_rng(6).standard_normal((50, 4)).astype(np.float32)
    monkeypatch.setattr(double, "search", None)
    assert lp.masked_topk(bank, bank, 1).indices[:, 0].tolist() == list(range(50))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("own_bank", [False, True])
@pytest.mark.parametrize("own_rows", ["none", "shared", "queries", "sets"])
@pytest.mark.parametrize("own_mask", ["none", "shared", "own", "sets"])
def test_sets_of_queries(kind: str, own_bank: bool, own_rows: str, own_mask: str) -> None:
    random = np.random.default_rng(7)
    queries = random.integers(-3, 4, (3, 5, 6)).astype(np.float32)
    bank = random.integers(-3, 4, (3, 20, 6) if own_bank else (20, 6)).astype(np.float32)
    shapes = {"none": None, "shared": (20,), "queries": (5, 20), "sets": (3, 5, 20)}
    allowed = None if own_rows == "none" else random.random(shapes[own_rows]) < 0.5
    masked = {"none": None, "shared": (6,), "own": (5, 6), "sets": (3, 5, 6)}
    mask = None if own_mask == "none" else random.random(masked[own_mask]) < 0.6
    arrays: list[Any] = [queries, bank, mask, allowed]
    if kind == "torch":
        arrays = [None if array is None else torch.from_numpy(array) for array in arrays]
    got = lp.masked_topk(arrays[0], arrays[1], 4, arrays[2], arrays[3])
    assert tuple(got.indices.shape) == (3, 5, 4)
    for i in range(3):
        own = bank[i] if own_bank else bank
        patch = mask[i] if own_mask == "sets" else mask  # type: ignore[index]
        patch = np.broadcast_to(np.ones(6, bool) if patch is None else patch, (5, 6))
        rows = np.ones(20, bool) if allowed is None else allowed[i] if own_rows == "sets" else allowed
        rows = np.broadcast_to(rows, (5, 20))
        for j in range(5):
            want = oracle(queries[i, j : j + 1], own, 4, patch[j : j + 1], rows[j])
            assert np.array_equal(got.distances[i, j], want[0][0]) and np.array_equal(got.indices[i, j], want[1][0])


def test_no_sets_and_no_queries() -> None:
    bank = np.zeros((4, 3), np.float32)
    for own in (bank, np.zeros((0, 4, 3), np.float32)):
        assert lp.masked_topk(np.zeros((0, 2, 3), np.float32), own, 2).indices.shape == (0, 2, 2)
    assert lp.masked_topk(np.zeros((0, 3), np.float32), bank, 2, None, np.ones((0, 4), bool)).indices.shape == (0, 2)


@pytest.mark.parametrize("kind", ["none", "shared"])
def test_cosine(backend: Backend, kind: str) -> None:
    random = np.random.default_rng(8)
    queries, bank = (random.standard_normal((n, 10)).astype(np.float32) for n in (30, 300))
    bank[50:100] = bank[:50] * np.float32(3)  # the same direction
    bank[7], queries[3] = 0, 0
    mask = masks(kind, 30, 10)
    got = lp.masked_topk(queries, bank, 6, mask, None, backend.name, metric="cosine")
    q, b = (array.astype(float)[:, slice(None) if mask is None else mask] for array in (queries, bank))
    with np.errstate(invalid="ignore"):
        cosine = (q @ b.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    want = np.where(np.isnan(cosine), 1.0, 1 - cosine)
    np.testing.assert_allclose(got.distances, np.sort(want, 1)[:, :6], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(np.take_along_axis(want, got.indices, 1), got.distances, rtol=1e-5, atol=1e-7)
    assert got.indices[3].tolist() == list(range(6)) and (got.distances[3] == 1).all()
    reference = lp.masked_topk(queries, bank, 6, mask, None, "numpy", metric="cosine")
    assert np.array_equal(got.indices, reference.indices) and np.array_equal(got.distances, reference.distances)


def test_inner_products(backend: Backend) -> None:
    """Small integers, where every product is exact: largest first, ties by index, -inf in empty slots."""
    for dtype in ("float32", "float64", "int16"):
        queries, bank = integers(dtype, 20, 150, 8)
        products = queries.astype(int) @ bank.astype(int).T
        got = lp.masked_topk(queries, bank, 5, backend=backend.name, metric="ip")
        assert np.array_equal(got.indices, sorted_rows(-products, 5))
        assert np.array_equal(got.distances, -np.sort(-products, 1)[:, :5])
        few = lp.masked_topk(queries, bank, 3, None, np.arange(150) == 4, backend.name, metric="ip")
        assert few.indices[0].tolist() == [4, -1, -1] and (few.distances[:, 1:] == -np.inf).all()
    queries, bank = (np.random.default_rng(9).standard_normal((n, 40)) for n in (50, 500))
    got = lp.masked_topk(queries, bank, 7, backend=backend.name, metric="ip")
    assert np.array_equal(got.indices, sorted_rows(-queries @ bank.T, 7))


def test_root_of_l2(backend: Backend) -> None:
    queries, bank = integers("float32", 6, 80, 8)
    plain = lp.masked_topk(queries, bank, 5, backend=backend.name)
    for kind in (np.asarray, torch.from_numpy):
        got = lp.masked_topk(kind(queries), kind(bank), 5, backend="cpp", metric="sqrt")
        assert np.array_equal(got.indices, plain.indices) and np.array_equal(got.distances, np.sqrt(plain.distances))
    weights = np.random.default_rng(1).choice([0.5, 1.0, 2.0], 80)
    got = lp.masked_topk(queries, bank, 5, bank_weights=weights, return_weighted=True, metric="sqrt")
    exact = np.square(queries[:, None].astype(float) - bank).sum(2) * weights**2
    assert np.array_equal(got.indices, sorted_rows(exact, 5))
    assert np.array_equal(got.distances, np.sqrt(np.sort(exact, 1)[:, :5].astype(np.float32)))


@pytest.mark.parametrize("mask_kind", ["none", "shared", "own"])
@pytest.mark.parametrize("dtype", ["float32", "int16", "float64"])
def test_column_weights(backend: Backend, mask_kind: str, dtype: str) -> None:
    queries, bank = integers(dtype, 9, 120, 7)
    columns = np.array([1, 0.25, 0, 2, 8, 0.5, 1], np.float32)
    mask = masks(mask_kind, 9, 7)
    used = np.ones((9, 7)) if mask is None else np.broadcast_to(mask, (9, 7))
    exact = (np.square(queries[:, None].astype(float) - bank) * used[:, None] * columns).sum(2)
    got = lp.masked_topk(queries, bank, 6, mask, None, backend.name, column_weights=columns)
    assert got.distances.dtype == (np.float64 if dtype == "float64" else np.float32)
    assert np.array_equal(got.indices, sorted_rows(exact, 6))
    assert np.array_equal(got.distances, np.sort(exact, 1)[:, :6])


def test_gradients_are_left_out() -> None:
    queries, bank = (torch.rand(n, 5, dtype=torch.float64, requires_grad=True) for n in (3, 20))
    for options in ({}, {"metric": "cosine"}, {"metric": "ip"}, {"metric": "sqrt"}):
        got = lp.masked_topk(queries, bank, 2, **options)  # type: ignore[arg-type]
        assert not got.distances.requires_grad
        assert torch.equal(got.indices, lp.masked_topk(queries.detach(), bank.detach(), 2, **options).indices)  # type: ignore[arg-type]


def test_a_query_with_nan(backend: Backend) -> None:
    """As documented: the lowest allowed rows, at distance NaN; a NaN hidden by a mask does not count."""
    queries, bank = integers("float32", 2, 9, 4)
    queries[0, 1] = np.nan
    for dtype in ("float32", "float64"):
        given = queries.astype(dtype), bank.astype(dtype)
        got = lp.masked_topk(*given, 3, None, np.arange(9) > 1, backend.name)
        assert got.indices[0].tolist() == [2, 3, 4] and np.isnan(got.distances[0]).all()
        assert not np.isnan(got.distances[1]).any()
        hidden = lp.masked_topk(*given, 3, np.arange(4) != 1, None, backend.name)
        assert not np.isnan(hidden.distances).any()


def test_compiled_with_torch() -> None:
    queries, bank = (torch.from_numpy(a) for a in integers("float32", 3, 20, 8))
    compiled = torch.compile(lambda q, b: lp.masked_topk(q * 2, b, 4).indices, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(queries, bank), lp.masked_topk(queries * 2, bank, 4).indices)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"metric": "l1"}, "metric"),
        ({"queries": np.zeros((3, 8), np.int64), "bank": np.zeros((20, 8), np.int64)}, "int64"),
        ({"column_weights": np.ones(7)}, "column_weights"),
        ({"column_weights": -np.ones(8)}, "column_weights"),
        ({"candidate_mask": np.ones((3, 19), bool)}, "candidate_mask"),
        ({"candidate_mask": np.ones((3, 20))}, "candidate_mask"),
        ({"metric": "cosine", "patch_mask": np.ones((3, 8), bool)}, "patch_mask"),
        ({"metric": "ip", "bank_weights": np.ones(20)}, "bank_weights"),
        ({"queries": np.zeros((2, 3, 8), np.float32), "bank": np.zeros((3, 20, 8), np.float32)}, "bank"),
        ({"queries": np.zeros((2, 3, 4, 8), np.float32)}, r"\(N, Q, D\)"),
        ({"metric": "cosine", "k": 21}, "k"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], word: str) -> None:
    queries, bank = integers("float32", 3, 20, 8)
    with pytest.raises(InputError, match=word):
        lp.masked_topk(**{"queries": queries, "bank": bank, "k": 4, **change})


@pytest.mark.parametrize("k", [3.5, None, "3", np.float32(2.5)])
def test_neighbours_are_a_whole_number(k: Any) -> None:
    rows = np.zeros((5, 4), np.float32)
    for name in ("cpp", "torch", "numpy"):
        with pytest.raises(InputError, match=r"^k: got "):
            lp.masked_topk(rows, rows, k, backend=name)
