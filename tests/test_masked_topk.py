"""masked_topk on every backend: exact for small integers, faiss's rules for floats, and torch's own checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import home
from hypothesis import given, settings
from hypothesis import strategies as st

import lpkernel as lp
from lpkernel.backends.base import Backend
from lpkernel.errors import BackendUnavailable, InputError
from lpkernel.info import info
from lpkernel.search.ops import masked_topk

INT32_MAX = np.iinfo(np.int32).max
SHAPES = [
    (1, 1, 1, 1),
    (3, 5, 7, 5),
    (4, 257, 16, 10),
    (2, 64, 1, 3),
    (5, 1000, 33, 128),
    (1, 31, 576, 3),
    (3, 12, 0, 4),
]


def integers(dtype: str, q: int, b: int, d: int, spread: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Small integers: many ties, and exact in float32 too, whatever the order of summation."""
    random = np.random.default_rng(seed)
    return tuple(random.integers(-spread, spread + 1, (rows, d)).astype(dtype) for rows in (q, b))  # type: ignore[return-value]


def oracle(
    queries: np.ndarray, bank: np.ndarray, k: int, mask: np.ndarray | None = None, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A full sort by (distance, index) of exact integer sums."""
    weights = np.ones((len(queries), bank.shape[1]), int) if mask is None else np.broadcast_to(mask, queries.shape)
    distances = (np.square(queries[:, None].astype(int) - bank[None].astype(int)) * weights[:, None]).sum(2)
    rows = range(len(bank)) if allowed is None else np.flatnonzero(allowed)
    out_d = np.full((len(queries), k), np.inf if bank.dtype == np.float32 else INT32_MAX)
    out_i = np.full((len(queries), k), -1)
    for i in range(len(queries)):
        for slot, (distance, row) in enumerate(sorted((distances[i, r], r) for r in rows)[:k]):
            out_d[i, slot], out_i[i, slot] = distance, row
    return out_d, out_i


def masks(kind: str, q: int, d: int, seed: int = 1) -> np.ndarray | None:
    random = np.random.default_rng(seed)
    return {"none": None, "shared": random.random(d) < 0.6, "own": random.random((q, d)) < 0.6}[kind]


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("mask_kind", ["none", "shared", "own"])
@pytest.mark.parametrize(("q", "b", "d", "k"), SHAPES)
def test_exact_on_integers(backend: Backend, dtype: str, mask_kind: str, q: int, b: int, d: int, k: int) -> None:
    queries, bank = integers(dtype, q, b, d)
    mask = masks(mask_kind, q, d)
    for allowed in (None, np.random.default_rng(2).random(b) < 0.5):
        distances, indices = masked_topk(queries, bank, k, mask, allowed, backend.name)
        want_d, want_i = oracle(queries, bank, k, mask, allowed)
        assert distances.dtype == (np.float32 if dtype == "float32" else np.int32)
        assert indices.dtype == np.int64
        assert np.array_equal(distances, want_d)
        assert np.array_equal(indices, want_i)


@settings(max_examples=60, deadline=None)
@given(
    q=st.integers(0, 4),
    b=st.integers(1, 60),
    d=st.integers(0, 9),
    dtype=st.sampled_from(["float32", "int16"]),
    mask_kind=st.sampled_from(["none", "shared", "own"]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_exact_on_any_shape(
    backend: Backend, q: int, b: int, d: int, dtype: str, mask_kind: str, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, b))
    queries, bank = integers(dtype, q, b, d, spread=1, seed=seed)
    mask = masks(mask_kind, q, d, seed)
    allowed = np.random.default_rng(seed).random(b) < data.draw(st.sampled_from([0, 0.1, 1]))
    got = masked_topk(queries, bank, k, mask, allowed, backend.name)
    for mine, theirs in zip(got, oracle(queries, bank, k, mask, allowed), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("mask_kind", ["none", "shared", "own"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_floats_equal_the_specification(fast_backend: Backend, mask_kind: str, offset: float) -> None:
    """A common offset makes |q|^2 + |b|^2 - 2 q.b cancel; near-equal rows are planted too."""
    random = np.random.default_rng(3)
    bank = (random.standard_normal((700, 48)) + offset).astype(np.float32)
    bank[350:500] = bank[:150]
    bank[500:600] = bank[:100] + random.standard_normal((100, 48)).astype(np.float32) * np.float32(1e-4)
    queries = np.concatenate([bank[:6], bank[100:104] + np.float32(0.01)])
    mask = masks(mask_kind, len(queries), 48)
    distances, indices = masked_topk(queries, bank, 12, mask, None, fast_backend.name)
    want_d, want_i = masked_topk(queries, bank, 12, mask, None, "numpy")
    np.testing.assert_allclose(distances, want_d, rtol=1e-6)
    assert (np.diff(distances, axis=1) >= 0).all()
    for row in range(len(queries)):
        assert len(set(indices[row])) == 12
        for slot in np.flatnonzero(indices[row] != want_i[row]):  # only within a group of near-equal distance
            near = np.isclose(want_d[row], want_d[row, slot], rtol=1e-6)
            cut = np.isclose(want_d[row, -1], want_d[row, slot], rtol=1e-6)
            assert indices[row, slot] in want_i[row, near] or cut
    assert (distances[:6, 0] == 0).all()
    assert (indices[:6, :2] == np.array([[i, i + 350] for i in range(6)])).all()  # duplicates: lowest index first


def test_many_equal_rows_beyond_the_screen(fast_backend: Backend) -> None:
    """200 copies of the nearest row under a large offset: the lowest indices must still win."""
    random = np.random.default_rng(4)
    bank = (random.standard_normal((400, 16)) + 3000).astype(np.float32)
    bank[137:337] = bank[137]
    query = (bank[137:138] + np.float32(0.5)).astype(np.float32)
    _, indices = masked_topk(query, bank, 5, backend=fast_backend.name)
    assert indices.tolist() == [[137, 138, 139, 140, 141]]


@pytest.mark.parametrize("k", [1, 4, 16, 128])
def test_near_ties(fast_backend: Backend, k: int) -> None:
    """Rows whose distances differ in the last bits of float32, if at all."""
    random = np.random.default_rng(k)
    bank = random.standard_normal((150, 64))
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)
    queries = np.concatenate([np.zeros((2, 64)), random.standard_normal((2, 64)) * 1e-7]).astype(np.float32)
    weights = random.choice([1.0, 1 + 2.0**-24], len(bank))
    for own in (None, weights):
        found, wanted = (
            masked_topk(queries, bank, k, backend=name, bank_weights=own, return_weighted=own is not None)
            for name in (fast_backend.name, "numpy")
        )
        assert np.array_equal(found.indices, wanted.indices)
        assert np.array_equal(found.distances, wanted.distances)


def test_split_and_merge_equals_the_whole(backend: Backend) -> None:
    queries, bank = integers("int16", 6, 300, 20)
    whole = masked_topk(queries, bank, 9, backend=backend.name)
    parts = [masked_topk(queries, bank[i : i + 100], 9, backend=backend.name) for i in (0, 100, 200)]
    keys = np.concatenate(
        [(p.distances.astype(np.int64) << 32) | (p.indices + 100 * i) for i, p in enumerate(parts)], 1
    )
    assert np.array_equal(np.sort(keys, 1)[:, :9], (whole.distances.astype(np.int64) << 32) | whole.indices)


def test_the_callers_kind_comes_back(backend: Backend) -> None:
    queries, bank = integers("float32", 3, 20, 8)
    mask, allowed = masks("own", 3, 8), np.arange(20) % 3 > 0
    from_numpy = masked_topk(queries, bank, 4, mask, allowed, backend.name)
    assert isinstance(from_numpy.distances, np.ndarray)
    tensors = [torch.from_numpy(a).to(home(backend)) for a in (queries, bank, mask, allowed)]
    from_torch = masked_topk(tensors[0], tensors[1], 4, tensors[2], tensors[3], backend.name)
    assert isinstance(from_torch.distances, torch.Tensor)
    assert from_torch.indices.device == from_torch.distances.device == tensors[1].device
    assert np.array_equal(from_torch.indices.cpu(), from_numpy.indices)
    assert np.array_equal(from_torch.distances.cpu(), from_numpy.distances)


def test_dlpack_in_dlpack_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An array library known only by __dlpack__ and from_dlpack."""
    import sys
    import types

    class Foreign:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: object) -> object:
            return self.tensor.__dlpack__()

        def __dlpack_device__(self) -> object:
            return self.tensor.__dlpack_device__()

    library = types.ModuleType("foreign")
    library.from_dlpack = lambda a: Foreign(torch.from_dlpack(a))  # type: ignore[attr-defined]
    Foreign.__module__ = "foreign"
    monkeypatch.setitem(sys.modules, "foreign", library)
    queries, bank = integers("int16", 3, 20, 8)
    got = masked_topk(Foreign(torch.from_numpy(queries)), Foreign(torch.from_numpy(bank)), 4)
    assert isinstance(got.indices, Foreign)
    assert np.array_equal(got.indices.tensor.numpy(), masked_topk(queries, bank, 4).indices)


