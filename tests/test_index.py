"""The flat index and the neighbours of a fitted set, compared with faiss and scikit-learn where installed."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lpkernel as lp
from lpkernel import tensor_file
from lpkernel.errors import InputError


def rows(count: int, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_an_index_is_a_search_of_what_was_added(kind: Any) -> None:
    index = lp.IndexFlatL2(8)
    assert index.is_trained and index.ntotal == 0 and index.d == 8
    index.train(rows(3))
    for part in np.split(rows(50), [10, 30]):
        index.add(kind(part))
    queries = kind(rows(6, seed=1))
    want = lp.masked_topk(queries, kind(rows(50)), 4)
    distances, indices = index.search(queries, 4)
    assert type(distances) is type(queries) and index.ntotal == 50
    assert np.array_equal(distances, want.distances) and np.array_equal(indices, want.indices)
    assert np.array_equal(index.reconstruct(31), rows(50)[31])
    assert np.array_equal(index.reconstruct_n(5, 20), rows(50)[5:25]) and len(index.reconstruct_n()) == 50
    index.reset()
    assert index.ntotal == 0


def test_slots_beyond_the_rows() -> None:
    index = lp.IndexFlatL2(8)
    empty = index.search(rows(2), 3)
    assert (empty.indices == -1).all() and (empty.distances == np.inf).all()
    index.add(rows(2))
    distances, indices = index.search(rows(2), 3)
    assert indices.tolist() == [[0, 1, -1], [1, 0, -1]] and (distances[:, 2] == np.inf).all()
    assert index.search(rows(0), 3).indices.shape == (0, 3)


def test_what_was_added_is_a_copy() -> None:
    given, index = rows(5), lp.IndexFlatL2(8)
    index.add(given)
    index.add(torch.from_numpy(given))
    given[:] = 0
    index.reconstruct(2)[:] = 0
    assert np.array_equal(index.reconstruct_n(), np.concatenate([rows(5), rows(5)]))


def test_other_numbers_are_taken_as_float32() -> None:
    index = lp.IndexFlatL2(2)
    index.add([[1, 2], [3, 4]])
    index.add(np.array([[0.5, 1.5]]))
    index.add(torch.tensor([[2.0, 2.0]], dtype=torch.float16, requires_grad=True))
    assert index.reconstruct_n().tolist() == [[1, 2], [3, 4], [0.5, 1.5], [2, 2]]


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_integers_are_taken_exactly_or_not_at_all(dtype: str, of: Any) -> None:
    ends = np.iinfo(dtype)
    held = np.clip([[2**24 - 1, 0], [1 - 2**24, 5]], ends.min, ends.max).astype(dtype)
    index = lp.IndexFlatL2(2)
    index.add(of(held))
    assert np.array_equal(index.reconstruct_n(), held) and index.search(of(held), 1).indices.tolist() == [[0], [1]]
    if ends.max > 2**24:
        for beyond in (2**24, 2**24 + 1, ends.max):
            with pytest.raises(InputError, match=f"^x: got {dtype} from 0 to .*2\\^24 in magnitude"):
                index.add(of(np.array([[beyond, 0]], dtype)))
            with pytest.raises(InputError, match=f"^x: got {dtype} from 0 to"):
                index.search(of(np.array([[beyond, 0]], dtype)), 1)
    assert index.ntotal == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (np.full((1, 2), 1e39), "x: got float64 values beyond float32's range"),
        (torch.full((1, 2), -1e39, dtype=torch.float64), "x: got float64 values beyond float32's range"),
        (torch.ones(1, 2, dtype=torch.complex64), "x: got torch.complex64, expected real numbers"),
        (np.ma.array([[1.0, 2.0]], mask=[[True, False]]), "x: got an array with masked elements"),
        (np.array([[1, None]]), "x: got object, expected numbers alone"),
    ],
)
def test_what_float32_cannot_hold(rows: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}"):
        lp.IndexFlatL2(2).add(rows)


def test_infinities_stay_what_they_are() -> None:
    index = lp.IndexFlatL2(2)
    index.add(np.array([[np.inf, -np.inf], [np.nan, 1e30]]))
    assert np.array_equal(index.reconstruct_n(), np.array([[np.inf, -np.inf], [np.nan, 1e30]], np.float32), True)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_adding_makes_one_copy(dtype: str) -> None:
    rows = np.ones((100_000, 8), dtype)
    index = lp.IndexFlatL2(8)
    tracemalloc.start()
    try:
        index.add(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows.size * 4 <= peak < 1.1 * rows.size * 4


def test_tensors_with_a_lazy_sign() -> None:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    index = lp.IndexFlatL2(3)
    index.add(torch._neg_view(-rows))
    assert np.array_equal(index.reconstruct_n(), rows.numpy())
    assert index.search(torch._neg_view(-rows), 1).indices[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_files(tmp_path: Path) -> None:
    path, index = tmp_path / "a.lpindex", lp.IndexFlatL2(8)
    index.write(path)
    assert lp.IndexFlatL2.read(path).ntotal == 0 and lp.IndexFlatL2.read(path).d == 8
    index.add(rows(20))
    index.write(path)
    back = lp.IndexFlatL2.read(path)
    assert np.array_equal(back.reconstruct_n(), rows(20)) and [file.name for file in tmp_path.iterdir()] == [
        "a.lpindex"
    ]
    back.add(rows(1))
    assert back.ntotal == 21


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({}, {}),
        ({}, {"format": "lpkernel index", "version": "2", "d": "4"}),
        ({}, {"format": "lpkernel index", "version": "1", "d": "-4"}),
        ({}, {"format": "lpkernel index", "version": "1", "d": "0"}),
        ({}, {"format": "lpkernel index", "version": "1", "d": "9" * 30}),
        ({"rows": np.zeros((3, 5), np.float32)}, {"format": "lpkernel index", "version": "1", "d": "4"}),
        ({"rows": np.zeros((3, 4), np.float64)}, {"format": "lpkernel index", "version": "1", "d": "4"}),
        ({"others": np.zeros((3, 4), np.float32)}, {"format": "lpkernel index", "version": "1", "d": "4"}),
    ],
)
def test_other_files_are_refused(tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    tensor_file.write(tmp_path / "a", tensors, metadata)
    with pytest.raises(InputError):
        lp.IndexFlatL2.read(tmp_path / "a")


@pytest.mark.parametrize(
    "call",
    [
        lambda index: lp.IndexFlatL2(0),
        lambda index: lp.IndexFlatL2(2.5),  # type: ignore[arg-type]
        lambda index: index.add(rows(3, 7)),
        lambda index: index.add(rows(3)[0]),
        lambda index: index.add([["a"] * 8]),
        lambda index: index.search(rows(3, 7), 1),
        lambda index: index.search(rows(3), 0),
        lambda index: index.reconstruct(5),
        lambda index: index.reconstruct(-1),
        lambda index: index.reconstruct_n(2, 4),
    ],
)
def test_wrong_calls(call: Any) -> None:
    index = lp.IndexFlatL2(8)
    index.add(rows(5))
    with pytest.raises(InputError):
        call(index)


@pytest.mark.parametrize(("count", "total", "width", "k"), [(7, 100, 16, 5), (200, 3000, 64, 10), (3, 4, 8, 9)])
def test_beside_faiss(count: int, total: int, width: int, k: int) -> None:
    """Small integers, so that faiss's sums are exact too; it orders ties freely, so distances are compared."""
    faiss = pytest.importorskip("faiss")
    random = np.random.default_rng(2)
    bank, queries = (random.integers(-50, 51, (n, width)).astype(np.float32) for n in (total, count))
    theirs, ours = faiss.IndexFlatL2(width), lp.IndexFlatL2(width)
    for index in (theirs, ours):
        index.train(bank)
        index.add(bank[: total // 3])
        index.add(bank[total // 3 :])
    want, got = theirs.search(queries, k), ours.search(queries, k)
    there = want[1] >= 0
    assert np.array_equal(there, got[1] >= 0) and np.array_equal(want[0][there], got[0][there])
    assert ours.ntotal == theirs.ntotal and np.array_equal(ours.reconstruct(3), theirs.reconstruct(3))
    assert np.array_equal(ours.reconstruct_n(1, 3), theirs.reconstruct_n(1, 3))


@pytest.mark.parametrize("metric", ["euclidean", "minkowski", "l2", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("own", [False, True])
def test_beside_scikit_learn(metric: str, dtype: str, own: bool) -> None:
    neighbors = pytest.importorskip("sklearn.neighbors")
    fitted, asked = (rows(n, 5, seed=n) for n in (60, 9))
    if dtype == "int64":
        fitted, asked = fitted * 100, asked * 100
    fitted, asked = fitted.astype(dtype), asked.astype(dtype)
    theirs = neighbors.NearestNeighbors(n_neighbors=4, metric=metric, algorithm="brute").fit(fitted)
    ours = lp.NearestNeighbors(n_neighbors=4, metric=metric).fit(fitted)
    for k in (None, 7):
        want = theirs.kneighbors(None if own else asked, n_neighbors=k)
        got = ours.kneighbors(None if own else asked, n_neighbors=k)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-4 if dtype == "float32" else 1e-9, atol=1e-6)
        assert np.array_equal(got[1], want[1])
        assert np.array_equal(ours.kneighbors(None if own else asked, k, return_distance=False), want[1])
    assert ours.n_features_in_ == 5 and ours.n_samples_fit_ == 60


def test_equal_rows_leave_themselves_out() -> None:
    fitted = np.zeros((6, 3))
    indices = lp.NearestNeighbors(2).fit(fitted).kneighbors(return_distance=False)
    assert all(row not in found for row, found in enumerate(indices.tolist()))
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]]


def test_tables_are_taken_by_their_numbers() -> None:
    class Table:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def to_numpy(self) -> np.ndarray:
            return self.values

    fitted = rows(10, 3).astype(np.float64)
    want = lp.NearestNeighbors(2).fit(fitted).kneighbors(fitted)
    got = lp.NearestNeighbors(2).fit(Table(fitted)).kneighbors(Table(fitted))
    assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])
    with pytest.raises(InputError, match="numbers alone"):
        lp.NearestNeighbors(2).fit(Table(np.array([["a", 1.0]], object)))
    assert (
        lp.NearestNeighbors(2).fit(fitted.tolist()).kneighbors(torch.from_numpy(fitted))[1].tolist() == want[1].tolist()
    )


def test_parameters_as_scikit_learn_asks_for_them() -> None:
    base = pytest.importorskip("sklearn.base")
    ours = lp.NearestNeighbors(3, metric="cosine")
    assert base.clone(ours).get_params() == ours.get_params()
    assert ours.set_params(n_neighbors=2).n_neighbors == 2
    with pytest.raises(InputError, match="parameter"):
        ours.set_params(weights="distance")


# What scikit-learn's constructor takes that leaves the answer as it is, and what would change it.
SAME: list[dict[str, Any]] = [
    {"algorithm": "auto"},
    {"algorithm": "brute", "n_jobs": -1},
    {"n_jobs": 4, "leaf_size": 5},
    {"metric": "minkowski", "p": 2, "metric_params": None},
    {"metric": "cosine", "p": 1},  # which only minkowski has
    {"radius": 0.5},
]
OTHER: list[dict[str, Any]] = [
    {"algorithm": "kd_tree"},
    {"algorithm": None},
    {"metric": "minkowski", "p": 1},
    {"metric": "minkowski", "p": None},
    {"metric_params": {"w": [1, 2]}},
    {"n_jobs": "all"},
    {"n_jobs": 1.5},
    {"metric": ["l2"]},
    {"metric": None},
    {"metric": len},
]


@pytest.mark.parametrize("given", SAME, ids=str)
def test_arguments_of_scikit_learn(given: dict[str, Any]) -> None:
    neighbors, base = pytest.importorskip("sklearn.neighbors"), pytest.importorskip("sklearn.base")
    fitted, asked = rows(30, 4), rows(5, 4, seed=1)
    ours, theirs = lp.NearestNeighbors(n_neighbors=3, **given), neighbors.NearestNeighbors(n_neighbors=3, **given)
    got, want = (one.fit(fitted).kneighbors(asked) for one in (ours, theirs))
    np.testing.assert_array_equal(got[1], want[1])
    np.testing.assert_allclose(got[0], want[0], rtol=1e-4, atol=1e-6)
    assert base.clone(ours).get_params() == ours.get_params()
    assert set(ours.get_params()) - {"backend"} == set(theirs.get_params())
    assert lp.NearestNeighbors().set_params(**ours.get_params()).get_params() == ours.get_params()


@pytest.mark.parametrize("given", OTHER, ids=str)
def test_arguments_that_would_change_the_answer(given: dict[str, Any]) -> None:
    name = "metric" if set(given) == {"metric"} else list(given)[-1]
    with pytest.raises(InputError, match=f"^{name}"):
        lp.NearestNeighbors(3, **given).fit(rows(9))
    with pytest.raises(InputError, match=f"^{name}"):  # changed once fitted
        lp.NearestNeighbors(3).fit(rows(9)).set_params(**given).kneighbors(rows(2))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: lp.NearestNeighbors(2).kneighbors(rows(2)), "fit"),
        (lambda: lp.NearestNeighbors(2, metric="l1").fit(rows(5)), "metric"),
        (lambda: lp.NearestNeighbors(2).fit(rows(0)), "0 rows"),
        (lambda: lp.NearestNeighbors(2).fit(rows(5)[0]), "columns"),
        (lambda: lp.NearestNeighbors(2).fit(rows(5) * np.nan), "NaN"),
        (lambda: lp.NearestNeighbors(2).fit(rows(5)).kneighbors(rows(2, 7)), "columns"),
        (lambda: lp.NearestNeighbors(6).fit(rows(5)).kneighbors(rows(2)), "n_neighbors"),
        (lambda: lp.NearestNeighbors(5).fit(rows(5)).kneighbors(), "n_neighbors"),
        (lambda: lp.NearestNeighbors(0).fit(rows(5)).kneighbors(rows(2)), "n_neighbors"),
    ],
)
def test_wrong_neighbours(call: Any, word: str) -> None:
    with pytest.raises(InputError, match=word):
        call()


