"""masked_topk with a weight for each bank row, and the normalised distance built on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import home
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_screen import survivors
from test_masked_topk import SHAPES, integers, masks
from test_topk_floats import ISAS, SPECIFICATION, check, requests

import lpkernel as lp
from lpkernel.backends.base import Backend, TopkRequest
from lpkernel.backends.cpp import CppBackend, Tuning
from lpkernel.backends.cuda import CudaBackend
from lpkernel.backends.cuda import Tuning as CudaTuning
from lpkernel.backends.registry import BACKENDS
from lpkernel.errors import InputError

EXTREME = [1e-300, 1e-40, 1e-20, 1e-3, 1, 1, 2, 3, 1e3, 1e9, 1e20, 3e38, 1e300]


@st.composite
def weighted(draw: st.DrawFn) -> TopkRequest:
    """A request over special values, with few different row weights, some of them extreme."""
    request = draw(requests())
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    few = draw(st.sampled_from([EXTREME, [1.0, 2.0, 4.0], [1.0]]))
    return replace(request, weights=random.choice(np.array(few, np.float64), len(request.bank)))


def able(backend: Backend, request: TopkRequest) -> Backend:
    if reasons := backend.unsupported(request):
        pytest.skip(reasons[0])
    return backend


@settings(max_examples=200, deadline=None)
@given(request=weighted())
def test_special_values(fast_backend: Backend, request: TopkRequest) -> None:
    check(able(fast_backend, request), request)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("packed", [1, 1000])
def test_every_instruction_set(isa: str, packed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    backend = CppBackend()
    backend.tuning = Tuning(packed=packed)

    @settings(max_examples=100, deadline=None)
    @given(request=weighted())
    def any_request(request: TopkRequest) -> None:
        check(backend, request)

    any_request()


@settings(max_examples=40, deadline=None)
@given(request=weighted())
def test_the_specification_by_its_definition(request: TopkRequest) -> None:
    got = SPECIFICATION.masked_topk(request)
    assert request.weights is not None
    rows = np.arange(len(request.bank)) if request.candidate_mask is None else np.flatnonzero(request.candidate_mask)
    mask = np.ones(request.queries.shape, bool) if request.patch_mask is None else request.patch_mask
    for query, columns, indices in zip(
        request.queries, np.broadcast_to(mask, request.queries.shape), got[1], strict=True
    ):
        with np.errstate(all="ignore"):
            own = [
                np.float32(
                    request.weights[row] * sum(d * d for d in query[columns].astype(float) - request.bank[row, columns])
                )
                for row in rows
            ]
        order = sorted(zip(map(np.isnan, own), own, rows, strict=True), key=lambda r: (r[0], 0 if r[0] else r[1], r[2]))
        assert indices.tolist() == ([row[2] for row in order] + [-1] * request.k)[: request.k]


@pytest.mark.parametrize("mask_kind", ["none", "shared", "own"])
@pytest.mark.parametrize(("q", "b", "d", "k"), [*SHAPES, (140, 300, 12, 5)])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_against_a_full_sort(backend: Backend, dtype: str, q: int, b: int, d: int, k: int, mask_kind: str) -> None:
    """Small integers and weights that are powers of two: every product is exact, and ties are everywhere."""
    queries, bank = integers(dtype, q, b, d)
    weights = 2.0 ** np.random.default_rng(5).integers(-2, 3, b)
    mask = masks(mask_kind, q, d)
    able(backend, TopkRequest(queries, bank, k, None, None, weights))
    used = np.broadcast_to(np.ones(d, int) if mask is None else mask, (q, d))
    exact = (np.square(queries[:, None].astype(int) - bank.astype(int)) * used[:, None]).sum(2)
    order = np.argsort(exact * weights, axis=1, kind="stable")[:, :k]
    for as_type in ("float32", "float64"):
        weighted, indices = lp.masked_topk(
            queries, bank, k, mask, None, backend.name, bank_weights=weights.astype(as_type), return_weighted=True
        )
        plain = lp.masked_topk(queries, bank, k, mask, None, backend.name, bank_weights=weights.astype(as_type))
        assert np.array_equal(indices, order) and np.array_equal(plain.indices, order)
        assert weighted.dtype == np.float32 and plain.distances.dtype == (np.int32 if dtype == "int16" else np.float32)
        assert np.array_equal(weighted, np.take_along_axis(exact * weights, order, 1))
        assert np.array_equal(plain.distances, np.take_along_axis(exact, order, 1))


@pytest.mark.parametrize("count", [7, 200])
def test_weights_over_many_magnitudes(fast_backend: Backend, count: int) -> None:
    """General floats give the indices of the specification, even with near-equal rows of near-equal weights."""
    random = np.random.default_rng(8)
    bank = (random.standard_normal((900, 27)) + 50).astype(np.float32)
    bank[450:] = bank[:450] + random.standard_normal((450, 27)).astype(np.float32) * np.float32(1e-4)
    weights = (10 ** random.uniform(-3, 3, 900)).astype(np.float32)
    weights[450:] = weights[:450] * np.float32(1 + 1e-6)
    queries = (bank[:count] + 0.1 * random.standard_normal((count, 27))).astype(np.float32)
    able(fast_backend, TopkRequest(queries, bank, 1, None, None, weights.astype(float)))
    for k in (1, 10):
        want = lp.masked_topk(queries, bank, k, backend="numpy", bank_weights=weights, return_weighted=True)
        got = lp.masked_topk(queries, bank, k, backend=fast_backend.name, bank_weights=weights, return_weighted=True)
        assert np.array_equal(got.indices, want.indices) and np.array_equal(got.distances, want.distances)


def test_empty_slots_and_unweighted_distances(backend: Backend) -> None:
    queries, bank = integers("int16", 2, 6, 4)
    weights, allowed = np.array([4, 1, 1, 1, 1, 2.0]), np.array([True, False, False, False, False, True])
    able(backend, TopkRequest(queries, bank, 1, None, None, weights))
    got = lp.masked_topk(queries, bank, 3, None, allowed, backend.name, bank_weights=weights)
    assert got.indices[:, 2].tolist() == [-1, -1] and (got.distances[:, 2] == np.iinfo(np.int32).max).all()
    got = lp.masked_topk(queries, bank, 3, None, allowed, backend.name, bank_weights=weights, return_weighted=True)
    assert (got.distances[:, 2] == np.inf).all()
    plain = lp.masked_topk(queries, bank, 3, None, allowed, backend.name, return_weighted=True)
    assert plain.distances.dtype == np.float32 and (plain.distances[:, 2] == np.inf).all()


@pytest.mark.parametrize("dtype", ["int16", "int8", "uint8"])
@pytest.mark.parametrize("weight", [1e-60, 1e60])
@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_products_of_integers_that_leave_float32_are_ranked(dtype: str, weight: float, of: Any) -> None:
    queries, bank = (rows % 100 for rows in integers("int16", 3, 20, 4))
    queries, bank = queries.astype(dtype), bank.astype(dtype)
    want = lp.masked_topk(queries, bank, 5)
    got = lp.masked_topk(of(queries), of(bank), 5, bank_weights=of(np.full(20, weight)))
    assert all(np.array_equal(*pair) for pair in zip(got, want, strict=True))
    assert str(got.distances.dtype).endswith("int32")


def test_tensors_compile_and_stay_on_their_device(backend: Backend) -> None:
    queries, bank = (torch.from_numpy(a).to(home(backend)) for a in integers("float32", 3, 20, 8))
    weights = torch.rand(20, device=bank.device) + 0.5
    able(backend, TopkRequest(queries, bank, 4, None, None, weights.double()))  # type: ignore[arg-type]
    op = torch.ops.lpkernel.masked_topk.default
    for returned in (False, True):
        torch.library.opcheck(op, (queries, bank, 4, None, None, backend.name, weights, returned))
        shorts = (queries.to(torch.int16), bank.to(torch.int16))
        torch.library.opcheck(op, (*shorts, 4, None, None, backend.name, weights, returned))


@pytest.mark.parametrize(
    "weights",
    [np.ones(19, np.float32), np.ones(20, int), np.zeros(20), -np.ones(20), np.full(20, np.inf), np.full(20, np.nan)],
)
def test_wrong_weights(weights: np.ndarray) -> None:
    queries, bank = integers("float32", 3, 20, 8)
    with pytest.raises(InputError, match="bank_weights"):
        lp.masked_topk(queries, bank, 4, bank_weights=weights)


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("alpha", [1e-3, 0.5])
def test_normalised_nearest(rooted: bool, k: int, alpha: float) -> None:
    """Against the whole matrix in float64."""
    random = np.random.default_rng(9)
    X, Y = (random.standard_normal((n, 12)).astype(np.float32) for n in (150, 90))
    matrix = np.square(X[:, None].astype(float) - Y).sum(2)
    matrix = np.sqrt(matrix) if rooted else matrix / 12
    want = matrix / (alpha + matrix.min(0))
    order = np.argsort(want, 1, kind="stable")[:, :k]
    scores, indices = lp.normalised_nearest(X, Y, alpha, rooted, k)
    assert np.array_equal(indices, order)
    np.testing.assert_allclose(scores, np.take_along_axis(want, order, 1), rtol=1e-6)
    there = lp.normalised_nearest(torch.from_numpy(X), torch.from_numpy(Y), alpha, rooted, k)
    assert np.array_equal(there.indices, indices) and np.array_equal(there.distances, scores)


LAUNCHES = [(8, 1, 1, 2, 0), (2, 1, 2, 3, 0), (8, 2, 1, 1, 2)]  # direct, and with a screen


def many(kind: str, spread: float, k: int) -> TopkRequest:
    """Rows that occur twice with other weights, near-equal rows of near-equal weights, weights of every magnitude."""
    random = np.random.default_rng(int(spread) + k)
    bank = random.standard_normal((300, 40)).astype(np.float32)
    bank[100:200] = bank[:100]
    bank[200:] = bank[:100] + random.standard_normal((100, 40)).astype(np.float32) * np.float32(1e-4)
    weights = 10 ** random.uniform(-spread, spread, 300)
    weights[200:250] = weights[:50] * (1 + 1e-6)
    weights[250:] = weights[50:100]
    queries = bank[:9] + np.float32(0.1) * random.standard_normal((9, 40)).astype(np.float32)
    allowed = None if kind == "shared" else random.random(300) < 0.7
    return TopkRequest(queries, bank, k, masks(kind, 9, 40), allowed, weights)


@pytest.mark.compiled
@pytest.mark.parametrize("launch", LAUNCHES)
@pytest.mark.parametrize("kind", ["none", "shared", "own"])
def test_cuda_at_all_magnitudes(cuda: CudaBackend, kind: str, launch: tuple[int, int, int, int, int]) -> None:
    """Weights from 1e-30 to 1e30, within the screen's range, and beyond."""
    cuda.tuning = CudaTuning(search=launch)
    for spread, k in ((0, 10), (3, 1), (30, 10), (100, 128)):
        check(cuda, many(kind, spread, k))


