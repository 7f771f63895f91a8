"""The figures of docs/gallery.md: every example script is run on the avatars and its picture reduced to 240 colours.

make gallery            # or: python scripts/gallery.py
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import console
from PIL import Image

from lpkernel.pictures.images import opened

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ("whole", "presets", "reference", "edit", "inpaint", "harmonize", "attributes", "provenance")
LARGEST = 660_000  # bytes of all figures


def main() -> int:
    folder, size = ROOT / "docs" / "images" / "gallery", 0
    folder.mkdir(parents=True, exist_ok=True)
    for name in EXAMPLES:
        path = folder / f"{name}.png"
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"](path)
        with opened(path) as picture:
            small = picture.quantize(240, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        size += path.stat().st_size
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")
    if size > LARGEST:
        print(f"gallery.py: {size} bytes, expected at most {LARGEST}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    console.no_options(__doc__)
    console.run(main)
