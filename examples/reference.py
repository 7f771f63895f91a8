"""New avatars that follow a reference, after one, two and six raster passes, each above its source map.

python examples/reference.py out/reference.png
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
    images, maps = [face], [np.full((1, 16, 16), -1)]
    for strength in (1, 2, 6):
        made = lp.reference(bank, face[0], autoencoder, n=2, strength=strength)
        images.append(made.decode(autoencoder))
        maps.append(made.sources)
    colours = render.source_colours(bank.size)
    columns = render.with_maps(np.concatenate(images), np.concatenate(maps), colours)
    render.save_png(path, render.grid(columns))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
