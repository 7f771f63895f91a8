"""Pictures for people: results beside the source map that says which example each piece came from.

Arrays in, arrays out: images are (H, W, 3) uint8 RGB, stacks of them (N, H, W, 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lpkernel.errors import InputError, printable
from lpkernel.files import atomic_path
from lpkernel.views import copied_from

Pixels = NDArray[np.uint8]

WHITE = (255, 255, 255)
PAGE = (238, 238, 240)  # not white, so that pictures with a white background end visibly
UNSOURCED = (212, 212, 212)  # cells that no example was copied to
GOLDEN = (5**0.5 - 1) / 2
CHROMA = 0.19
LIGHTNESS = (0.70, 0.45, 0.86, 0.55, 0.78)
FONT_SIZE = 14
COLUMNS = 8
SOURCE_ROWS = 2
SHOWN_SOURCES = COLUMNS * SOURCE_ROWS


def _oklch(lightness: NDArray[np.float64], chroma: float, hue: NDArray[np.float64]) -> Pixels:
    """OKLCH colours (hue in turns) as sRGB; equal hue steps look equally far apart, unlike HSV's.

    Source: Bjorn Ottosson, "A perceptual color space for image processing", 2020 (the matrices).
    """
    a, b = chroma * np.cos(2 * np.pi * hue), chroma * np.sin(2 * np.pi * hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = np.stack(
        [
            4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
            -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
            -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
        ],
        axis=-1,
    ).clip(0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded * 255).astype(np.uint8)


def source_colours(count: int) -> Pixels:
    """A colour for each of `count` sources: (count, 3) uint8. A source's colour is the same whatever the count.

    Hues follow half the golden ratio and lightness cycles, so that sources with neighbouring numbers, and any few of
    the first ones, stay far apart. Raises InputError if count < 0.
    """
    if count < 0:
        raise InputError(f"count is {count}; expected 0 or more colours")
    i = np.arange(count, dtype=np.float64)
    return _oklch(np.resize(LIGHTNESS, count), CHROMA, (i * GOLDEN / 2 + 0.08) % 1.0)


def source_map(sources: NDArray[np.integer], colours: Pixels, size: int) -> Pixels:
    """The map (M, M) of source numbers as a (size, size, 3) picture, nearest-neighbour; -1 is light grey.

    colours is (B, 3) uint8. Raises InputError if the map is not square or names a source >= B.
    """
    sources = np.asarray(sources)
    if sources.ndim != 2 or sources.shape[0] != sources.shape[1]:
        raise InputError(f"source map has shape {sources.shape}; expected a square (M, M)")
    if sources.size and not -1 <= sources.min() <= sources.max() < len(colours):
        raise InputError(
            f"source map has values {sources.min()}..{sources.max()}; expected -1..{len(colours) - 1}, one colour each"
        )
    # -1 picks the last row, which is the grey one
    picture = np.concatenate([colours, np.asarray([UNSOURCED], np.uint8)])[sources]
    cell = np.arange(size) * len(sources) // size
    return picture[cell][:, cell]


def outlines(cells: NDArray[np.integer] | NDArray[np.bool_], size: int, width: int) -> NDArray[np.bool_]:
    """Where cells (M, M) of different numbers meet, and the outer edge, `width` pixels wide: (size, size) bool."""
    place = np.arange(size) * len(cells) // size
    wide = np.pad(cells.astype(np.int64)[place][:, place], width, constant_values=-2)  # -2: outside, no source at all
    inner = wide[width : width + size, width : width + size]
    lines = np.zeros((size, size), bool)
    for step in range(1, width + 1):  # each side draws its own line within its own cells
        for y, x in ((step, 0), (-step, 0), (0, step), (0, -step)):
            lines |= wide[width + y : width + y + size, width + x : width + x + size] != inner
    return lines


def overlay(image: Pixels, sources: NDArray[np.integer], colours: Pixels, strength: float = 0.4) -> Pixels:
    """The source map (M, M) over its image (S, S, 3): each piece tinted and outlined in its source's colour.

    Cells with source -1 keep the image's own colours. strength: the share of the tint, 0 to 1.
    """
    coded = source_map(sources, colours, len(image))
    place = np.arange(len(image)) * len(sources) // len(image)
    copied = (sources >= 0)[place][:, place]
    edge = outlines(sources, len(image), max(1, len(image) // 128)) & copied
    weight = np.where(edge, 1.0, np.where(copied, strength, 0.0))[..., None]
    return np.rint(image * (1 - weight) + coded * weight).astype(np.uint8)


def provenance_sheet(
    image: Pixels,
    sources: NDArray[np.integer],
    shown: Sequence[int] | NDArray[np.integer],
    pictures: Pixels,
    names: Sequence[str],
    shifts: NDArray[np.integer] | None = None,
) -> Pixels:
    """One result and where it comes from: itself, its map, the map over it; then sources with what they gave.

    image (S, S, 3) and its source map (M, M); the sources numbered `shown` as pictures (B', S, S, 3) with their
    names. Cells that a source gave are outlined in its colour and bright, the rest of it is pale; above it stand its
    share of all cells and its name. shifts (M, M, 2): how far beside its place each cell was copied from, if a search
    radius let it; it is outlined where it was. The title mentions sources left out. Raises InputError if the counts
    differ.
    """
    if not len(shown) == len(pictures) == len(names):
        raise InputError(f"{len(pictures)} pictures and {len(names)} names for {len(shown)} sources; expected as many")
    size, cells = len(image), np.asarray(sources)
    colours = source_colours(int(max(cells.max(initial=-1), np.max(shown, initial=-1))) + 1)
    gap = max(2, size // 32)
    top = np.stack([image, source_map(cells, colours, size), overlay(image, cells, colours)])
    kept = np.count_nonzero(cells < 0) / cells.size
    given = np.unique(cells[cells >= 0])
    title = f"Result, its source map, the map over it{f'; {kept:.1%} kept from the input' if kept else ''}"
    if shifts is not None:
        title += f"; {np.count_nonzero(shifts.any(axis=-1)) / cells.size:.1%} from beside their place"
    if len(given) > len(shown):
        title += f"; {len(shown)} of {len(given)} sources shown"
    columns = max(len(top), min(4, len(shown)))
    width = columns * (size + gap) + gap
    bands = [heading(title, width), _padded(grid(top, len(top), gap, PAGE), width)]
    for start in range(0, len(shown), columns):
        row = range(start, min(start + columns, len(shown)))
        shares = [np.count_nonzero(cells == shown[i]) / cells.size for i in row]
        captions = [_caption(share, names[i], size + gap) for share, i in zip(shares, row, strict=True)]
        strips = np.concatenate(captions, axis=1)
        places = [copied_from(int(shown[i]), cells, shifts) for i in row]
        colour = [colours[int(shown[i])] for i in row]
        copied = np.stack([marked(*one) for one in zip(pictures[row], places, colour, strict=True)])
        bands += [_padded(strips, width), _padded(grid(copied, columns, gap, PAGE), width)]
    return np.concatenate(bands)


def marked(picture: Pixels, cells: NDArray[np.bool_], colour: Pixels) -> Pixels:
    """A source: the cells that it gave as they are, outlined; the rest pale."""
    size = len(picture)
    place = np.arange(size) * len(cells) // size
    given = cells[place][:, place]
    lines = outlines(cells, size, max(2, size // 64)) & given
    pale = (picture // 3 + 160).astype(np.uint8)
    return np.where(lines[..., None], colour, np.where(given[..., None], picture, pale)).astype(np.uint8)


def _padded(band: Pixels, width: int) -> Pixels:
    """The band with page on its right, up to `width`."""
    page = np.empty((len(band), width - band.shape[1], 3), np.uint8)
    page[:] = PAGE
    return np.concatenate([band, page], axis=1)


def grid(images: Pixels, columns: int = COLUMNS, padding: int = 4, background: tuple[int, int, int] = WHITE) -> Pixels:
    """Images (N, H, W, 3) row by row in `columns` columns, `padding` pixels apart and around.

    Returns uint8 (rows * (H + padding) + padding, columns * (W + padding) + padding, 3); an
    incomplete last row is filled up with background. Raises InputError on another shape or columns < 1.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise InputError(f"images are {images.dtype} {images.shape}; expected uint8 (N, H, W, 3)")
    if columns < 1 or padding < 0:
        raise InputError(f"columns is {columns} and padding {padding}; expected at least 1 and 0")
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    page = np.empty((rows * (height + padding) + padding, columns * (width + padding) + padding, 3), np.uint8)
    page[:] = background
    for i, image in enumerate(images):
        y, x = padding + i // columns * (height + padding), padding + i % columns * (width + padding)
        page[y : y + height, x : x + width] = image
    return page


def most_used(maps: NDArray[np.integer], limit: int) -> NDArray[np.int64]:
    """At most `limit` source numbers of maps (N, M, M), most cells first, ties by lowest number; -1 not counted."""
    numbers, counts = np.unique(maps[maps >= 0], return_counts=True)
    return numbers[np.lexsort((numbers, -counts))][:limit].astype(np.int64)


def framed(images: Pixels, colours: Pixels, width: int) -> Pixels:
    """Images (N, H, W, 3), each with a frame of its colour (N, 3) around it, `width` pixels wide."""
    n, height, wide, _ = images.shape
    out = np.empty((n, height + 2 * width, wide + 2 * width, 3), np.uint8)
    out[:] = colours[:, None, None]
    out[:, width : width + height, width : width + wide] = images
    return out


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(FONT_SIZE)


def heading(text: str, width: int) -> Pixels:
    """(H, width, 3): small text on page, in as many lines as it takes."""
    font, lines = _font(), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(printable(longer)) > width - 8:
            lines.append(word)
        else:
            lines[-1] = longer
    return np.concatenate([_line(line, width) for line in lines])


def _line(text: str, width: int, height: int = 22) -> Pixels:
    """A (height, width, 3) strip of page with a small line of text at its left."""
    strip = Image.new("RGB", (width, height), PAGE)
    ImageDraw.Draw(strip).text((6, 4), printable(text), fill=(60, 60, 60), font=_font())
    return np.asarray(strip)


def _caption(share: float, name: str, width: int) -> Pixels:
    """A line with a share and the name of a source; only the end of a name that is too long."""
    font, shown = _font(), printable(name)
    while len(shown) > 1 and font.getlength(f"{share:.1%} {shown}") > width - 8:
        shown = "…" + shown.removeprefix("…")[1:]
    return _line(f"{share:.1%} {shown}", width)


def with_maps(images: Pixels, maps: NDArray[np.integer], colours: Pixels) -> Pixels:
    """Each image (N, S, S, 3) above its source map (N, M, M): (N, 2 S, S, 3)."""
    coded = [source_map(one, colours, images.shape[2]) for one in maps]
    return np.concatenate([images, np.stack(coded)], axis=1)


def contact_sheet(
    pictures: Pixels,
    shown: Sequence[int] | NDArray[np.integer],
    sections: Sequence[tuple[str, Pixels, NDArray[np.integer] | None]],
) -> Pixels:
    """One picture of everything: the sources in frames of their colour, then each result above its source map.

    pictures (B', H, W, 3) uint8 are the sources numbered `shown` (B',); a section is a heading, results
    (N, H, W, 3) uint8 and their source maps (N, M, M), or None for pictures that have none. Cells from sources that
    are not shown have their own colours, too. Raises InputError if the counts differ.
    """
    if len(pictures) != len(shown):
        raise InputError(f"{len(pictures)} source pictures for {len(shown)} source numbers; expected as many")
    for title, results, maps in sections:
        if maps is not None and len(results) != len(maps):
            raise InputError(f"{len(results)} images for {len(maps)} source maps in {title!r}; expected as many")
    all_maps = [maps for _, _, maps in sections if maps is not None]
    count = max([int(np.max(shown, initial=-1)), *(int(maps.max(initial=-1)) for maps in all_maps)]) + 1
    colours = source_colours(count)
    size = pictures.shape[1]
    frame, gap = max(3, size // 20), max(2, size // 32)
    columns = min(COLUMNS, max([len(pictures), *(len(results) for _, results, _ in sections)]))
    # results have a frame too, of the page's colour, so that all columns line up
    bands = [grid(framed(pictures, colours[np.asarray(shown, np.int64)], frame), columns, gap, PAGE)]
    used = np.unique(np.concatenate([maps[maps >= 0] for maps in all_maps])) if all_maps else np.empty(0)
    titles = ["Sources, each in its colour"]
    if not np.isin(used, shown).all():
        titles = [f"Sources used most, each in its colour: first {len(shown)} of {len(np.union1d(used, shown))} shown"]
    for title, results, maps in sections:
        pairs = results if maps is None else with_maps(results, maps, colours)
        bands.append(
            grid(framed(pairs, np.tile(np.asarray(PAGE, np.uint8), (len(pairs), 1)), frame), columns, gap, PAGE)
        )
        titles.append(title)
    width = bands[0].shape[1]
    return np.concatenate([part for t, b in zip(titles, bands, strict=True) for part in (heading(t, width), b)])


def save_png(path: Path, image: Pixels, text: Mapping[str, str] | None = None, fast: bool = False) -> None:
    """Write (H, W, 3) uint8 as PNG, whole or not at all; equal arguments give equal bytes. Raises OSError.

    text: chunks by keyword, Latin-1. fast: a larger file in less time.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(png(image, text, fast))


def png(image: Pixels, text: Mapping[str, str] | None = None, fast: bool = False) -> bytes:
    """What `save_png` writes; also of images with transparency, (H, W, 4)."""
    chunks, file = PngInfo(), BytesIO()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value)
    Image.fromarray(image).save(file, format="PNG", pnginfo=chunks, compress_level=1 if fast else 6)
    return file.getvalue()
