"""Is an input like the bank's images? Other pictures, and faces that are not aligned as the bank's, give poor results.

Two signs are checked, both weak: a photograph that is a little out of place often passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lpkernel.modes.inputs import Input

if TYPE_CHECKING:
    from lpkernel.autoencoder.protocol import Autoencoder
    from lpkernel.bank import Bank

SAMPLE = 256  # bank images that the input is compared with
FAR = 95  # percentile of the bank's own distances beyond which an input is far
LOW_PSNR = 18.0  # dB; of 40 photographs 95 % were above 22.8 with the embedded autoencoder, noise was at 10


def warnings(bank: Bank, start: Input, autoencoder: Autoencoder, known: NDArray[np.bool_] | None = None) -> list[str]:
    """Reasons why the input does not look like the bank's images; [] if none is found.

    known: (M, M) bool, the cells to look at; None for all. The distance to the nearest image of a sample of the bank
    is compared with such distances within the sample, and the autoencoder's reconstruction with the pixels.
    """
    cells = np.ones((bank.grid, bank.grid), bool) if known is None else known
    reasons = []
    sample = bank.fixed_values(slice(None, None, -(-bank.size // SAMPLE)))[:, cells].astype(np.float64)
    canvas = bank.project(start.canvas) if bank.fixed_codebook is None else bank.fixed_codebook[start.canvas]
    if len(sample) > 2 and cells.any():
        rows = np.concatenate([canvas[cells].astype(np.float64)[None], sample]).reshape(len(sample) + 1, -1)
        squares = (rows * rows).sum(1)
        distances = squares[:, None] + squares[1:] - 2 * rows @ rows[1:].T
        distances[distances == 0] = np.inf  # an image's distance to itself says nothing
        nearest = distances.min(axis=1)
        usual = np.percentile(nearest[1:][np.isfinite(nearest[1:])], FAR) if np.isfinite(nearest[1:]).any() else np.inf
        if np.isfinite(nearest[0]) and nearest[0] > usual:
            reasons.append(
                f"it is {nearest[0] / usual:.2f} times as far from its nearest bank image as {FAR} % of the bank's "
                "own are from theirs; if it is not aligned and cropped like them, lpkernel align does that"
            )
    if start.pixels is not None and known is None:
        difference = start.original.pixels(autoencoder).astype(np.float64) - start.pixels
        psnr = 10 * np.log10(255**2 / max(float(np.square(difference).mean()), 1e-9))
        if psnr < LOW_PSNR:
            reasons.append(
                f"the autoencoder reconstructs it poorly (PSNR {psnr:.1f} dB); it was made for other pictures"
            )
    return reasons
