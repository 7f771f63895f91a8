"""Avatars of each preset, with and without mirrored cells.

python examples/presets.py out/presets.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import lpkernel as lp
from lpkernel import render


def main(path: Path) -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    bands = []
    for preset, mirror in (("paper", 0), ("balanced", 0), ("balanced", 1), ("diverse", 0)):
        made = lp.generate(bank, n=6, preset=preset, mirror=mirror, seed=5)
        row = render.grid(made.decode(autoencoder), 6)
        bands += [render.heading(f"{preset}, mirror={mirror}" if mirror else preset, row.shape[1]), row]
    render.save_png(path, np.concatenate(bands))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
