"""One new avatar and where it comes from; no source contributes more than 40 connected cells.

python examples/provenance.py out/provenance.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import lpkernel as lp
from lpkernel import render


def main(path: Path) -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    made = lp.generate(bank, n=1, seed=3, copy_limit=lp.CopyLimit(area=40))
    image, sources = made.decode(autoencoder)[0], made.sources[0]
    shown = render.most_used(sources, 8)
    pictures = autoencoder.decode(bank.gather(shown[:, None, None] * np.ones((16, 16), int)))
    names = [bank.names[number] for number in shown]
    render.save_png(path, render.provenance_sheet(image, sources, shown, pictures, names))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
