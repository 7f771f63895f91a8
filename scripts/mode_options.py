"""Whether cut, hubness and mirror help the modes: the same edits of many bank images with and without them.

    python scripts/mode_options.py out/faces.lpbank -n 100

Each of the first n images of the bank is changed once by each mode, itself left out. What comes out is decoded and
compared with the bank's images (docs/evaluation.md): KID of latents, copied area as a share of the new, seam energy,
and asymmetry: the squared latent distance of new cells to their mirror images, over that of the bank's own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lpkernel as lp
from lpkernel import LpkernelError
from lpkernel.copies import largest_areas
from lpkernel.metrics import distances
from lpkernel.metrics.extractors import Latents
from lpkernel.plan import default_scales

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "cut": {"overlap": "cut"},
    "hubness": {"hubness": 0.25},
    "mirror": {"mirror": 1},
    "cut, hubness": {"overlap": "cut", "hubness": 0.25},
    "all three": {"overlap": "cut", "hubness": 0.25, "mirror": 1},
}


def hole(grid: int) -> NDArray[np.bool_]:
    """(M, M): one eye and the cheek below it."""
    cells = np.zeros((grid, grid), bool)
    cells[grid * 3 // 8 : grid * 3 // 4, grid // 2 : grid * 13 // 16] = True
    return cells


def modes(bank: lp.Bank) -> dict[str, Callable[..., lp.Synthesis]]:
    """name -> f(number of a bank image, options)."""
    gap, scales = hole(bank.grid), default_scales(bank.grid)

    def harmonize(number: int, options: dict[str, Any]) -> lp.Synthesis:
        canvas = whole(bank, number).copy()
        canvas[gap] = whole(bank, (number * 7 + 1) % bank.size)[gap]
        side = bank.image_size or bank.grid
        mask = np.kron(gap, np.ones((side // bank.grid,) * 2, bool))
        return lp.harmonize(bank, canvas, mask, n=1, **options)

    return {
        "edit": lambda i, o: lp.edit(bank, whole(bank, i), region="eyes,mouth", donor="patches", n=1, **o),
        "inpaint": lambda i, o: lp.edit(bank, whole(bank, i), region=gap, scales=scales, n=1, **o),
        "inpaint, carry": lambda i, o: lp.edit(
            bank, whole(bank, i), region=gap, scales=(bank.grid // 2, bank.grid), n=1, **{"start": "carry", **o}
        ),
        "harmonize": harmonize,
        "reference": lambda i, o: lp.reference(bank, whole(bank, i), n=1, **o),
    }


def whole(bank: lp.Bank, number: int) -> NDArray[Any]:
    return bank.whole(np.array([number]))[0]


def values(bank: lp.Bank, content: NDArray[Any]) -> NDArray[np.float64]:
    """Fixed-point cells of codes or latents."""
    fixed = bank.project(content) if bank.fixed_codebook is None else bank.fixed_codebook[content]
    return fixed.astype(np.float64)


def asymmetry(bank: lp.Bank, content: NDArray[Any], new: NDArray[np.bool_]) -> float:
    cells = values(bank, content)
    return float(np.square(cells - cells[:, :, ::-1]).sum(axis=3)[new].mean())


def seams(bank: lp.Bank, made: NDArray[np.int32], content: NDArray[Any]) -> float:
    """Squared distance of neighbours across borders of sources, over that of the bank's images at the same places."""
    cells, real = values(bank, content), values(bank, bank.whole(np.arange(len(made))))
    apart, usual = [], []
    for axis in (1, 2):
        border = np.diff(made, axis=axis) != 0
        for found, of in ((apart, cells), (usual, real)):
            found.append(np.square(np.diff(of, axis=axis)).sum(axis=3)[border])
    return float(np.concatenate(apart).mean() / np.concatenate(usual).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", type=Path)
    parser.add_argument("-n", type=int, default=100)
    args = parser.parse_args()
    try:
        bank, autoencoder, latents = lp.Bank.load(args.bank), lp.load_autoencoder(), Latents()
        count = min(args.n, bank.size)
        real = latents(autoencoder.decode(bank.whole(np.arange(bank.size))))
        print("| mode | options | KID | copied area | seams | asymmetry |\n|---|---|---|---|---|---|")
        for mode, make in modes(bank).items():
            for name, options in OPTIONS.items():
                made = [make(number, dict(options)) for number in range(count)]
                sources = np.concatenate([one.sources for one in made])
                content = np.concatenate([one.codes if one.latents is None else one.latents for one in made])
                kid, _ = distances.kernel_distance(real, latents(replace(made[0], codes=content).decode(autoencoder)))
                new = sources >= 0
                area = (largest_areas(sources) / new.sum(axis=(1, 2))).mean()
                uneven = asymmetry(bank, content, new) / asymmetry(bank, bank.whole(np.arange(count)), new)
                cells = f"{kid:.3f} | {area:.2f} | {seams(bank, sources, content):.2f} | {uneven:.2f}"
                print(f"| {mode} | {name} | {cells} |", flush=True)
    except LpkernelError as error:
        print(f"mode_options.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
