"""No image is encoded or decoded twice in a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from PIL import Image

from lpkernel import Bank, load_autoencoder
from lpkernel.autoencoder import once
from lpkernel.autoencoder.once import Once
from lpkernel.cli import main
from lpkernel.commands import results
from lpkernel.files import open_regular

PLUGIN = """
import sys

sys.path.insert(0, {tests!r})
from fakes import FakeContinuous, FakeVQ

SEEN = []


class _Counting:
    def encode(self, images):
        SEEN.extend(("encode", image.tobytes()) for image in images)
        return super().encode(images)

    def decode(self, latents):
        SEEN.extend(("decode", one.tobytes()) for one in latents)
        return super().decode(latents)


class VQ(_Counting, FakeVQ):
    pass


class Continuous(_Counting, FakeContinuous):
    pass
"""
EDITED = ["--box", "8,8,40,40"]
MASKED = ["--mask", "{folder}/mask.png"]
COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", "--provenance", "--baseline"],
    "reference": ["generate", "--reference", "{folder}/in/3.png", "--provenance"],
    "edit": ["edit", "{folder}/in/3.png", *EDITED],
    "edit one": ["edit", "{folder}/in/3.png", *EDITED, "--donor", "one"],
    "edit everywhere": ["edit", "{folder}/in/3.png", *EDITED, "--no-keep-outside"],
    "donors": ["edit", "{folder}/in/3.png", *EDITED, "--donors", "{folder}/in"],
    "inpaint": ["inpaint", "{folder}/in/3.png", *MASKED],
    "harmonize": ["harmonize", "{folder}/in/3.png", *MASKED],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("once")
    (path / "counting.py").write_text(PLUGIN.format(tests=str(Path(__file__).parent)))
    (path / "in").mkdir()
    pictures = np.random.default_rng(3).integers(0, 256, (6, 8, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / "in" / f"{number}.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[16:40, 20:44] = 255
    Image.fromarray(mask).save(path / "mask.png")
    more = np.random.default_rng(4).integers(0, 256, (12, 64, 64, 3), np.uint8)
    for kind in ("VQ", "Continuous"):
        autoencoder: Any = getattr(fakes, f"Fake{kind}")()
        Bank.build(np.concatenate([pictures, more]), autoencoder, channels=3).save(path / f"{kind}.lpbank")
    return path


@pytest.mark.parametrize("kind", ["VQ", "Continuous"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_sees_an_image_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, kind: str
) -> None:
    monkeypatch.setattr(results, "DECODE_BATCH", 4)
    argv = [part.format(folder=folder) for part in COMMANDS[command]]
    argv += ["--bank", str(folder / f"{kind}.lpbank"), "--autoencoder", f"{folder / 'counting.py'}:{kind}"]
    assert main([*argv, "-n", "10", "--patch", "3", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    seen = sys.modules["lpkernel_plugin_counting"].SEEN
    assert len(seen) > 3 and len(set(seen)) == len(seen)
    assert len(list((tmp_path / "out").glob("image-*.png"))) == 10


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "donors"])
def test_no_command_reads_a_picture_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Neither the input, even if a folder of donors contains it too, nor a picture that was just written."""
    read = list[str]()

    def look(path: Any) -> Any:
        read.append(str(path))
        return open_regular(path)

    monkeypatch.setattr("lpkernel.pictures.images.open_regular", look)
    argv = [part.format(folder=folder) for part in COMMANDS[command]]
    argv += ["--bank", str(folder / "VQ.lpbank"), "--autoencoder", f"{folder / 'counting.py'}:VQ"]
    assert main([*argv, "-n", "2", "--patch", "3", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert len(set(read)) == len(read), read
    assert str(folder / "in" / "3.png") in read or command == "generate"


@pytest.mark.parametrize("kind", ["VQ", "Continuous"])
def test_evaluate_sees_no_image_twice(folder: Path, tmp_path: Path, kind: str) -> None:
    argv = ["evaluate", str(folder / "in"), "--bank", str(folder / f"{kind}.lpbank"), "-n", "6", "--reconstruct"]
    argv += ["--preset", "paper,patch=3", "--autoencoder", f"{folder / 'counting.py'}:{kind}"]
    code = main([*argv, "--out", str(tmp_path / "out"), "--quiet"])
    seen = sys.modules["lpkernel_plugin_counting"].SEEN
    assert code == 0 and len(set(seen)) == len(seen)


def test_what_was_given_last_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    inner: Any = fakes.FakeVQ()
    codes = np.random.default_rng(0).integers(0, 32, (9, 8, 8))
    expected, seen, decode = inner.decode(codes), list[int](), inner.decode

    def counted(some: np.ndarray) -> np.ndarray:
        seen.append(len(some))
        result: np.ndarray = decode(some)
        return result

    monkeypatch.setattr(inner, "decode", counted)
    autoencoder = Once(inner)
    for numbers in ([3, 5, 8, 5], [5, 8, 1], [3, 1], []):
        np.testing.assert_array_equal(autoencoder.decode(codes[numbers]), expected[numbers])
    assert seen == [3, 1, 0]
    monkeypatch.setattr(once, "KEPT_BYTES", 2 * expected[0].nbytes)
    for numbers in ([6, 7, 4], [7, 4], [6]):
        np.testing.assert_array_equal(autoencoder.decode(codes[numbers]), expected[numbers])
    assert seen == [3, 1, 0, 3, 1]


def test_variants_and_the_original_are_decoded_once() -> None:
    inner: Any = load_autoencoder(device="cpu", dtype="float32")
    autoencoder: Any = Once(inner)
    codes = np.random.default_rng(0).integers(0, 1024, (3, 16, 16))
    pixels, record = autoencoder.decode_recorded(codes[0])
    assert autoencoder.decode_recorded(codes[0])[1] is record
    inner.decode_tensor = None  # nothing is decoded from here on
    np.testing.assert_array_equal(autoencoder.decode(codes[:1])[0], pixels)
    part = autoencoder.decode_cells(codes[1:], record, (2, 2, 5, 6))
    assert part.shape == (2, 24, 32, 3)
    inner._parts = None
    np.testing.assert_array_equal(autoencoder.decode_cells(codes[[2, 1, 2]], record, (2, 2, 5, 6)), part[[1, 0, 1]])
    assert autoencoder.dtype == inner.dtype
    plain: Any = Once(fakes.FakeVQ())
    assert not hasattr(plain, "decode_cells") and not hasattr(plain, "decode_recorded")
