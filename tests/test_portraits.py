"""What dlib finds in portraits: the numbers computed from it, tested without dlib, and dlib on real photographs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import packages
import pytest
from PIL import Image

from lpkernel import InputError, MissingExtra
from lpkernel.alignment.faces import Description, describe
from lpkernel.cli import main
from lpkernel.metrics import portraits, sets
from lpkernel.metrics.portraits import EYES, IDENTITY, POINTS, Portraits, eye_difference, numbers_of

needs_dlib = pytest.mark.skipif(
    importlib.util.find_spec("dlib") is None or importlib.util.find_spec("face_recognition_models") is None,
    reason="dlib: pip install 'lpkernel[align]'",
)


def face(left: complex, right: complex) -> Description:
    """A face with eyes of zero width at these places."""
    return Description(np.array([right, right, left, left, 0.5 + 0.7j]), np.zeros(128))


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_equal_eyes_differ_by_nothing(turn: float) -> None:
    y, x = np.mgrid[:128, :128] + 0.5
    place = (x + 1j * y) / 128 - (0.5 + 0.5j)
    upright = place * np.exp(-1j * turn)  # of a face that is rotated clockwise
    side = np.abs(upright.real)  # mirrored about the middle
    grey = 128 + 100 * np.sin(40 * side) * np.cos(30 * upright.imag)
    picture = np.repeat(grey[..., None], 3, axis=2).round().astype(np.uint8)
    eyes = [0.5 + 0.5j + part * np.exp(1j * turn) for part in (-0.2, 0.2)]
    assert eye_difference(picture, face(*eyes)) < 0.02
    flat = np.where((upright.real > 0)[..., None], np.uint8(128), picture)
    assert eye_difference(flat, face(*eyes)) == 1  # a closed eye
    negative = np.where((upright.real > 0)[..., None], 255 - picture, picture)
    assert eye_difference(negative, face(*eyes)) > 1.9
    assert eye_difference(picture, face(0.5j, 0.5j)) == 2


def rows(points: np.ndarray, eyes: float, identities: np.ndarray) -> np.ndarray:
    made = np.zeros((len(points), IDENTITY.stop))
    made[:, 0], made[:, POINTS], made[:, EYES], made[:, IDENTITY] = 1, points, eyes, identities
    return made


def test_numbers_of_known_faces() -> None:
    random = np.random.default_rng(0)
    places, people = random.uniform(size=10), np.eye(128)[:6]
    offsets = random.normal(size=(6, 10))
    offsets -= offsets.mean(axis=0)
    real = rows(places + offsets, 0.3, people)  # √2 from each other
    made = rows(places[::-1] + offsets[:4] * 0, 0.6, people[:4] * 0.5)  # 0.5 from the person itself
    made = np.concatenate([made, np.zeros((1, IDENTITY.stop))])  # and one without a face
    found = numbers_of(real, made)
    assert found["faces_found"] == {"value": 0.8, "real": 1.0}
    assert found["landmark_spread"]["value"] == 0
    assert found["landmark_spread"]["real"] == pytest.approx(np.sqrt(np.square(offsets).sum() / 6 / 5))
    assert found["eye_difference"]["value"] == pytest.approx(2)
    assert found["nearest_identity"]["value"] == pytest.approx(0.5 / np.sqrt(2))
    assert found["nearest_identity"]["same_person"] == 1 and found["nearest_identity"]["real_same_person"] == 0
    again = numbers_of(real, real)
    assert again["landmark_spread"]["value"] == again["eye_difference"]["value"] == 1
    assert again["nearest_identity"]["least"] == 0
    assert numbers_of(real, made[-1:]) == {"faces_found": {"value": 0.0, "real": 1.0}}
    with pytest.raises(InputError, match="faces: found in 1 of 2 real pictures, expected 2 or more; leave --faces out"):
        numbers_of(np.concatenate([real[:1], made[-1:]]), made)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    monkeypatch.setattr("lpkernel.alignment.faces.find_spec", lambda name: None)
    with pytest.raises(MissingExtra):
        Portraits()
    assert main(["evaluate", "--preset", "paper", "--faces", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "lpkernel: error: finding faces needs the package face_recognition_models: pip install 'lpkernel[align]'\n"
    )


@needs_dlib
def test_no_face_is_zeros() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)
    assert describe(noise[0]) is None
    np.testing.assert_array_equal(Portraits()(noise), 0)


@needs_dlib
@pytest.mark.data
def test_real_faces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in packages.face_files()[:8]:
        Image.open(path).crop(packages.FACE_CROP).save(folder / path.with_suffix(".png").name)
    pictures = sets.of_folder(folder, 128, None).read(range(8))
    described = describe(pictures[0])
    assert described is not None
    left, right = described.eyes
    assert 0.2 < left.real < 0.45 < 0.55 < right.real < 0.8 and abs(left.imag - right.imag) < 0.05
    brighter = describe(np.clip(pictures[0] * 1.1, 0, 255).astype(np.uint8))
    assert brighter is not None and np.linalg.norm(brighter.identity - described.identity) < portraits.SAME_PERSON
    capsys.readouterr()
    out = tmp_path / "out"
    argv = ["evaluate", folder, folder, "--faces", "-n", "6", "--out", out]
    assert main([*map(str, argv)]) == 0
    (column,) = json.loads((out / "evaluate.json").read_text())["columns"]
    found = column["metrics"]
    assert found["faces_found"]["value"] > 0.6 and found["faces_found"]["real"] > 0.6
    assert found["nearest_identity"]["least"] == 0 and found["nearest_identity"]["real_same_person"] < 0.5
    assert 0.5 < found["landmark_spread"]["value"] < 1.5 and found["landmark_spread"]["extractor_side"] == 256
    assert "difference of the eyes (near 1)" in capsys.readouterr().out
