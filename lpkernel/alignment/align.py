"""Photographs turned, scaled and cut, by the eyes in them, so that they are framed as a bank's images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lpkernel.alignment.faces import Face, Finder, find_faces
from lpkernel.alignment.regions import known_eyes
from lpkernel.bank import as_bank
from lpkernel.errors import InputError
from lpkernel.pictures.images import MIN_SIDE, given_pixels, load_pixels
from lpkernel.pictures.warp import Similarity, resample

if TYPE_CHECKING:
    from lpkernel.autoencoder.protocol import Autoencoder
    from lpkernel.bank import Bank

SAMPLE = 48  # bank images in which the eyes are looked for
ENOUGH = 1 / 3  # of them in which eyes must be found
LOOSE = 0.08  # of the side: beyond this median deviation from the median the bank's eyes have no common place
CLOSEST = 0.05  # of the side between the eyes, or the face would be a speck
LARGEST = 4096  # pixels of the side

EyePlaces = tuple[float, float, float, float]


@dataclass(frozen=True)
class Framing:
    """Where faces lie in square images of `size` pixels.

    eyes: x and y of the left, then of the right eye centre, in fractions of the side from the top left corner; left is
    left in the picture. known_from: in words, where they come from. Raises InputError.
    """

    size: int
    eyes: EyePlaces
    known_from: str = "given"

    def __post_init__(self) -> None:
        if not MIN_SIDE <= self.size <= LARGEST:
            raise InputError(f"size: got {self.size}, expected {MIN_SIDE} to {LARGEST} pixels")
        if len(self.eyes) != 4 or not all(math.isfinite(place) and 0 <= place <= 1 for place in self.eyes):
            raise InputError(f"eyes: got {self.eyes}, expected LX,LY,RX,RY in fractions of the side, from 0 to 1")
        if self.eyes[2] - self.eyes[0] < CLOSEST:
            raise InputError(
                f"eyes: {self.eyes[2] - self.eyes[0]:.3f} of the side lie between them, expected at least {CLOSEST}; "
                "the order is left x, left y, right x, right y as seen in the picture"
            )

    @classmethod
    def of(
        cls,
        bank: Bank | str | Path,
        autoencoder: Autoencoder | None = None,
        eyes: Sequence[float] | None = None,
        size: int | None = None,
        find: Finder = find_faces,
    ) -> Framing:
        """The framing of a bank's images; `eyes` and `size` override what is known of it.

        The embedded avatars and photographs framed as CelebA have a known one. For other banks the eyes are looked for
        in up to 48 images, spread evenly and decoded with the bank's autoencoder; their median is used. Raises
        InputError when the autoencoder is missing or is not the bank's, and when eyes are found in less than a third of
        the images or have no common place; MissingExtra.
        """
        bank = as_bank(bank)
        if size is None:
            size = bank.image_size or (autoencoder.image_size if autoencoder is not None else 0)
        if not size:
            raise InputError("size: the bank does not say how large its images are; give a size")
        if eyes is not None:
            return cls(size, _four(eyes))
        known = known_eyes(bank)
        if known is not None:
            return cls(size, known, "the bank's layout")
        if autoencoder is None:
            raise InputError("autoencoder: got None, but the bank's images must be decoded to find their eyes; pass it")
        bank.check_autoencoder(autoencoder)
        places, looked_at = _measured(bank, autoencoder, find)
        return cls(size, places, f"eyes found in {looked_at} of the bank's images")


@dataclass(frozen=True, eq=False)
class Aligned:
    """One face of a photograph. pixels: (S, S, 3) uint8, framed as asked for.

    eyes: x and y of the left and right eye in the photograph's pixels, turned as its EXIF says. scale: pixels of the
    result for one of the photograph. rotation: degrees by which the photograph was turned, clockwise. beyond: share of
    the result that lies beyond the photograph's edges, where it is mirrored. confidence, detector: as in `faces.Face`.
    """

    pixels: NDArray[np.uint8]
    eyes: EyePlaces
    scale: float
    rotation: float
    beyond: float
    confidence: float
    detector: str
    where: Similarity

    def facts(self) -> dict[str, Any]:
        """All but the pixels and the transform, ready for JSON."""
        return {name: value for name, value in asdict(self).items() if name not in ("pixels", "where")}


def align(
    image: str | Path | Image.Image | NDArray[np.uint8],
    framing: Framing | Bank | str | Path,
    every: bool = False,
    find: Finder = find_faces,
) -> list[Aligned]:
    """The faces of a photograph, framed as a bank's images: only the largest, or `every` one, largest first.

    image: a path, a PIL image, or (H, W, 3) uint8 RGB, an array or a tensor. framing: a `Framing`, or a bank (or the
    path of one) with a framing known without its autoencoder. A similarity transform takes the eyes found to those of
    the framing. Deterministic.
    Raises InputError when the image cannot be read or no face is found; MissingExtra.
    """
    where = framing if isinstance(framing, Framing) else Framing.of(framing, find=find)
    if isinstance(image, str | Path):
        try:
            return align(load_pixels(image), where, every, find)
        except InputError as error:
            raise InputError(f"{image}: {error}") from error
    pixels = given_pixels(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
        raise InputError(f"image: got {pixels.dtype} {pixels.shape}, expected (H, W, 3) uint8")
    faces = find(pixels, every)
    if not faces:
        raise InputError("no face found")
    return [_aligned(pixels, face, where) for face in (faces if every else faces[:1])]


def _aligned(pixels: NDArray[np.uint8], face: Face, framing: Framing) -> Aligned:
    left, top, right, bottom = (place * framing.size for place in framing.eyes)
    where = Similarity.of_points((complex(left, top), complex(right, bottom)), (face.left, face.right))
    result, beyond = resample(pixels, where, framing.size)
    return Aligned(
        result,
        tuple(round(place, 2) for place in (face.left.real, face.left.imag, face.right.real, face.right.imag)),  # type: ignore[arg-type]
        round(1 / abs(where.scale), 5),
        round(-math.degrees(math.atan2(where.scale.imag, where.scale.real)), 2),
        round(beyond, 4),
        round(face.confidence, 3),
        face.detector,
        where,
    )


def _measured(bank: Bank, autoencoder: Autoencoder, find: Finder) -> tuple[EyePlaces, str]:
    """The median eye places of a sample of the bank's images, and in how many of how many they were found."""
    chosen = np.arange(0, bank.size, -(-bank.size // SAMPLE))
    found = []
    for image in autoencoder.decode(bank.whole(chosen)):
        faces = find(image, False)
        if faces:
            eyes = faces[0].left, faces[0].right
            found.append([part / len(image) for eye in eyes for part in (eye.real, eye.imag)])
    counted = f"{len(found)} of {len(chosen)}"
    fix = "give --eyes LX,LY,RX,RY, fractions of the side (in Python eyes=...)"
    if len(found) < ENOUGH * len(chosen) or not found:
        raise InputError(f"eyes: found in only {counted} of the bank's images that were searched; {fix}")
    places = np.median(found, axis=0)
    if np.median(np.abs(found - places), axis=0).max() > LOOSE:
        raise InputError(f"eyes: their places differ too much between its images, so the bank is not aligned; {fix}")
    return _four(places.round(4).tolist()), counted


def _four(eyes: Sequence[float]) -> EyePlaces:
    if len(eyes) != 4:
        raise InputError(f"eyes: got {len(eyes)} numbers, expected 4: LX,LY,RX,RY in fractions of the side")
    return (float(eyes[0]), float(eyes[1]), float(eyes[2]), float(eyes[3]))
