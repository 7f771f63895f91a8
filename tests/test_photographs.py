"""Users' photographs: framed differently from the bank's, given back whole, in other colour spaces, with masks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeVQ
from PIL import Image, ImageCms, ImageDraw

import lpkernel as lp
from lpkernel.alignment import faces
from lpkernel.alignment.faces import Face
from lpkernel.alignment.framing import frame
from lpkernel.bank import Bank
from lpkernel.cli import main
from lpkernel.errors import InputError, MissingExtra
from lpkernel.modes.inputs import read_input
from lpkernel.pictures.composite import Composite, Whole
from lpkernel.pictures.images import FORMATS, find_images, load_alpha, load_image, load_mask, load_pixels
from lpkernel.pictures.warp import Similarity

SIZE, GRID = 64, 8  # of FakeVQ
CROP = (19, 40, 159, 180)
EYES = (0.3625, 0.525, 0.6379, 0.525)  # of photographs framed as CelebA


def smooth(width: int, height: int, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def bank() -> Bank:
    """A bank of 178x218 photographs with a crop, like CelebA's."""
    pictures = np.stack([smooth(178, 218, seed) for seed in range(12)])
    return Bank.build(pictures, FakeVQ(), 3, crop=CROP)


def finder(*found: tuple[complex, complex]) -> Callable[[np.ndarray, bool], list[Face]]:
    """A detector that sees these eyes in any picture; only the first pair unless every face is asked for."""

    def find(pixels: np.ndarray, every: bool = False) -> list[Face]:
        return [Face(*eyes, 1.0, "hog") for eyes in (found if every else found[:1])]

    return find


TURNED = (300 + 420j, 300 + 420j + 90 * complex(math.cos(0.3), math.sin(0.3)))  # eyes in an 800x1000 photograph


# ---- framing


def test_the_bank_knows_the_size_of_its_photographs(bank: Bank, tmp_path: Path) -> None:
    assert bank.source_size == (178, 218)
    bank.save(tmp_path / "a.lpbank")
    assert Bank.load(tmp_path / "a.lpbank").source_size == (178, 218)
    for name, size in (("a.png", (90, 80)), ("b.png", (80, 90))):
        Image.fromarray(smooth(*size)).save(tmp_path / name)
    assert Bank.build(tmp_path, FakeVQ(), 3).source_size is None
    turned = Image.Exif()
    turned[0x112] = 6
    Image.fromarray(smooth(90, 80)).save(tmp_path / "a.png", exif=turned)  # 80x90 as people see it
    assert Bank.build(tmp_path, FakeVQ(), 3).source_size == (80, 90)


@pytest.mark.parametrize(
    ("size", "how", "crop"),
    [
        ((178, 218), "crop", CROP),
        ((356, 436), "crop", (38, 80, 318, 360)),
        ((89, 109), "crop", (10, 20, 80, 90)),
        ((64, 64), "as-is", None),
        ((800, 1000), "align", None),
        ((1500, 2000), "align", None),
        ((218, 178), "align", None),
        ((500, 500), "align", None),  # a square whose face is elsewhere
    ],
)
def test_how_a_picture_is_framed(bank: Bank, size: tuple[int, int], how: str, crop: Any) -> None:
    framed = frame(bank, smooth(*size), FakeVQ(), find=finder(TURNED))
    assert (framed.how, framed.crop) == (how, crop)
    assert framed.pixels.shape == (SIZE, SIZE, 3)
    assert ("aligned" in framed.said) == (how == "align")
    if how != "align":
        np.testing.assert_array_equal(framed.pixels, load_cropped(smooth(*size), crop))


def load_cropped(pixels: np.ndarray, crop: Any) -> np.ndarray:
    from lpkernel.pictures.images import square

    return square(Image.fromarray(pixels), SIZE, crop)


def test_a_square_whose_face_is_in_place_is_taken_as_it_is(bank: Bank) -> None:
    eyes = (complex(*EYES[:2]) * 500 + 20, complex(*EYES[2:]) * 500 - 30)
    assert frame(bank, smooth(500, 500), FakeVQ(), find=finder(eyes)).how == "as-is"
    assert frame(bank, smooth(500, 500), FakeVQ(), find=finder()).how == "as-is"  # no face found


def test_aligning_puts_the_eyes_where_the_bank_has_them(bank: Bank) -> None:
    framed = frame(bank, smooth(800, 1000), FakeVQ(), find=finder(TURNED))
    for eye, place in zip(TURNED, (EYES[:2], EYES[2:]), strict=True):
        assert abs(framed.where.inverse()(eye) - complex(*place) * SIZE) < 0.05


