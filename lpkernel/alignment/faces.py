"""Where faces and their eyes are in a photograph, found by dlib's detectors and its 5-point landmark model.

The extra `align` brings dlib (Boost licence) and the package face_recognition_models, of which three files are
used: shape_predictor_5_face_landmarks.dat, mmod_human_face_detector.dat and, by `describe` alone,
dlib_face_recognition_resnet_model_v1.dat, all put into the public domain by dlib's author. Its 68-point model, whose
training data exclude commercial use, is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lpkernel.errors import InputError, MissingExtra
from lpkernel.pictures.warp import Similarity, resample

LONGEST = 1024  # pixels of the longer side in which faces are looked for
LEAST_SIDE = 16  # pixels of the shorter side: dlib's network writes beyond its memory for pictures 9 pixels wide
SURE = 1.0  # score from which on an upright face needs no other turn; upside-down ones were found with up to 0.8
CNN_LONGEST = 640  # the network takes 4 s for a megapixel

# The landmark model is run again on the face turned upright: a square of CHIP pixels in which the eyes lie where the
# detector's box, from CHIP_BOX to CHIP - CHIP_BOX, has them on average.
CHIP, CHIP_BOX = 400, 72
CHIP_EYES = (146 + 150.5j, 248.5 + 150.5j)
LANDMARKS, NETWORK = "shape_predictor_5_face_landmarks.dat", "mmod_human_face_detector.dat"
IDENTITY = "dlib_face_recognition_resnet_model_v1.dat"
LEAST_SCORE = (
    -0.5
)  # of a face in a picture that is expected to show one; at 0, a quarter of tight real faces was missed
DESCRIBED_SIDE = 256  # pixels to which a picture of one face is resized before it is described


@dataclass(frozen=True)
class Face:
    """One face. Points are x + iy in pixels of the photograph, where the first pixel reaches from 0 to 1.

    left, right: the eye centres that are left and right when the face is upright (left is the person's right eye).
    confidence: the detector's score, above 0; scores of the detectors `hog` and `cnn` are not comparable.
    """

    left: complex
    right: complex
    confidence: float
    detector: str

    @property
    def distance(self) -> float:
        """Pixels between the eyes."""
        return abs(self.right - self.left)


Pixels = NDArray[np.uint8]
Eyes = tuple[complex, complex]
Finder = Callable[[Pixels, bool], list[Face]]


def find_faces(pixels: Pixels, every: bool = False) -> list[Face]:
    """Faces in (H, W, 3) uint8 pixels, the one with the widest eye distance first; [] if none is found.

    The photograph may be turned by any multiple of 90 degrees, each face by about 45 more. The histogram detector runs
    first; if it finds nothing, a network runs, which is slow but sees what the other misses. `every` looks for
    small faces even if a large one was found. Deterministic. Raises MissingExtra.
    """
    small, factor = _reduced(pixels, LONGEST)
    found, detector = _by_histograms(small, (1,) if every else (0, 1)) if _large_enough(small) else [], "hog"
    if not found:
        small, factor = _reduced(pixels, CNN_LONGEST)
        found, detector = _by_network(small) if _large_enough(small) else [], "cnn"
    faces = []
    for hit in found:
        rough = tuple(eye * factor for eye in _turned_back(_eyes(_turned(small, hit.turn), hit.box), hit.turn, small))
        left, right = _refined(pixels, (rough[0], rough[1]))
        faces.append(Face(left, right, hit.score, detector))
    return sorted(faces, key=lambda face: -face.distance)


@dataclass(frozen=True)
class Description:
    """A face as dlib's networks see it.

    points: (5,) complex, the outer and inner corner of the right eye in the picture, those of the left one, and the
    base of the nose, in fractions of the side. identity: (128,); below 0.6 apart, two are taken for one person.
    """

    points: NDArray[np.complex128]
    identity: NDArray[np.float64]

    @property
    def eyes(self) -> Eyes:
        """The centres of the left and the right eye in the picture."""
        return complex(self.points[2:4].mean()), complex(self.points[:2].mean())


def describe(pixels: Pixels) -> Description | None:
    """The upright face that fills a square picture (S, S, 3) uint8, the surest if there are several; None if none.

    Deterministic. Raises MissingExtra.
    """
    picture = np.array(Image.fromarray(pixels).resize((DESCRIBED_SIDE, DESCRIBED_SIDE), Image.Resampling.BICUBIC))
    boxes, scores, _ = _detector().run(picture, 0, LEAST_SCORE)
    if not len(boxes):
        return None
    shape = _predictor()(picture, boxes[int(np.argmax(scores))])
    points = np.array([complex(point.x + 0.5, point.y + 0.5) for point in shape.parts()], np.complex128)
    return Description(points / DESCRIBED_SIDE, np.array(_recogniser().compute_face_descriptor(picture, shape)))


def model_files() -> list[Path]:
    """The files that `describe` depends on. Raises MissingExtra."""
    return [Path(_model(name)) for name in (LANDMARKS, IDENTITY)]


@dataclass(frozen=True)
class _Hit:
    score: float
    turn: int  # quarters of a circle that the picture was turned by, counterclockwise
    box: Any  # dlib.rectangle


def _by_histograms(small: Pixels, upsamples: tuple[int, ...]) -> list[_Hit]:
    """Hits of the first of these magnifications (1: twice the size) that has any, at the turn with the best one."""
    for upsample in upsamples:
        best: list[_Hit] = []
        for turn in range(4):
            boxes, scores, _ = _detector().run(_turned(small, turn), upsample, 0.0)
            hits = [_Hit(float(score), turn, box) for score, box in zip(scores, boxes, strict=True)]
            best = max(best, hits, key=_best_score)
            if turn == 0 and _best_score(best) >= SURE:
                break
        if best:
            return best
    return []


def _by_network(small: Pixels) -> list[_Hit]:
    try:
        hits = list(_network()(small, 0))
    except RuntimeError as error:
        raise InputError(f"dlib cannot look for faces in {small.shape[1]}x{small.shape[0]} pixels") from error
    return [_Hit(float(hit.confidence), 0, hit.rect) for hit in hits]


def _large_enough(picture: Pixels) -> bool:
    return min(picture.shape[:2]) >= LEAST_SIDE


def _best_score(hits: list[_Hit]) -> float:
    return max((hit.score for hit in hits), default=0.0)


def _eyes(picture: Pixels, box: Any) -> Eyes:
    """The centres of both eyes, each the mean of its corners, which dlib gives as pixel indices."""
    corners = [complex(point.x + 0.5, point.y + 0.5) for point in _predictor()(picture, box).parts()[:4]]
    return (corners[2] + corners[3]) / 2, (corners[0] + corners[1]) / 2


def _refined(pixels: Pixels, eyes: Eyes) -> Eyes:
    """The eyes located once more, on the face turned upright at a fixed size: finer than whole pixels."""
    where = Similarity.of_points(CHIP_EYES, eyes)
    chip, _ = resample(pixels, where, CHIP)
    left, right = _eyes(chip, _dlib().rectangle(CHIP_BOX, CHIP_BOX, CHIP - CHIP_BOX - 1, CHIP - CHIP_BOX - 1))
    return where(left), where(right)


def _reduced(pixels: Pixels, longest: int) -> tuple[Pixels, int]:
    factor = max(1, math.ceil(max(pixels.shape[:2]) / longest))
    return np.array(Image.fromarray(pixels).reduce(factor)), factor


def _turned(picture: Pixels, turn: int) -> Pixels:
    return np.ascontiguousarray(np.rot90(picture, turn))


def _turned_back(eyes: Eyes, turn: int, picture: Pixels) -> Eyes:
    """Points of the turned picture in the picture itself."""
    height, width, _ = picture.shape
    corner = (0, width, complex(width, height), 1j * height)[turn]
    return corner + 1j**turn * eyes[0], corner + 1j**turn * eyes[1]


@cache
def _dlib() -> Any:
    try:
        import dlib
    except ImportError as error:
        raise MissingExtra("dlib", "align", "finding faces") from error
    return dlib


@cache
def _detector() -> Any:
    return _dlib().get_frontal_face_detector()


@cache
def _predictor() -> Any:
    return _dlib().shape_predictor(_model(LANDMARKS))


@cache
def _network() -> Any:
    return _dlib().cnn_face_detection_model_v1(_model(NETWORK))


@cache
def _recogniser() -> Any:
    return _dlib().face_recognition_model_v1(_model(IDENTITY))


def _model(name: str) -> str:
    # not imported: the package wants pkg_resources, which new versions of setuptools lack
    spec = find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("face_recognition_models", "align", "finding faces")
    return str(Path(spec.submodule_search_locations[0]) / "models" / name)
