"""Alignment: exact geometry with faces given, the command, and dlib on real photographs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import packages
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import lpkernel as lp
from lpkernel.alignment import faces
from lpkernel.alignment.faces import Face, Finder
from lpkernel.cli import main
from lpkernel.pictures.images import load_image, load_pixels
from lpkernel.pictures.warp import Similarity, resample

EYES = (0.3, 0.4, 0.7, 0.4)
needs_dlib = pytest.mark.skipif(
    importlib.util.find_spec("dlib") is None or importlib.util.find_spec("face_recognition_models") is None,
    reason="dlib: pip install 'lpkernel[align]'",
)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture without fine detail, so that rotating it loses nothing."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def marked(height: int, width: int, left: complex, right: complex) -> np.ndarray:
    """A picture with a red and a blue disc, the eyes."""
    y, x = np.mgrid[:height, :width] + 0.5
    picture = smooth(height, width) // 4
    radius = abs(right - left) / 8
    for eye, colour in ((left, (255, 0, 0)), (right, (0, 0, 255))):
        cover = np.clip(radius + 0.5 - np.abs(x + 1j * y - eye), 0, 1)[..., None]
        picture = (picture * (1 - cover) + np.array(colour) * cover).astype(np.uint8)
    return picture


def discs(picture: np.ndarray) -> list[complex]:
    """The centres of the red and the blue disc."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]] + 0.5
    found = []
    for channel in (0, 2):
        weight = np.clip(
            picture[..., channel].astype(float) - picture.max(-1, initial=0, where=_others(channel)) - 100, 0, 50
        )
        found.append(complex((x * weight).sum(), (y * weight).sum()) / weight.sum())
    return found


def _others(channel: int) -> np.ndarray:
    return np.arange(3) != channel


def finder(*found: Face) -> Finder:
    return lambda pixels, every: sorted(found, key=lambda face: -face.distance)


def face(left: complex, right: complex) -> Face:
    return Face(left, right, 1.5, "hog")


def small_bank(**more: Any) -> lp.Bank:
    images = np.random.default_rng(3).integers(0, 256, (20, 64, 64, 3), np.uint8)
    return lp.Bank.build(images, fakes.FakeVQ(), channels=3, **more)


@pytest.mark.parametrize("degrees", [0, 17, -25, 90, 180])
@pytest.mark.parametrize("distance", [16.0, 40.0, 300.0])
def test_the_eyes_come_where_they_belong(degrees: float, distance: float) -> None:
    step = distance * np.exp(1j * np.radians(degrees))
    middle = 460 + 450.5j
    left, right = middle - step / 2, middle + step / 2
    [made] = lp.align(marked(900, 920, left, right), lp.Framing(128, EYES), find=finder(face(left, right)))
    assert made.pixels.shape == (128, 128, 3) and made.pixels.dtype == np.uint8
    np.testing.assert_allclose(discs(made.pixels), [0.3 * 128 + 0.4j * 128, 0.7 * 128 + 0.4j * 128], atol=0.2)
    assert made.scale == pytest.approx(0.4 * 128 / distance, rel=1e-3)
    assert (made.rotation + degrees + 1) % 360 == pytest.approx(1, abs=0.02)
    assert made.eyes == pytest.approx((left.real, left.imag, right.real, right.imag), abs=0.01)
    assert made.confidence == 1.5 and made.detector == "hog"


def test_what_is_framed_already_stays() -> None:
    picture = smooth(96, 96)
    [made] = lp.align(picture, lp.Framing(96, EYES), find=finder(face(0.3 * 96 + 0.4j * 96, 0.7 * 96 + 0.4j * 96)))
    np.testing.assert_array_equal(made.pixels, picture)
    assert (made.scale, made.rotation, made.beyond) == (1.0, 0.0, 0.0)


