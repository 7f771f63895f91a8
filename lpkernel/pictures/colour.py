"""Embedded colour profiles (ICC): pictures whose colours are not sRGB are converted to it by LittleCMS."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from lpkernel.errors import one_line, printable

MAX_PROFILE = 4 << 20  # bytes; those of printers have up to 3 million
_KINDS = ("scnr", "mntr", "prtr", "spac")  # profiles of colour spaces; others name single colours or join two devices
_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_PROBE = 9  # levels of each channel at which a profile is compared with sRGB
_log = logging.getLogger("lpkernel")
_told: set[int] = set()


@dataclass(frozen=True, eq=False)
class Convert:
    """Converts the pixels of one profile to sRGB. takes: their mode, RGB, L or CMYK."""

    takes: str
    transform: ImageCms.ImageCmsTransform

    def __call__(self, image: Image.Image) -> Image.Image:
        made = ImageCms.applyTransform(image, self.transform)
        assert made is not None  # it is not done in place
        return made


def conversion(profile: bytes, mode: str, name: str) -> Convert | None:
    """The conversion of 8-bit pixels with this profile to sRGB; None if they are sRGB, or it is not for `mode`.

    Relative colorimetric, with black point compensation. A profile that cannot be used is ignored, with one
    warning that gives the picture's `name`.
    """
    try:
        made = _transform(profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, MemoryError) as error:
        if hash(profile) not in _told:
            _told.add(hash(profile))
            reason = one_line(error, 80)
            _log.warning("%s: its colour profile cannot be used and is ignored: %s", printable(name), reason)
        return None
    if made is None:
        return None
    colours = {"L": "L", "LA": "L", "CMYK": "CMYK"}.get(mode, "RGB")
    # an RGB profile may be left in a grey picture that was made from a coloured one
    return made if made.takes == colours or (made.takes, colours) == ("RGB", "L") else None


@lru_cache(maxsize=8)
def _transform(profile: bytes) -> Convert | None:
    """The conversion of a profile; None if it leaves colours as they are."""
    if len(profile) > MAX_PROFILE:
        raise ValueError(f"{len(profile)} bytes, expected at most {MAX_PROFILE}")
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    space, kind = source.profile.xcolor_space.strip(), source.profile.device_class.strip()
    if space not in _MODES or kind not in _KINDS:
        raise ValueError(f"a profile of kind {kind!r} for {space!r}, expected one for RGB, grey or CMYK pixels")
    takes = _MODES[space]
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        takes,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    convert = Convert(takes, transform)
    return None if takes != "CMYK" and _changes_nothing(convert) else convert


def _changes_nothing(convert: Convert) -> bool:
    """Whether no colour of a grid is moved by more than one level: the rounding of another copy of sRGB."""
    levels = np.rint(np.linspace(0, 255, _PROBE)).astype(np.uint8)
    if convert.takes == "L":
        probe = levels[None]
    else:
        probe = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(1, -1, 3)
    image = Image.fromarray(probe)
    return int(np.abs(np.asarray(convert(image)).astype(int) - np.asarray(image.convert("RGB"))).max()) <= 1
