"""The library's manners: sequences, equality, paths, pictures of any kind, and one line for a wrong type."""

from __future__ import annotations

import inspect
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

import lpkernel as lp
from lpkernel.bank import as_bank
from lpkernel.content import same
from lpkernel.errors import InputError

ANY: Any = lp  # for calls that its types forbid
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)


@pytest.fixture(scope="module")
def bank() -> lp.Bank:
    return lp.Bank.build(IMAGES, fakes.FakeVQ(), channels=3)


@pytest.fixture(scope="module")
def continuous() -> lp.Bank:
    return lp.Bank.build(IMAGES, fakes.FakeContinuous(), channels=3)


@pytest.mark.parametrize("kind", ["bank", "continuous"])
def test_a_synthesis_is_a_sequence(kind: str, request: pytest.FixtureRequest) -> None:
    bank = request.getfixturevalue(kind)
    autoencoder = fakes.FakeVQ() if kind == "bank" else fakes.FakeContinuous()
    made = lp.generate(bank, n=5, patch=3, first_image=10)
    images = made.decode(autoencoder)
    assert len(made) == 5 and [len(one) for one in made] == [1] * 5
    for number, one in enumerate(made):
        assert np.array_equal(one.decode(autoencoder)[0], images[number]) and one == made[number] == made[number - 5]
        assert (one.settings["n"], one.settings["first_image"]) == (1, 10 + number)
    assert np.array_equal(made[1:3].sources, made.sources[1:3]) and made[1:3].settings["first_image"] == 11
    assert made[1:3] == lp.generate(bank, n=2, patch=3, first_image=11) and len(made[4:2]) == 0
    with pytest.raises(IndexError):
        made[5]
    for wrong in (1.0, "1", None, slice(None, None, 2)):
        with pytest.raises(InputError, match="images: got"):
            made[wrong]  # type: ignore[index]


def test_repr_is_one_line(bank: lp.Bank, continuous: lp.Bank) -> None:
    for one in (bank, continuous):
        made = lp.generate(one, n=3, patch=3, seed=7)
        edited = lp.generate(one, n=1, patch=3)
        for text in (repr(made), repr(edited), repr(made[0])):
            assert "\n" not in text and len(text) < 130 and "array" not in text
        assert "3 images of 8x8" in repr(made) and "seed 7" in repr(made)


def test_banks_and_results_compare_by_content(bank: lp.Bank, continuous: lp.Bank, tmp_path: Path) -> None:
    bank.save(tmp_path / "a.lpbank")
    loaded = lp.Bank.load(tmp_path / "a.lpbank")
    loaded.level(5)
    assert loaded == bank and hash(loaded) == hash(bank) and bank != continuous and bank != "bank"
    other = lp.Bank.build(IMAGES[:, ::-1], fakes.FakeVQ(), channels=3)
    assert other != bank and len({bank, loaded, other}) == 2
    made = lp.generate(bank, n=2, patch=3, seed=1)
    assert made == lp.generate(loaded, n=2, patch=3, seed=1, backend="numpy") and made != made[0]
    assert made != lp.generate(bank, n=2, patch=3, seed=2) and hash(made) == hash(lp.generate(bank, n=2, patch=3))
    assert lp.plan.random(8, 3) == lp.plan.random(8, 3, stride=1) != lp.plan.random(8, 4)
    assert len({lp.plan.random(8, 3), lp.plan.random(8, 3, stride=1)}) == 1
    named = lp.Bank.build(IMAGES, fakes.FakeVQ(), channels=3, attributes={"Hat": np.arange(12) > 3})
    assert named != bank
    assert not same(np.zeros(2), np.zeros(2, int)) and not same([1], (1, 2)) and not same(np.zeros(1), 0.0)


def test_a_bank_may_be_a_path(bank: lp.Bank, tmp_path: Path) -> None:
    path = tmp_path / "b.lpbank"
    bank.save(str(path))
    made = lp.generate(bank, n=2, patch=3)
    assert lp.generate(path, n=2, patch=3) == lp.generate(str(path), n=2, patch=3) == made
    mask, image = np.zeros((64, 64), bool), tmp_path / "i.png"
    mask[20:40, 20:40] = True
    Image.fromarray(IMAGES[3]).save(image)
    autoencoder = fakes.FakeVQ()
    for mode in (ANY.edit, ANY.inpaint, ANY.harmonize):
        results = [mode(one, image, autoencoder, mask=mask, n=1, patch=3) for one in (bank, path, str(path))]
        assert results[0] == results[1] == results[2]
    assert lp.reference(path, image, autoencoder, n=1, patch=3) == lp.reference(
        bank, str(image), autoencoder, 1, patch=3
    )
    donated = lp.edit(bank, image, autoencoder, mask=mask, n=1, patch=3, donors=path)
    assert donated.bank == bank
    assert as_bank("default") == lp.Bank.default()
    for wrong in (None, 3, b"b.lpbank", np.zeros(3)):
        with pytest.raises(InputError, match="bank: got"):
            lp.generate(wrong)  # type: ignore[arg-type]