def test_shrinking_averages_as_a_bank_does(tmp_path: Path) -> None:
    """Noise shrunk without averaging stays noise."""
    noise = np.random.default_rng(1).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "n.png")
    [made] = lp.align(noise, lp.Framing(64, EYES), find=finder(face(210 + 280j, 490 + 280j)))
    framed = load_image(tmp_path / "n.png", 64)
    assert noise.std() > 70 and framed.std() < 12 and made.pixels.std() < 1.2 * framed.std()


def test_turning_back_and_forth_gives_the_picture_back() -> None:
    picture = smooth(200, 160)
    turn = Similarity(1.3 * np.exp(0.4j), 20 - 15j)
    turned, _ = resample(picture, turn, 300)
    back, _ = resample(turned, Similarity(1 / turn.scale, -turn.shift / turn.scale), 100)
    inside = (slice(30, 90), slice(40, 90))
    assert np.abs(back[inside].astype(int) - picture[inside]).max() <= 3


@pytest.mark.parametrize("factor", [1, 7])
def test_beyond_the_edge_the_picture_is_mirrored(factor: int) -> None:
    picture = smooth(40, 40).repeat(factor, 0).repeat(factor, 1)
    made, beyond = resample(picture, Similarity(complex(factor), complex(-20 * factor, 0)), 40)
    mirrored = np.concatenate([picture[:, : 20 * factor][:, ::-1], picture[:, : 20 * factor]], axis=1)
    assert beyond == 0.5
    assert np.abs(made.astype(int) - mirrored[::factor, ::factor]).max() <= 12  # a bicubic filter blends neighbours
    far, beyond = resample(picture, Similarity(complex(factor), complex(-500 * factor, 0)), 40)
    assert beyond == 1 and far.std() > 10


def test_exif_is_honoured(tmp_path: Path) -> None:
    upright = marked(200, 150, 60 + 80j, 100 + 80j)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned; viewers turn it clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / "p.png", exif=exif)
    given: list[np.ndarray] = []

    def find(pixels: np.ndarray, every: bool) -> list[Face]:
        given.append(pixels)
        return [face(60 + 80j, 100 + 80j)]

    [made] = lp.align(tmp_path / "p.png", lp.Framing(64, EYES), find=find)
    np.testing.assert_array_equal(given[0], upright)
    np.testing.assert_allclose(discs(made.pixels), [19.2 + 25.6j, 44.8 + 25.6j], atol=0.2)


def test_the_largest_face_or_every_one() -> None:
    picture = smooth(100, 100)
    find = finder(face(10 + 10j, 20 + 10j), face(40 + 40j, 80 + 40j))
    framing = lp.Framing(32, EYES)
    assert [made.eyes[0] for made in lp.align(picture, framing, find=find)] == [40]
    assert [made.eyes[0] for made in lp.align(picture, framing, every=True, find=find)] == [40, 10]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((64, (0.1, 0.2, 1.3, 0.4)), "eyes: got"),
        ((64, (0.7, 0.4, 0.3, 0.4)), "order is left x"),
        ((64, (0.1, float("nan"), 0.5, 0.4)), "eyes: got"),
        ((2, EYES), "size: got 2"),
        ((9999, EYES), "size: got 9999"),
    ],
)
def test_wrong_framings(given: tuple[Any, Any], message: str) -> None:
    with pytest.raises(lp.InputError, match=message):
        lp.Framing(*given)


def test_wrong_pictures(tmp_path: Path) -> None:
    framing, none = lp.Framing(64, EYES), finder()
    with pytest.raises(lp.InputError, match="no face found"):
        lp.align(smooth(50, 50), framing, find=none)
    with pytest.raises(lp.InputError, match=r"expected \(H, W, 3\) uint8"):
        lp.align(np.zeros((5, 5), np.uint8), framing, find=none)
    with pytest.raises(lp.InputError, match="no such file"):
        lp.align(tmp_path / "none.png", framing, find=none)


