"""Inpainting: what may have been in a hole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lpkernel import checks
from lpkernel import plan as plans
from lpkernel.bank import Bank, as_bank
from lpkernel.errors import InputError
from lpkernel.modes import cells
from lpkernel.modes.inputs import ImageLike, MaskLike, read_input, written
from lpkernel.pictures.fill import FILL
from lpkernel.pictures.images import Crop
from lpkernel.synthesis import Options, Synthesis, taken_by_plan

if TYPE_CHECKING:
    from typing import Unpack

    from lpkernel.autoencoder.protocol import Autoencoder


def inpaint(
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
    """Several completions of an image where `mask` is set (a path, white = missing, or bool like the image;
    None: where the image's file is transparent).

    The hole is filled with averages of its surroundings before the image is resized or encoded, so nothing of what was
    in it reaches the result. Every code whose centre lies in the hole or within one cell of it is unknown; those grow
    from the others, which keep their values exactly. Several scales by default, as in random generation: on faces the
    parts then fit one another better. `keep_outside` restores the image's own pixels outside the hole, with a feathered
    edge. `image`, `crop`, `options`: as in `reference`; the image itself is excluded from the allowed images when its
    known cells are found in the bank. Raises InputError.
    """
    bank = as_bank(bank)
    start = read_input(bank, image, autoencoder, crop, mask, fill=True, framing=framing, alpha=True)
    if start.mask is None:
        raise InputError("mask: none is given; pass what is missing")
    hole = cells.near(start.mask, bank.grid)
    if hole.all():
        raise InputError("mask: the hole and one cell around it cover the whole image; make new images instead")
    sides = scales or plans.fitting(plans.default_scales(bank.grid), checks.integer("patch", patch))
    steps = plans.edit(hole, patch, stride, "free", sides, **taken_by_plan(options))
    facts = {"mode": "inpaint", "unknown_cells": int(hole.sum()), "hole_filled_with": FILL}
    return written(bank, start, steps, ~hole, n, options, facts, start.mask, keep_outside)
