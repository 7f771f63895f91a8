"""Numbers given in any form: tensors of every kind, arrays and lists are taken, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import lpkernel as lp
from lpkernel.errors import InputError

# What holds no numbers in rows, and the word of the fix.
NOT_DENSE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda x: x.to_sparse(), "to_dense"),
    "sparse rows": (lambda x: x.to_sparse_csr(), "to_dense"),
    "oneDNN's": (lambda x: x.to_mkldnn(), "to_dense"),
    "nested": (lambda x: torch.nested.nested_tensor([x[0], x[1]]), "stack"),
    "meta": (lambda x: x.to("meta"), "cpu"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "dequantize"),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, about these kinds


def rows(count: int, width: int = 3) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(count))


def index() -> lp.IndexFlatL2:
    found = lp.IndexFlatL2(3)
    found.add(rows(5))
    return found


SEARCHES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "masked_topk, queries": (lambda x: lp.masked_topk(x, rows(5), 2), "queries"),
    "masked_topk, bank": (lambda x: lp.masked_topk(rows(4), x, 2), "bank"),
    "masked_topk of arrays, bank": (lambda x: lp.masked_topk(rows(4).numpy(), x, 2), "bank"),
    "normalised_nearest, X": (lambda x: lp.normalised_nearest(x, rows(5), 1.0), "X"),
    "normalised_nearest, Y": (lambda x: lp.normalised_nearest(rows(5), x, 1.0), "Y"),
    "IndexFlatL2.add": (lambda x: lp.IndexFlatL2(3).add(x), "x"),
    "IndexFlatL2.search": (lambda x: index().search(x, 2), "x"),
    "NearestNeighbors.fit": (lambda x: lp.NearestNeighbors().fit(x), "X"),
    "NearestNeighbors.kneighbors": (lambda x: lp.NearestNeighbors(2).fit(rows(5)).kneighbors(x), "X"),
    "Bank.from_codes, codebook": (lambda x: lp.Bank.from_codes(np.zeros((2, 4, 4), int), x), "codebook"),
}


@pytest.mark.parametrize("kind", NOT_DENSE)
@pytest.mark.parametrize("search", SEARCHES)
def test_tensors_without_rows_are_refused(search: str, kind: str) -> None:
    (call, name), (make, fix) = SEARCHES[search], NOT_DENSE[kind]
    with pytest.raises(InputError, match=f"^{name}: .*{fix}"):
        call(make(rows(4)))


@pytest.mark.parametrize("kind", ["sparse", "meta"])
@pytest.mark.parametrize(
    ("argument", "values"),
    [
        ("patch_mask", torch.ones(3, dtype=torch.bool)),
        ("candidate_mask", torch.ones(5, dtype=torch.bool)),
        ("bank_weights", torch.ones(5)),
        ("column_weights", torch.ones(3)),
    ],
)
def test_so_are_masks_and_weights(argument: str, values: Tensor, kind: str) -> None:
    make, fix = NOT_DENSE[kind]
    options: dict[str, Any] = {argument: make(values)}
    pairs: list[tuple[Any, Any]] = [(rows(4), rows(5)), (rows(4).numpy(), rows(5).numpy())]
    for queries, bank in pairs:
        with pytest.raises(InputError, match=f"^{argument}: .*{fix}"):
            lp.masked_topk(queries, bank, 2, **options)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
@pytest.mark.parametrize("place", [0, 1])
def test_so_are_images(kind: str, place: int) -> None:
    make, fix = NOT_DENSE[kind]
    pair = [torch.zeros(3, 9, 9), torch.zeros(3, 9, 9)]
    pair[place] = make(pair[place])
    with pytest.raises(InputError, match=f"^{('image', 'source')[place]}: .*{fix}"):
        lp.patch_nearest(pair[0], pair[1], 3)


@pytest.mark.parametrize("given", [[[0.0] * 3] * 5, None, 7])
def test_a_bank_of_another_kind_than_tensors(given: Any) -> None:
    with pytest.raises(InputError, match="bank: got "):
        lp.masked_topk(rows(4), given, 2)


@pytest.mark.parametrize("search", ["IndexFlatL2.add", "NearestNeighbors.fit", "Bank.from_codes, codebook"])
def test_sparse_matrices_of_scipy(search: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    call, name = SEARCHES[search]
    with pytest.raises(InputError, match=rf"^{name}: .*\.toarray\(\)"):
        call(sparse.csr_matrix(np.eye(3)))


CODES = np.arange(2 * 16).reshape(2, 4, 4)
BOOK = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
LATENTS = torch.randn(2, 4, 4, 5, generator=torch.Generator().manual_seed(0))
PICTURES = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
FORMS: dict[str, Callable[[Tensor], Any]] = {
    "a parameter": torch.nn.Parameter,
    "bfloat16": lambda x: x.bfloat16(),
    "negative": torch._neg_view,
    "a list": lambda x: x.tolist(),
}


def plain(form: str, numbers: Tensor) -> np.ndarray:
    """The array of the same numbers."""
    return np.asarray({"bfloat16": numbers.bfloat16().float(), "negative": -numbers}.get(form, numbers))


@pytest.mark.parametrize("form", FORMS)
def test_banks_of_tensors(form: str) -> None:
    make = FORMS[form]
    assert lp.Bank.from_codes(CODES, make(BOOK)) == lp.Bank.from_codes(CODES, plain(form, BOOK))
    assert lp.Bank.from_latents(make(LATENTS)) == lp.Bank.from_latents(plain(form, LATENTS))


@pytest.mark.parametrize("form", ["a parameter", "bfloat16"])
def test_banks_of_pictures_in_tensors(form: str) -> None:
    autoencoder, pictures, want = lp.load_autoencoder(), FORMS[form](PICTURES), plain(form, PICTURES)
    assert lp.Bank.build(pictures, autoencoder) == lp.Bank.build(want, autoencoder)
    assert lp.Bank.build(list(pictures), autoencoder) == lp.Bank.build(list(want), autoencoder)


@pytest.mark.parametrize("book", [[["a", "b"]], [[object()]], BOOK.numpy() + 1j, [[1.0], [1.0, 2.0]], "book", None])
def test_codebooks_of_no_numbers(book: Any) -> None:
    with pytest.raises(InputError, match=r"^codebook"):
        lp.Bank.from_codes(CODES, book)


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_pictures_that_hold_no_numbers(kind: str) -> None:
    make, fix = NOT_DENSE[kind]
    with pytest.raises(InputError, match=f"^images: .*{fix}"):
        lp.Bank.build(make(PICTURES), lp.load_autoencoder())
    with pytest.raises(InputError, match=rf"^images\[0\]: .*{fix}"):
        lp.Bank.build([make(PICTURES[0])], lp.load_autoencoder())


def test_one_picture_is_no_bank() -> None:
    picture = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="got one picture, expected several; put it into a list"):
        lp.Bank.build(picture, lp.load_autoencoder())
    assert lp.Bank.build([picture], lp.load_autoencoder()).size == 1
    with pytest.raises(InputError, match=r"^images: got a bytes"):
        lp.Bank.build(b"folder", lp.load_autoencoder())


def test_candidates_and_sources_in_tensors() -> None:
    bank = lp.Bank.from_codes(CODES, BOOK)
    made = lp.generate(bank, 1, patch=2, candidates=torch.nn.Parameter(torch.ones(2)) > 0)
    uses: list[Callable[[Any], Any]] = [
        bank.gather,
        lambda x: lp.generate(bank, 1, patch=2, candidates=x),
        lambda x: lp.plan.edit(x, patch=2),
    ]
    assert np.array_equal(uses[0](torch.from_numpy(made.sources)), bank.gather(made.sources))
    for use in uses:
        with pytest.raises(InputError, match="meta"):
            use(torch.ones(2, dtype=torch.bool, device="meta"))


TWO = np.zeros((2, 4, 4), int)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda bank: bank.whole(torch.zeros(2, device="meta")), "numbers: got a tensor on the device meta"),
        (lambda bank: bank.whole(3), "numbers have shape"),
        (lambda bank: bank.whole([[0], [1, 2]]), "numbers: got "),
        (lambda bank: bank.gather(TWO, torch.zeros(2, 4, 4, 2, device="meta")), "shifts: got a tensor on the device"),
        (lambda bank: bank.gather(TWO, [[0], [1, 2]]), "shifts: got "),
        (lambda bank: bank.project([["a"] * 3]), "latents: got <U1, expected real numbers"),
        (lambda bank: bank.project(np.array([None])), "latents: got object, expected real numbers"),
        (lambda _: lp.Bank.from_codes(TWO, np.ones((3, 3)) * 1e39), "codebook holds NaN, infinity or what float32"),
        (
            lambda _: lp.Bank.from_codes(TWO, rows(3), attributes={"Hat": torch.zeros(2, device="meta")}),  # type: ignore[dict-item]
            "attribute 'Hat': got a tensor on the device meta",
        ),
        (lambda _: lp.NearestNeighbors(metric_params=np.zeros(3)).fit(rows(5)), "metric_params: got array"),  # type: ignore[arg-type]
        (lambda _: lp.NearestNeighbors(metric="minkowski", p=np.array([2, 2])).fit(rows(5)), "p: got array"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_else_holds_no_such_numbers(call: Callable[[lp.Bank], Any], said: str) -> None:
    bank = lp.Bank.from_codes(TWO, rows(3))
    with pytest.raises(InputError, match=f"^{said}"):
        call(bank)


def test_what_only_looks_like_a_tensor() -> None:
    class Detached:
        def detach(self) -> None:
            raise AssertionError

    with pytest.raises(InputError, match="codes"):
        lp.Bank.from_codes(Detached(), rows(3))  # type: ignore[arg-type]