def test_the_face_that_holds_the_mask_is_taken(bank: Bank) -> None:
    small = (600 + 800j, 640 + 800j)
    mask = np.zeros((1000, 800), bool)
    mask[790:810, 590:650] = True
    for given, eyes in ((None, TURNED), (mask, small)):
        framed = frame(bank, smooth(800, 1000), FakeVQ(), mask=given, find=finder(TURNED, small))
        assert framed.facts["eyes"][0] == eyes[0].real


def test_framing_can_be_said(bank: Bank) -> None:
    photograph = smooth(800, 1000)
    find = finder(TURNED)
    assert frame(bank, photograph, FakeVQ(), framing="as-is", find=find).how == "as-is"
    assert frame(bank, photograph, FakeVQ(), framing="crop", find=find).crop == CROP
    assert frame(bank, photograph, FakeVQ(), (0, 0, 500, 500), find=find).crop == (0, 0, 500, 500)
    assert frame(bank, smooth(178, 218), FakeVQ(), framing="align", find=find).said == ""  # it was asked for
    for options, words in (
        ({"framing": "square"}, "framing: got 'square', expected one of auto, as-is, crop, align"),
        ({"framing": "as-is", "crop": (0, 0, 9, 9)}, "and a crop; leave one out"),
    ):
        with pytest.raises(InputError, match=words):
            frame(bank, photograph, FakeVQ(), find=find, **options)


def test_what_cannot_be_aligned_gets_one_line(bank: Bank) -> None:
    def without(pixels: np.ndarray, every: bool) -> list[Face]:
        raise MissingExtra("dlib", "align", "finding faces")

    for find, words in ((finder(), "no face found"), (without, r"pip install 'lpkernel\[align\]'")):
        with pytest.raises(InputError, match=words) as raised:
            frame(bank, smooth(1500, 2000), FakeVQ(), find=find)
        said = str(raised.value)
        assert said.startswith("its 1500x2000 pixels are not framed as the bank's pictures, 178x218")
        assert "lpkernel align" in said and "--framing as-is" in said and "\n" not in said


def test_banks_of_other_pictures_take_any_shape() -> None:
    codes = FakeVQ().encode(np.stack([smooth(SIZE, SIZE, seed) for seed in range(9)]))
    plain = Bank.from_codes(codes, FakeVQ().codebook, 3)  # type: ignore[arg-type]
    assert frame(plain, smooth(300, 200), FakeVQ(), find=finder()).how == "as-is"
    with pytest.raises(InputError, match="the bank was built without one"):
        frame(plain, smooth(300, 200), FakeVQ(), framing="crop")


