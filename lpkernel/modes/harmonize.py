"""Harmonising a paste: its seam is closed and its content moved towards what the bank knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lpkernel import plan as plans
from lpkernel.bank import Bank, as_bank
from lpkernel.errors import InputError
from lpkernel.modes import cells
from lpkernel.modes.inputs import ImageLike, MaskLike, read_input, written
from lpkernel.pictures.images import Crop
from lpkernel.synthesis import Options, Synthesis, taken_by_plan

if TYPE_CHECKING:
    from typing import Unpack

    from lpkernel.autoencoder.protocol import Autoencoder


def harmonize(
    bank: Bank | str | Path,
    image: ImageLike,
    autoencoder: Autoencoder | None = None,
    mask: MaskLike | None = None,
    n: int = 4,
    patch: int = 6,
    stride: int | None = None,
    scales: Sequence[int] | None = None,
    keep_outside: bool | None = None,
    crop: Crop | None = None,
    framing: str = "auto",
    **options: Unpack[Options],
) -> Synthesis:
    """Variants of a composite image in which what was pasted (where `mask` is set) fits its surroundings.

    Cells that the mask covers wholly are guided by what is there. The cells that hold the seam and those around them
    are free: the ones it covers in part, and all neighbours of the pasted cells. If the mask covers no cell wholly, the
    cells it touches are guided. mask None: the transparent part of the file. All other cells keep their values exactly.
    The rest is as in `edit`, but only a bank image that equals the whole composite is excluded from the allowed images.
    Raises InputError.
    """
    bank = as_bank(bank)
    start = read_input(bank, image, autoencoder, crop, mask, framing=framing, alpha=True)
    if start.mask is None:
        raise InputError("mask: none is given; pass what was pasted")
    pasted = cells.touched(start.mask, bank.grid)
    guided = cells.covered(start.mask, bank.grid)
    if not guided.any():
        guided = pasted
    region = cells.grown(pasted)
    if guided.all():
        raise InputError("mask: covers the whole image, so there is nothing to fit it to; use a reference instead")
    steps = plans.edit(region, patch, stride, "guided", scales, region & ~guided, **taken_by_plan(options))
    everything = np.ones((bank.grid, bank.grid), bool)
    facts = {"mode": "harmonize", "guided_cells": int(guided.sum()), "free_cells": int((region & ~guided).sum())}
    inside = None if start.pixels is None else cells.pixels(region, len(start.pixels))
    return written(bank, start, steps, everything, n, options, facts, inside, keep_outside)
