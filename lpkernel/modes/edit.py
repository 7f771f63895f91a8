"""Editing a region of an image (the paper's figure 1 e)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lpkernel import checks
from lpkernel import plan as plans
from lpkernel.alignment.regions import layout_of, named_region
from lpkernel.arrays import host_array
from lpkernel.bank import Bank, as_bank
from lpkernel.errors import InputError
from lpkernel.modes import cells
from lpkernel.modes.inputs import ImageLike, Input, MaskLike, read_input, written
from lpkernel.pictures.images import Crop
from lpkernel.synthesis import Options, Synthesis, taken_by_plan

if TYPE_CHECKING:
    from typing import Unpack

    from lpkernel.autoencoder.protocol import Autoencoder

DONORS = 12  # bank images that a donor is drawn from: with 3, four variants would often be only two


def edit(
    bank: Bank | str | Path,
    image: ImageLike,
    autoencoder: Autoencoder | None = None,
    region: str | NDArray[np.bool_] | None = None,
    mask: MaskLike | None = None,
    box: Crop | None = None,
    n: int = 4,
    mode: str = "free",
    patch: int = 6,
    stride: int | None = None,
    scales: Sequence[int] | None = None,
    keep_outside: bool | None = None,
    crop: Crop | None = None,
    framing: str = "auto",
    donors: Bank | str | Path | None = None,
    donor: str | None = None,
    **options: Unpack[Options],
) -> Synthesis:
    """Variants of an image in which one region is rewritten from the bank.

    The region is one of: `region`, comma-separated names of `alignment.regions` ("eyes,mouth") or (M, M) bool cells;
    `mask`, a path (white = change) or bool of the image's height and width; `box`, pixels x0, y0, x1, y1 of the image;
    with none of them, the transparent part of the image's file. A cell belongs to it if any of its pixels does. mode
    "free": the region grows from its surroundings; "guided": it starts from what is there. Cells outside keep their
    codes or latents exactly (source -1), but the decoder looks beyond a cell's edge; `keep_outside` (the default for an
    image in pixels) therefore restores the image's own pixels outside, with a feathered edge and matched colours;
    `Synthesis.put_back` does so in the whole picture. donor: "one" copies the whole region from one bank image, so that
    both eyes are of one face; it is drawn from the k (default 12) that are nearest over two cells around the region.
    "patches" writes it patch by patch. The default is "one" for a free region given by name, unless scales or options
    of `lpkernel.plan` are given. donors: another bank to copy from, of the same autoencoder (`Bank.with_images`);
    `bank` then only determines how faces are framed. `image`, `crop`, `framing`, `options`: as in `reference`. The
    image itself is excluded from the allowed images when its other cells are found in the bank. Raises InputError.
    """
    bank = as_bank(bank)
    read = isinstance(image, Input) and image.mask is not None
    given = sum(one is not None for one in (region, mask, box)) + read
    from_file = given == 0 and isinstance(image, str | Path)
    if given != 1 and not from_file:
        raise InputError("region: give exactly one of a region, a mask and a box")
    chosen = named_region(region, bank) if isinstance(region, str) else region
    start = read_input(bank, image, autoencoder, crop, mask, box, framing=framing, alpha=from_file)
    if chosen is None:
        assert start.mask is not None
        chosen = cells.touched(start.mask, bank.grid)
    chosen = host_array("region", chosen)
    if chosen.shape != (bank.grid, bank.grid):
        raise InputError(
            f"region: got shape {chosen.shape}, expected names in one text, as in 'eyes,mouth', or the bank's grid "
            f"{(bank.grid, bank.grid)}"
        )
    of_plan = taken_by_plan(options)
    donor = None if donor is None else checks.text("donor", donor)
    if donor is None:
        donor = "one" if isinstance(region, str) and mode == "free" and not (scales or of_plan) else "patches"
    if donor == "one":
        if mode != "free" or scales or of_plan:
            raise InputError(
                'donor: "one" copies a free region in one step; leave mode "guided", scales, overlap, start, mirror out'
            )
        steps = plans.transplant(chosen)
        options.setdefault("k", DONORS)
    elif donor == "patches":
        steps = plans.edit(chosen, patch, stride, mode, scales, **of_plan)
    else:
        raise InputError(f'donor: got {donor!r}, expected "one" or "patches"')
    known = np.ones_like(chosen) if mode == "guided" else ~chosen
    source = bank if donors is None else as_bank(donors)
    inside = start.mask
    if inside is None and start.pixels is not None:
        inside = cells.pixels(chosen, len(start.pixels))
    facts: dict[str, Any] = {"mode": f"edit-{mode}", "donor": donor, "region_cells": int(chosen.sum())}
    if isinstance(region, str):
        facts |= {"region": region, "region_layout": layout_of(bank).name}
    else:
        facts["region"] = start.marked or "cells"
    return written(source, start, steps, known, n, options, facts, inside, keep_outside)
