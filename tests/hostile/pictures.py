"""Pictures: unsupported formats, false sizes, headers that expand, damage of every kind."""

from __future__ import annotations

import io
import logging
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from fakes import FakeVQ
from PIL import EpsImagePlugin, Image, ImageCms

from hostile.sandbox import Case
from lpkernel.bank import Bank
from lpkernel.errors import InputError
from lpkernel.pictures.images import FORMATS, load_image, load_mask, load_pixels

Bytes = Callable[[], bytes]
FLIPS = 25  # damaged files per case
logging.getLogger("lpkernel").addHandler(logging.NullHandler())  # ignored profiles give warnings
Image.init()  # once, not in every child


def _build(path: Path) -> None:
    Bank.build(path.parent, FakeVQ(), 3, limit=1)


USES: dict[str, Callable[[Path], object]] = {
    "image": lambda path: load_image(path, 32),
    "pixels": load_pixels,
    "mask": load_mask,
    "bank": _build,
}
REFUSED: dict[str, Case] = {}
ANY: dict[str, Case] = {}  # accepted or refused, as the decoders decide


def add(into: dict[str, Case], name: str, content: Bytes, file: str = "x.png", uses: str = "image") -> None:
    """A case for each use of one file."""
    for use in uses.split():
        into[f"{name}, {use}"] = Case(lambda folder: (folder / file).write_bytes(content()), using(use, file))


def using(use: str, file: str) -> Callable[[Path], object]:
    return lambda folder: USES[use](folder / file)


def picture(kind: str = "PNG", mode: str = "RGB", size: tuple[int, int] = (24, 20), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    if mode in ("F", "I", "I;16", "LA", "PA", "RGBX", "LAB"):
        image = image.convert("L").convert(mode) if mode not in ("RGBX", "LAB") else Image.new(mode, size)
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


def _plain_picture(kind: str, mode: str, size: tuple[int, int]) -> bytes:
    """A picture of one colour, whose file is small whatever its size."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **({"speed": 10} if kind == "AVIF" else {}))
    return file.getvalue()


# --- formats that are not read -----------------------------------------------------------------------------------

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
(touched) (w) file closefile
%%EOF
"""
FOREIGN: dict[str, Bytes] = {
    "EPS": lambda: EPS,
    "EPS in DOS": lambda: b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, len(EPS), 0, 0, 0, 0) + b"\xff\xff\0\0" + EPS,
    **{kind: partial(picture, kind) for kind in ("ICO", "ICNS", "PCX", "TGA", "SGI", "IM", "DDS", "DIB")},
    "XBM": partial(picture, "XBM", "1"),
    "MSP": partial(picture, "MSP", "1"),
    "PDF": partial(picture, "PDF"),
    "SPIDER": partial(picture, "SPIDER", "F"),
    "PSD": lambda: b"8BPS\0\1" + b"\0" * 6 + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + b"\0" * 12,
    "WMF": lambda: b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 99, 99, 96) + b"\0" * 6 + b"\1\0\t\0" * 9,
    "XPM": lambda: b'/* XPM */\nstatic char *x[] = {\n"9 9 1 1",\n"a c #000000",\n' + b'"aaaaaaaaa",\n' * 9,
    "FLI": lambda: struct.pack("<IHHHHH", 999, 0xAF11, 9, 9, 9, 8) + b"\0" * 900,
    "FITS": lambda: b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "GRIB": lambda: b"GRIB\0\0\0\1" + b"\0" * 99,
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + b"\0" * 99,
    "JPEG 2000": lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 99,
    "AVIF": lambda: b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + b"\0" * 99,
    "QOI": lambda: b"qoif" + struct.pack(">IIBB", 9, 9, 3, 0) + b"\xfd" * 99,
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/hostname"/></svg>',
    "HTML": lambda: b"<!DOCTYPE html><script>1</script>",
    "program": lambda: b"\x7fELF\2\1\1" + b"\0" * 99,
    "zip": lambda: b"PK\3\4" + b"\0" * 99,
    "nothing": lambda: b"",
    "one byte": lambda: b"\x89",
    "zeros": lambda: b"\0" * 99_999,
    "noise": lambda: random.Random(0).randbytes(9999),
}
for name, content in FOREIGN.items():
    add(REFUSED, f"{name} as png", content, uses="bank" if len(name) % 3 else "image")
    if name in ("EPS", "PDF", "WMF", "ICO"):
        add(REFUSED, f"{name} as jpg", content, "x.jpg", "pixels mask")


def _with_ghostscript(folder: Path) -> None:
    EpsImagePlugin.gs_binary = "true"
    load_pixels(folder / "x.png")