def test_the_commands_say_so(
    bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faces, "find_faces", finder(TURNED))
    fake = Path(__file__).with_name("fakes.py")
    bank.save(tmp_path / "faces.lpbank")
    Image.fromarray(smooth(800, 1000)).save(tmp_path / "me.png")
    argv = [
        "edit",
        str(tmp_path / "me.png"),
        "--bank",
        str(tmp_path / "faces.lpbank"),
        "--autoencoder",
        f"{fake}:FakeVQ",
    ]
    argv += ["--patch", "3", "-n", "2", "--region", "mouth", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert (
        "800x1000 pixels are not framed as the bank's pictures, 178x218, so it was aligned" in capsys.readouterr().err
    )
    whole = load_pixels(tmp_path / "out" / "whole-000001.png")
    assert whole.shape == (1000, 800, 3)
    changed = (whole != smooth(800, 1000)).any(2)
    assert 0 < changed.mean() < 0.05
    argv += ["--overwrite"]
    assert main([*argv, "--framing", "as-is"]) == 0
    assert "aligned" not in capsys.readouterr().err
    monkeypatch.setattr(faces, "find_faces", finder())
    assert main([*argv, "--quiet"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- the picture given back


def masked(width: int, height: int) -> np.ndarray:
    drawn = Image.new("L", (width, height))
    ImageDraw.Draw(drawn).ellipse((width * 0.37, height * 0.38, width * 0.52, height * 0.47), fill=255)
    return np.asarray(drawn) > 0


@pytest.mark.parametrize("mode", ["edit", "guided", "inpaint", "harmonize"])
@pytest.mark.parametrize(
    ("size", "framing"),
    [((800, 1000), "align"), ((800, 1000), "as-is"), ((178, 218), "crop"), ((40, 50), "as-is"), ((64, 64), "as-is")],
)
def test_pixels_outside_are_those_of_the_photograph(
    bank: Bank, mode: str, size: tuple[int, int], framing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faces, "find_faces", finder(TURNED))
    photograph, mask = smooth(*size, 50), masked(*size)
    options: dict[str, Any] = {"mask": mask, "n": 2, "patch": 3, "framing": framing}
    if mode in ("edit", "guided"):
        made = lp.edit(bank, photograph, FakeVQ(), mode="free" if mode == "edit" else "guided", **options)
    else:
        made = (lp.inpaint if mode == "inpaint" else lp.harmonize)(bank, photograph, autoencoder=FakeVQ(), **options)
    assert made.settings["keep_outside"] is not None  # the default
    assert made.settings["input_framing"]["how"] == framing
    assert made.whole is not None
    images = made.decode(FakeVQ())
    may = made.whole.changed()
    assert (may | ~mask).all() and not may.all()
    for whole in made.put_back(images):
        assert whole.shape == photograph.shape and whole.dtype == np.uint8
        np.testing.assert_array_equal(whole[~may], photograph[~may])
        assert (whole[mask] != photograph[mask]).mean() > 0.5
    bare = lp.edit(bank, photograph, FakeVQ(), **options, keep_outside=False)
    kept = lp.edit(bank, photograph, FakeVQ(), **options)
    for one, other in zip(bare.put_back(bare.decode(FakeVQ())), kept.put_back(kept.decode(FakeVQ())), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_result_lies_where_it_belongs() -> None:
    """A photograph put back into itself stays the same, up to the blur of resampling, however it is rotated."""
    photograph = smooth(700, 500)
    for degrees, scale in ((0, 2.0), (31, 3.1), (90, 1.0), (180, 0.6)):
        where = Similarity(scale * np.exp(1j * np.radians(degrees)), complex(0, 0))
        where = Similarity(where.scale, complex(350, 250) - where(complex(64, 64)))
        from lpkernel.pictures.warp import cut_out

        framed = cut_out(photograph, where, (128, 128))
        inside = np.zeros((128, 128), bool)
        inside[30:90, 40:100] = True
        whole = Whole.around(Composite.feathered(framed, inside, 4), photograph, where)
        difference = np.abs(whole.apply(framed).astype(int) - photograph)
        assert whole.changed().mean() > 0.005 * scale * scale
        assert difference.max() <= 6, (degrees, scale)


def test_colours_are_matched_at_the_seam() -> None:
    """A result of the right shape but another colour blends in without a step."""
    original = smooth(128, 128)
    inside = np.zeros((128, 128), bool)
    inside[40:80, 50:90] = True
    closing = Composite.feathered(original, inside, 4)
    tinted = (original + np.array([20, -15, 10])).clip(0, 255).astype(np.uint8)
    assert np.abs(tinted.astype(int) - original)[inside].mean() > 12
    assert np.abs(closing.apply(tinted[None])[0].astype(int) - original)[inside].mean() < 1.5
    everything = Composite.feathered(original, np.ones((128, 128), bool), 4)
    np.testing.assert_array_equal(everything.apply(tinted[None])[0], tinted)


def test_a_square_within_the_photograph_ends_softly_and_one_that_fills_it_does_not() -> None:
    photograph = np.full((300, 300, 3), 100, np.uint8)
    framed = np.full((64, 64, 3), 100, np.uint8)
    closing = Composite.feathered(framed, np.ones((64, 64), bool), 4)
    other = np.full((64, 64, 3), 200, np.uint8)
    inner = Whole.around(closing, photograph, Similarity(2, 50 + 60j)).apply(other)
    assert inner[60 + 64, 50 + 64, 0] == 200 and np.abs(np.diff(inner[124, :, 0].astype(int))).max() <= 12
    assert (Whole.around(closing, photograph, Similarity(300 / 64, 0j)).apply(other) == 200).all()


def test_there_is_nothing_to_put_back_into(bank: Bank) -> None:
    canvas = FakeVQ().encode(smooth(SIZE, SIZE)[None])[0]
    region = np.zeros((GRID, GRID), bool)
    region[2:5, 2:5] = True
    for made in (lp.edit(bank, canvas, region=region, n=1, patch=3), lp.generate(bank, n=1, patch=3)):
        with pytest.raises(InputError, match="there is no picture to put results back into"):
            list(made.put_back(made.decode(FakeVQ())))


# ---- masks


def saved(path: Path, picture: np.ndarray | Image.Image) -> Path:
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(path)
    return path


def test_transparency_is_the_mask_when_there_is_no_other(bank: Bank, tmp_path: Path) -> None:
    mask = masked(178, 218)
    picture = np.dstack([smooth(178, 218, 50), np.where(mask, 0, 255).astype(np.uint8)])
    picture[0, 0, 3] = 200  # slightly transparent: not missing, and shown on white as usual
    path = saved(tmp_path / "hole.png", picture)
    found = load_alpha(path)
    assert found is not None
    np.testing.assert_array_equal(found[1], mask)
    np.testing.assert_array_equal(found[0][~mask], load_pixels(path)[~mask])
    np.testing.assert_array_equal(found[0][mask], picture[..., :3][mask])
    options: dict[str, Any] = {"autoencoder": FakeVQ(), "n": 1, "patch": 3}
    shown = found[0]
    for make in (lp.inpaint, lp.harmonize, lp.edit):
        by_alpha = make(bank, path, mask=None, **options)
        by_mask = make(bank, shown, mask=mask, **options)
        np.testing.assert_array_equal(by_alpha.sources, by_mask.sources)
    opaque = saved(tmp_path / "whole.png", smooth(178, 218))
    assert load_alpha(opaque) is None
    for make in (lp.inpaint, lp.harmonize, lp.edit):
        with pytest.raises(InputError, match=r"mask: none is given, and nothing of .*whole\.png is transparent"):
            make(bank, opaque, mask=None, **options)


def test_a_mask_turned_over(bank: Bank, tmp_path: Path) -> None:
    mask = masked(178, 218)
    path = saved(tmp_path / "m.png", mask)
    np.testing.assert_array_equal(load_mask(path, invert=True), ~mask)
    for given in (path, mask):
        start = read_input(bank, smooth(178, 218), FakeVQ(), mask=given, invert_mask=True)
        np.testing.assert_array_equal(start.whole_mask, ~mask)
    with pytest.raises(InputError, match="no mask to invert"):
        read_input(bank, smooth(178, 218), FakeVQ(), invert_mask=True)


@pytest.mark.parametrize(
    ("picture", "invert", "words"),
    [
        (np.full((218, 178), 100, np.uint8), False, "white (above 127 of 255): all of it is 100"),
        (np.tile(np.arange(178, dtype=np.uint8) % 91, (218, 1)) * (np.arange(218) < 9)[:, None], False, "from 0 to 90"),
        (np.full((218, 178), 255, np.uint8), True, "black (127 of 255 or less): all of it is 255"),
        (smooth(178, 218), False, "looks like a photograph"),
        (np.asarray(Image.fromarray(smooth(178, 218)).convert("L")), False, "looks like a photograph"),
        (
            np.zeros((9, 9), np.uint8) + 255,
            False,
            "9x9, expected a black and white picture of 178x218",
        ),
    ],
)
def test_a_mask_that_is_none_gets_one_line(
    bank: Bank, tmp_path: Path, picture: np.ndarray, invert: bool, words: str
) -> None:
    path = saved(tmp_path / "m.png", picture.astype(np.uint8))
    with pytest.raises(InputError) as raised:
        read_input(bank, smooth(178, 218), FakeVQ(), mask=path, invert_mask=invert)
    said = str(raised.value)
    assert words in said and "\n" not in said and "bool" not in said


def test_masks_as_people_make_them_are_taken(tmp_path: Path) -> None:
    from PIL import ImageFilter

    mask = masked(178, 218)
    drawn = Image.fromarray(mask.astype(np.uint8) * 255)
    drawn.save(tmp_path / "a.jpg", quality=30)
    drawn.filter(ImageFilter.GaussianBlur(8)).save(tmp_path / "b.png")
    drawn.convert("1").save(tmp_path / "c.png")
    drawn.convert("P").save(tmp_path / "d.gif")
    painted = Image.new("RGBA", drawn.size)
    painted.paste((255, 255, 255, 255), mask=drawn)
    painted.save(tmp_path / "e.webp")
    for path in sorted(tmp_path.iterdir()):
        assert (load_mask(path) != mask).mean() < 0.01, path.name


# ---- colours and formats


def profile(name: Any) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def wide() -> bytes:
    """A profile whose red and green are far from sRGB's: an sRGB profile with the XYZ of two colorants exchanged."""
    data = bytearray(profile("sRGB"))
    count = int.from_bytes(data[128:132], "big")
    places = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = (data[places[tag] + 4 : places[tag] + 12] for tag in (b"rXYZ", b"gXYZ"))
    data[places[b"rXYZ"] + 4 : places[b"rXYZ"] + 12] = green
    data[places[b"gXYZ"] + 4 : places[b"gXYZ"] + 12] = red
    return bytes(data)


@pytest.mark.parametrize("name", ["p.png", "p.webp", "p.tif"])
def test_colour_profiles_become_srgb(tmp_path: Path, name: str) -> None:
    pixels = smooth(90, 700)
    options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(pixels).save(tmp_path / name, icc_profile=wide(), **options)
    read = load_pixels(tmp_path / name).astype(int)
    assert np.abs(read - pixels[..., [1, 0, 2]]).max() <= 2  # red is green there
    Image.fromarray(pixels).save(tmp_path / name, icc_profile=profile("sRGB"), **options)
    np.testing.assert_array_equal(load_pixels(tmp_path / name), pixels)


def test_profiles_of_transparent_and_grey_pictures(tmp_path: Path) -> None:
    pixels = np.dstack([smooth(30, 20), np.full((20, 30), 128, np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=wide())
    swapped = Image.new("RGBA", (30, 20), "white")
    swapped.alpha_composite(Image.fromarray(pixels[..., [1, 0, 2, 3]]))
    assert np.abs(load_pixels(tmp_path / "a.png").astype(int) - np.asarray(swapped)[..., :3]).max() <= 2
    grey = np.asarray(Image.fromarray(smooth(30, 20)).convert("L"))
    Image.fromarray(grey).save(tmp_path / "g.png", icc_profile=profile("sRGB"))
    np.testing.assert_array_equal(load_pixels(tmp_path / "g.png"), np.repeat(grey[..., None], 3, 2))
    Image.fromarray(smooth(30, 20)).save(tmp_path / "m.png", icc_profile=profile("LAB"))
    np.testing.assert_array_equal(load_pixels(tmp_path / "m.png"), smooth(30, 20))
    black = Image.fromarray((masked(40, 40) * 255).astype(np.uint8))
    black.save(tmp_path / "mask.png", icc_profile=b"nonsense")
    np.testing.assert_array_equal(load_mask(tmp_path / "mask.png"), masked(40, 40))


def test_a_profile_that_is_none_is_ignored_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = smooth(30, 20)
    for number, bad in enumerate((b"nonsense", profile("sRGB")[:200], wide()[:-300] + b"x" * 9, b"\0" * (5 << 20))):
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(path.with_suffix(".tif"), icc_profile=bad)
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                np.testing.assert_array_equal(load_pixels(path.with_suffix(".tif")), pixels)
        said = [record.getMessage() for record in caplog.records]
        assert len(said) <= 1 and all("profile cannot be used and is ignored" in one for one in said)
        assert number not in (0, 3) or f"{number}.tif" in said[0]
        caplog.clear()


@pytest.mark.parametrize("name", ["x.avif", "x.gif", "x.jfif", "x.jp2"])
def test_more_formats_are_found_and_read(tmp_path: Path, name: str) -> None:
    kinds = {ending: kind for kind, endings in FORMATS.items() for ending in endings}
    ending = Path(name).suffix
    if ending not in kinds:
        pytest.skip(f"Pillow reads no {ending} here")
    Image.fromarray(smooth(64, 64)).save(tmp_path / name, format=kinds[ending])
    assert find_images(tmp_path).names == [name]
    assert np.abs(load_image(tmp_path / name, 64).astype(int) - smooth(64, 64)).mean() < 12


def test_what_is_left_out_of_a_folder_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    (folder / "closed").mkdir(parents=True)
    for name in ("a.png", "closed/b.png"):
        Image.fromarray(smooth(SIZE, SIZE)).save(folder / name)
    for number in range(10):
        (folder / f"clip{number}.mov").write_bytes(b"x")
    deny(monkeypatch, folder / "closed")
    fake = Path(__file__).with_name("fakes.py")
    argv = ["bank", "build", str(folder), "-o", str(tmp_path / "a.lpbank"), "--autoencoder", f"{fake}:FakeVQ"]
    argv += ["--channels", "3"]
    assert main(argv) == 0
    said = capsys.readouterr()
    assert "skipped closed/: cannot be read: Permission denied" in said.err
    assert "10 files of other kinds left out: clip0.mov, clip1.mov" in said.err and "and 2 more" in said.err
    assert Bank.load(tmp_path / "a.lpbank").names == ["a.png"]
    with pytest.raises(InputError, match="closed/: cannot be read"):
        Bank.build(folder, FakeVQ(), 3, strict=True)
    deny(monkeypatch, folder)
    with pytest.raises(InputError, match="cannot read the folder"):
        Bank.build(folder, FakeVQ(), 3)


def deny(monkeypatch: pytest.MonkeyPatch, closed: Path) -> None:
    """Makes a folder impossible to list, even for root."""
    import os

    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_without_pictures_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(InputError, match=r"no images in .*; there are 1 other files, such as a\.heic"):
        find_images(tmp_path)
