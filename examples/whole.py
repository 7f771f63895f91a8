"""An avatar's portrait hangs askew in a room; the whole picture goes in and comes back with other eyes and mouths.

python examples/whole.py out/whole.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import lpkernel as lp
from lpkernel import render
from lpkernel.modes.inputs import read_input

AVATAR, SIDE, TURN, CENTRE = 23, 180, 9, (200, 130)  # whose portrait, how large, how askew (degrees), and where


def room(portrait: np.ndarray) -> np.ndarray:
    """A wall with the portrait in its frame, a shelf and a lamp: (300, 480, 3) uint8."""
    picture = Image.new("RGB", (480, 300), (214, 222, 214))
    draw = ImageDraw.Draw(picture)
    for x in range(0, 480, 24):
        draw.line((x, 0, x, 252), fill=(206, 215, 207), width=6)
    draw.rectangle((0, 252, 480, 300), fill=(170, 128, 92))
    draw.rectangle((330, 190, 462, 200), fill=(120, 84, 58))
    for x, height, colour in ((340, 46, (178, 74, 62)), (356, 56, (62, 96, 140)), (374, 40, (222, 178, 92))):
        draw.rectangle((x, 190 - height, x + 13, 190), fill=colour)
    draw.ellipse((414, 156, 446, 190), fill=(96, 140, 104))
    draw.polygon([(404, 40), (440, 40), (458, 92), (386, 92)], fill=(240, 206, 128))
    draw.line((422, 0, 422, 40), fill=(80, 80, 80), width=3)
    hung = Image.new("RGBA", (SIDE + 28, SIDE + 28), (104, 70, 46, 255))
    hung.paste(Image.fromarray(portrait).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (14, 14))
    hung = hung.rotate(TURN, Image.Resampling.BICUBIC, expand=True)
    picture.paste(hung, (CENTRE[0] - hung.width // 2, CENTRE[1] - hung.height // 2), hung)
    return np.asarray(picture)


def main(path: Path) -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    whole = room(autoencoder.decode(bank.whole(np.array([AVATAR])))[0])
    start = read_input(bank, whole, autoencoder)  # aligned by its eyes, once for both edits
    brown, dark = bank.where("Skin_Brown"), bank.where("Skin_Brown & Sunglasses")
    faces = lp.edit(bank, start, autoencoder, region="eyes,mouth", n=2, candidates=brown, seed=1)
    glasses = lp.edit(bank, start, autoencoder, region="eyes", n=1, candidates=dark)
    pictures = [whole]
    for made in (faces, glasses):
        pictures += made.put_back(made.decode(autoencoder))
    render.save_png(path, render.grid(np.stack(pictures), columns=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
