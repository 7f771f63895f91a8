"""Avatars made with the paper's settings and with the default, `balanced`.

python examples/presets.py out/presets.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import lpkernel as lp
from lpkernel import render


def main(path: Path) -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    bands = []
    for preset in ("paper", "balanced"):
        made = lp.generate(bank, n=14, preset=preset, seed=5)
        row = render.grid(made.decode(autoencoder), 7)
        bands += [render.heading(preset, row.shape[1]), row]
    render.save_png(path, np.concatenate(bands))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
