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
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, TiffTags, UnidentifiedImageError, _imaging
from PIL.JpegImagePlugin import JpegImageFile

from lpkernel.arrays import host_array
from lpkernel.errors import InputError, one_line
from lpkernel.files import open_regular
from lpkernel.pictures.colour import Convert, conversion

# The formats that Pillow may decode, and the extensions under which pictures are looked for.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm"),
    "GIF": (".gif",),
}
if find_spec("PIL._avif") is not None:
    FORMATS["AVIF"] = (".avif",)
if hasattr(_imaging, "jpeg2k_decoder"):
    FORMATS["JPEG2000"] = (".jp2",)
EXTENSIONS = {extension for extensions in FORMATS.values() for extension in extensions}
MAX_PIXELS = 64_000_000  # there are cameras of 61 megapixels; decoding takes up to 16 bytes a pixel
MAX_PIXELS_OF = {"AVIF": MAX_PIXELS // 2, "JPEG2000": MAX_PIXELS // 2}  # their decoders take twice as much
LARGE = 1 << 23  # pixels above which one picture is decoded at a time, however many threads read
MAX_SIDE = 65_535  # JPEG's own limit: longer images are made to break decoders
MAX_EXIF = 1 << 16  # bytes, one segment of JPEG: Pillow copies a part of it for each of its tags
MAX_SCANS = 100  # of a JPEG: progressive ones have about ten, and each scan makes libjpeg walk the whole picture
_MAX_SEGMENTS = 50_000  # of a JPEG; long metadata takes a thousand
_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")  # the markers that are neither data nor restarts
_BLOCK = 1 << 20  # bytes of a JPEG searched at once
_ROWS = 512  # converted at once
RESIZE_FILTER = "bicubic"  # Pillow's, which averages when it shrinks; the embedded autoencoder was trained with it
MASK_LEVEL = 127  # grey values above are white
# A mask has few coloured or grey pixels; JPEG and soft brushes leave some. Photographs have three quarters and more.
_COLOURED, _NEARLY = 48, 16  # levels between the channels of a coloured pixel; from black or white to a grey one
MOST_COLOURED, MOST_GREY, FEW_LEVELS = 0.02, 0.5, 64
MIN_SIDE = 8  # pixels; smaller pictures are taken for icons or damage

Crop = tuple[int, int, int, int]


def natural_key(name: str) -> Any:
    """Sort key that puts 2.jpg before 10.jpg, folder by folder."""
    # split() puts the numbers at odd places, so equal places always hold equal types
    parts = [[int(t) if i % 2 else t for i, t in enumerate(re.split("([0-9]+)", part))] for part in name.split("/")]
    return parts, name


@dataclass(frozen=True)
class Found:
    """What lies in a folder: relative names of its pictures in natural order, and what is left out.

    others: files with another extension, in natural order. unreadable: subfolders that cannot be read, and why.
    """

    names: list[str]
    others: list[str]
    unreadable: list[tuple[str, str]]


def find_images(folder: Path) -> Found:
    """The image files below `folder`.

    Links are followed, loops once; names that start with a dot are skipped.
    Raises InputError when there is no such folder, it cannot itself be read, or it holds no image.
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}" + ("; it is a file" if folder.exists() else ""))
    seen: set[tuple[int, int]] = set()
    found = Found([], [], [])

    def unreadable(error: OSError) -> None:
        place = Path(error.filename)
        if place == folder:
            raise InputError(f"cannot read the folder {folder}: {error.strerror}") from error
        found.unreadable.append((f"{place.relative_to(folder).as_posix()}/", f"cannot be read: {error.strerror}"))

    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if not name.startswith("."):
                into = found.names if Path(name).suffix.lower() in EXTENSIONS else found.others
                into.append((Path(parent) / name).relative_to(folder).as_posix())
    if not found.names:
        raise InputError(f"no images in {folder}; looked for {' '.join(sorted(EXTENSIONS))}{_instead(found)}")
    found.names.sort(key=natural_key)
    found.others.sort(key=natural_key)
    return found


def _instead(found: Found) -> str:
    if found.unreadable:
        return f"; {found.unreadable[0][0]} {found.unreadable[0][1]}"
    return f"; there are {len(found.others)} other files, such as {found.others[0]}" if found.others else ""


def load_image(path: str | Path, size: int, crop: Crop | None = None) -> np.ndarray:
    """One image file as (size, size, 3) uint8 RGB.

    Turned as its EXIF says, converted to sRGB by its colour profile, transparent parts on white, `crop` (x0, y0, x1,
    y1) cut out, then the centre square, resized (bicubic). Raises InputError, whose message is the reason without the
    path, for a file that is missing, unreadable, cut short, not an image of the `FORMATS`, beyond `MAX_PIXELS` or below
    8 pixels a side.
    """
    return square(Image.fromarray(load_pixels(path)), size, crop)


def load_pixels(file: str | Path | bytes) -> np.ndarray:
    """A whole image file, or the bytes of one, as (H, W, 3) uint8 RGB, otherwise as `load_image`."""
    return _pixels(file, "white")


def load_mask(path: str | Path, invert: bool = False) -> np.ndarray:
    """A mask file as (H, W) bool: True where it is white, or painted white over transparency; `invert`: elsewhere.

    Raises InputError as `load_image`, for a picture that is not black and white, and for a mask that is all False.
    """
    pixels = _pixels(path, "black", profiles=False)
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    _check_black_and_white(pixels, grey)
    mask = (grey > MASK_LEVEL) != invert
    if not mask.any():
        low, high = grey.min(), grey.max()
        wanted = f"black ({MASK_LEVEL} of 255 or less)" if invert else f"white (above {MASK_LEVEL} of 255)"
        values = f"all of it is {low}" if low == high else f"its values run from {low} to {high}"
        raise InputError(f"nothing of this black and white picture is {wanted}: {values}; see --invert-mask")
    return mask


def _check_black_and_white(pixels: np.ndarray, grey: np.ndarray) -> None:
    """Raise InputError for a photograph, or any picture in colours, given as a mask. Soft edges are welcome."""
    coloured = np.mean(np.ptp(pixels, axis=2) > _COLOURED)
    levels = np.bincount(grey[(grey > _NEARLY) & (grey < 255 - _NEARLY)].ravel(), minlength=256)
    shades = levels.sum() / grey.size
    if coloured > MOST_COLOURED:
        what = f"{coloured:.0%} of it is coloured"
    elif shades > MOST_GREY and np.count_nonzero(levels) > FEW_LEVELS:
        what = f"{shades:.0%} of it is grey, in {np.count_nonzero(levels)} shades"
    else:
        return
    raise InputError(f"this looks like a photograph, not a mask: {what}; expected a black and white picture")


def load_alpha(path: str | Path) -> tuple[np.ndarray, np.ndarray] | None:
    """A picture whose own transparency is the mask: pixels (H, W, 3), and (H, W) bool, True where it is transparent.

    In the mask the pixels have the colours beneath the transparency. None if nothing is more than half transparent.
    Errors: `load_image`.
    """
    with opened(path) as image:
        if not image.has_transparency_data:
            return None
        alpha = np.array(_upright(image).convert("RGBA").getchannel("A"))
    mask = alpha <= MASK_LEVEL
    if not mask.any():
        return None
    return np.where(mask[..., None], _pixels(path, None), _pixels(path, "white")), mask


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height of an image file, turned as its EXIF says, from its header. Errors: `load_image`."""
    with opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return (image.height, image.width) if turned else (image.width, image.height)


def _pixels(file: str | Path | bytes, page_colour: str | None, profiles: bool = True) -> np.ndarray:
    """(H, W, 3) uint8 sRGB, turned as the EXIF says, transparent parts on the page. Read in strips, to save memory.

    page_colour None: the colours beneath transparency. profiles: whether an embedded one counts.
    """
    name = "a picture" if isinstance(file, bytes) else str(file)
    with opened(file) as image, _one_large if image.width * image.height > LARGE else nullcontext():
        upright = _upright(image)
        profile = upright.info.get("icc_profile") if profiles else None
        convert = conversion(profile, upright.mode, name) if isinstance(profile, bytes) and profile else None
        pixels = np.empty((upright.height, upright.width, 3), np.uint8)
        for top in range(0, len(pixels), _ROWS):
            box = (0, top, upright.width, min(top + _ROWS, len(pixels)))
            pixels[top : box[3]] = np.asarray(_rgb(upright.crop(box), page_colour, convert))
        return pixels


@contextmanager
def opened(file: str | Path | bytes) -> Iterator[Image.Image]:
    """The image in a file, or in the bytes of one; decoded when it is used. The only place where lpkernel opens one.

    Only `FORMATS` are tried, and nothing is decoded beyond `MAX_PIXELS`. Raises InputError as `load_image` does, for
    errors in the block, too.
    """
    try:
        with (
            _quiet(),
            _Wary(io.BytesIO(file) if isinstance(file, bytes) else open_regular(file)) as source,
            Image.open(source, formats=list(FORMATS)) as image,
        ):
            source.spare = None
            _check(image)
            if isinstance(image, JpegImageFile):
                _check_scans(source)
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"more than {MAX_PIXELS} pixels; shrink it") from error
    except UnidentifiedImageError as error:
        raise InputError(f"not an image, or damaged; expected one of {', '.join(FORMATS)}") from error
    except MemoryError as error:
        raise InputError("too large for the available memory") from error
    except FileNotFoundError as error:
        raise InputError("no such file") from error
    except OSError as error:
        raise InputError(error.strerror or f"damaged: {one_line(error)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise InputError(f"damaged: {one_line(error)}") from error


_READ = 64


class _Wary(io.BufferedReader):
    """A file that stops the reading of a header that asks for more than an honest one would.

    The tags of a TIFF directory may all name the same bytes, and the EXIF segments of a JPEG are joined into one:
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


# Pillow's log is for programmers: what matters is raised. Handlers that the user sets still get it.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_one_large = threading.Lock()
_lock, _readers, _kept_filters = threading.Lock(), 0, warnings.catch_warnings()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings. All threads share the filters, so the last reader puts them back."""
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
    most = MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    if image.width * image.height > most or max(image.size) > MAX_SIDE:
        limits = f"{most} pixels and {MAX_SIDE} a side"
        raise InputError(f"{image.width}x{image.height} pixels, expected at most {limits}; shrink it")
    if image.format == "TIFF":
        _silence_libtiff()
    if any(tile[0] == "bmp_rle" for tile in getattr(image, "tile", [])):
        raise InputError("a run-length coded BMP, expected a plain one; save it as PNG")
    if any(tile[0] == "ppm_plain" for tile in getattr(image, "tile", [])):  # slow: comments are cut out one by one
        raise InputError("a PPM of plain text (P1, P2 or P3), expected a binary one; save it as PNG")
    _check_mode(image)


def _check_mode(image: Image.Image) -> None:
    """Raise InputError for integers of 32 bits, whose range no file states."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # those have 16 bits, which Pillow may read as this
        raise InputError("32-bit integer pixels, expected RGB or grey of 8 or 16 bits a channel; convert it")


def _check_scans(file: io.BufferedReader) -> None:
    """Raise InputError for a JPEG with too many scans. Reads its segments as libjpeg does, up to the end of the image.

    A segment is skipped by its length, so that thumbnails in it do not count; the data of a scan up to a next marker.
    """
    kept, place, scans, segments = file.tell(), 0, 0, 0
    while True:
        file.seek(place)
        block = io.BufferedReader.read(file, _BLOCK)
        at, last = 0, len(block) < _BLOCK
        while found := _SEGMENT.search(block, at):
            at, marker = found.end(), found[1][0]
            if marker == 0xD9:  # the end of the image
                last = True
                break
            if marker == 0xD8:  # its beginning
                continue
            if at + 2 > len(block):
                at = found.start()  # its length is in the next block
                break
            segments, scans = segments + 1, scans + (marker == 0xDA)
            if scans > MAX_SCANS or segments > _MAX_SEGMENTS:
                what = f"{MAX_SCANS} scans" if scans > MAX_SCANS else f"{_MAX_SEGMENTS} segments"
                raise InputError(f"a JPEG of more than {what}, expected about ten scans; save it as PNG")
            at += max(2, int.from_bytes(block[at : at + 2]))
        else:
            at = max(at, len(block) - 1)  # the last byte may begin a marker
        if last and at <= len(block):
            break
        place += at
    file.seek(kept)


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
    if image.format == "TIFF":  # Pillow turns these itself, and would also read directories that nobody needs
        exif = image.getexif()
        for group in TiffTags.TAGS_V2_GROUPS:
            exif.pop(group, None)
    image.load()
    held = max(len(image.info.get("exif", b"")), len(image.info.get("Raw profile type exif", "")) // 2)
    if held > MAX_EXIF:
        raise InputError(f"{held} bytes of EXIF, expected at most {MAX_EXIF}; save it without")
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def plain_pixels(image: Image.Image) -> np.ndarray:
    """A PIL image as (H, W, 3) uint8, as `load_pixels` reads it from a file. Raises InputError."""
    _check_mode(image)
    return np.asarray(_rgb(_upright(image.copy()), "white"))


def given_pixels(image: Any) -> np.ndarray:
    """An array, a tensor or a PIL image, which somebody gave as `image`, as an array. Raises InputError."""
    return plain_pixels(image) if isinstance(image, Image.Image) else host_array("image", image)


_NO_COLOURS = {"F": "32-bit float", "LAB": "CIELAB"}


def _rgb(image: Image.Image, page_colour: str | None, convert: Convert | None = None) -> Image.Image:
    if image.mode in _NO_COLOURS:
        raise InputError(f"{_NO_COLOURS[image.mode]} pixels, expected RGB or grey of 8 or 16 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):  # 16-bit grey, which convert() would clip to white
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    colours = _colours(image) if convert is None else convert(_colours(image, convert.takes))
    if alpha is None or page_colour is None:
        return colours
    page = Image.new("RGBA", image.size, page_colour)
    colours.putalpha(alpha)
    page.alpha_composite(colours)
    return page.convert("RGB")


def _colours(image: Image.Image, mode: str = "RGB") -> Image.Image:
    """The colours alone, those beneath transparency as well."""
    if image.mode == mode:
        return image
    return image.convert("RGBA").convert(mode) if image.has_transparency_data else image.convert(mode)


def square(image: Image.Image, size: int, crop: Crop | None) -> np.ndarray:
    """The centre square of an RGB image, or of its part `crop`, as (size, size, 3) uint8.

    Raises InputError when the crop is not within the image or the square is smaller than 8 pixels.
    """
    # cropped first: resize(box=...) would blend in what lies beyond the box
    part = image.crop(centre_square(image.width, image.height, crop))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))


def square_mask(mask: np.ndarray, size: int, crop: Crop | None) -> np.ndarray:
    """What `square` does to an image, for its mask: (H, W) bool -> (size, size) bool, True where any of it is."""
    part = Image.fromarray(mask.astype(np.float32)).crop(centre_square(mask.shape[1], mask.shape[0], crop))
    return np.asarray(part.resize((size, size), Image.Resampling.BOX)) > 0


def centre_square(width: int, height: int, crop: Crop | None) -> Crop:
    """The largest square in the middle of a crop, or of all. Raises InputError as `square`."""
    x0, y0, x1, y1 = (0, 0, width, height) if crop is None else crop
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise InputError(f"crop {x0},{y0},{x1},{y1} is not within its {width}x{height} pixels")
    side = min(x1 - x0, y1 - y0)
    if side < MIN_SIDE:
        raise InputError(f"{x1 - x0}x{y1 - y0} pixels, expected at least {MIN_SIDE} a side")
    x, y = x0 + (x1 - x0 - side) // 2, y0 + (y1 - y0 - side) // 2
    return x, y, x + side, y + side