def test_the_embedded_autoencoder_needs_no_naming() -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    made = lp.generate(bank, n=2, seed=3)
    images = made.decode()
    np.testing.assert_array_equal(images, made.decode(autoencoder))
    assert lp.reference(bank, images[0], n=1) == lp.reference(bank, images[0], autoencoder, n=1)
    for shown in (made[0], made):
        with Image.open(io.BytesIO(shown._repr_png_() or b"")) as picture:
            assert picture.format == "PNG" and picture.width == 4 + len(shown) * 132


def test_another_banks_autoencoder_is_asked_for(bank: lp.Bank) -> None:
    made = lp.generate(bank, n=1, patch=3)
    assert made._repr_png_() is None
    with pytest.raises(InputError, match="the bank was made with 'fake-vq'; pass that one"):
        made.decode()
    with pytest.raises(InputError, match="pass that one"):
        lp.reference(bank, IMAGES[0], patch=3)
    with pytest.raises(InputError, match="as mask="):
        ANY.inpaint(bank, IMAGES[0], np.zeros((64, 64), bool), patch=3)  # a mask in the autoencoder's place
    with pytest.raises(InputError, match="autoencoder: got a ndarray"):
        ANY.reference(bank, IMAGES[0], np.zeros((64, 64), bool), patch=3)
    with pytest.raises(InputError, match="autoencoder: got None"):
        lp.Bank.build(IMAGES, None)  # type: ignore[arg-type]


def test_modes_take_their_arguments_in_one_order() -> None:
    modes = (lp.edit, lp.inpaint, lp.harmonize, lp.reference)
    orders = [list(inspect.signature(mode).parameters) for mode in modes]
    assert all(order[:3] == ["bank", "image", "autoencoder"] for order in orders)
    for one in orders:
        for other in orders:
            shared = [name for name in one if name in other]
            assert shared == [name for name in other if name in one]