REFUSED["EPS where there is Ghostscript"] = Case(lambda folder: (folder / "x.png").write_bytes(EPS), _with_ghostscript)


# --- sizes -------------------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colours: int = 2, data: bytes = b"\0" * 99) -> bytes:
    head = chunk(b"IHDR", struct.pack(">II5B", width % 2**32, height % 2**32, bits, colours, 0, 0, 0))
    parts = (head, *chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(width: int, height: int, bits: int = 24, compression: int = 0, data: bytes = b"", colours: int = 0) -> bytes:
    palette = b"\0" * (1024 if bits <= 8 else 0)
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 1, 1, colours, 0)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


def tiff(tags: dict[int, tuple[int, Any]], data: bytes = b"\0" * 4096, after: int = 0, big: bool = False) -> bytes:
    """A little-endian TIFF: tag -> (type, values); 8 + `data` comes before the directory."""
    sizes = {1: "B", 2: "B", 3: "H", 4: "I", 5: "Q", 6: "b", 7: "B", 11: "f", 12: "d", 13: "I", 16: "Q"}
    place = 8 + len(data)
    entries, extra = b"", b""
    behind = place + 2 + 12 * len(tags) + 4
    for tag, (kind, values) in sorted(tags.items()):
        many = values if isinstance(values, list | tuple) else [values]
        raw = b"".join(struct.pack("<" + sizes.get(kind, "I"), value) for value in many)
        if len(raw) > 4:
            extra, raw = extra + raw, struct.pack("<I", behind + len(extra))
        entries += struct.pack("<HHI", tag, kind, len(many)) + raw.ljust(4, b"\0")
    head = b"II" + struct.pack("<HI", 43 if big else 42, place)
    return head + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", after) + extra


def plain(width: int = 16, height: int = 16, **changes: Any) -> dict[int, tuple[int, Any]]:
    """The tags of a plain RGB TIFF with its data at offset 8."""
    size = width * height * 3 % 2**32
    tags = {256: (4, width), 257: (4, height), 258: (3, [8, 8, 8]), 259: (3, 1), 262: (3, 2), 273: (4, 8)}
    tags |= {277: (3, 3), 278: (4, height), 279: (4, size)}
    return tags | {int(name[1:]): value for name, value in changes.items()}


def plain_tiff(*size: int, **changes: Any) -> bytes:
    return tiff(plain(*size, **changes))


