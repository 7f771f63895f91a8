"""What a user gives to a mode, an image or its codes, as the canvas that a plan starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lpkernel import checks
from lpkernel.autoencoder.embedded import of_bank
from lpkernel.bank import TABLE_ROWS, Bank
from lpkernel.composite import Composite
from lpkernel.errors import InputError
from lpkernel.images import Crop, load_mask, load_pixels, plain_pixels, square, square_mask
from lpkernel.modes.fill import fill_hole
from lpkernel.synthesis import Synthesis, allowed_images, canvas_array

if TYPE_CHECKING:
    from lpkernel.autoencoder.base import Autoencoder

Bools = NDArray[np.bool_]
ImageLike = str | Path | NDArray[Any] | Image.Image
MaskLike = str | Path | NDArray[Any]

# A bank image this much nearer to the canvas than the median one is the same image, encoded once more (by another
# batch size or dtype, beside a hole). On 999 photographs such ratios were below 0.07, those of other people above 0.3.
SAME = 1 / 8


@dataclass(frozen=True, eq=False)
class Input:
    """canvas: (M, M) int64 codes or (M, M, L) float32 latents. pixels: (S, S, 3) uint8, None if codes were given.

    mask: (S, S) bool, None if none was given. crop: what was cut out of the image before its centre square.
    """

    canvas: NDArray[Any]
    pixels: NDArray[np.uint8] | None
    mask: Bools | None
    crop: Crop | None


def read_input(
    bank: Bank,
    image: ImageLike,
    autoencoder: Autoencoder | None,
    crop: Crop | None = None,
    mask: MaskLike | None = None,
    box: Crop | None = None,
    fill: bool = False,
) -> Input:
    """Encode an image, framed as the bank's: a path, (H, W, 3) uint8 pixels, or what an autoencoder encoded.

    `crop` is cut out first; by default the bank's own, but nothing of an image that is square, which is taken for a
    face framed already. Then comes the centre square. A mask (a path, white = True, or bool) has the image's height
    and width and goes the same way; a box x0, y0, x1, y1 of the image's pixels is a mask as well. `fill` replaces the
    masked pixels before anything is resized or encoded.
    Raises InputError.
    """
    given = image if isinstance(image, str | Path) else _array(image)
    crop, box = _four("crop", crop), _four("box", box)
    if not isinstance(given, np.ndarray) or given.dtype == np.uint8:
        return _encoded(bank, given, autoencoder, crop, mask, box, fill)
    if fill or crop is not None:
        raise InputError(f"image: got {given.dtype} {given.shape}, expected a path or (H, W, 3) uint8 pixels")
    side = bank.image_size or bank.grid
    return Input(canvas_array(bank, given, 1)[0], None, _mask(mask, box, (side, side)), None)


def _array(image: Any) -> NDArray[Any]:
    """An array, a tensor or a PIL image as an array."""
    if isinstance(image, Image.Image):
        return plain_pixels(image)
    return np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)


def _four(name: str, edges: Any) -> Crop | None:
    return None if edges is None else cast(Crop, checks.integers(name, edges, 4))


def own_crop(bank: Bank, height: int, width: int) -> Crop | None:
    """What is cut out of an image of this size by default: nothing of a square, which is taken for framed already."""
    return None if height == width else bank.crop


def _encoded(
    bank: Bank,
    image: str | Path | NDArray[Any],
    autoencoder: Autoencoder | None,
    crop: Crop | None,
    mask: MaskLike | None,
    box: Crop | None,
    fill: bool,
) -> Input:
    autoencoder = of_bank(bank, autoencoder)
    what, pixels = ("image", image) if isinstance(image, np.ndarray) else (str(image), _loaded(image, load_pixels))
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise InputError(f"image: got shape {pixels.shape}, expected (H, W, 3) uint8")
    height, width, _ = pixels.shape
    if crop is None:
        crop = own_crop(bank, height, width)
    whole, size = _mask(mask, box, (height, width)), autoencoder.image_size
    try:
        chosen = None if whole is None else square_mask(whole, size, crop)
        if chosen is not None and not chosen.any():
            raise InputError("mask: nothing of it lies within the part of the image that is used; see crop")
        if fill and whole is not None and not whole.all():
            pixels = fill_hole(pixels, whole)
        framed = square(Image.fromarray(pixels), size, crop).copy()  # torch wants memory that may be written
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    return Input(np.asarray(autoencoder.encode(framed[None]))[0], framed, chosen, crop)


def _loaded(path: str | Path, load: Any) -> NDArray[Any]:
    try:
        return load(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _mask(mask: MaskLike | None, box: Crop | None, shape: tuple[int, int]) -> Bools | None:
    """The mask as given, or of the box, (H, W) bool. Raises InputError unless it fits and anything is set."""
    height, width = shape
    if box is not None:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(f"box: {x0},{y0},{x1},{y1} is not within the image's {width}x{height} pixels")
        inside = np.zeros(shape, bool)
        inside[y0:y1, x0:x1] = True
        return inside
    if mask is None:
        return None
    given = _loaded(mask, load_mask) if isinstance(mask, str | Path) else np.asarray(mask)
    if given.dtype != np.bool_ or given.shape != shape:
        got = f"{given.dtype} of {given.shape[1]}x{given.shape[0]}" if given.ndim == 2 else f"shape {given.shape}"
        raise InputError(f"mask: got {got}, expected bool of {width}x{height} pixels, as the image")
    if not given.any():
        raise InputError("mask: nothing is set; paint white what is to change")
    return given


def without_itself(bank: Bank, start: Input, known: Bools, candidates: ArrayLike | None) -> tuple[Any, list[str]]:
    """The allowed bank images but the input itself, and the names of those left out.

    known: (M, M) bool, the cells of the canvas that are compared; without any, nothing is left out. Raises
    InputError when no image is left.
    """
    allowed = allowed_images(bank, candidates)
    if not known.any():
        return allowed, []
    distances = _distances(bank, start.canvas, known)
    same = distances < SAME * np.median(distances)
    left = allowed[~same[allowed]]
    if not left.size:
        raise InputError("candidates: no bank image is left beside the input itself; allow others")
    return left, [bank.names[i] for i in allowed[same[allowed]]]


def _distances(bank: Bank, canvas: NDArray[Any], known: Bools) -> NDArray[np.int64]:
    """(B,) squared distance of each bank image to the canvas over the known cells, in fixed point."""
    if bank.codes is not None and bank.fixed_codebook is not None:
        if len(bank.fixed_codebook) <= TABLE_ROWS:
            return bank.table()[canvas[known], bank.codes[:, known]].sum(1, dtype=np.int64)
        values = bank.fixed_codebook[canvas]
    else:
        values = bank.project(canvas)
    level = bank.level(bank.grid)
    target = values[known].astype(np.int64)
    return np.array([np.square(one[known] - target).sum() for one in level], np.int64)


def finished(
    made: Synthesis, start: Input, excluded: list[str], facts: dict[str, Any], inside: Bools | None = None
) -> Synthesis:
    """The synthesis with what the mode did in its settings, and the closing composite for the pixels `inside`."""
    facts = {**facts, "input_crop": start.crop, "left_out_as_the_input": excluded, "keep_outside": None}
    composite = None
    if inside is not None:
        if start.pixels is None:
            raise InputError("keep_outside: the input is codes or latents, expected pixels to keep; pass the image")
        feather = max(1, len(start.pixels) // made.bank.grid // 2)  # half a cell
        facts["keep_outside"] = {"feather_pixels": feather}
        composite = Composite.feathered(start.pixels, inside, feather)
    return replace(made, settings={**made.settings, **facts}, composite=composite)
