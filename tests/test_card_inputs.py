"""What a backend of GPUs is handed: never tensors on the CPU for a caller's NumPy arrays, nor more neighbours than it
keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lpkernel.triton_kernels.configs import MOST_NEIGHBOURS

import lpkernel as lp
from lpkernel.backends import registry
from lpkernel.backends.base import ScanRequest, TopK, TopkRequest
from lpkernel.backends.device_bank import wrong_device
from lpkernel.backends.specification import NumpyBackend
from lpkernel.errors import BackendUnavailable


class Card(NumpyBackend):
    """The specification, as choosy as the backend whose name it has."""

    name = "cuda"
    checks_only = False

    def unavailable(self, device: str = "auto") -> list[str]:
        return [] if device in ("auto", "cuda") else [wrong_device("cuda", torch.device(device), False)]

    def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
        if request.k > MOST_NEIGHBOURS:
            return [f"finds up to {MOST_NEIGHBOURS} neighbours, got k = {request.k}"]
        return [] if request.device == "auto" else [wrong_device("cuda", torch.device(request.device), True)]


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LPKERNEL_BACKEND", raising=False)
    monkeypatch.setitem(registry.BACKENDS, "cuda", Card())


RANDOM = np.random.default_rng(0)
QUERIES, BANK = (RANDOM.normal(size=(count, 7)).astype(np.float32) for count in (5, 160))
WIDE_QUERIES, WIDE_BANK = QUERIES.astype(np.float64), BANK.astype(np.float64) / 3
WEIGHTS = RANDOM.uniform(0.5, 2.0, len(BANK))
ALLOWED = RANDOM.random(len(BANK)) < 0.95
OF_QUERIES = RANDOM.random(QUERIES.shape) < 0.7
IMAGE, SOURCE = (RANDOM.random((2, side, side)).astype(np.float32) for side in (9, 12))


def indexed(rows: int, backend: str) -> TopK:
    index = lp.IndexFlatL2(7, backend=backend)
    index.add(BANK[:rows])
    index.add(BANK[rows : 2 * rows])
    return index.search(QUERIES, 20)


def fitted(rows: Any, queries: Any, metric: str, backend: str) -> tuple[Any, Any]:
    distances, indices = lp.NearestNeighbors(4, metric=metric, backend=backend).fit(rows).kneighbors(queries)
    return distances, indices


CALLS: dict[str, Callable[[str], Any]] = {
    "float32": lambda b: lp.masked_topk(QUERIES, BANK, 3, backend=b),
    "float64": lambda b: lp.masked_topk(WIDE_QUERIES, WIDE_BANK, 3, backend=b),
    "masks and weights": lambda b: lp.masked_topk(
        WIDE_QUERIES, WIDE_BANK, 3, np.arange(7) < 5, ALLOWED, b, bank_weights=WEIGHTS, return_weighted=True
    ),
    "a mask for each query": lambda b: lp.masked_topk(WIDE_QUERIES, WIDE_BANK, 3, OF_QUERIES, ALLOWED, b),
    "cosine": lambda b: lp.masked_topk(QUERIES, BANK, 3, backend=b, metric="cosine"),
    "ip": lambda b: lp.masked_topk(QUERIES, BANK, 3, backend=b, metric="ip"),
    "sqrt": lambda b: lp.masked_topk(QUERIES, BANK, 3, backend=b, metric="sqrt", bank_weights=WEIGHTS),
    "columns": lambda b: lp.masked_topk(QUERIES, BANK, 3, backend=b, column_weights=np.arange(7) / 3),
    "beyond float32": lambda b: lp.masked_topk(QUERIES * np.float32(1e30), BANK * np.float32(1e30), 3, backend=b),
    "beyond float32, all kept": lambda b: lp.masked_topk(
        QUERIES * np.float32(1e30), BANK * np.float32(1e30), MOST_NEIGHBOURS, backend=b
    ),
    "bytes by cosine": lambda b: lp.masked_topk(
        (QUERIES * 9 + 99).astype(np.uint8), (BANK * 9 + 99).astype(np.uint8), 3, backend=b, metric="cosine"
    ),
    "neighbours and the margin": lambda b: lp.masked_topk(WIDE_QUERIES, WIDE_BANK, 120, backend=b),
    "as many as are kept": lambda b: lp.masked_topk(WIDE_QUERIES, WIDE_BANK, MOST_NEIGHBOURS, backend=b),
    "index": lambda b: indexed(80, b),
    "index with fewer rows": lambda b: indexed(8, b),
    "fitted": lambda b: fitted(BANK, QUERIES, "euclidean", b),
    "fitted, float64": lambda b: fitted(WIDE_BANK, WIDE_QUERIES, "euclidean", b),
    "fitted, cosine": lambda b: fitted(BANK, None, "cosine", b),
    "normalised": lambda b: lp.normalised_nearest(QUERIES, BANK, 0.1, backend=b),
    "normalised, rooted": lambda b: lp.normalised_nearest(QUERIES, BANK, 0.1, True, backend=b),
    "patches": lambda b: lp.patch_nearest(IMAGE, SOURCE, 3, 2, backend=b),
    "patches, float64": lambda b: lp.patch_nearest(IMAGE / 3.0, SOURCE / 3.0, 3, 2, backend=b),
    "patches, normalised": lambda b: lp.patch_nearest(IMAGE, SOURCE, 3, 2, 0.1, backend=b),
    "patches nearby": lambda b: lp.patch_nearest(IMAGE, SOURCE, 3, 2, 0.1, search_radius=2, backend=b),
}


@pytest.mark.parametrize("name", CALLS)
def test_numpy_arrays_are_taken(name: str) -> None:
    made, specified = CALLS[name]("cuda"), CALLS[name]("numpy")
    for part, wanted in zip(made, specified, strict=True):
        assert isinstance(part, np.ndarray)
        np.testing.assert_array_equal(part, wanted)


@pytest.mark.parametrize("name", ["float64", "index"])
def test_by_the_environment_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specified = CALLS[name]("numpy")
    monkeypatch.setenv("LPKERNEL_BACKEND", "cuda")
    for part, wanted in zip(CALLS[name]("auto"), specified, strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_more_than_are_kept_is_refused() -> None:
    with pytest.raises(BackendUnavailable, match="got k = 145"):
        lp.masked_topk(WIDE_QUERIES, WIDE_BANK, MOST_NEIGHBOURS + 1, backend="cuda")


def test_tensors_on_the_cpu_are_refused() -> None:
    for rows in (BANK, WIDE_BANK):
        with pytest.raises(BackendUnavailable, match="runs on cuda devices only, not on cpu: move the tensors"):
            lp.masked_topk(torch.from_numpy(rows[:5]), torch.from_numpy(rows), 3, backend="cuda")
