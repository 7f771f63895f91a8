"""Hostile pictures: read, or refused quickly in one line; no other program is started, and Pillow prints nothing."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hostile import pictures, sandbox
from PIL import Image

from lpkernel.errors import InputError
from lpkernel.pictures import images
from lpkernel.pictures.images import FORMATS, load_pixels, opened, plain_pixels


@pytest.mark.parametrize("name", pictures.CASES)
def test_pictures(name: str) -> None:
    outcome = sandbox.outcomes(pictures.__name__)[name]
    assert sandbox.faults(outcome, refused=name in pictures.REFUSED, seconds=4.0) == []


def test_there_are_many() -> None:
    assert len(pictures.CASES) >= 250


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_under_any_name(kind: str, tmp_path: Path) -> None:
    """The extension serves to find files; the content decides their format."""
    content = pictures.picture(kind)
    for extension in (*FORMATS[kind], ".png", ".jpg"):
        (tmp_path / f"x{extension}").write_bytes(content)
        with opened(tmp_path / f"x{extension}") as image:
            assert image.format == kind
    assert np.array_equal(load_pixels(content), load_pixels(tmp_path / "x.png"))


@pytest.mark.parametrize("block", [7, 64, 1 << 20])
def test_scans_of_honest_photographs(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither scans nor markers in a thumbnail refuse one, wherever the blocks that are searched end."""
    monkeypatch.setattr(images, "_BLOCK", block)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 100, 3), np.uint8))
    thumbnail = b"Exif\0\0" + b"\xff\xda\0\2\xff\xd9" * 500
    for options in ({}, {"progressive": True}, {"progressive": True, "restart_marker_blocks": 1}):
        file = io.BytesIO()
        noise.save(file, "JPEG", quality=98, exif=thumbnail, **options)
        content = file.getvalue()
        assert load_pixels(content).shape == (90, 100, 3)
        scans = content[content.index(thumbnail) + len(thumbnail) :].count(b"\xff\xda")
        monkeypatch.setattr(images, "MAX_SCANS", scans)
        load_pixels(content)
        monkeypatch.setattr(images, "MAX_SCANS", scans - 1)
        with pytest.raises(InputError, match=f"a JPEG of more than {scans - 1} scans"):
            load_pixels(content)
        monkeypatch.undo()
        monkeypatch.setattr(images, "_BLOCK", block)


def test_integers_of_32_bits_are_refused_and_grey_of_16_is_read() -> None:
    """From a file and as a picture at hand: their range is not stated, so that they became black."""
    wide = Image.fromarray(np.full((20, 20), 200, np.uint8)).convert("I")
    file = io.BytesIO()
    wide.save(file, "TIFF")
    reads: tuple[Callable[[], object], ...] = (lambda: load_pixels(file.getvalue()), lambda: plain_pixels(wide))
    for read in reads:
        with pytest.raises(InputError, match=r"^32-bit integer pixels, expected RGB or grey of 8 or 16 bits"):
            read()
    grey = b"P5 20 20 65535\n" + np.full((20, 20), 200 << 8, ">u2").tobytes()
    assert (load_pixels(grey) == 200).all()
    with Image.open(io.BytesIO(grey)) as image:
        assert (plain_pixels(image) == 200).all()


def test_rows_are_converted_as_the_whole(tmp_path: Path) -> None:
    """Pictures with more rows than are handled at once, transparent and rotated."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (1300, 9, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    page = Image.new("RGBA", (1300, 9), "white")
    page.alpha_composite(Image.fromarray(np.rot90(pixels)))
    assert np.array_equal(load_pixels(tmp_path / "x.png"), np.asarray(page.convert("RGB")))


def test_the_users_filters_of_warnings_come_back(tmp_path: Path) -> None:
    """Whatever the threads do: several read at once, among them some that read a file that Pillow warns about."""
    (tmp_path / "odd.tif").write_bytes(pictures.tiff(pictures.plain(a34665=(4, 2**32 - 1), a305=(2, [65] * 99))))
    Image.new("RGB", (99, 99)).save(tmp_path / "plain.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        threads = [
            threading.Thread(target=lambda name=name: [load_pixels(tmp_path / name) for _ in range(50)])
            for name in ("odd.tif", "plain.png") * 3
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == before
