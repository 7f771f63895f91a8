"""The table of docs/modes.md: what options of the method do where a photograph, or a part of it, is written anew.

    python scripts/mode_options.py out/faces.lpbank

The photographs are numbers 900 to 999 of scripts/packages.py, which the embedded autoencoder was not trained on; in a
bank that holds them, each is left out of its own bank, as always. Their own pixels say how well a result fits.
`inpaint` fills a random rectangle, `harmonize` gets such a rectangle with a third of its light taken away, `edit`
rewrites the eyes and the nose, and `reference` everything; its last number is the Fréchet distance, on latents, of all
results to all photographs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import console
import numpy as np
import packages
from numpy.typing import NDArray
from PIL import Image

import lpkernel as lp
from lpkernel.metrics.distances import Gaussian, frechet
from lpkernel.metrics.extractors import Latents, Spread
from lpkernel.metrics.pixels import psnr
from lpkernel.pictures.seams import cell_colours

HELD_OUT, VARIANTS = slice(900, 999), 2
DARKER = 2 / 3
CARRY = {"start": "carry", "overlap": "cut", "scales": (8, 16)}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "hubness 0.375": {"hubness": 0.375},
    "mirror 1": {"mirror": 1},
    "overlap cut": {"overlap": "cut"},
    "all of these, carry, 8 and 16": CARRY | {"hubness": 0.375, "mirror": 1},
    "one scale": {"scales": (16,)},
    "five scales": {"scales": (10, 12, 13, 15, 16)},
}
EDITS: dict[str, dict[str, Any]] = {"one donor": {}} | {
    f"patches, {name}": one | {"donor": "patches"} for name, one in OPTIONS.items()
}
REFERENCES: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "balanced": {},
    "balanced, mirror 0": {"mirror": 0},
    "balanced, stride 2": {"stride": 2},
    "diverse": {"preset": "diverse"},
    "paper, strength 6": {"preset": "paper", "strength": 6},
    "balanced, strength 6": {"strength": 6},
}
OF_MODE = {"inpaint": OPTIONS, "harmonize": OPTIONS, "edit": EDITS, "reference": REFERENCES}
Pixels = NDArray[np.uint8]


def rectangle(random: np.random.Generator, size: int) -> NDArray[np.bool_]:
    height, width = random.integers(size * 2 // 7, size * 15 // 32, 2)
    y, x = (random.integers(size // 12, size - size // 12 - length) for length in (height, width))
    mask = np.zeros((size, size), bool)
    mask[y : y + height, x : x + width] = True
    return mask


def made(mode: str, options: dict[str, Any], photograph: Pixels, mask: NDArray[np.bool_], **given: Any) -> lp.Synthesis:
    if mode == "inpaint":
        return lp.inpaint(image=photograph, mask=mask, **given, **options)
    if mode == "harmonize":
        pasted = np.where(mask[..., None], photograph * DARKER, photograph).astype(np.uint8)
        return lp.harmonize(image=pasted, mask=mask, **given, **options)
    if mode == "reference":
        return lp.reference(image=photograph, **given, **options)
    return lp.edit(image=photograph, region="eyes,nose", **given, **options)


def fit(pictures: Pixels, found: lp.Synthesis, photograph: Pixels, spread: Spread) -> NDArray[np.float64]:
    """(n, 4): error of the mean colours of the rewritten cells, PSNR of their pixels, LPIPS of the picture, and the
    largest copied area as a share of the rewritten cells."""
    truth = np.broadcast_to(photograph, pictures.shape)
    side = found.bank.grid
    length = len(photograph) // side
    squares = np.square(pictures.astype(float) - photograph)
    of_cells = squares.reshape(-1, side, length, side, length, 3).mean((2, 4, 5))
    colours = cell_colours(pictures, side).astype(float) - cell_colours(truth, side)
    written = found.sources >= 0
    cells = written.sum((1, 2))
    colour, square = (
        np.where(written, values, 0).sum((1, 2)) / cells for values in (np.abs(colours).mean(3), of_cells)
    )
    return np.stack([colour, psnr(square), spread.distances(pictures, truth), found.largest_copies() / cells], 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", help="a bank of the photographs, by the embedded autoencoder")
    bank = lp.Bank.load(parser.parse_args().bank)
    spread, size = Spread(packages.lpips_weights()), lp.load_autoencoder().image_size

    def square(file: Path) -> Pixels:
        face = Image.open(file).convert("RGB").crop(packages.FACE_CROP)
        return np.asarray(face.resize((size, size), Image.Resampling.BICUBIC))

    photographs = [square(file) for file in packages.face_files()[HELD_OUT]]
    random = np.random.default_rng(0)
    masks = [rectangle(random, size) for _ in photographs]
    features = Latents()
    everybody = Gaussian.of(features(np.stack([square(file) for file in packages.face_files()])))
    for mode, options in OF_MODE.items():
        for name, one in options.items():
            rows, pictures = [], []
            for i, (photograph, mask) in enumerate(zip(photographs, masks, strict=True)):
                found = made(mode, one, photograph, mask, bank=bank, n=VARIANTS, seed=i)
                pictures.append(found.decode())
                rows.append(fit(pictures[-1], found, photograph, spread))
            colour, ratio, apart, area = np.concatenate(rows).mean(0)
            line = f"| {mode} | {name} | {colour:.1f} | {ratio:.2f} | {apart:.4f} | {area:.2f} |"
            if mode == "reference":
                line += f" {frechet(everybody, Gaussian.of(features(np.concatenate(pictures)))):.1f} |"
            print(line, flush=True)
    return 0


if __name__ == "__main__":
    console.run(main)
