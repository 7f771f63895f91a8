"""One avatar with other eyes, then with the eyes of avatars that wear sunglasses, each above its source map.

python examples/edit.py out/edit.png
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
    free = lp.edit(bank, face[0], autoencoder, region="eyes,mouth", n=4, keep_outside=True)
    donors = bank.where("Sunglasses", at_least=3)
    shaded = lp.edit(bank, face[0], autoencoder, region="eyes", n=3, candidates=donors, keep_outside=True)
    images = np.concatenate([face, free.decode(autoencoder), shaded.decode(autoencoder)])
    maps = np.concatenate([np.full((1, 16, 16), -1), free.sources, shaded.sources])
    render.save_png(path, render.grid(render.with_maps(images, maps, render.source_colours(bank.size))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