def test_what_is_wrong_with_a_file_comes_with_its_name(tmp_path: Path) -> None:
    framing, path = lp.Framing(64, EYES), tmp_path / "p.png"
    for content, message in ((None, "no such file"), (b"junk", "not an image"), (smooth(50, 50), "no face found")):
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            Image.fromarray(content).save(path)
        for given in (path, str(path)):
            with pytest.raises(lp.InputError, match=rf"^{path}: {message}"):
                lp.align(given, framing, find=finder())


GIVEN: dict[str, Callable[[Image.Image], Any]] = {
    "PIL": lambda picture: picture,
    "PIL with transparency": lambda picture: picture.convert("RGBA"),
    "PIL with a palette of its colours": lambda picture: picture.quantize(256).convert("P"),
    "tensor": lambda picture: torch.from_numpy(np.array(picture)),
}


@pytest.mark.parametrize("form", GIVEN)
def test_pictures_that_are_no_arrays(form: str) -> None:
    picture = Image.fromarray(np.tile(np.arange(0, 200, 2, dtype=np.uint8)[:, None, None], (1, 100, 3)))
    framing, find = lp.Framing(32, EYES), finder(face(40 + 40j, 80 + 40j))
    [want] = lp.align(np.asarray(picture), framing, find=find)
    [made] = lp.align(GIVEN[form](picture), framing, find=find)
    np.testing.assert_array_equal(made.pixels, want.pixels)


@pytest.mark.parametrize("framing", [None, 5, [1], np.zeros(3)], ids=repr)
def test_what_is_no_framing(framing: Any) -> None:
    with pytest.raises(lp.InputError, match="expected a Bank or the path of one"):
        lp.align(smooth(50, 50), framing, find=finder())


def test_a_bank_by_its_path(tmp_path: Path) -> None:
    lp.Bank.default().save(tmp_path / "x.lpbank")
    assert lp.Framing.of(tmp_path / "x.lpbank") == lp.Framing.of("default") == lp.Framing.of(lp.Bank.default())


def test_framing_of_banks() -> None:
    avatars = lp.Framing.of(lp.Bank.default())
    assert avatars.size == 128 and avatars.eyes[0] < avatars.eyes[2] and avatars.known_from == "the bank's layout"
    bank = small_bank()
    with pytest.raises(lp.InputError, match="autoencoder: got None"):
        lp.Framing.of(bank)
    given = lp.Framing.of(bank, eyes=EYES, size=256)
    assert given == lp.Framing(256, EYES)
    with pytest.raises(lp.InputError, match="got 3 numbers"):
        lp.Framing.of(bank, eyes=(0.1, 0.2, 0.3))


def test_eyes_of_a_bank_are_the_median_of_those_found() -> None:
    bank = small_bank()
    calls: list[complex | None] = []

    def find(places: list[complex | None]) -> Finder:
        def look(pixels: np.ndarray, every: bool) -> list[Face]:
            assert pixels.shape == (64, 64, 3)
            place = places[len(calls) % len(places)]
            calls.append(place)
            return [] if place is None else [face(place, place + 20)]

        return look

    measured = lp.Framing.of(bank, fakes.FakeVQ(), find=find([16 + 32j, 17 + 30j, None, 15 + 32j]))
    assert measured.eyes == pytest.approx((0.25, 0.5, 0.5625, 0.5)) and measured.size == 64
    assert measured.known_from == "eyes found in 15 of 20 of the bank's images"
    with pytest.raises(lp.InputError, match=r"found in only 0 of 20 .*--eyes"):
        lp.Framing.of(bank, fakes.FakeVQ(), find=find([None]))
    with pytest.raises(lp.InputError, match=r"not aligned; give --eyes"):
        lp.Framing.of(bank, fakes.FakeVQ(), find=find([5 + 5j, 40 + 30j, 20 + 60j, 33 + 14j]))
    with pytest.raises(lp.InputError, match="does not fit the bank"):
        lp.Framing.of(bank, fakes.FakeVQ(seed=4))


