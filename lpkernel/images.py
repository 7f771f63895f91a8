"""Finding image files and reading one as the square that an autoencoder takes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lpkernel.errors import InputError

EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
RESIZE_FILTER = "bicubic"  # Pillow's, which averages when it shrinks; the embedded autoencoder was trained with it
MASK_LEVEL = 127  # grey values above are white
MIN_SIDE = 8  # pixels; smaller pictures are taken for icons or damage

Crop = tuple[int, int, int, int]


def natural_key(name: str) -> Any:
    """Sort key that puts 2.jpg before 10.jpg, folder by folder."""
    # split() puts the numbers at odd places, so equal places always hold equal types
    parts = [[int(t) if i % 2 else t for i, t in enumerate(re.split("([0-9]+)", part))] for part in name.split("/")]
    return parts, name


def find_images(folder: Path) -> list[str]:
    """Relative names of the image files below `folder`, in natural order.

    Links are followed, loops once; names that start with a dot are passed over.
    Raises InputError when there is no such folder, a folder that cannot be read, or no image.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}" + ("; it is a file" if folder.exists() else ""))
    seen: set[tuple[int, int]] = set()
    found = []
    for parent, folders, files in os.walk(folder, onerror=_unreadable, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = (name for name in files if not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS)
        found += [(Path(parent) / name).relative_to(folder).as_posix() for name in names]
    if not found:
        raise InputError(f"no images in {folder}; looked for {' '.join(sorted(EXTENSIONS))}")
    return sorted(found, key=natural_key)


def _unreadable(error: OSError) -> NoReturn:
    raise InputError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def load_image(path: str | Path, size: int, crop: Crop | None = None) -> np.ndarray:
    """One image file as (size, size, 3) uint8 RGB.

    Turned as its EXIF says, transparent parts on white, `crop` (x0, y0, x1, y1) cut out, then the centre
    square, resized (bicubic). Raises InputError, whose message is the reason without the path, for a file
    that is missing, unreadable, cut short, no image, too large to be trusted or smaller than 8 pixels.
    """
    return _read(path, lambda image: square(_rgb(image), size, crop))


def load_pixels(path: str | Path) -> np.ndarray:
    """A whole image file as (H, W, 3) uint8 RGB, otherwise as `load_image`."""
    return _read(path, lambda image: np.asarray(_rgb(image)))


def load_mask(path: str | Path) -> np.ndarray:
    """A mask file as (H, W) bool: True where it is white, or painted white over transparency. Errors: `load_image`."""
    return _read(path, lambda image: np.asarray(_rgb(image, "black").convert("L")) > MASK_LEVEL)


def _read(path: str | Path, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    if not Path(path).is_file():  # opening a named pipe would wait for ever
        raise InputError("no such file")
    too_large = InputError(f"more than {Image.MAX_IMAGE_PIXELS} pixels, which Pillow takes for an attack; shrink it")
    try:
        with Image.open(path) as image:
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise too_large  # here Pillow itself only warns
            return convert(ImageOps.exif_transpose(image))
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large from error
    except UnidentifiedImageError as error:
        raise InputError("not an image, or damaged") from error
    except MemoryError as error:
        raise InputError("too large for the memory") from error
    except OSError as error:
        raise InputError(error.strerror or f"damaged: {_line(error)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise InputError(f"damaged: {_line(error) or type(error).__name__}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _rgb(image: Image.Image, page_colour: str = "white") -> Image.Image:
    if image.mode == "F":
        raise InputError("32-bit float pixels, expected 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey, which convert() would clip to white
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, page_colour)
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return image.convert("RGB")


def square(image: Image.Image, size: int, crop: Crop | None) -> np.ndarray:
    """The centre square of an RGB image, or of its part `crop`, as (size, size, 3) uint8.

    Raises InputError when the crop is not within the image or the square is smaller than 8 pixels.
    """
    # cropped first: resize(box=...) would blend in what lies beyond the box
    part = image.crop(_centre_square(image.width, image.height, crop))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def square_mask(mask: np.ndarray, size: int, crop: Crop | None) -> np.ndarray:
    """What `square` makes of an image, of its mask: (H, W) bool -> (size, size) bool, True where any of it is."""
    part = Image.fromarray(mask.astype(np.float32)).crop(_centre_square(mask.shape[1], mask.shape[0], crop))
    return np.asarray(part.resize((size, size), Image.Resampling.BOX)) > 0


def _centre_square(width: int, height: int, crop: Crop | None) -> Crop:
    x0, y0, x1, y1 = (0, 0, width, height) if crop is None else crop
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(f"crop {x0},{y0},{x1},{y1} is not within its {width}x{height} pixels")
    side = min(x1 - x0, y1 - y0)
    if side < MIN_SIDE:
        raise InputError(f"{x1 - x0}x{y1 - y0} pixels, expected at least {MIN_SIDE} a side")
    x, y = x0 + (x1 - x0 - side) // 2, y0 + (y1 - y0 - side) // 2
    return x, y, x + side, y + side