@pytest.mark.parametrize("launch", LAUNCHES)
def test_special_values_in_cuda(cuda: CudaBackend, launch: tuple[int, int, int, int, int]) -> None:
    cuda.tuning = CudaTuning(search=launch)

    @settings(max_examples=20, deadline=None)
    @given(request=weighted())
    def any_request(request: TopkRequest) -> None:
        check(cuda, request)

    any_request()


def test_the_screen_of_cuda_leaves_few_rows(cuda: CudaBackend) -> None:
    """And there is no screen with a mask for each query."""
    random = np.random.default_rng(3)
    queries, bank = (random.standard_normal((n, 64)).astype(np.float32) for n in (20, 512))
    request = TopkRequest(queries, bank, 3, None, None, 10 ** random.uniform(-1, 1, 512))
    left = survivors(cuda, request, 4)
    assert left.min() >= 3 and left.mean() < 60, left
    scratch = cuda._native().masked_topk_scratch
    assert scratch(20, 512, 64, 3, False, True, (8, 1, 1, 1, 4)) > 512 * 64 * 2
    assert scratch(20, 512, 64, 3, True, True, (8, 1, 1, 1, 4)) == 0


def test_normalised_nearest_in_cuda(cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "cuda", cuda)
    cuda.tuning = CudaTuning()
    random = np.random.default_rng(10)
    X, Y = (random.standard_normal((n, 12)).astype(np.float32) for n in (40, 1100))
    for rooted in (False, True):
        want = lp.normalised_nearest(X, Y, 1e-3, rooted, 3, backend="numpy")
        got = lp.normalised_nearest(X, Y, 1e-3, rooted, 3, backend="cuda")
        assert np.array_equal(got.indices, want.indices) and np.array_equal(got.distances, want.distances)


@pytest.mark.parametrize("alpha", [0, -1.0, np.nan, "a"])
def test_normalised_nearest_refuses(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha"):
        lp.normalised_nearest(np.zeros((2, 2), np.float32), np.zeros((2, 2), np.float32), alpha)