def floats(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255


KINDS: dict[str, Callable[[], Any]] = {
    "array": lambda: IMAGES,
    "PIL images": lambda: [Image.fromarray(image) for image in IMAGES],
    "PIL images with alpha": lambda: tuple(Image.fromarray(image).convert("RGBA") for image in IMAGES),
    "tensor": lambda: torch.from_numpy(IMAGES),
    "tensor, colours first": lambda: torch.from_numpy(IMAGES).permute(0, 3, 1, 2),
    "floats, colours first": lambda: torch.from_numpy(floats(IMAGES)).permute(0, 3, 1, 2).requires_grad_(),
    "float array": lambda: floats(IMAGES),
    "list of tensors": lambda: [torch.from_numpy(image).permute(2, 0, 1) for image in IMAGES],
    "list of arrays": lambda: list(IMAGES),
    "mixed": lambda: [Image.fromarray(IMAGES[0]), *IMAGES[1:]],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_bank_is_built_of_any_pictures(kind: str, bank: lp.Bank) -> None:
    assert lp.Bank.build(KINDS[kind](), fakes.FakeVQ(), channels=3) == bank


def test_pictures_of_their_own_sizes() -> None:
    pictures = [Image.fromarray(IMAGES[0]).resize((90, 70)), Image.fromarray(IMAGES[1])]
    grey = [Image.new("L", (64, 64), 100), Image.new("P", (64, 64))]
    assert lp.Bank.build([*pictures, *grey], fakes.FakeVQ(), channels=3).size == 4


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "is empty"),
        (None, "got a NoneType"),
        (7, "got a int"),
        ([IMAGES[0], None], r"images\[1\]: got a NoneType"),
        ([IMAGES[0], "a.png"], r"images\[1\]: got a str"),
        (IMAGES[0], r"uint8 \(64, 64, 3\)"),
        (IMAGES[..., 0], r"uint8 \(12, 64, 64\)"),
        (IMAGES.astype(np.int64), "int64"),
        (floats(IMAGES) * 2 - 1, "floats from -1"),
        (floats(IMAGES) * np.nan, "floats from nan"),
        (IMAGES.astype(np.float32), "to 255"),
        (IMAGES[:0], "expected uint8"),
    ],
)
def test_what_are_no_pictures(images: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        lp.Bank.build(images, fakes.FakeVQ(), channels=3)


@pytest.mark.parametrize("kind", [fakes.FakeVQ, fakes.FakeContinuous])
def test_channels_are_those_of_the_autoencoder_at_most(kind: Any) -> None:
    assert lp.Bank.build(IMAGES, kind()).channels == 6  # L
    assert lp.Bank.build(IMAGES, kind(width=20)).channels == 16
    silent = kind()
    del silent.width  # a plug-in need not say its L
    assert lp.Bank.build(IMAGES, silent).channels == 6
    autoencoder = kind()
    with pytest.raises(InputError, match="channels=16, expected 1 to 6"):
        lp.Bank.build(IMAGES, autoencoder, channels=16)
    assert autoencoder.encoded == 0


WRONG: dict[str, Callable[[lp.Bank], Any]] = {
    "n: got 2.5": lambda b: ANY.generate(b, n=2.5),
    "n: got True": lambda b: ANY.generate(b, n=True),
    "n: got '3'": lambda b: ANY.generate(b, n="3"),
    "seed: got None": lambda b: ANY.generate(b, seed=None),
    "seed: got 1.0": lambda b: ANY.generate(b, seed=1.0),
    "k: got 2.5": lambda b: ANY.generate(b, k=2.5),
    "first_image: got None": lambda b: ANY.generate(b, first_image=None),
    "patch: got '3'": lambda b: ANY.generate(b, patch="3"),
    "patch: got None": lambda b: ANY.generate(b, patch=None),
    "stride: got 1.5": lambda b: ANY.generate(b, stride=1.5),
    "scales: got 8": lambda b: ANY.generate(b, scales=8),
    "scales: got '6,8'": lambda b: ANY.generate(b, scales="6,8"),
    "scales: got 6.5": lambda b: ANY.generate(b, scales=[6.5, 8]),
    "mirror: got 0.5": lambda b: ANY.generate(b, mirror=0.5),
    "hubness: got nan": lambda b: ANY.generate(b, hubness=float("nan")),
    "hubness: got 'high'": lambda b: ANY.generate(b, hubness="high"),
    "preset: got None": lambda b: ANY.generate(b, preset=None),
    "plan: got 3": lambda b: ANY.generate(b, plan=3),
    "copy_limit: got 0.5": lambda b: ANY.generate(b, copy_limit=0.5),
    "area: got nan": lambda _: ANY.CopyLimit(area=float("nan")),
    "area: got 2.5": lambda _: ANY.CopyLimit(area=2.5),
    "share: got '0.5'": lambda _: ANY.CopyLimit(share="0.5"),
    "tries: got 2.5": lambda _: ANY.CopyLimit(area=3, tries=2.5),
    "strength: got 1.5": lambda b: ANY.reference(b, IMAGES[0], fakes.FakeVQ(), strength=1.5),
    "passes: got None": lambda _: ANY.plan.reference(passes=None),
    "crop: got 3": lambda b: ANY.reference(b, IMAGES[0], fakes.FakeVQ(), crop=3),
    "crop: got 0.5": lambda b: ANY.reference(b, IMAGES[0], fakes.FakeVQ(), crop=(0, 0.5, 9, 9)),
    "box: got ": lambda b: ANY.edit(b, IMAGES[0], fakes.FakeVQ(), box=(1, 2, 3)),
    "mask: none is given": lambda b: ANY.inpaint(b, IMAGES[0], fakes.FakeVQ()),
    "channels: got 2.5": lambda _: ANY.Bank.build(IMAGES, fakes.FakeVQ(), channels=2.5),
    "max_patch: got None": lambda _: ANY.Bank.build(IMAGES, fakes.FakeVQ(), 3, max_patch=None),
    "batch: got 2.5": lambda _: ANY.Bank.build(IMAGES, fakes.FakeVQ(), 3, batch=2.5),
    "limit: got 2.5": lambda _: ANY.Bank.build(IMAGES, fakes.FakeVQ(), 3, limit=2.5),
}


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_type_is_one_line(words: str, bank: lp.Bank) -> None:
    with pytest.raises(InputError) as raised:
        WRONG[words](bank)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_numbers_of_numpy_are_numbers(bank: lp.Bank) -> None:
    numbers = {"n": np.int64(2), "patch": np.int32(3), "k": np.uint8(2), "seed": np.uint64(5)}
    made = ANY.generate(bank, **numbers, scales=np.array([6, 8]))
    assert made == lp.generate(bank, n=2, patch=3, k=2, seed=5, scales=[6, 8])
    assert made.settings["k_used"] == 2 and lp.generate(bank, n=1, patch=3, k=99).settings["k_used"] == 12