# ---- the command


@pytest.fixture
def photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five photographs with one or two faces (drawn as discs), one without a face, and a damaged one."""
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    for name, at in (("a.jpg", 50 + 60j), ("a.png", 40 + 30j), ("deep/b.png", 70 + 20j), ("two-2.png", 50 + 50j)):
        Image.fromarray(marked(120, 140, at, at + 30)).save(folder / name, quality=98)
    Image.fromarray(marked(120, 240, 50 + 60j, 80 + 60j)).save(folder / "two.png")
    Image.fromarray(np.zeros((50, 50, 3), np.uint8)).save(folder / "none.png")
    (folder / "broken.png").write_text("no picture")

    def find(pixels: np.ndarray, every: bool) -> list[Face]:
        if not pixels.any():
            return []
        left, right = discs(pixels)
        again = [face(left + 100, right + 90)] if pixels.shape[1] == 240 and every else []
        return [face(left, right), *again]

    monkeypatch.setattr(lp.align, "__defaults__", (False, find))
    return folder


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[dict[str, Any], str]:
    assert main(["align", *map(str, argv), "--json"]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_the_command(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in photographs.rglob("*.*")}
    argv = (photographs, out, "--eyes", "0.3,0.4,0.7,0.4", "--size", 64)
    record, err = run(capsys, *argv)
    assert record == json.loads((out / "align.json").read_text())
    written = {path.relative_to(out).as_posix() for path in out.rglob("*.png")}
    assert written == {"a.jpg.png", "a.png.png", "deep/b.png", "two.png", "two-2.png"}
    assert written == {image["image"] for image in record["images"]}
    assert [name for name, _ in record["skipped"]] == ["broken.png", "none.png"]
    assert err.splitlines()[1] == "lpkernel: skipped none.png: no face found" and err.count("\n") == 2
    for name in written:
        np.testing.assert_allclose(discs(load_pixels(out / name)), [19.2 + 25.6j, 44.8 + 25.6j], atol=0.3)
    assert before == {path: path.read_bytes() for path in photographs.rglob("*.*")}
    first = record["images"][0]
    assert first["scale"] == pytest.approx(0.4 * 64 / 30, rel=0.02) and first["confidence"] == 1.5
    assert set(first) >= {"photograph", "image", "eyes", "rotation", "beyond", "detector", "kept"}


def test_a_second_run_keeps_what_is_there(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = (photographs, out, "--size", 64, "--quiet")
    first, _ = run(capsys, *argv)
    (out / "two.png").unlink()
    again, _ = run(capsys, *argv)
    assert {image["image"] for image in again["images"] if not image["kept"]} == {"two.png"}
    assert [{**image, "kept": False} for image in again["images"]] == first["images"]
    other, _ = run(capsys, photographs, out, "--size", 32, "--quiet")
    assert not any(image["kept"] for image in other["images"])
    assert load_pixels(out / "two.png").shape == (32, 32, 3)


def test_every_face(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = (photographs, tmp_path / "out", "--faces", "all", "--quiet")
    record, _ = run(capsys, *argv)
    of_two = [image["image"] for image in record["images"] if image["photograph"] == "two.png"]
    assert of_two == ["two.png", "two-2_.png"]  # two-2.png belongs to another photograph
    assert all(image["kept"] for image in run(capsys, *argv)[0]["images"])
    (tmp_path / "out" / "two-2_.png").unlink()
    again, _ = run(capsys, *argv)
    assert [image["kept"] for image in again["images"]].count(False) == 2


def test_one_photograph_and_out_within_the_folder(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record, _ = run(capsys, photographs / "a.jpg", photographs / "out")
    assert [image["image"] for image in record["images"]] == ["a.png"]
    assert record["size"] == 128 and record["eyes_known_from"] == "the bank's layout"
    again, _ = run(capsys, photographs, photographs / "out", "--quiet")
    assert not any(image["photograph"].startswith("out/") for image in again["images"])


def test_files_of_others_stay(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    Image.fromarray(smooth(20, 20)).save(out / "two.png")
    (out / "two-2.png").write_text("notes")
    before = (out / "two.png").read_bytes()
    record, _ = run(capsys, photographs, out)
    reasons = dict(record["skipped"])
    assert "was not written by lpkernel align" in reasons["two.png"] and "two-2.png" in reasons
    assert (out / "two.png").read_bytes() == before and (out / "two-2.png").read_text() == "notes"


def test_a_record_names_no_other_file(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    argv = (photographs / "a.jpg", out, "--size", 64)
    run(capsys, *argv)
    with Image.open(out / "a.png") as image:
        record = json.loads(image.info["lpkernel align"])
    for name in ("/etc/passwd", "../in/two.png", "b.png"):
        text = PngInfo()
        text.add_text("lpkernel align", json.dumps({**record, "faces": [{**record["faces"][0], "image": name}]}))
        Image.new("RGB", (64, 64)).save(out / "a.png", pnginfo=text)
        again, _ = run(capsys, *argv)
        assert [(image["image"], image["kept"]) for image in again["images"]] == [("a.png", False)]
    wrong: list[Any] = [[], "x", {"image": "a.png"}]
    for other in wrong:
        text = PngInfo()
        text.add_text("lpkernel align", json.dumps({**record, "faces": other}))
        Image.new("RGB", (64, 64)).save(out / "a.png", pnginfo=text)
        assert main(["align", *map(str, argv), "--strict"]) == 2
        error = capsys.readouterr().err
        assert "was not written by lpkernel align" in error and error.count("\n") <= 2


@pytest.mark.parametrize("text", ["my notes", "{}", "[1]"])
def test_a_record_of_others_stays(
    text: str, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "align.json").write_text(text)
    assert main(["align", str(photographs), str(tmp_path / "out")]) == 2
    assert "align.json exists and was not written by lpkernel align; move it" in capsys.readouterr().err
    assert (tmp_path / "out" / "align.json").read_text() == text and not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["in", "in"], "could be overwritten"),
        (["in", "."], "could be overwritten"),
        (["in/none.png", "out"], "no face in any of the 1 photographs"),
        (["in", "out", "--strict"], "broken.png: not an image"),
        (["nowhere", "out"], "no folder"),
        (["in", "in/two.png"], "is a file"),
        (["in", "out", "--faces", "two"], "expected largest or all"),
        (["in", "out", "--eyes", "1,2"], "got 2 numbers, expected 4"),
        (["in", "out", "--eyes", "a,b"], "expected numbers"),
        (["in", "out", "--eyes", "30,40,70,40"], "from 0 to 1"),
        (["in", "out", "--size", "1"], "size: got 1"),
        (["in", "out", "--bank", "none.lpbank"], "none.lpbank"),
    ],
)
def test_mistakes_get_one_line(
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["align", *more, "--quiet"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("lpkernel: error: ") and message in err and err.count("\n") == 1


@pytest.fixture
def fresh_models() -> Iterator[None]:
    loaders = (faces._dlib, faces._detector, faces._predictor, faces._network)
    for loader in loaders:
        loader.cache_clear()
    yield
    for loader in loaders:
        loader.cache_clear()


@pytest.mark.usefixtures("fresh_models")
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    Image.fromarray(smooth(90, 90)).save(tmp_path / "p.png")
    assert main(["align", str(tmp_path / "p.png"), str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        "lpkernel: error: finding faces needs the package dlib: pip install 'lpkernel[align]'\n"
    )
    monkeypatch.setattr(faces, "find_spec", lambda name: None)
    with pytest.raises(lp.MissingExtra, match=r"face_recognition_models.*lpkernel\[align\]"):
        faces._model(faces.LANDMARKS)


# ---- dlib itself


@needs_dlib
def test_narrow_pictures_have_no_faces() -> None:
    """dlib's network writes beyond its memory for pictures 9 pixels wide, so this runs in a process of its own."""
    sides = [(640, 8), (640, 9), (300, 8), (9, 9), (2000, 30), (3000, 30), (300, 3), (8, 300), (1, 1), (16, 16)]
    script = (
        "import numpy as np\nfrom lpkernel.alignment.faces import find_faces\n"
        f"for size in {sides}:\n"
        "    for fill in (255, 0):\n"
        "        assert find_faces(np.full((*size, 3), fill, np.uint8)) == [], size\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@needs_dlib
def test_no_face_in_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (150, 150, 3), np.uint8)
    assert faces.find_faces(noise) == []


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return load_pixels(packages.face_files()[5])


