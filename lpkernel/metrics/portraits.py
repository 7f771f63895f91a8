"""What dlib's face networks say of pictures that one face fills: where its features are, its eyes, who it is like.

Needs the extra `align`.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel.alignment.faces import DESCRIBED_SIDE, LEAST_SCORE, Description, describe, model_files
from lpkernel.errors import InputError
from lpkernel.metrics import distances
from lpkernel.metrics.pixels import LUMA
from lpkernel.pictures.warp import Similarity, resample

Pixels = NDArray[np.uint8]
Rows = NDArray[np.float64]

EYE_SIDE = 32  # pixels of the square in which eyes are compared
EYE_WIDTH = 0.6  # width of the square, in eye distances
SAME_PERSON = 0.6  # distance of identities, as the network was trained
POINTS, EYES, IDENTITY = slice(1, 11), 11, slice(12, 140)  # columns of what `Portraits` gives, after that of 1 or 0


class Portraits:
    """For each picture 140 numbers, all 0 where no face is found: 1, five points, the difference of the eyes, identity.

    Raises MissingExtra.
    """

    name = "faces"
    summed = False

    def __init__(self) -> None:
        files = model_files()
        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
        text = f"{self.name} {digests} {DESCRIBED_SIDE} {LEAST_SCORE} {EYE_SIDE} {EYE_WIDTH}"
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        names = [path.name for path in files]
        self.facts: dict[str, Any] = {
            "name": self.name,
            "sha256": self.hash,
            "side": DESCRIBED_SIDE,
            "resize_filter": "bicubic",
            "weights_sha256": dict(zip(names, digests, strict=True)),
        }

    def width(self, side: int) -> int:
        return IDENTITY.stop

    def __call__(self, images: Pixels) -> Rows:
        rows = np.zeros((len(images), self.width(len(images[0]))))
        for row, image in zip(rows, images, strict=True):
            face = describe(image)
            if face is not None:
                row[0] = 1
                row[POINTS] = face.points.view(float)
                row[EYES] = eye_difference(image, face)
                row[IDENTITY] = face.identity
        return rows


def eye_difference(image: Pixels, face: Description) -> float:
    """1 - the correlation of the left eye's luma and that of the right eye mirrored: 0 for equal eyes, at most 2.

    1 if one of them has no detail at all.
    """
    left, right = (eye * len(image) for eye in face.eyes)
    across = (right - left) * EYE_WIDTH / EYE_SIDE  # a pixel of the squares, along the line of the eyes
    if not across:
        return 2.0
    middle = complex(EYE_SIDE, EYE_SIDE) / 2
    eyes = [resample(image, Similarity(across, eye - across * middle), EYE_SIDE)[0] for eye in (left, right)]
    a, b = (eye.astype(np.float64) @ np.array(LUMA) for eye in (eyes[0], eyes[1][:, ::-1]))
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt(np.square(a).sum() * np.square(b).sum())
    return float(1 - (a * b).sum() / scale) if scale > 0 else 1.0


def numbers_of(real: Rows, rows: Rows) -> dict[str, dict[str, Any]]:
    """Values of a set compared with the real one, from what `Portraits` gives for both. Raises InputError.

    faces_found: share of pictures; landmark_spread: root mean square distance of the points from their mean, over that
    of real pictures; eye_difference: the median over that of real pictures; nearest_identity: median distance to the
    nearest real identity over that of real faces to each other.
    """
    base, found = (one[one[:, 0] == 1] for one in (real, rows))
    if len(base) < 2:
        raise InputError(
            f"faces: found in {len(base)} of {len(real)} real pictures, expected 2 or more; leave --faces out"
        )
    values: dict[str, dict[str, Any]] = {
        "faces_found": {"value": len(found) / len(rows), "real": len(base) / len(real)}
    }
    if not len(found):
        return values
    apart = distances.nearest(base[:, IDENTITY])[0]
    near, _ = distances.nearest(found[:, IDENTITY], base[:, IDENTITY])
    own_median, real_median = float(np.median(near)), float(np.median(apart))
    values |= {
        "landmark_spread": _ratio(_spread(found[:, POINTS]), _spread(base[:, POINTS])),
        "eye_difference": _ratio(float(np.median(found[:, EYES])), float(np.median(base[:, EYES]))),
        "nearest_identity": {
            **_ratio(own_median, real_median),
            "least": float(near.min()),
            "same_person": float((near < SAME_PERSON).mean()),
            "real_same_person": float((apart < SAME_PERSON).mean()),
        },
    }
    return values


def _spread(points: Rows) -> float:
    return float(np.sqrt(np.square(points - points.mean(axis=0)).sum(axis=1).mean() / 5))


def _ratio(own: float, base: float) -> dict[str, Any]:
    return {"value": own / base if base > 0 else None, "own": own, "real": base}
