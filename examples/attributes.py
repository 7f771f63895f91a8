"""New avatars from those with given attributes: one row for each expression, under it.

python examples/attributes.py out/attributes.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import lpkernel as lp
from lpkernel import render

EXPRESSIONS = ("Eyeglasses & ~Hat", "Long_Hair & Skin_Brown", "Hat & (Clothes_Blue | Clothes_Green)")


def main(path: Path) -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder()
    rows = []
    for number, expression in enumerate(EXPRESSIONS):
        allowed = bank.where(expression, at_least=3)
        made = lp.generate(bank, n=6, first_image=6 * number, candidates=allowed)
        row = render.grid(made.decode(autoencoder), columns=6)
        rows += [render.heading(f"{expression}: {allowed.sum()} avatars", row.shape[1]), row]
    render.save_png(path, np.concatenate(rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="OUT.png")
    out = parser.parse_args().path
    out.parent.mkdir(parents=True, exist_ok=True)
    main(out)
