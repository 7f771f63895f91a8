"""How a picture becomes a square framed as the bank's images, and where that square lies in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lpkernel.alignment import FRAMINGS
from lpkernel.alignment.align import Aligned, Framing, align
from lpkernel.alignment.faces import Face, Finder, find_faces
from lpkernel.alignment.regions import known_eyes, layouts
from lpkernel.errors import InputError, MissingExtra
from lpkernel.pictures.images import Crop, centre_square, square, square_mask
from lpkernel.pictures.warp import Similarity, cut_out

if TYPE_CHECKING:
    from lpkernel.autoencoder.protocol import Autoencoder
    from lpkernel.bank import Bank

Bools = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

MISPLACED = 0.12  # of the side: of 330 aligned photographs no eye was further than 0.07 from the median


@dataclass(frozen=True, eq=False)
class Framed:
    """pixels: (S, S, 3) uint8. where: from points of the square to those of the picture.

    how: as-is, crop or align. crop: what was cut out before the centre square, None for nothing or when aligned. said:
    in words, what was done without being asked for; "" for nothing. facts: of the alignment, ready for JSON.
    """

    pixels: Pixels
    where: Similarity
    how: str
    crop: Crop | None = None
    said: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def mask(self, mask: Bools) -> Bools:
        """A mask of the picture, (H, W), as one of the square, (S, S): True where any of it is."""
        size = len(self.pixels)
        if self.how != "align":
            return square_mask(mask, size, self.crop)
        carried = cut_out(mask.astype(np.uint8) * 255, self.where, (size, size)) > 127
        ys, xs = np.nonzero(mask)
        places = self.where.inverse().scale * (xs + 0.5 + 1j * (ys + 0.5)) + self.where.inverse().shift
        columns, rows = np.floor(places.real).astype(int), np.floor(places.imag).astype(int)
        inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
        carried[rows[inside], columns[inside]] = True
        return carried

    def holds(self, mask: Bools) -> float:
        """The share of a mask (H, W) of the picture that lies in the square."""
        ys, xs = np.nonzero(mask)
        back, size = self.where.inverse(), len(self.pixels)
        places = back.scale * (xs + 0.5 + 1j * (ys + 0.5)) + back.shift
        inside = (places.real >= 0) & (places.real <= size) & (places.imag >= 0) & (places.imag <= size)
        return float(inside.mean()) if len(inside) else 1.0


def expected_size(bank: Bank) -> tuple[int, int] | None:
    """Width and height of pictures that are framed as the bank's; None if any are. Square ones always are.

    Old banks do not say: those with a crop are taken for CelebA's, and the embedded avatars are known to be square.
    """
    if bank.source_size is not None:
        return bank.source_size
    if bank.crop is not None:
        return next(layout.frame for layout in layouts() if layout.frame is not None)
    return (1, 1) if known_eyes(bank) is not None else None


def bank_crop(bank: Bank, width: int, height: int) -> Crop | None:
    """The bank's crop for a picture of this size, of the shape of the bank's pictures; None if it has no crop."""
    expected = expected_size(bank)
    if bank.crop is None or expected in (None, (width, height)):
        return bank.crop
    assert expected is not None
    x0, y0, x1, y1 = bank.crop
    across, down = width / expected[0], height / expected[1]
    return round(x0 * across), round(y0 * down), round(x1 * across), round(y1 * down)


def _same_shape(size: tuple[int, int], expected: tuple[int, int]) -> bool:
    """Whether one is the other made larger or smaller, up to a pixel."""
    (width, height), (wide, high) = size, expected
    return abs(height - width * high / wide) <= 1 or abs(width - height * wide / high) <= 1


def frame(
    bank: Bank,
    pixels: Pixels,
    autoencoder: Autoencoder,
    crop: Crop | None = None,
    framing: str = "auto",
    mask: Bools | None = None,
    find: Finder = find_faces,
) -> Framed:
    """A picture (H, W, 3) as a square of the autoencoder's side, framed as the bank's images.

    framing "as-is": its centre square. "crop": `crop`, or the bank's, is cut out first. "align": its largest face, or
    the largest whose square holds half of the `mask` (H, W), is turned, scaled and shifted to lie as those of the bank.
    "auto": a given `crop` is cut out; the bank's is if the picture has the size or shape that it was made for. A square
    is taken as it is, unless its face is found elsewhere than the bank's are. Anything else is aligned. Raises
    InputError, also when a face or the extra `align` is missing.
    """
    if framing not in FRAMINGS:
        raise InputError(f"framing: got {framing!r}, expected one of {', '.join(FRAMINGS)}")
    if crop is not None and framing not in ("auto", "crop"):
        raise InputError(f"framing: got {framing!r} and a crop; leave one out")
    seen = _remembering(find)
    height, width, _ = pixels.shape
    centre_square(width, height, crop)  # before a face is looked for in a picture that is too small for one
    expected, size = expected_size(bank), autoencoder.image_size
    if crop is not None or framing == "crop":
        if crop is None and bank.crop is None:
            raise InputError("framing: got 'crop', but the bank was built without one; give a crop, or 'as-is'")
        return _cut(pixels, size, bank.crop if crop is None else crop, "crop")
    if framing == "align":
        return _aligned(bank, pixels, autoencoder, mask, "", find, seen)
    if framing == "auto" and expected is not None:
        if (width, height) == expected or (width != height and _same_shape((width, height), expected)):
            return _cut(pixels, size, bank_crop(bank, width, height), "crop" if bank.crop else "as-is")
        whose = "square ones" if expected[0] == expected[1] else f"{expected[0]}x{expected[1]}"
        if width != height:
            why = f"its {width}x{height} pixels are not framed as the bank's pictures, {whose}"
            return _aligned(bank, pixels, autoencoder, mask, why, find, seen)
    as_is = _cut(pixels, size, None, "as-is")
    if framing == "auto" and width > size and _misplaced(bank, pixels, as_is.where.inverse(), size, seen):
        why = "its face is not where the faces of the bank's pictures are"
        return _aligned(bank, pixels, autoencoder, mask, why, find, seen)
    return as_is


def _cut(pixels: Pixels, size: int, crop: Crop | None, how: str) -> Framed:
    height, width, _ = pixels.shape
    x0, y0, x1, _ = centre_square(width, height, crop)
    framed = square(Image.fromarray(pixels), size, crop).copy()  # torch wants writable memory
    return Framed(framed, Similarity(complex((x1 - x0) / size), complex(x0, y0)), how, crop)


def _aligned(
    bank: Bank, pixels: Pixels, autoencoder: Autoencoder, mask: Bools | None, why: str, find: Finder, seen: Finder
) -> Framed:
    """The picture aligned; `why` it is, unless it was asked for. seen: `find` for this picture alone."""
    fix = "give --crop x0,y0,x1,y1 or --framing as-is (in Python crop=..., framing=...)"
    try:
        where = Framing.of(bank, autoencoder, size=autoencoder.image_size, find=find)
        chosen = _framed(align(pixels, where, find=seen)[0], why)
        if mask is not None and chosen.holds(mask) < 0.5:
            others = [_framed(face, why) for face in align(pixels, where, True, seen)]
            chosen = next((one for one in others if one.holds(mask) >= 0.5), chosen)
    except MissingExtra as error:
        start = f"{why}; lpkernel align makes it so" if why else "aligning"
        raise InputError(f"{start}, with pip install 'lpkernel[align]'; or {fix}") from error
    except InputError as error:
        start = f"{why}, and lpkernel align cannot make it so" if why else "it cannot be aligned"
        raise InputError(f"{start}: {error}; {fix}") from error
    return chosen


def _framed(face: Aligned, why: str) -> Framed:
    said = f"{why}, so it was aligned by its eyes, as lpkernel align does" if why else ""
    return Framed(face.pixels, face.where, "align", None, said, face.facts())


def _misplaced(bank: Bank, pixels: Pixels, back: Similarity, size: int, find: Finder) -> bool:
    """Whether eyes are found elsewhere than a bank of photographs has them; checked only where they are known."""
    eyes = known_eyes(bank)
    if eyes is None or bank.crop is None:
        return False
    try:
        faces = find(pixels, False)
    except MissingExtra:
        return False
    if not faces:
        return False
    left, right = complex(*eyes[:2]) * size, complex(*eyes[2:]) * size
    return max(abs(back(faces[0].left) - left), abs(back(faces[0].right) - right)) > MISPLACED * size


def _remembering(find: Finder) -> Finder:
    """`find`, which takes seconds, for one picture: run once for its largest face, once for every one."""
    known: dict[bool, list[Face]] = {}

    def found(pixels: Pixels, every: bool) -> list[Face]:
        if every not in known:
            known[every] = find(pixels, every)
        return known[every]

    return found
