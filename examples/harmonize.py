"""The face of one avatar pasted onto another, and six ways to make it fit, each above its source map.

python examples/harmonize.py out/harmonize.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import lpkernel as lp
from lpkernel import render


def main(path: Path) -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    below, above = autoencoder.decode(bank.gather(np.array([90, 12])[:, None, None] * np.ones((16, 16), int)))
    pasted = np.zeros(below.shape[:2], bool)
    pasted[54:100, 60:108] = True
    composite = np.where(pasted[..., None], above, below)
    made = lp.harmonize(bank, composite, autoencoder, pasted, n=6)
    images = np.concatenate([above[None], composite[None], made.decode(autoencoder)])
    maps = np.concatenate([np.full((2, 16, 16), -1), made.sources])
    render.save_png(path, render.grid(render.with_maps(images, maps, render.source_colours(bank.size))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
