"""masked_topk's float32 contract where floats are special: NaN, infinities, denormals, sums that underflow or overflow.

Values are few, so that ties and near ties are everywhere; answers are compared with the specification, ties included.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import home
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lpkernel import _native
from lpkernel.backends.base import Backend, TopkRequest
from lpkernel.backends.cpp import CppBackend, Tuning
from lpkernel.backends.cuda import CudaBackend
from lpkernel.backends.specification import NumpyBackend
from lpkernel.search.ops import masked_topk

SPECIFICATION = NumpyBackend()
ISAS = [] if _native.cpu_reasons() else _native.cpu().build_info()["isa"]
VALUES = [0, -0.0, 1e-45, 3e-45, 1e-38, 1e-30, 3e-30, 1e-23, 3e-23, 1, 1e18, 1e19, 2e19, 3e38]
SPECIAL = [*VALUES, *(-value for value in VALUES[2:]), np.inf, -np.inf, np.nan, -np.nan]
KINDS = {"all": SPECIAL, "finite": SPECIAL[:-4], "tiny": [0, 1e-45, 1e-30, 2e-30, 3e-30, 1e-23, 2e-23, 3e-23, -1e-23]}


@st.composite
def requests(draw: st.DrawFn, kinds: tuple[str, ...] = tuple(KINDS), most: int = 60, widest: int = 5) -> TopkRequest:
    """Any shape, masks and k, over one kind of values; sometimes one special row among ordinary ones."""
    count, rows, width = draw(st.integers(0, 4)), draw(st.integers(1, most)), draw(st.integers(0, widest))
    values = np.array(KINDS[draw(st.sampled_from(kinds))], np.float32)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    queries, bank = (random.choice(values, (size, width)) for size in (count, rows))
    if draw(st.booleans()):
        bank[1:] = random.integers(-3, 4, bank[1:].shape)
    mask = {"none": None, "shared": random.random(width) < 0.7, "own": random.random((count, width)) < 0.7}[
        draw(st.sampled_from(["none", "shared", "own"]))
    ]
    allowed = random.random(rows) < draw(st.sampled_from([0, 0.3, 0.9])) if draw(st.booleans()) else None
    return TopkRequest(queries, bank, draw(st.integers(1, rows)), mask, allowed)


def check(backend: Backend, request: TopkRequest) -> None:
    """The same bits, also of NaN."""
    want, got = SPECIFICATION.masked_topk(request), backend.masked_topk(request)
    np.testing.assert_array_equal(got.indices, want.indices)
    np.testing.assert_array_equal(got.distances.view(np.int32), want.distances.view(np.int32))


@settings(max_examples=300, deadline=None)
@given(request=requests())
def test_special_values(fast_backend: Backend, request: TopkRequest) -> None:
    check(fast_backend, request)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("packed", [1, 1000])
def test_special_values_on_every_instruction_set(isa: str, packed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    backend = CppBackend()
    backend.tuning = Tuning(packed=packed)

    @settings(max_examples=100, deadline=None)
    @given(request=st.one_of(requests(), requests(widest=300)))
    def any_request(request: TopkRequest) -> None:
        check(backend, request)

    any_request()


def rows_of(kind: str, random: np.random.Generator, size: int, width: int) -> NDArray[np.float32]:
    """Rows among which a rounded comparison would often choose wrongly."""
    if kind == "special":
        rows = random.choice(np.array(SPECIAL), (size, width))
        calm = random.random((size, 1)) < 0.7
        return np.where(calm, random.normal(size=(size, width)), rows).astype(np.float32)
    if kind == "ties":
        return random.integers(-1, 2, (size, width)).astype(np.float32)
    if kind == "nearly equal":  # 2^-20 of each other's norm apart, less than an int16 tells
        return (random.normal(size=width) + random.normal(size=(size, width)) * 2.0**-20).astype(np.float32)
    if kind == "far":
        return (1e6 + random.normal(size=(size, width))).astype(np.float32)
    if kind == "single":  # all of a row's norm in one value
        return (np.eye(width)[random.integers(width, size=size)] * random.normal(size=(size, 1))).astype(np.float32)
    scales = 10.0 ** random.uniform(-38, 17, (size, 1))  # "any size"
    return (random.normal(size=(size, width)) * scales).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["special", "ties", "nearly equal", "far", "single", "any size"])
def test_many_queries_of_wide_rows(isa: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are compared in int16 first."""
    monkeypatch.setenv("LPKERNEL_ISA", isa)

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        count=st.integers(80, 120),
        rows=st.integers(1, 150),
        width=st.integers(40, 140),
        k=st.integers(1, 20),
        masked=st.booleans(),
    )
    def any_request(seed: int, count: int, rows: int, width: int, k: int, masked: bool) -> None:
        random = np.random.default_rng(seed)
        both = rows_of(kind, random, count + rows, width)
        mask = random.random(width) < 0.9 if masked else None
        check(CppBackend(), TopkRequest(both[:count], both[count:], min(k, rows), mask, None))

    any_request()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["special", "ties", "nearly equal", "far", "single", "any size"])