def misplaced(photograph: np.ndarray, degrees: float, scale: float) -> tuple[np.ndarray, Similarity]:
    """A canvas of 480 pixels around the rotated and scaled photograph, and the map from its points to the canvas."""
    turn = np.exp(-1j * np.radians(degrees)) / scale
    height, width, _ = photograph.shape
    margin = 900
    where = Similarity(turn, complex(width, height) / 2 - turn * complex(250, 230))
    padded = np.pad(photograph, ((margin, margin), (margin, margin), (0, 0)), "edge")
    return resample(padded, Similarity(turn, where.shift + complex(margin, margin)), 480)[0], where


@needs_dlib
@pytest.mark.data
@pytest.mark.parametrize(("degrees", "scale"), [(0, 1.0), (20, 1.6), (-25, 0.7), (90, 1.5), (180, 1.2), (265, 1.5)])
def test_eyes_of_a_misplaced_photograph(photograph: np.ndarray, degrees: float, scale: float) -> None:
    [upright] = faces.find_faces(photograph)
    canvas, where = misplaced(photograph, degrees, scale)
    found = faces.find_faces(canvas)[0]
    assert abs(where(found.left) - upright.left) < 2 and abs(where(found.right) - upright.right) < 2
    assert found == faces.find_faces(canvas)[0]