def test_they_say_what_they_are() -> None:
    index = lp.IndexFlatL2(4)
    index.add(np.zeros((3, 4), np.float32))
    assert repr(index) == "IndexFlatL2(d=4, ntotal=3, backend='auto')"
    assert repr(lp.NearestNeighbors(2)) == "NearestNeighbors(n_neighbors=2, metric='euclidean', backend='auto')"
    assert repr(lp.plan.random(8)) == "Plan(random, sides 6-7-8, patch 6, stride 2, replace, 9 steps)"
    assert repr(lp.load_autoencoder(device="cpu")).startswith(
        "CompactAutoencoder(default, 128 pixels, 16x16 codes of 2048"
    )


SIZES = [
    dict(zip(("n_samples", "n_features", "n_query_pts", "n_neighbors"), numbers, strict=True))
    for numbers in ((100, 100, 10, 100), (1000, 5, 100, 1))
]  # those of scikit-learn
OWN_TESTS: list[tuple[str, dict[str, Any]]] = [
    *(
        ("test_unsupervised_kneighbors", {**sizes, "query_is_train": own, "metric": metric})
        for sizes in SIZES
        for own in (False, True)
        for metric in ("euclidean", "l2", "minkowski")
    ),
    *(("test_neighbors_metrics", {"global_random_seed": 42, "metric": metric}) for metric in ("euclidean", "l2")),
    *(
        ("test_kneighbors_brute_backend", {"global_random_seed": 42, "metric": metric})
        for metric in ("euclidean", "l2", "sqeuclidean", "cosine")
    ),
    ("test_query_equidistant_kth_nn", {"algorithm": "brute"}),
]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "arguments"), OWN_TESTS)
def test_scikit_learn_s_own_tests(
    name: str, arguments: dict[str, Any], dtype: Any, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """Those of its nearest neighbours that need nothing else, with ours for "brute" beside its own trees."""
    pytestconfig.addinivalue_line("markers", "thread_unsafe: a mark of scikit-learn's tests")
    tests = pytest.importorskip("sklearn.neighbors.tests.test_neighbors")
    theirs = tests.neighbors.NearestNeighbors

    def either(*given: Any, algorithm: str = "auto", **more: Any) -> Any:
        kind = lp.NearestNeighbors if algorithm in ("auto", "brute") else theirs
        return kind(*given, algorithm=algorithm, **more)

    monkeypatch.setattr(tests.neighbors, "NearestNeighbors", either)
    test = getattr(tests, name, None)
    if test is None:
        pytest.skip(f"this scikit-learn has no {name}")
    test(**({"global_dtype": dtype} if "metric" in arguments else {}), **arguments)
