"""The table of docs/modes.md: what options of the method do where a part of a photograph is missing or too dark.

    python scripts/mode_options.py out/faces.lpbank

The photographs are numbers 900 to 999 of scripts/packages.py, which the embedded autoencoder was not trained on; in a
bank that holds them, each is left out of its own bank, as always. Their own pixels say how well a result fits.
`inpaint` fills a random rectangle, `harmonize` gets such a rectangle with a third of its light taken away, and `edit`
rewrites the eyes and the nose.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import packages
import torch
from numpy.typing import NDArray
from PIL import Image

import lpkernel as lp
from lpkernel.metrics.lpips import LPIPS
from lpkernel.pictures.seams import cell_colours

HELD_OUT, VARIANTS = slice(900, 999), 2
DARKER = 2 / 3
CARRY = {"start": "carry", "overlap": "cut", "scales": (8, 16)}
OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "hubness 0.375": {"hubness": 0.375},
    "mirror 1": {"mirror": 1},
    "overlap cut": {"overlap": "cut"},
    "as `balanced`: carry, cut, 8 and 16, hubness, mirror": CARRY | {"hubness": 0.375, "mirror": 1},
    "one scale": {"scales": (16,)},
    "five scales": {"scales": (10, 12, 13, 15, 16)},
}
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
    return lp.edit(image=photograph, region="eyes,nose", **given, **options)


def fit(found: lp.Synthesis, photograph: Pixels, lpips: LPIPS) -> NDArray[np.float64]:
    """(n, 4): error of the mean colours of the rewritten cells, PSNR of their pixels, LPIPS of the picture, and the
    largest copied area as a share of the rewritten cells."""
    pictures = found.decode()
    side, size = found.bank.grid, len(photograph)
    written = found.sources >= 0
    wrong = np.abs(cell_colours(pictures, side).astype(float) - cell_colours(photograph[None], side)).mean(3)
    squares = cell_squares(pictures.astype(float) - photograph, side, size)
    with torch.inference_mode():
        both = (
            torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1 for pixels in (pictures, photograph[None])
        )
        a, b = both
        apart = lpips(a, b.expand_as(a)).flatten().numpy()
    cells = written.sum((1, 2))
    errors = (np.where(written, values, 0).sum((1, 2)) / cells for values in (wrong, squares))
    colour, square = errors
    return np.stack([colour, 10 * np.log10(255**2 / square), apart, found.largest_copies() / cells], 1)


def cell_squares(difference: NDArray[np.float64], side: int, size: int) -> NDArray[np.float64]:
    """(n, M, M): mean squares over the pixels of each cell."""
    length = size // side
    return np.square(difference).reshape(-1, side, length, side, length, 3).mean((2, 4, 5))


def main() -> None:
    bank, autoencoder = lp.Bank.load(sys.argv[1]), lp.load_autoencoder()
    lpips = LPIPS(packages.lpips_weights())
    size = autoencoder.image_size
    files = packages.face_files()[HELD_OUT]
    cut = (Image.open(file).convert("RGB").crop(packages.FACE_CROP) for file in files)
    photographs = [np.asarray(face.resize((size, size), Image.Resampling.BICUBIC)) for face in cut]
    random = np.random.default_rng(0)
    masks = [rectangle(random, size) for _ in photographs]
    for mode in ("inpaint", "harmonize", "edit"):
        options = (
            OPTIONS
            if mode != "edit"
            else {"one donor": {}} | {f"patches, {name}": one | {"donor": "patches"} for name, one in OPTIONS.items()}
        )
        for name, one in options.items():
            rows = [
                fit(made(mode, one, photograph, mask, bank=bank, n=VARIANTS, seed=i), photograph, lpips)
                for i, (photograph, mask) in enumerate(zip(photographs, masks, strict=True))
            ]
            colour, psnr, apart, area = np.concatenate(rows).mean(0)
            print(f"| {mode} | {name} | {colour:.1f} | {psnr:.2f} | {apart:.4f} | {area:.2f} |", flush=True)


if __name__ == "__main__":
    main()