def test_non_contiguous_inputs(backend: Backend) -> None:
    queries, bank = integers("int16", 8, 60, 12)
    got = masked_topk(queries[::2, ::3], bank[::-2, ::3], 5, backend=backend.name)
    want = oracle(queries[::2, ::3], bank[::-2, ::3], 5)
    assert np.array_equal(got.indices, want[1])
    there = [torch.from_numpy(array).to(home(backend)) for array in (queries, bank[:8])]
    columns = masked_topk(there[0].T, there[1].T, 3, backend=backend.name)
    assert np.array_equal(columns.indices.cpu(), oracle(queries.T, bank[:8].T, 3)[1])


def test_nan_sorts_last(backend: Backend) -> None:
    bank = np.array([[np.nan], [3.0], [1.0]], np.float32)
    _, indices = masked_topk(np.zeros((1, 1), np.float32), bank, 3, backend=backend.name)
    assert indices.tolist() == [[2, 1, 0]]


@pytest.mark.parametrize("hidden", [np.nan, np.inf])
def test_what_a_mask_hides_does_not_count(backend: Backend, hidden: float) -> None:
    queries, bank = integers("float32", 4, 60, 8)
    mask = masks("own", 4, 8)
    assert mask is not None
    mask[:, 3] = False
    want = oracle(queries, bank, 5, mask)
    bank[::2, 3] = hidden
    queries[1, 3] = hidden
    distances, indices = masked_topk(queries, bank, 5, mask, None, backend.name)
    assert np.array_equal(distances, want[0])
    assert np.array_equal(indices, want[1])


