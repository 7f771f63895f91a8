"""Finding image files and reading one as the square that an autoencoder takes."""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from PIL import ExifTags, Image, TiffTags, UnidentifiedImageError, _imaging

from lpkernel.errors import InputError
from lpkernel.files import open_regular

# The formats that Pillow may decode, and the extensions under which pictures are looked for.
FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
}
EXTENSIONS = {extension for extensions in FORMATS.values() for extension in extensions}
MAX_PIXELS = 64_000_000  # there are cameras of 61 megapixels; decoding takes up to 16 bytes a pixel
LARGE = 1 << 23  # pixels above which one picture is decoded at a time, however many threads read
MAX_SIDE = 65_535  # JPEG's own: what is longer is made to break decoders
MAX_EXIF = 1 << 16  # bytes, one segment of JPEG: Pillow copies a part of it for each of its tags
_ROWS = 512  # converted at once
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
    that is missing, unreadable, cut short, no image of the `FORMATS`, beyond `MAX_PIXELS` or smaller than 8 pixels.
    """
    return square(Image.fromarray(load_pixels(path)), size, crop)


def load_pixels(file: str | Path | bytes) -> np.ndarray:
    """A whole image file, or the bytes of one, as (H, W, 3) uint8 RGB, otherwise as `load_image`."""
    return _pixels(file, "white")


def load_mask(path: str | Path) -> np.ndarray:
    """A mask file as (H, W) bool: True where it is white, or painted white over transparency. Errors: `load_image`."""
    return np.asarray(Image.fromarray(_pixels(path, "black")).convert("L")) > MASK_LEVEL


def _pixels(file: str | Path | bytes, page_colour: str) -> np.ndarray:
    """(H, W, 3) uint8, turned as the EXIF says, transparent parts on the page. Some rows at a time, to bound memory."""
    with opened(file) as image, _one_large if image.width * image.height > LARGE else nullcontext():
        upright = _upright(image)
        pixels = np.empty((upright.height, upright.width, 3), np.uint8)
        for top in range(0, len(pixels), _ROWS):
            box = (0, top, upright.width, min(top + _ROWS, len(pixels)))
            pixels[top : box[3]] = np.asarray(_rgb(upright.crop(box), page_colour))
        return pixels


@contextmanager
def opened(file: str | Path | bytes) -> Iterator[Image.Image]:
    """The image in a file, or in the bytes of one; decoded when it is used. The only place where lpkernel opens one.

    Only `FORMATS` are tried, and nothing is decoded beyond `MAX_PIXELS`. Raises InputError as `load_image` does, for
    what goes wrong in the block, too.
    """
    try:
        with (
            _quiet(),
            _Wary(io.BytesIO(file) if isinstance(file, bytes) else open_regular(file)) as source,
            Image.open(source, formats=list(FORMATS)) as image,
        ):
            _check(image)
            source.spare = None
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"more than {MAX_PIXELS} pixels; shrink it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"not an image, or damaged; expected one of {', '.join(FORMATS)}") from error
    except MemoryError as error:
        raise InputError("too large for the memory") from error
    except FileNotFoundError as error:
        raise InputError("no such file") from error
    except OSError as error:
        raise InputError(error.strerror or f"damaged: {_line(error)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise InputError(f"damaged: {_line(error) or type(error).__name__}") from error


_READ = 64


class _Wary(io.BufferedReader):
    """A file that ends the reading of a header which asks for more than an honest one.

    The tags of a TIFF directory may all name the same bytes, and the EXIF segments of a JPEG are joined to one:
    from a megabyte of these Pillow would make gigabytes. `spare`: bytes that may yet be read, where each read counts
    as `_READ` more, since some headers are read byte by byte; None for no bound.
    """

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.spare: int | None = 2 * file.seek(0, os.SEEK_END) + (1 << 20)
        self.exif = MAX_EXIF
        file.seek(0)

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self.spare is not None:
            self.spare -= len(data) + _READ
            self.exif -= len(data) if data.startswith(b"Exif\0\0") else 0
            if self.spare < 0 or self.exif < 0:
                raise InputError("damaged: its header asks for more than the file holds")
        return data


# Pillow's words are for programmers: what matters is raised. Handlers that the user sets still get its log.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_one_large = threading.Lock()
_lock, _readers, _kept_filters = threading.Lock(), 0, warnings.catch_warnings()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings. The filters are one for all threads, so the last reader puts them back."""
    global _readers, _kept_filters
    with _lock:
        if not _readers:
            _kept_filters = warnings.catch_warnings()
            _kept_filters.__enter__()
            warnings.filterwarnings("ignore", module="PIL")
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                _kept_filters.__exit__(None, None, None)


@cache
def _silence_libtiff() -> None:
    """Keep libtiff, whose errors Pillow raises, from printing them, too."""
    with suppress(OSError, AttributeError):  # built into Pillow without its names
        set_handler = ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler
        set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
        set_handler(None)


def _check(image: Image.Image) -> None:
    """Raise InputError for an image that is too large, or whose decoder could be made to run for minutes."""
    if image.width * image.height > MAX_PIXELS or max(image.size) > MAX_SIDE:
        limits = f"{MAX_PIXELS} pixels and {MAX_SIDE} a side"
        raise InputError(f"{image.width}x{image.height} pixels, expected at most {limits}; shrink it")
    if image.format == "TIFF":
        _silence_libtiff()
    if any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", [])):
        raise InputError("a run-length coded BMP, expected a plain one; save it as PNG")


# What each EXIF orientation asks for; 1, and any other value, for nothing.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """The image decoded, and turned as its EXIF says."""
    if image.format == "TIFF":  # which Pillow turns itself; it would also read directories that nobody needs
        exif = image.getexif()
        for group in TiffTags.TAGS_V2_GROUPS:
            exif.pop(group, None)
    image.load()
    held = max(len(image.info.get("exif", b"")), len(image.info.get("Raw profile type exif", "")) // 2)
    if held > MAX_EXIF:
        raise InputError(f"{held} bytes of EXIF, expected at most {MAX_EXIF}; save it without")
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def plain_pixels(image: Image.Image) -> np.ndarray:
    """A PIL image as (H, W, 3) uint8, as `load_pixels` reads it from a file. Raises InputError."""
    return np.asarray(_rgb(_upright(image.copy()), "white"))


_NO_COLOURS = {"F": "32-bit float", "LAB": "CIELAB"}


def _rgb(image: Image.Image, page_colour: str) -> Image.Image:
    if image.mode in _NO_COLOURS:
        raise InputError(f"{_NO_COLOURS[image.mode]} pixels, expected RGB or grey of 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey, which convert() would clip to white
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
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
