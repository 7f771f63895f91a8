"""CC0 avatar faces ("Open Peeps" by Pablo Stanley, CC0 1.0), drawn by DiceBear and rasterised by resvg.

    python scripts/avatars.py FOLDER --count 64      # PNG files and attributes.txt

Avatar i is drawn from the seed string str(i), so it is the same on every machine. The options that
DiceBear chooses become attributes in CelebA's text format (line 1 count, line 2 names, then
`file 1 -1 ...`). Needs dicebear-core, dicebear-styles and resvg-py (the `test` extra).
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from lpkernel.pictures.images import load_pixels

STYLE = "open-peeps"
SKINS = {"#ffdbb4": "Pale", "#edb98a": "Light", "#d08b5b": "Tan", "#ae5d29": "Brown", "#694d3d": "Dark"}
CLOTHES = {
    "#8fa7df": "Blue",
    "#78e185": "Green",
    "#ffcf77": "Orange",
    "#e279c7": "Pink",
    "#e78276": "Red",
    "#9ddadb": "Cyan",
    "#fdea6b": "Yellow",
}
LONG_HAIR = {"long", "longAfro", "longBangs", "longCurly", "medium1", "medium2", "medium3", "mediumBangs"} | {
    "mediumBangs2",
    "mediumBangs3",
    "mediumStraight",
}
HATS = {"hatBeanie", "hatHip", "turban", "hijab"}
SMILES = {"smile", "smileBig", "smileLOL", "smileTeethGap", "lovingGrin1", "lovingGrin2", "cheeky", "cute"}
NAMES = (
    ["Eyeglasses", "Sunglasses", "Eyepatch", "Facial_Hair", "Face_Mask", "Long_Hair", "Hat", "Smiling"]
    + [f"Skin_{name}" for name in SKINS.values()]
    + [f"Clothes_{name}" for name in CLOTHES.values()]
)


@functools.cache
def _style() -> Style:
    text = files("dicebear_styles").joinpath(f"{STYLE}.json").read_text("utf-8")
    style = json.loads(text)
    if "CC0" not in style["meta"]["license"]["name"]:
        raise RuntimeError(f"{STYLE} is licensed {style['meta']['license']['name']}, expected CC0")
    return Style(style)


def _attributes(options: dict[str, object]) -> np.ndarray:
    accessory = str(options.get("accessoriesVariant") or "").lower()
    head = str(options.get("headVariant") or "")
    skin = SKINS[options["skinColor"][0]]  # type: ignore[index]
    clothes = CLOTHES[options["clothingColor"][0]]  # type: ignore[index]
    present = {
        "Eyeglasses": accessory.startswith("glasses"),
        "Sunglasses": accessory.startswith("sunglasses"),
        "Eyepatch": accessory.startswith("eyepatch"),
        "Facial_Hair": bool(options.get("facialHairVariant")),
        "Face_Mask": bool(options.get("maskVariant")),
        "Long_Hair": head in LONG_HAIR,
        "Hat": head in HATS,
        "Smiling": str(options.get("expressionVariant")) in SMILES,
        f"Skin_{skin}": True,
        f"Clothes_{clothes}": True,
    }
    return np.array([present.get(name, False) for name in NAMES])


def draw(index: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Avatar `index`: (size, size, 3) uint8 on white, and its (len(NAMES),) bool attributes."""
    avatar = Avatar(_style(), {"seed": str(index), "size": size})
    png = bytes(resvg_py.svg_to_bytes(svg_string=avatar.to_string(), width=size, height=size))
    return load_pixels(png), _attributes(avatar.to_json()["options"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--size", type=int, default=128)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(args.first, args.first + args.count):
        image, attributes = draw(index, args.size)
        Image.fromarray(image).save(args.folder / f"{index:06d}.png")
        rows.append(f"{index:06d}.png " + " ".join("1" if value else "-1" for value in attributes))
    (args.folder / "attributes.txt").write_text("\n".join([str(args.count), " ".join(NAMES), *rows]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
