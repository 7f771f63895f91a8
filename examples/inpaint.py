"""A hole in an avatar and six answers to what was in it, each above its source map.

python examples/inpaint.py out/inpaint.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import lpkernel as lp
from lpkernel import render


def main(path: Path) -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    face = autoencoder.decode(bank.gather(np.full((1, 16, 16), 90)))  # avatar 90
    hole = np.zeros(face.shape[1:3], bool)
    hole[48:100, 56:112] = True
    made = lp.inpaint(bank, face[0], autoencoder, hole, n=6)
    damaged = np.where(hole[..., None], np.uint8(160), face)
    images = np.concatenate([face, damaged, made.decode(autoencoder)])
    maps = np.concatenate([np.full((2, 16, 16), -1), made.sources])
    render.save_png(path, render.grid(render.with_maps(images, maps, render.source_colours(bank.size))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
