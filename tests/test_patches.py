"""Patches of images, searched without building their rows: the same result as searching all rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lpkernel as lp
from lpkernel.errors import InputError
from lpkernel.search import patches


def unfolded(image: np.ndarray, side: int, stride: int) -> np.ndarray:
    """(rows, columns, C * side * side), one window after the other."""
    height, width = ((n - side) // stride + 1 for n in image.shape[1:])
    windows = [
        image[:, y * stride : y * stride + side, x * stride : x * stride + side].reshape(-1)
        for y in range(height)
        for x in range(width)
    ]
    return np.stack(windows).reshape(height, width, -1)


def picture(dtype: str, shape: tuple[int, int, int], seed: int, values: int = 4) -> np.ndarray:
    """Few values, so that ties are everywhere."""
    return np.random.default_rng(seed).integers(0, values, shape).astype(dtype)


def scaled(data: st.DataObject, image: np.ndarray, source: np.ndarray) -> Any:
    """Floats now and then so small or large that their squares leave float32, or nearly float64; all sums exact."""
    if not np.issubdtype(image.dtype, np.floating):
        return image, source
    powers = [0, -100, -66, 60, 83, *([505] if image.dtype == np.float64 else [])]
    factor = 2.0 ** data.draw(st.sampled_from(powers))
    return image * image.dtype.type(factor), source * image.dtype.type(factor)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_same_as_rows(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["float32", "float64", "int16", "uint8"]))
    shapes = [(2, data.draw(st.integers(4, 9)), data.draw(st.integers(4, 9))) for _ in range(2)]
    image, source = (picture(dtype, shape, seed) for seed, shape in enumerate(shapes))
    side, stride = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    alpha = data.draw(st.sampled_from([None, 0.01, 1.0]))
    image, source = scaled(data, image, source)
    ours, theirs = (unfolded(array, side, stride) for array in (image, source))
    X, Y = ours.reshape(-1, ours.shape[2]), theirs.reshape(-1, ours.shape[2])
    k = data.draw(st.integers(1, len(Y)))
    before = patches.ROWS_BYTES
    try:
        patches.ROWS_BYTES = data.draw(st.sampled_from([1, 500, before]))
        got = lp.patch_nearest(image, source, side, k, alpha, stride)
    finally:
        patches.ROWS_BYTES = before
    if alpha is None:
        want = lp.masked_topk(X, Y, k, backend="numpy")
    else:
        want = lp.normalised_nearest(X, Y, alpha, k=k, backend="numpy")
    assert got.indices.shape == (*ours.shape[:2], k)
    assert np.array_equal(got.indices.reshape(-1, k), want.indices)
    assert got.distances.dtype == want.distances.dtype
    assert np.array_equal(got.distances.reshape(-1, k), want.distances)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_within_a_radius(data: st.DataObject) -> None:
    """The same as a search with a candidate mask for each patch."""
    dtype = data.draw(st.sampled_from(["float32", "float64", "int16"]))
    shapes = [(1, data.draw(st.integers(3, 8)), data.draw(st.integers(3, 8))) for _ in range(2)]
    image, source = (picture(dtype, shape, seed) for seed, shape in enumerate(shapes))
    if dtype != "int16" and data.draw(st.booleans()):
        image[0, 1, 1], source[0, 0, 2] = np.nan, np.inf
    side, stride, radius = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)), data.draw(st.integers(0, 5))
    alpha = data.draw(st.sampled_from([None, 0.5])) if np.isfinite(image).all() and np.isfinite(source).all() else None
    image, source = scaled(data, image, source)
    ours, theirs = (unfolded(array, side, stride) for array in (image, source))
    X, Y = ours.reshape(-1, ours.shape[2]), theirs.reshape(-1, ours.shape[2])
    y, x = (np.indices(array.shape[:2]).reshape(2, -1) * stride for array in (ours, theirs))
    allowed = (np.abs(y[:, :, None] - x[:, None]) <= radius).all(0)
    weights = None
    if alpha is not None:
        least = lp.masked_topk(Y.astype(float), X.astype(float), 1).distances[:, 0]  # sums are exact
        weights = 1 / (alpha * X.shape[1] + least)
    k = data.draw(st.integers(1, len(Y)))
    got = lp.patch_nearest(image, source, side, k, alpha, stride, radius)
    want = lp.masked_topk(X, Y, k, None, allowed, "numpy", bank_weights=weights, return_weighted=weights is not None)
    assert np.array_equal(got.indices.reshape(-1, k), want.indices)
    assert got.distances.dtype == want.distances.dtype
    np.testing.assert_array_equal(got.distances.reshape(-1, k), want.distances)


def test_general_values_and_tensors() -> None:
    random = np.random.default_rng(4)
    image, source = (random.random((3, n, n + 3)).astype(np.float32) for n in (30, 25))
    got = lp.patch_nearest(image, source, 5, 3)
    X, Y = (unfolded(array, 5, 1).reshape(-1, 75) for array in (image, source))
    want = lp.masked_topk(X, Y, 3, backend="numpy")
    assert np.array_equal(got.indices.reshape(-1, 3), want.indices)
    tensors = lp.patch_nearest(torch.from_numpy(image).requires_grad_(), torch.from_numpy(source), 5, 3)
    assert isinstance(tensors.indices, torch.Tensor) and np.array_equal(tensors.indices, got.indices)
    scored = lp.patch_nearest(image, source, 5, 3, alpha=0.01)
    wanted = lp.normalised_nearest(X, Y, 0.01, k=3, backend="numpy")
    assert np.array_equal(scored.indices.reshape(-1, 3), wanted.indices)
    assert np.array_equal(scored.distances.reshape(-1, 3), wanted.distances)


@pytest.mark.parametrize("radius", [9, 10**9])
def test_a_radius_beyond_the_image_is_every_patch(radius: int) -> None:
    image, source = picture("float32", (2, 9, 7), 1), picture("float32", (2, 6, 10), 2)
    near, every = (lp.patch_nearest(image, source, 3, 5, search_radius=r) for r in (radius, None))
    assert np.array_equal(near.indices, every.indices) and np.array_equal(near.distances, every.distances)


@pytest.mark.parametrize("rooted", [False, True])
def test_normalised_nearest_compiles(rooted: bool) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).random((9, 5), np.float32))

    def search(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = lp.normalised_nearest(x, y, 0.1, rooted)
        return found.distances, found.indices

    plain = search(rows[:4], rows[4:])
    compiled = torch.compile(search, fullgraph=True, backend="aot_eager")(rows[:4], rows[4:])
    assert torch.equal(compiled[1], plain[1])
    torch.testing.assert_close(compiled[0], plain[0])  # torch's roots are not correctly rounded


def test_what_has_no_score_is_said_of_what_was_given() -> None:
    image = picture("float32", (1, 5, 5), 1) + np.float32(1)
    for wrong in (np.float32(np.inf), np.float32(np.nan)):
        with pytest.raises(InputError, match="source: the least distance of patch 0 is"):
            lp.patch_nearest(image, image * -wrong, 3, alpha=0.1)
        with pytest.raises(InputError, match="Y: the least distance of row 0 is"):
            lp.normalised_nearest(image[0], image[0] * -wrong, 0.1)
    with pytest.raises(InputError, match=r"X \(1, 5, 5\) and Y \(1, 5, 5\): expected \(Q, D\)"):
        lp.normalised_nearest(image, image, 0.1)


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize("of", [np.asarray, torch.from_numpy])
def test_normalised_distances_whose_squares_leave_float32(of: Any, rooted: bool) -> None:
    X, Y = (picture("float32", (1, count, 5), seed, 50)[0] for seed, count in enumerate((9, 7)))
    want = lp.normalised_nearest(of(X), of(Y), 0.25, rooted, 3)
    for power in (66, 90):
        factor = 2.0**power
        alpha = 0.25 * (factor if rooted else factor**2)
        got = lp.normalised_nearest(of(X * np.float32(factor)), of(Y * np.float32(factor)), alpha, rooted, 3)
        assert all(np.array_equal(*pair) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize("alpha", [1e-320, 1e308])
def test_an_alpha_that_weights_cannot_hold(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha: got 1e"):
        lp.normalised_nearest(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32), alpha)


KINDS = ["bool", "uint16", "int32", "int64", "float128", "complex64", ">f4", "U3", "object", "datetime64[s]"]


@pytest.mark.parametrize("radius", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes_are_refused(kind: str, radius: int | None) -> None:
    image = np.zeros((1, 5, 5), "int64").astype(kind)
    with pytest.raises(InputError, match=r"^image .* and source .*: expected both to be one of float32, .*; convert"):
        lp.patch_nearest(image, image, 2, search_radius=radius)
    if kind in KINDS[2:4]:
        with pytest.raises(InputError, match="expected both to be one of float32"):
            lp.patch_nearest(torch.from_numpy(image), torch.from_numpy(image), 2, search_radius=radius)


def test_two_dtypes_are_refused_by_every_search() -> None:
    for radius in (None, 2):
        with pytest.raises(InputError, match=r"^image float32 and source int16: expected both"):
            lp.patch_nearest(np.zeros((1, 5, 5), np.float32), np.zeros((1, 5, 5), np.int16), 2, search_radius=radius)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image": np.zeros((4, 4), np.float32)}, "image"),
        ({"image": [[1.0]]}, "image"),
        ({"source": np.zeros((2, 9, 9), np.float32)}, "source"),
        ({"source": np.zeros((1, 2, 9), np.float32)}, "patch"),
        ({"patch": 0}, "patch"),
        ({"patch": 2.5}, "patch"),
        ({"stride": 0}, "stride"),
        ({"k": 0}, "k"),
        ({"k": 50}, "k"),
        ({"alpha": 0}, "alpha"),
        ({"alpha": -1, "search_radius": 1}, "alpha"),
        ({"search_radius": -1}, "search_radius"),
        ({"source": np.zeros((1, 9, 9))}, "float64"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], word: str) -> None:
    image = np.zeros((1, 9, 9), np.float32)
    with pytest.raises(InputError, match=word):
        lp.patch_nearest(**{"image": image, "source": image, "patch": 3, **change})