def jpeg_claiming(width: int, height: int) -> bytes:
    whole = bytearray(picture("JPEG"))
    place = whole.index(b"\xff\xc0") + 5
    whole[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def webp_claiming(width: int, height: int) -> bytes:
    whole = bytearray(picture("WEBP", "RGBA", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"))
    place = whole.index(b"VP8X") + 12
    whole[place : place + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(whole)


HUGE = [(30_000, 30_000), (8001, 8001), (100_000_000, 1), (1, 100_000_000), (65_536, 8), (8, 65_536), (2**31 - 1, 9)]
for width, height in HUGE:
    size, uses = f"{width}x{height}", "pixels" if width > 9 else "bank"
    add(REFUSED, f"png of {size}", partial(png, width, height), uses=uses)
    add(REFUSED, f"bmp of {size}", partial(bmp, width, height, data=b"\0" * 99), "x.bmp", uses)
    add(REFUSED, f"tiff of {size}", partial(plain_tiff, width, height), "x.tif", uses)
    gif = b"GIF89a" + struct.pack("<HH3B", width % 65_536 or 65_535, height % 65_536 or 65_535, 0, 0, 0)
    add(ANY, f"gif of {size}", partial(bytes, gif + b";"), "x.gif", "pixels")
    add(REFUSED, f"pgm of {size}", partial(b"P5 %d %d 255\n".__mod__, (width, height)), "x.pgm", "pixels")
for width, height in [(0, 0), (0, 9), (9, 0), (2**31, 2**31), (2**32 - 1, 1)]:
    add(REFUSED, f"png of {width}x{height}", partial(png, width, height), uses="pixels")
for width, height in [(65_535, 65_535), (65_500, 9000), (8001, 8001)]:
    add(REFUSED, f"jpeg of {width}x{height}", partial(jpeg_claiming, width, height), "x.jpg", "pixels")
for width, height in [(16_384, 16_384), (8001, 8001), (1 << 24, 1 << 24), (1 << 24, 1)]:
    add(REFUSED, f"webp of {width}x{height}", partial(webp_claiming, width, height), "x.webp", "bank")


def j2k_claiming(width: int, height: int, tile: int, parts: int = 3) -> bytes:
    """The head of a JPEG 2000 codestream, followed by the rest of a small one."""
    whole = picture("JPEG2000", no_jp2=True)
    place = whole.index(b"\xff\x51") + 6
    size = struct.pack(">8I", width, height, 0, 0, tile or width, tile or height, 0, 0)
    return whole[:place] + size + struct.pack(">H", parts) + whole[place + 34 :]


for name, claim in {
    "2^32 a side": (2**32 - 1, 2**32 - 1, 0),
    "8,000 a side": (8000, 8000, 0),
    "a width alone": (2**32 - 1, 1, 0),
    "tiles of one": (5000, 5000, 1),
    "few pixels, huge tiles": (24, 20, 2**31),
    "no pixels": (0, 0, 9),
    "tiles of nothing": (24, 20, 0),
    "16,384 colours": (5000, 5000, 0, 16_384),
    "no colours": (24, 20, 0, 0),
}.items():
    add(ANY, f"jpeg 2000 of {name}", partial(j2k_claiming, *claim), "x.jp2", "pixels")


def avif_claiming(width: int, height: int) -> bytes:
    whole = bytearray(picture("AVIF"))
    place = whole.index(b"ispe") + 8
    whole[place : place + 8] = struct.pack(">II", width, height)
    return bytes(whole)


for width, height in [(2**32 - 1, 2**32 - 1), (16_000, 16_000), (8000, 8000), (0, 0), (65_536, 8)]:
    add(ANY, f"avif of {width}x{height}", partial(avif_claiming, width, height), "x.avif", "pixels")
for kind in ("AVIF", "JPEG2000"):
    add(REFUSED, f"{kind} of too many pixels", partial(_plain_picture, kind, "RGB", (8192, 4096)), "x.png", "pixels")
for kind, large in {"AVIF": (5600, 5600), "JPEG2000": (5600, 5600), "GIF": (7999, 7999)}.items():
    mode = "RGB" if kind != "GIF" else "L"
    add(ANY, f"{kind} as large as is read", partial(_plain_picture, kind, mode, large), "x.png", "pixels")
GIF_HEAD = b"GIF89a\x10\0\x10\0\x80\0\0" + b"\0\0\0\xff\xff\xff"
GIFS: dict[str, bytes] = {
    "comments without end": GIF_HEAD + b"!\xfe" + b"\xffx" * 99_999,
    "empty extensions": GIF_HEAD + b"!\xff\0" * 300_000,
    "pictures without pixels": GIF_HEAD + b",\0\0\0\0\x10\0\x10\0\0\x02\0" * 99_999 + b";",
    "a picture beyond its frame": GIF_HEAD + b",\xff\xff\xff\xff\xff\xff\xff\xff\0\x02\x02L\1\0;",
    "codes of 200 bits": GIF_HEAD + b",\0\0\0\0\x10\0\x10\0\0\xc8\x02L\1\0;",
    "no colours": b"GIF89a\x10\0\x10\0\0\0\0,\0\0\0\0\x10\0\x10\0\0\x02\x02L\1\0;",
}
for name, text in GIFS.items():
    add(ANY, f"gif of {name}", partial(bytes, text), "x.gif", "image mask")
add(ANY, "png as large as is read", lambda: png(7999, 7999, data=b"\0" * (7999 * 24 * 1000)), uses="pixels")
add(ANY, "png of one row", partial(png, 65_535, 1, data=b"\0" * 200_000), uses="image mask")
add(ANY, "png of one column", partial(png, 1, 65_535, data=b"\0" * 300_000), uses="image mask")
add(REFUSED, "png with too little", partial(png, 7000, 7000), uses="pixels")


# --- headers that expand -----------------------------------------------------------------------------------------


def directory(tags: int, size: int, first: int = 1000, skip: tuple[int, ...] = ()) -> bytes:
    """A TIFF with unknown tags that all point at the same `size` bytes."""
    names = [tag for tag in range(first, first + tags) if tag not in skip]
    entries = b"".join(struct.pack("<HHII", tag, 7, size, 8) for tag in names)
    return b"II*\0" + struct.pack("<I", 8 + size) + b"\1" * size + struct.pack("<H", len(names)) + entries + b"\0" * 4


def jpeg_with(segments: list[tuple[int, bytes]]) -> bytes:
    whole = picture("JPEG")
    added = b"".join(b"\xff" + bytes([mark]) + struct.pack(">H", len(data) + 2) + data for mark, data in segments)
    return whole[:2] + added + whole[20:]  # without JFIF, so that Pillow asks the EXIF for the resolution


def exif_in_segments(exif: bytes) -> list[tuple[int, bytes]]:
    return [(0xE1, b"Exif\0\0" + exif[i : i + 65_000]) for i in range(0, len(exif), 65_000)]


def subdirectories() -> bytes:
    """A plain TIFF whose EXIF and GPS directories are bombs of that kind."""
    bomb = directory(20_000, 200_000)
    tags = plain(a34665=(4, 8 + 768 + 8 + 200_000), a34853=(4, 8 + 768 + 8 + 200_000))
    return tiff(tags, b"\0" * 768 + bomb.replace(struct.pack("<II", 200_000, 8), struct.pack("<II", 200_000, 784)))


def raw_profile(exif: bytes) -> bytes:
    text = b"\nexif\n%8d\n" % len(exif) + exif.hex().encode() + b"\n"
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


@cache
def zeros() -> bytes:
    return zlib.compress(b"\0" * (100 << 20))


BOMB = partial(directory, 20_000, 200_000)
GOOD = b"\0" * (61 * 20)
add(REFUSED, "png with exif of one bomb", lambda: png(20, 20, chunk(b"eXIf", BOMB()), data=GOOD))
add(REFUSED, "png with a raw profile", lambda: png(20, 20, raw_profile(directory(9000, 90_000)), data=GOOD))
add(REFUSED, "jpeg with exif of one bomb", lambda: jpeg_with(exif_in_segments(BOMB())), "x.jpg")
add(ANY, "jpeg with a bomb of one segment", lambda: jpeg_with(exif_in_segments(directory(2700, 32_000))), "x.jpg")
add(REFUSED, "webp with exif of one bomb", lambda: picture("WEBP", exif=b"Exif\0\0" + BOMB()), "x.webp")
add(REFUSED, "tiff of one bomb", BOMB, "x.tif")
add(ANY, "tiff with other directories of bombs", subdirectories, "x.tif")
add(ANY, "png with an unfolding text", lambda: png(20, 20, chunk(b"zTXt", b"a\0\0" + zeros()), data=GOOD))
add(ANY, "png with an unfolding profile", lambda: png(20, 20, chunk(b"iCCP", b"a\0\0" + zeros()), data=GOOD))
add(
    ANY, "png with an unfolding text in UTF-8", lambda: png(20, 20, chunk(b"iTXt", b"a\0\1\0\0\0" + zeros()), data=GOOD)
)
add(
    ANY,
    "png with a thousand unfolding texts",
    lambda: png(
        20, 20, *[chunk(b"zTXt", b"%d\0\0" % i + zlib.compress(b"\0" * 900_000)) for i in range(1000)], data=GOOD
    ),
)
add(ANY, "png with 50,000 chunks", lambda: png(20, 20, chunk(b"tEXt", b"a\0b") * 50_000, data=GOOD))
add(ANY, "png that goes on after its pixels", lambda: png(20, 20, data=b"\0" * (200 << 20)))
add(ANY, "png with a claim of texts", lambda: png(20, 20)[:33] + struct.pack(">I", 2**31 - 1) + b"tEXt" + b"a\0" * 99)
add(ANY, "jpeg of 20,000 comments", lambda: jpeg_with([(0xFE, b"x" * 99)] * 20_000), "x.jpg")
add(ANY, "jpeg of 3,000 profiles", lambda: jpeg_with([(0xE2, b"ICC_PROFILE\0\1\1" + b"x" * 999)] * 3000), "x.jpg")
add(ANY, "jpeg of many photoshops", lambda: jpeg_with([(0xED, b"Photoshop 3.0\0" + b"8BIM" * 9000)] * 99), "x.jpg")


def jpeg_of_scans(between: bytes) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    Image.new("L", (2000, 2000), 128).save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    return whole[:-2] + (between + whole[whole.rfind(b"\xff\xda") : -2]) * 9000 + whole[-2:]


add(REFUSED, "jpeg of 9,000 scans", partial(jpeg_of_scans, b""), "x.jpg", "pixels mask")
add(
    REFUSED, "jpeg of 9,000 scans and filled gaps", partial(jpeg_of_scans, b"\xff\xff\x01\xff\xd0\0"), "x.jpg", "pixels"
)
add(REFUSED, "jpeg of 9,000 scans and comments", partial(jpeg_of_scans, b"\xff\xfe\0\4\xff\xd9"), "x.jpg", "pixels")
add(REFUSED, "jpeg of endless segments", lambda: picture("JPEG")[:-2] + b"\xff\xe0\0\2" * (4 << 20), "x.jpg", "pixels")
add(ANY, "jpeg of many frames", lambda: jpeg_with([(0xE2, b"MPF\0II*\0\x08\0\0\0" + b"\xff" * 9000)]), "x.jpg")


# --- EXIF --------------------------------------------------------------------------------------------------------


def oriented(kind: int, *values: float) -> bytes:
    return b"Exif\0\0" + tiff({0x112: (kind, list(values))}, b"")


def png_turned(exif: Bytes) -> bytes:
    return png(20, 9, chunk(b"eXIf", exif()[6:]), data=GOOD)


def jpeg_turned(exif: Bytes) -> bytes:
    return jpeg_with([(0xE1, exif())])


def webp_turned(exif: Bytes) -> bytes:
    return picture("WEBP", exif=exif())


TURNS: dict[str, Bytes] = {
    **{f"{value}": partial(oriented, 3, value) for value in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255, 65_535)},
    "many": lambda: oriented(3, *range(9)),
    "a text": lambda: oriented(2, 54, 0),
    "a fraction": lambda: oriented(5, 6),
    "half": lambda: oriented(12, 6.5),
    "no number": lambda: oriented(12, float("nan")),
    "below zero": lambda: oriented(6, -6),
    "of no kind": lambda: oriented(99, 6),
    "nothing": lambda: b"Exif\0\0",
    "noise": lambda: b"Exif\0\0II*\0" + random.Random(1).randbytes(500),
    "cut short": lambda: oriented(3, 6)[:-7],
    "a loop": lambda: b"Exif\0\0II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0\x08\0\0\0",
    "backwards": lambda: b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0",
}
for number, (name, exif) in enumerate(TURNS.items()):
    if number % 2:
        add(ANY, f"png turned by {name}", partial(png_turned, exif), uses="image")
    add(ANY, f"jpeg turned by {name}", partial(jpeg_turned, exif), "x.jpg", "pixels")
for name in ("6", "many", "noise", "a fraction"):
    add(ANY, f"webp turned by {name}", partial(webp_turned, TURNS[name]), "x.webp", "bank")


# --- TIFF --------------------------------------------------------------------------------------------------------

TILED = {"a322": (4, 16), "a323": (4, 16), "a324": (4, 8), "a325": (4, 768)}
ODD: dict[str, dict[str, Any]] = {
    "a width of 0": {"a256": (4, 0)},
    "7 samples": {"a277": (3, 7), "a258": (3, [8] * 7)},
    "65,535 samples": {"a277": (3, 65_535)},
    "64 bits": {"a258": (3, [64, 64, 64])},
    "no bits": {"a258": (3, [0])},
    "no strips": {"a273": (4, [])},
    "strips that lie beyond": {"a273": (4, 2**32 - 1)},
    "strips of no rows": {"a278": (4, 0)},
    "strips of many rows": {"a278": (4, 2**32 - 1)},
    "strips of one row": {"a278": (4, 1)},
    "many strips": {"a273": (4, [8] * 60_000), "a279": (4, [48] * 60_000), "a278": (4, 1)},
    "huge strips": {"a279": (4, 2**32 - 1)},
    "strips in LZW": {"a259": (3, 5)},
    "huge strips in LZW": {"a259": (3, 5), "a279": (4, 2**32 - 1)},
    "huge strips in deflate": {"a259": (3, 8), "a278": (4, 2**32 - 1), "a279": (4, 2**32 - 1)},
    "JPEG strips": {"a259": (3, 7), "a262": (3, 6)},
    "old JPEG strips": {"a259": (3, 6), "a262": (3, 6), "a513": (4, 8), "a514": (4, 2**31)},
    "packed bits": {"a259": (3, 32_773)},
    "fax": {"a259": (3, 4), "a258": (3, 1), "a262": (3, 0), "a277": (3, 1)},
    "no such compression": {"a259": (3, 61_000)},
    "planes": {"a284": (3, 2), "a273": (4, [8, 8, 8]), "a279": (4, [256] * 3)},
    "planes of one strip": {"a284": (3, 2)},
    "planes in LZW": {"a284": (3, 2), "a259": (3, 5)},
    "no such planes": {"a284": (3, 99)},
    "a predictor": {"a259": (3, 8), "a317": (3, 3)},
    "CIELAB": {"a262": (3, 8)},
    "YCbCr": {"a262": (3, 6), "a530": (3, [255, 255])},
    "no such colours": {"a262": (3, 32_803)},
    "a palette without one": {"a262": (3, 3), "a277": (3, 1), "a258": (3, 8)},
    "a palette of 3": {"a262": (3, 3), "a277": (3, 1), "a258": (3, 8), "a320": (3, [1, 2, 3])},
    "texts for numbers": {"a256": (2, [65, 66, 0]), "a277": (2, [65, 0])},
    "a fraction for its width": {"a256": (12, 16.5)},
    "two widths": {"a256": (4, [16, 2**31])},
    "tiles": TILED,
    "tiles of no width": {**TILED, "a322": (4, 0)},
    "tiles of one pixel": {**TILED, "a322": (4, 1), "a323": (4, 1), "a324": (4, [8] * 256), "a325": (4, [3] * 256)},
    "tiles beyond its size": {**TILED, "a322": (4, 60_000), "a323": (4, 60_000)},
    "tiles beyond its size in LZW": {**TILED, "a322": (4, 60_000), "a323": (4, 60_000), "a259": (3, 5)},
    "tiles of 2^31": {**TILED, "a322": (4, 2**31), "a323": (4, 2**31), "a259": (3, 8)},
    "more tiles than pixels": {**TILED, "a324": (4, [8] * 5000), "a325": (4, [768] * 5000)},
    "fewer tiles than it needs": {**TILED, "a256": (4, 160), "a257": (4, 160)},
    "fewer tiles than it needs in LZW": {**TILED, "a256": (4, 160), "a257": (4, 160), "a259": (3, 5)},
    "an EXIF directory in itself": {"a34665": (4, 776)},
    "an EXIF directory beyond": {"a34665": (4, 2**32 - 1)},
    "sub-directories": {"a330": (4, [776] * 999)},
    "a huge XMP": {"a700": (1, [60] * 999_999)},
    "a huge profile": {"a34675": (7, [60] * 999_999)},
    "extra samples": {"a277": (3, 4), "a258": (3, [8] * 4), "a338": (3, [9])},
    "floats": {"a339": (3, 3), "a258": (3, [32]), "a277": (3, 1), "a262": (3, 1)},
}
for name, changes in ODD.items():
    add(ANY, f"tiff with {name}", partial(plain_tiff, **changes), "x.tif", "pixels")
add(ANY, "tiff whose next picture is itself", lambda: tiff(plain(), after=8 + 4096), "x.tif")
add(REFUSED, "tiff without a directory", lambda: b"II*\0\xff\xff\xff\xff" + b"\0" * 99, "x.tif")
add(REFUSED, "tiff with a directory in its head", lambda: b"II*\0\0\0\0\0" + b"\0" * 99, "x.tif")
add(REFUSED, "large tiff of nonsense", lambda: b"II+\0\x08\0\0\0" + b"\xff" * 999, "x.tif")
add(
    ANY,
    "tiff of 500 pictures",
    lambda: picture("TIFF", save_all=True, append_images=[Image.new("RGB", (8, 8))] * 499),
    "x.tif",
)
add(
    ANY,
    "webp of 500 pictures",
    lambda: picture(
        "WEBP", save_all=True, append_images=[Image.new("RGB", (24, 20), (i % 256, 0, 0)) for i in range(499)]
    ),
    "x.webp",
)
add(ANY, "apng that claims 2^31 pictures", lambda: png(20, 20, chunk(b"acTL", struct.pack(">II", 2**31, 0)), data=GOOD))
add(ANY, "apng without a first picture", lambda: png(20, 20, chunk(b"fcTL", b"\xff" * 26), data=GOOD))


# --- other oddities ----------------------------------------------------------------------------------------------

MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "BMP": ("1", "L", "P", "RGB", "RGBA"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "PPM": ("1", "L", "RGB", "I;16", "F"),
    "GIF": ("1", "L", "P", "RGB"),
    "AVIF": ("RGB", "RGBA"),
    "JPEG2000": ("L", "LA", "RGB", "RGBA", "I;16"),
}
for kind, modes in MODES.items():
    for mode in modes:
        into = REFUSED if mode in ("F", "LAB", "I") else ANY
        add(into, f"{kind} of mode {mode}", partial(picture, kind, mode), f"x{FORMATS[kind][0]}", "pixels")

PALETTES = {
    "no palette": (),
    "an empty palette": (chunk(b"PLTE", b""),),
    "a palette of one": (chunk(b"PLTE", b"\1\2\3"),),
    "a palette of 4 bytes": (chunk(b"PLTE", b"\1\2\3\4"),),
    "a palette of 3,000": (chunk(b"PLTE", b"\1\2\3" * 3000),),
    "more alpha than colours": (chunk(b"PLTE", b"\1\2\3"), chunk(b"tRNS", b"\7" * 999)),
    "alpha of nothing": (chunk(b"PLTE", b"\1\2\3"), chunk(b"tRNS", b"")),
    "alpha before colours": (chunk(b"tRNS", b"\7" * 9), chunk(b"PLTE", b"\1\2\3")),
}
for name, chunks in PALETTES.items():
    for colours in (3, 0):
        add(
            ANY,
            f"png of kind {colours} with {name}",
            partial(png, 20, 20, *chunks, colours=colours, data=b"\0\xff" * (41 * 20)),
            uses="pixels" if colours else "mask",
        )
for bits, colours in [(0, 2), (3, 0), (16, 3), (16, 6), (1, 6), (32, 2), (255, 255), (8, 5)]:
    add(ANY, f"png of kind {colours} and {bits} bits", partial(png, 9, 9, bits=bits, colours=colours), uses="pixels")

ROW_ENDS = b"\1\1\0\0" * 4000
BMPS: dict[str, Bytes] = {
    "steps that are too large": partial(bmp, 65_535, 900, 8, 1, b"\0\2\xff\xff" * 99),
    "ends of rows": partial(bmp, 65_535, 900, 8, 1, ROW_ENDS),
    "ends of rows in 4 bits": partial(bmp, 65_535, 900, 4, 2, ROW_ENDS),
}
for name, content in BMPS.items():
    add(REFUSED, f"bmp of {name}", content, "x.bmp", "pixels")
for bits, compression in [(0, 0), (3, 0), (16, 3), (32, 3), (24, 4), (24, 5), (24, 99), (8, 2), (64, 0)]:
    add(
        ANY,
        f"bmp of {bits} bits, kind {compression}",
        partial(bmp, 9, 9, bits, compression, b"\0" * 999),
        "x.bmp",
        "pixels",
    )
add(ANY, "bmp upside down", partial(bmp, 9, -9, data=b"\0" * 999), "x.bmp", "pixels mask")
add(REFUSED, "bmp of the least height", partial(bmp, 9, -(2**31), data=b"\0" * 999), "x.bmp", "pixels")
add(ANY, "bmp of 2^31 colours", partial(bmp, 9, 9, 8, data=b"\0" * 999, colours=2**31), "x.bmp", "pixels")

PPMS = {
    "no end of comments": b"P6 #" + b"x" * 2_000_000,
    "no end of spaces": b"P6 " + b" " * 2_000_000,
    "a level of 0": b"P5 9 9 0\n" + b"\0" * 99,
    "a level of 70,000": b"P5 9 9 70000\n" + b"\0" * 999,
    "a level of 9^999": b"P5 9 9 " + b"9" * 999 + b"\n" + b"\0" * 999,
    "a width of 9^999": b"P5 " + b"9" * 999 + b" 9 255\n",
    "a width below zero": b"P5 -9 9 255\n" + b"\0" * 999,
    "plain numbers, too few": b"P3 9 9 255\n1 2 3",
    "plain numbers, too large": b"P3 9 9 255\n" + b"999 " * 999,
    "plain nonsense": b"P2 9 9 255\n" + b"x " * 999,
    "a number without end": b"P2 9 9 255\n" + b"1" * 3_000_000,
    "too few bits": b"P4 8000 7000\n",
    "a kind of its own": b"P7\nWIDTH 9\nHEIGHT 9\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + b"\0" * 999,
    "float pixels": b"PF 9 9 -1.0\n" + b"\0" * 999,
    "float pixels of no scale": b"Pf 9 9 nan\n" + b"\0" * 999,
}
for name, text in PPMS.items():
    add(ANY, f"ppm with {name}", partial(bytes, text), "x.ppm", "pixels")
for name, text in {"P1": b"0 ", "P2": b"0 ", "P3": b"0 ", "P3 of comments": b"#\n"}.items():
    add(REFUSED, f"plain {name}", partial(bytes, name[:2].encode() + b" 999 999 255\n" + text * 512_000), uses="pixels")


# --- damage ------------------------------------------------------------------------------------------------------


def cut(kind: str, part: int) -> bytes:
    """The first `part` percent of a picture."""
    whole = picture(kind)
    return whole[: len(whole) * part // 100]


def damaged(content: bytes, seed: int) -> Iterator[bytes]:
    """Files with some bytes changed, most of them in the head."""
    source = random.Random(seed)
    for _ in range(FLIPS):
        changed = bytearray(content)
        for _ in range(source.randint(1, 6)):
            changed[source.randrange(min(len(changed), source.choice((64, 400, 99_999))))] = source.randrange(256)
        yield bytes(changed)


def _try_all(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        try:
            load_pixels(path)
        except InputError as error:
            if "\n" in str(error) or len(str(error)) > 600:
                raise RuntimeError(str(error)) from error


def _write_all(kind: str, mode: str, seed: int, folder: Path) -> None:
    options: dict[str, Any] = {"exif": oriented(3, 6)} if kind in ("JPEG", "WEBP", "PNG") else {}
    options |= {"compression": "tiff_lzw"} if kind == "TIFF" and seed % 2 else {}
    for i, content in enumerate(damaged(picture(kind, mode, **options), seed)):
        (folder / f"{i}{FORMATS[kind][0]}").write_bytes(content)


for kind in FORMATS:
    modes = ("RGB", "L") if kind in ("JPEG", "PPM", "WEBP", "AVIF", "JPEG2000") else ("RGBA", "P")
    modes = ("L", "P") if kind == "GIF" else modes
    for seed in range(5):
        ANY[f"{kind} with changed bytes, {seed}"] = Case(partial(_write_all, kind, modes[seed % 2], seed), _try_all)
    for part in (1, 30, 60, 99):
        add(
            ANY,
            f"{kind} of which {part} % are left",
            partial(cut, kind, part),
            f"x{FORMATS[kind][0]}",
            "image" if part % 2 else "bank",
        )


# --- colour profiles ---------------------------------------------------------------------------------------------

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_tags(count: int, entries: list[tuple[bytes, int, int]]) -> bytes:
    """An sRGB profile with another table of tags."""
    table = b"".join(name + struct.pack(">II", place, size) for name, place, size in entries)
    return SRGB[:128] + struct.pack(">I", count) + table + SRGB[132 + len(table) :]


PROFILES: dict[str, Bytes] = {
    "nothing": lambda: b"",
    "words": lambda: b"these are words" * 99,
    "zeros": lambda: b"\0" * 3000,
    "half of one": lambda: SRGB[: len(SRGB) // 2],
    "a head": lambda: SRGB[:128],
    "2^32 tags": lambda: with_tags(2**32 - 1, []),
    "100 tags of the same bytes": lambda: with_tags(100, [(b"%04d" % i, 128, len(SRGB) - 128) for i in range(40)]),
    "tags that lie beyond": lambda: with_tags(3, [(name, 2**32 - 9, 99) for name in (b"rXYZ", b"gXYZ", b"rTRC")]),
    "another size": lambda: struct.pack(">I", 2**32 - 1) + SRGB[4:],
    "a link of devices": lambda: SRGB[:12] + b"link" + SRGB[16:],
    "named colours": lambda: SRGB[:12] + b"nmcl" + SRGB[16:],
    "another space": lambda: SRGB[:16] + b"FCLR" + SRGB[20:],
    "CMYK, it says": lambda: SRGB[:16] + b"CMYK" + SRGB[20:],
    "grey, it says": lambda: SRGB[:16] + b"GRAY" + SRGB[20:],
    "5 MB": lambda: SRGB + b"\0" * (5 << 20),
}
for name, content in PROFILES.items():
    add(ANY, f"tiff with a profile of {name}", lambda c=content: picture("TIFF", icc_profile=c()), "x.tif", "pixels")  # type: ignore[misc]
    add(ANY, f"png with a profile of {name}", lambda c=content: picture("PNG", icc_profile=c()), "x.png", "pixels")  # type: ignore[misc]


def _write_profiles(seed: int, folder: Path) -> None:
    for i, content in enumerate(damaged(SRGB, seed)):
        (folder / f"{i}.png").write_bytes(picture("PNG", icc_profile=content))


for seed in range(8):
    ANY[f"profiles with changed bytes, {seed}"] = Case(partial(_write_profiles, seed), _try_all)


# --- paths that are no file --------------------------------------------------------------------------------------


def _listen(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "x.png"))


def _terabyte(folder: Path) -> None:
    with (folder / "x.png").open("wb") as file:
        file.truncate(1 << 40)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda folder: os.mkfifo(folder / "x.png"),
    "a folder": lambda folder: (folder / "x.png").mkdir(),
    "a loop of links": lambda folder: (folder / "x.png").symlink_to(folder / "x.png"),
    "a link to nothing": lambda folder: (folder / "x.png").symlink_to(folder / "nothing"),
    "a link to zeros": lambda folder: (folder / "x.png").symlink_to("/dev/zero"),
    "a link to a terminal": lambda folder: (folder / "x.png").symlink_to("/dev/tty"),
    "a link to memory": lambda folder: (folder / "x.png").symlink_to("/proc/self/mem"),
    "a socket": _listen,
}
for name, make in NO_FILES.items():
    for use in ("image", "bank"):
        REFUSED[f"{name}, {use}"] = Case(make, using(use, "x.png"))
REFUSED["a name with a null byte"] = Case(lambda _: None, lambda folder: load_pixels(folder / "x\0.png"))
REFUSED["a name that is too long"] = Case(lambda _: None, lambda folder: load_pixels(folder / ("x" * 5000)))
REFUSED["1 TB of nothing"] = Case(
    _terabyte,
    using("pixels", "x.png"),
)

CASES = REFUSED | ANY
