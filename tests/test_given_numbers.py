"""Numbers given in any form: tensors of every kind, arrays and lists are taken, or refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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


ATTRIBUTES: dict[str, Any] = {
    "a list": [True, False],
    "a tuple": (True, False),
    "NumPy's bools": [np.True_, np.False_],
    "an array": np.array([True, False]),
    "another stride": np.array([False, True])[::-1],
    "a tensor": torch.tensor([True, False]),
    "of a parameter": torch.nn.Parameter(torch.tensor([1.0, -1.0])) > 0,
    "unmasked": np.ma.array([True, False], mask=False),
}


@pytest.mark.parametrize("form", ATTRIBUTES)
def test_attributes_in_any_form(form: str, tmp_path: Path) -> None:
    given: Any = {np.str_("Hat"): ATTRIBUTES[form]}
    codes = lp.Bank.from_codes(CODES, BOOK, attributes=given)
    latents = lp.Bank.from_latents(LATENTS, attributes=given)
    built = lp.Bank.build(PICTURES, lp.load_autoencoder(), attributes=given, flip=True)
    for bank in (codes, latents, built):
        assert type(bank.attributes["Hat"]) is np.ndarray and type(next(iter(bank.attributes))) is str
        assert bank.where("Hat").tolist() == [True, False] * (bank.size // 2)
        assert bank.subset([1]).attributes["Hat"].tolist() == [False]
        bank.save(tmp_path / "x.lpbank")
        assert lp.Bank.load(tmp_path / "x.lpbank") == bank


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ([True, False], r"attributes: got \[True, False\], expected names with a bool"),
        ({1: [True, False]}, "attributes: a name: got 1, expected a text"),
        ({"Hat": [1, 0]}, r"attribute 'Hat' is int64 \(2,\), expected \(2,\) bool"),
        ({"Hat": torch.nn.Parameter(torch.ones(2))}, r"attribute 'Hat' is float32 \(2,\), expected"),
        ({"Hat": True}, r"attribute 'Hat' is bool \(\), expected"),
        ({"Hat": None}, r"attribute 'Hat' is object \(\), expected"),
        ({"Hat": torch.ones(2, dtype=torch.bool).to_sparse()}, "attribute 'Hat': .*to_dense"),
        ({"Hat": torch.ones(2, dtype=torch.bool, device="meta")}, "attribute 'Hat': .*cpu"),
        ({"Hat": np.ma.array([True, False], mask=[True, False])}, "attribute 'Hat': .*filled"),
    ],
)
def test_attributes_that_are_none(attributes: Any, said: str) -> None:
    makes: list[Callable[[], Any]] = [
        lambda: lp.Bank.from_codes(CODES, BOOK, attributes=attributes),
        lambda: lp.Bank.from_latents(LATENTS, attributes=attributes),
        lambda: lp.Bank.build(PICTURES, lp.load_autoencoder(), attributes=attributes),
    ]
    for make in makes:
        with pytest.raises(InputError, match=f"^{said}"):
            make()


@pytest.mark.parametrize("names", [5, "ab", [1, 2], [None, "a"], [b"a", b"b"], np.array([1, 2])])
def test_names_and_labels_are_texts(names: Any) -> None:
    for name in ("names", "labels"):
        with pytest.raises(InputError, match=rf"^{name}(\[0\])?: got .*, expected a (list of texts|text)$"):
            lp.Bank.from_codes(CODES, BOOK, **{name: names})
    bank = lp.Bank.from_codes(CODES, BOOK, names=np.array(["a", "b"]))  # type: ignore[arg-type]
    assert [type(name) for name in bank.names] == [str, str]


BOTH = torch.ones(2, dtype=torch.bool)
WHOLE = torch.ones(4, 4, dtype=torch.bool)
ASKED: dict[str, tuple[Callable[[lp.Bank, Any], Any], Tensor, str]] = {
    "examples_of": (lambda bank, x: bank.examples_of(x), torch.tensor([0, -1]), "sources"),
    "flips_of": (lambda bank, x: bank.flips_of(x), BOTH, "images"),
    "region": (lambda bank, x: lp.edit(bank, CODES[0], region=x, n=1, patch=2), torch.eye(4).bool(), "region"),
    "mask": (lambda bank, x: lp.harmonize(bank, CODES[0], mask=x, n=1, patch=2), torch.eye(4).bool(), "mask"),
    "reference": (lambda bank, x: lp.reference(bank, x, n=1, patch=2), torch.from_numpy(CODES[0]), "image"),
    "box": (lambda bank, x: lp.edit(bank, CODES[0], box=x, n=1, patch=2), torch.tensor([0, 0, 2, 2]), "box"),
    "scales": (lambda bank, x: lp.generate(bank, 1, patch=2, scales=x), torch.tensor([2, 4]), "scales"),
}


@pytest.mark.parametrize("asked", ASKED)
def test_what_a_bank_is_asked(asked: str) -> None:
    bank = lp.Bank.from_codes(CODES, BOOK)
    call, numbers, name = ASKED[asked]
    want = call(bank, numbers.numpy())
    for given in (numbers, numbers.tolist(), np.array(numbers.numpy()[::-1])[::-1]):
        assert np.array_equal(call(bank, given), want) if isinstance(want, np.ndarray) else call(bank, given) == want
    wrong: list[tuple[Any, str]] = [
        (numbers.to("meta"), "meta"),
        (numbers.to_sparse(), "to_dense"),
        (torch.quantize_per_tensor(numbers.float(), 0.1, 0, torch.qint8), "dequantize"),
        (np.ma.array(numbers.numpy(), mask=True), "filled"),
    ]
    for given, fix in wrong:
        with pytest.raises(InputError, match=f"^{name}: .*{fix}"):
            call(bank, given)
    for given in (numbers.numpy().astype(str), numbers.numpy().astype(object), numbers.float(), numbers.numpy() + 99):
        if not (asked in ("box", "scales") and np.asarray(given).dtype == object):
            with pytest.raises(InputError, match=r"^(canvas|sources|images|region|mask|box|scale)"):
                call(bank, given)


class Unequal:
    """Compared with anything, it is as an array is: of no one truth."""

    def __eq__(self, other: object) -> Any:
        return np.zeros(3)

    __hash__ = object.__hash__


OTHERS: list[Any] = [np.zeros(3), np.zeros(0), torch.zeros(3), Unequal(), ["auto"], b"auto", 3.5]
ARGUMENTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "NearestNeighbors, algorithm": (lambda x: lp.NearestNeighbors(algorithm=x).fit(rows(5)), "algorithm"),
    "NearestNeighbors, backend": (lambda x: lp.NearestNeighbors(backend=x).fit(rows(5)), "backend"),
    "NearestNeighbors, metric": (lambda x: lp.NearestNeighbors(metric=x).fit(rows(5)), "metric"),
    "NearestNeighbors, p": (lambda x: lp.NearestNeighbors(metric="minkowski", p=x).fit(rows(5)), "p"),
    "kneighbors, return_distance": (
        lambda x: lp.NearestNeighbors(2).fit(rows(5)).kneighbors(return_distance=x),
        "return_distance",
    ),
    "IndexFlatL2, backend": (lambda x: lp.IndexFlatL2(3, x), "backend"),
    "masked_topk, backend": (lambda x: lp.masked_topk(rows(4), rows(5), 2, backend=x), "backend"),
    "masked_topk, metric": (lambda x: lp.masked_topk(rows(4), rows(5), 2, metric=x), "metric"),
    "masked_topk, return_weighted": (
        lambda x: lp.masked_topk(rows(4), rows(5), 2, return_weighted=x),
        "return_weighted",
    ),
    "normalised_nearest, rooted": (lambda x: lp.normalised_nearest(rows(4), rows(5), 1.0, x), "rooted"),
    "normalised_nearest, backend": (lambda x: lp.normalised_nearest(rows(4), rows(5), 1.0, backend=x), "backend"),
    "patch_nearest, backend": (lambda x: lp.patch_nearest(rows(4)[None], rows(4)[None], 2, backend=x), "backend"),
    **{
        f"generate, {name}": (lambda x, name=name: lp.generate(small(), 1, patch=2, **{name: x}), name)  # type: ignore[misc]
        for name in ("backend", "device", "domain", "preset", "overlap", "start", "refine", "match_colours")
    },
    **{
        f"edit, {name}": (
            lambda x, name=name: lp.edit(small(), CODES[0], region=WHOLE.numpy(), n=1, patch=2, **{name: x}),  # type: ignore[misc]
            name,
        )
        for name in ("mode", "framing", "donor", "keep_outside")
    },
    **{
        f"Bank.build, {name}": (
            lambda x, name=name: lp.Bank.build(PICTURES, lp.load_autoencoder(), **{name: x}),  # type: ignore[misc]
            name,
        )
        for name in ("strict", "flip", "missing_attributes", "cache")
    },
    "load_autoencoder, device": (lambda x: lp.load_autoencoder(device=x), "device"),
    "load_autoencoder, dtype": (lambda x: lp.load_autoencoder(dtype=x), "dtype"),
    "Bank.where": (lambda x: small().where(x), "where"),
    "Bank.level": (lambda x: small().level(x), "scale side"),
    "Bank.merge": (lambda x: lp.Bank.merge(x), "merge"),
}


def small() -> lp.Bank:
    return lp.Bank.from_codes(CODES, BOOK)


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("number", range(len(OTHERS)))
def test_arguments_that_are_no_texts_or_flags(argument: str, number: int) -> None:
    call, name = ARGUMENTS[argument]
    with pytest.raises(InputError, match=f"^{name}:? "):
        call(OTHERS[number])


def test_counts_beyond_64_bits() -> None:
    arrays = rows(4).numpy(), rows(5).numpy()
    for k in (10**30, -(10**30), 2**63):
        with pytest.raises(InputError, match=r"^k: got"):
            lp.masked_topk(*arrays, k)
        with pytest.raises(InputError, match=r"^patch 2 and stride"):
            lp.patch_nearest(arrays[0][None], arrays[0][None], 2, stride=k)
