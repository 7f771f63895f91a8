"""The picture to paint on: its HTML, and the mask that the browser sends back."""

from __future__ import annotations

import base64
import itertools

import numpy as np
from numpy.typing import NDArray

from lpkernel.errors import InputError
from lpkernel.pictures.images import EXTENSIONS, MASK_LEVEL, opened
from lpkernel.pictures.render import png

PREFIX = "data:image/png;base64,"
LONGEST = 16 * 2**20  # characters of a picture or a mask; a page sends some kilobytes
_TURNS = itertools.count()
# The controls that choose a picture file and its framing; page.js sends it.
CHOOSER = (
    '<label class="lpk-file"><span>your picture: drop it here, or choose a file</span>'
    f'<input type="file" accept="image/*,{",".join(sorted(EXTENSIONS))}"></label>'
    '<label class="lpk-framing"><span>how it is framed</span><select>'
    '<option value="auto">automatically: the bank\'s way if it fits, else by the eyes</option>'
    '<option value="align">by the eyes, turned and scaled like the bank\'s faces</option>'
    '<option value="crop">cropped like the bank\'s pictures</option>'
    '<option value="as-is">its centre square</option></select></label>'
)


def data_url(picture: NDArray[np.uint8]) -> str:
    """(H, W, 3 or 4) uint8 as a PNG in a data URL, part of the page itself."""
    return PREFIX + base64.b64encode(png(picture)).decode("ascii")


def painter(picture: NDArray[np.uint8]) -> str:
    """A picture (S, S, 3) under a canvas of its size; page.js paints there and sends what is painted.

    The page changes elements in place, and strokes would stay: a new data-turn tells page.js to start over.
    """
    height, width, _ = picture.shape
    return (
        f'<div class="lpk-paint" data-turn="{next(_TURNS)}">'
        f'<img src="{data_url(picture)}" alt="the picture, framed like the bank\'s pictures" draggable="false">'
        f'<canvas width="{width}" height="{height}" tabindex="0" role="img" aria-label="the place to paint: '
        'draw with the pointer, or move with the arrow keys and paint with the space bar"></canvas><i></i></div>'
        '<div class="lpk-tools"><label>brush <input type="range" class="lpk-brush" min="2" max="40" value="14"></label>'
        '<label><input type="checkbox" class="lpk-erase"> erase</label>'
        '<button type="button" class="lpk-clear">clear</button></div>'
    )


def read_mask(sent: str, side: int) -> NDArray[np.bool_] | None:
    """What was painted, (side, side) bool; None if nothing was sent. Raises InputError for anything but such a PNG."""
    return _read_png("mask", sent, side, "RGBA")[..., 3] > MASK_LEVEL if sent else None


def read_picture(sent: str, side: int) -> NDArray[np.uint8]:
    """A picture that the server framed, (side, side, 3). Raises InputError for anything but such a PNG."""
    return _read_png("picture", sent, side, "RGB")


def read_closed(sent: bytes, side: int) -> NDArray[np.uint8]:
    """A result and the weights of its composite, (side, side, 4). Raises InputError for anything but such a PNG."""
    return _pixels("result", sent, side, "RGBA")


def _read_png(what: str, sent: str, side: int, mode: str) -> NDArray[np.uint8]:
    try:
        if not sent.startswith(PREFIX) or len(sent) > LONGEST:
            raise ValueError
        return _pixels(what, base64.b64decode(sent[len(PREFIX) :], validate=True), side, mode)
    except ValueError as error:  # an InputError, or not base64
        raise _wrong(what, side) from error


def _pixels(what: str, data: bytes, side: int, mode: str) -> NDArray[np.uint8]:
    try:
        with opened(data) as image:
            if image.size != (side, side) or image.format != "PNG":
                raise ValueError
            return np.array(image.convert(mode))
    except ValueError as error:
        raise _wrong(what, side) from error


def _wrong(what: str, side: int) -> InputError:
    return InputError(f"{what}: what the page sent is not a PNG of {side}x{side} pixels; load the page again")