def test_some_neighbours_of_few_rows(isa: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which are compared all at once: packed, or in place, with and without masks."""
    monkeypatch.setenv("LPKERNEL_ISA", isa)

    @settings(max_examples=60, deadline=None)
    @given(
        seed=st.integers(0, 2**32),
        count=st.integers(1, 30),
        rows=st.one_of(st.integers(1, 300), st.integers(1000, 2100)),
        width=st.one_of(st.integers(1, 6), st.integers(15, 70)),
        k=st.integers(1, 26),
        mask=st.sampled_from([None, "shared", "own"]),
        some=st.booleans(),
    )
    def any_request(seed: int, count: int, rows: int, width: int, k: int, mask: str | None, some: bool) -> None:
        random = np.random.default_rng(seed)
        both = rows_of(kind, random, count + rows, width)
        shapes = {"shared": (width,), "own": (count, width)}
        marked = random.random(shapes[mask]) < 0.8 if mask else None
        candidates = random.random(rows) < 0.7 if some else None
        check(CppBackend(), TopkRequest(both[:count], both[count:], min(k, rows), marked, candidates))

    any_request()


@settings(max_examples=40, deadline=None)
@given(request=requests())
def test_special_values_in_cuda(cuda: CudaBackend, request: TopkRequest) -> None:
    check(cuda, request)


@settings(max_examples=60, deadline=None)
@given(request=requests())
def test_the_specification_by_its_definition(request: TopkRequest) -> None:
    """The order (NaN last, distance, index) and the contents of empty slots, from single distances in float64."""
    got = SPECIFICATION.masked_topk(request)
    assert request.queries.dtype == np.float32
    rows = np.arange(len(request.bank)) if request.candidate_mask is None else np.flatnonzero(request.candidate_mask)
    mask = np.ones(request.queries.shape, bool)
    if request.patch_mask is not None:
        mask = np.broadcast_to(request.patch_mask, mask.shape)
    for query, columns, distances, indices in zip(request.queries, mask, *got, strict=True):
        with np.errstate(all="ignore"):
            own = [
                np.float32(sum(float(d) * float(d) for d in query[columns].astype(float) - bank[columns]))
                for bank in request.bank[rows]
            ]
        order = sorted(
            zip(map(np.isnan, own), own, rows, strict=True), key=lambda row: (row[0], 0 if row[0] else row[1], row[2])
        )
        order = order[: request.k]
        assert indices.tolist() == [row[2] for row in order] + [-1] * (request.k - len(order))
        np.testing.assert_allclose(distances[: len(order)], [row[1] for row in order], rtol=1e-6)
        assert (distances[len(order) :] == np.inf).all()


def test_nan_after_infinity_whatever_its_sign(backend: Backend) -> None:
    """On many machines inf - inf is a NaN with a sign."""
    bank = np.array([[np.inf], [np.nan], [-np.inf], [-np.nan], [1.0]], np.float32)
    queries = np.array([[np.inf], [0.0]], np.float32)
    distances, indices = masked_topk(queries, bank, 5, backend=backend.name)
    assert indices.tolist() == [[2, 4, 0, 1, 3], [4, 0, 2, 1, 3]]
    np.testing.assert_array_equal(
        distances, [[np.inf, np.inf, np.nan, np.nan, np.nan], [1, np.inf, np.inf, np.nan, np.nan]]
    )
    assert set(distances[np.isnan(distances)].view(np.int32)) == {np.float32(np.nan).view(np.int32)}


def test_empty_slots_come_after_infinity_and_nan(backend: Backend) -> None:
    bank = np.array([[np.nan], [0.0], [np.inf], [3e38]], np.float32)
    allowed = np.array([True, False, True, True])
    distances, indices = masked_topk(np.zeros((1, 1), np.float32), bank, 4, None, allowed, backend.name)
    assert indices.tolist() == [[3, 2, 0, -1]]  # 9e76 before an infinity
    np.testing.assert_array_equal(distances, [[np.inf, np.inf, np.nan, np.inf]])


@pytest.mark.parametrize(
    ("low", "high"), [(1e-30, 3e-30), (1e-24, 1e-22), (1e-45, 1e-40), (1e19, 3e38), (3e38, 3.4e38)]
)
def test_equal_after_rounding_goes_by_index(backend: Backend, low: float, high: float) -> None:
    """More rows than a screen keeps, whose distances all, or some of them, underflow or overflow."""
    random = np.random.default_rng(5)
    bank = random.uniform(low, high, (500, 6)).astype(np.float32)
    queries = np.concatenate([bank[250:252], np.zeros((1, 6), np.float32)])
    check(backend, TopkRequest(queries, bank, 7, None, None))


def test_tensors_that_require_a_gradient(backend: Backend) -> None:
    """They are used without it: the same answer on every backend, and nothing to differentiate."""
    random = np.random.default_rng(6)
    plain = [random.standard_normal(shape).astype(np.float32) for shape in ((3, 8), (20, 8))]
    queries, bank = (torch.tensor(array, requires_grad=True, device=home(backend)) for array in plain)
    want = masked_topk(plain[0], plain[1], 4, backend=backend.name)
    got = masked_topk(queries, bank, 4, backend=backend.name)
    assert np.array_equal(got.indices.cpu(), want.indices) and np.array_equal(got.distances.cpu(), want.distances)
    assert not got.distances.requires_grad
    torch.library.opcheck(torch.ops.lpkernel.masked_topk.default, (queries, bank, 4), {"backend": backend.name})
    compiled = torch.compile(
        lambda q, b: torch.ops.lpkernel.masked_topk(q * 2, b, 4, None, None, backend.name)[0] + 1,
        fullgraph=True,
        backend="aot_eager",
    )
    assert not compiled(queries, bank).requires_grad


@pytest.mark.parametrize("k", [1, 2, 3])
def test_rows_beyond_float32_come_before_infinite_ones(backend: Backend, k: int) -> None:
    """As float32 their distances are +inf, as that of the infinite row, which is first."""
    bank, query = np.array([[np.inf], [3e25], [2e25]], np.float32), np.zeros((2, 1), np.float32)
    found = masked_topk(query, bank, k, backend=backend.name)
    assert (found.distances == np.inf).all()
    assert found.indices.tolist() == [[2, 1, 0][:k]] * 2
