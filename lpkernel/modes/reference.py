"""Generation guided by a reference image (the paper's figure 1 d)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lpkernel import checks, presets
from lpkernel import plan as plans
from lpkernel.bank import Bank, as_bank
from lpkernel.errors import InputError
from lpkernel.modes.inputs import ImageLike, read_input, written
from lpkernel.pictures.images import Crop
from lpkernel.synthesis import Options, PlanOptions, Synthesis, taken_by_plan

if TYPE_CHECKING:
    from typing import Unpack

    from lpkernel.autoencoder.protocol import Autoencoder


def reference(
    bank: Bank | str | Path,
    image: ImageLike,
    autoencoder: Autoencoder | None = None,
    n: int = 16,
    strength: int = 1,
    patch: int = 6,
    stride: int | None = None,
    scales: Sequence[int] | None = None,
    crop: Crop | None = None,
    framing: str = "auto",
    preset: str = presets.DEFAULT_PRESET,
    refine: bool | None = None,
    match_colours: bool | None = None,
    **options: Unpack[Options],
) -> Synthesis:
    """New images that follow a reference: the canvas starts as the encoded image, and all of it is known.

    bank: a bank, or the path of one. image: a path, (H, W, 3) uint8, a PIL image, codes (M, M) or latents (M, M, L), or
    what `modes.inputs.read_input` made of one; `crop` and `framing` as in `alignment.framing.frame`.
    strength: raster passes, 1 to 100. Each starts from what the last one left and draws anew (the random counter
    runs on), so each moves further from the reference. One scale by default; with more, each is passed `strength`
    times. preset, refine, match_colours: as in `generate`; of the preset count overlap, hubness, mirror and these two.
    stride: by default P/3, rounded; with overlap "cut" as large as leaves an overlap of that. The reference itself is
    excluded from the allowed images when it is in the bank. `options` are those of `generate`. Source maps are the
    same on every backend and for every n. Raises InputError.
    """
    bank, defaults = as_bank(bank), presets.find(preset)
    if not 1 <= checks.integer("strength", strength) <= plans.MAX_PASSES:
        raise InputError(f"strength: got {strength}, expected 1 to {plans.MAX_PASSES} raster passes")
    of_plan: PlanOptions = {"overlap": defaults.overlap, "mirror": defaults.mirror, **taken_by_plan(options)}
    patch = checks.integer("patch", patch)
    if stride is None and of_plan["overlap"] == "cut":
        stride = max(1, patch - plans.default_stride(patch))
    steps = plans.reference(bank.grid, patch, stride, scales, strength, **of_plan)
    if options.get("hubness") is None:
        options["hubness"] = defaults.hubness
    start = read_input(bank, image, autoencoder, crop, framing=framing)
    everything = np.ones((bank.grid, bank.grid), bool)
    facts = {"mode": "reference", "strength": strength}
    refine = presets.refines(defaults, refine)
    match_colours = presets.matches_colours(defaults, match_colours, bank.colours is not None)
    return written(bank, start, steps, everything, n, options, facts, refine=refine, match_colours=match_colours)
