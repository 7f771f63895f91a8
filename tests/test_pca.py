"""PCA: against a plain computation, weights as counts, signs, and independence of the block size."""

from __future__ import annotations

import numpy as np
import pytest

from lpkernel.bank import pca
from lpkernel.errors import InputError


def test_matches_svd_of_centred_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pca, "_ROWS_AT_ONCE", 37)  # several blocks
    x = np.random.default_rng(0).normal(size=(200, 7)) * np.arange(1, 8) + 3
    fitted = pca.fit(x, None, 4)
    _, singular, rows = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.abs(fitted.components @ rows[:4].T), np.eye(4), atol=1e-9)
    np.testing.assert_allclose(fitted.explained, (singular**2 / (singular**2).sum())[:4], atol=1e-12)
    np.testing.assert_allclose(fitted.project(x), (x - x.mean(axis=0)) @ fitted.components.T, atol=1e-10)
    assert fitted.explained_share == pytest.approx(fitted.explained.sum()) and fitted.explained_share < 1
    assert pca.fit(x, None, 7).explained_share == pytest.approx(1)


def test_counts_equal_repeating_the_rows() -> None:
    random = np.random.default_rng(1)
    book = random.normal(size=(40, 12)).astype(np.float32)
    codes = random.integers(0, 30, 5000)  # rows 30 to 39 never occur
    weighted = pca.fit(book, np.bincount(codes, minlength=40), 5)
    repeated = pca.fit(book[codes], None, 5)
    for name in ("mean", "components", "explained"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), atol=1e-9, rtol=0)


def test_largest_entry_of_each_component_is_positive() -> None:
    for seed in range(20):
        fitted = pca.fit(np.random.default_rng(seed).normal(size=(50, 6)), None, 6)
        largest = np.abs(fitted.components).argmax(axis=1)
        assert (fitted.components[np.arange(6), largest] > 0).all()


def test_projection_of_a_vector_does_not_depend_on_the_others() -> None:
    x = np.random.default_rng(2).normal(size=(300, 9)).astype(np.float16)
    fitted = pca.fit(x, None, 5)
    whole = fitted.project(x.reshape(10, 30, 9))
    assert whole.shape == (10, 30, 5)
    single = np.stack([fitted.project(row) for row in x])
    assert np.array_equal(whole.reshape(300, 5), single)


def test_constant_vectors() -> None:
    fitted = pca.fit(np.full((10, 4), 2.5), None, 2)
    assert fitted.explained_share == 1
    assert np.array_equal(fitted.project(np.full((3, 4), 2.5)), np.zeros((3, 2)))


@pytest.mark.parametrize(
    ("vectors", "weights", "channels", "message"),
    [
        (np.ones((5, 3)), None, 4, "channels=4, expected 1 to 3"),
        (np.ones((5, 3)), None, 0, "channels=0"),
        (np.ones((0, 3)), None, 1, "n >= 1"),
        (np.ones(3), None, 1, r"\(n, L\)"),
        (np.ones((5, 3)), np.zeros(5), 1, "some positive"),
        (np.ones((5, 3)), np.ones(4), 1, r"must be \(5,\)"),
    ],
)
def test_refuses(vectors: np.ndarray, weights: np.ndarray | None, channels: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pca.fit(vectors, weights, channels)


def test_projection_refuses_another_width() -> None:
    with pytest.raises(InputError, match=r"expected \(\.\.\., 3\)"):
        pca.fit(np.eye(3), None, 2).project(np.ones((4, 5)))