def test_opcheck(backend: Backend) -> None:
    queries, bank = (torch.from_numpy(a).to(home(backend)) for a in integers("float32", 3, 20, 8))
    shorts = (queries.to(torch.int16), bank.to(torch.int16))
    mask, allowed = (torch.rand(shape).to(home(backend)) < 0.5 for shape in ((3, 8), (20,)))
    op = torch.ops.lpkernel.masked_topk.default
    torch.library.opcheck(op, (queries, bank, 4), {"backend": backend.name})
    torch.library.opcheck(op, (*shorts, 4, mask, allowed), {"backend": backend.name})


def test_compiles_without_graph_breaks(backend: Backend) -> None:
    queries, bank = (torch.from_numpy(a).to(home(backend)) for a in integers("float32", 3, 20, 8))

    def shifted(q: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        distances, indices = torch.ops.lpkernel.masked_topk(q + 1, b, 4, None, None, backend.name)
        return distances * 2 + indices

    compiled = torch.compile(shifted, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(queries, bank), shifted(queries, bank))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"k": 0}, "k: got 0"),
        ({"k": 21}, "k: got 21"),
        ({"queries": np.zeros(8, np.float32)}, r"\(Q, D\)"),
        ({"queries": np.zeros((3, 7), np.float32)}, r"\(Q, D\)"),
        ({"queries": np.zeros((3, 8))}, "float64"),
        ({"queries": np.zeros((3, 8), np.int16)}, "int16 and bank float32"),
        ({"patch_mask": np.zeros(7, bool)}, "patch_mask"),
        ({"patch_mask": np.zeros((2, 8), bool)}, "patch_mask"),
        ({"patch_mask": np.zeros(8)}, "patch_mask"),
        ({"candidate_mask": np.zeros(19, bool)}, "candidate_mask"),
        ({"backend": "fpga"}, "expected one of auto"),
        ({"queries": [[0.0] * 8]}, "DLPack"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], word: str) -> None:
    queries, bank = integers("float32", 3, 20, 8)
    arguments = {"queries": queries, "bank": bank, "k": 4, **change}
    with pytest.raises(InputError, match=word):
        masked_topk(**arguments)


def test_int16_overflow_is_refused(backend: Backend) -> None:
    limit = np.array([[0] * 4, [23170] * 4], np.int16)  # 4 * 23170^2 is just below 2^31
    assert masked_topk(limit[:1], limit, 2, backend=backend.name).distances.tolist() == [[0, 4 * 23170**2]]
    with pytest.raises(InputError, match="overflow"):
        masked_topk(limit[:1], limit + np.array([[0], [1]], np.int16), 2, backend=backend.name)


def test_a_named_backend_never_falls_back() -> None:
    queries, bank = integers("float32", 1, 2, 2)
    unavailable = [name for name, entry in info()["backends"].items() if entry["reasons"]]
    for name in unavailable:
        with pytest.raises(BackendUnavailable, match=name):
            masked_topk(queries, bank, 1, backend=name)


def test_environment_sets_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, bank = integers("float32", 1, 2, 2)
    monkeypatch.setenv("LPKERNEL_BACKEND", "fpga")
    with pytest.raises(InputError, match="fpga"):
        masked_topk(queries, bank, 1)
    masked_topk(queries, bank, 1, backend="numpy")


@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("rows", [1, 40, 200])
@pytest.mark.parametrize("k", [1, 3])
def test_more_queries_than_are_searched_at_a_time(fast_backend: Backend, dtype: str, rows: int, k: int) -> None:
    """Banks smaller and larger than a block, with few values, so that ties are everywhere."""
    queries, bank = integers(dtype, 8200, rows, 3, spread=2)
    got = masked_topk(queries, bank, min(k, rows), backend=fast_backend.name)
    for mine, theirs in zip(got, oracle(queries, bank, min(k, rows)), strict=True):
        assert np.array_equal(mine, theirs)


def test_its_result_has_a_public_type() -> None:
    found = masked_topk(np.zeros((1, 2), np.float32), np.zeros((3, 2), np.float32), 1)
    assert type(found) is lp.TopK and "TopK" in lp.__all__ and lp.TopK._fields == ("distances", "indices")