@needs_dlib
@pytest.mark.data
def test_an_aligned_photograph_suits_the_bank(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The warning that names the command is gone once the command has been run."""
    files, autoencoder = packages.face_files(), lp.load_autoencoder()
    capsys.readouterr()  # the notice of the photographs' licence
    lp.Bank.build(files[100:200], autoencoder, crop=packages.FACE_CROP).save(tmp_path / "faces.lpbank")
    canvas, _ = misplaced(load_pixels(files[20]), 25, 1.6)
    Image.fromarray(canvas).save(tmp_path / "p.png")
    bank = ["--bank", str(tmp_path / "faces.lpbank")]
    generate = ["generate", *bank, "-n", "1", "--out", str(tmp_path / "o"), "--json", "--reference"]
    assert main([*generate, str(tmp_path / "p.png")]) == 0
    assert "lpkernel align" in capsys.readouterr().err
    assert main(["align", str(tmp_path / "p.png"), str(tmp_path / "aligned"), *bank]) == 0
    capsys.readouterr()
    assert main([*generate, str(tmp_path / "aligned" / "p.png"), "--overwrite"]) == 0
    assert capsys.readouterr().err == ""


@needs_dlib
@pytest.mark.data
def test_the_eyes_of_a_bank_of_photographs() -> None:
    """The eyes found in decoded images are where they are in the photographs."""
    autoencoder, files = lp.load_autoencoder(), packages.face_files()[:16]
    framing = lp.Framing.of(lp.Bank.build(files, autoencoder, crop=packages.FACE_CROP), autoencoder)
    found = [one[0] for one in map(faces.find_faces, map(load_pixels, files)) if one]
    eyes = np.array([[one.left, one.right] for one in found]) - complex(*packages.FACE_CROP[:2])
    np.testing.assert_allclose(framing.eyes, np.median((eyes / 140).view(float), axis=0), atol=0.015)
