"""Named sets of the method's options (docs/method.md): "paper" as published, the others with less averaging."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lpkernel import checks, plan
from lpkernel.errors import InputError, short
from lpkernel.plan import Plan


@dataclass(frozen=True)
class Preset:
    """Defaults of the options of `generate` with these names. halved: two scales, M/2 and M, not the paper's five."""

    halved: bool
    start: str
    overlap: str
    hubness: float
    mirror: int
    refine: bool
    match_colours: bool

    def scales(self, side: int, patch: int) -> tuple[int, ...]:
        """The grid sides for a grid of `side`: five, or M/2 and M; only those that a patch fits."""
        sides = (side // 2, side) if self.halved else plan.default_scales(side)
        return plan.fitting(sides, patch)

    def plan(
        self,
        side: int,
        patch: int = 6,
        stride: int | None = None,
        scales: Sequence[int] | None = None,
        overlap: str | None = None,
        start: str | None = None,
        mirror: int | None = None,
    ) -> Plan:
        """The plan of random generation by the preset's options, unless others are given: see `plan.random`."""
        patch = checks.integer("patch", patch)
        return plan.random(
            side,
            patch,
            stride,
            self.scales(side, patch) if scales is None else scales,
            self.overlap if overlap is None else overlap,
            self.start if start is None else start,
            self.mirror if mirror is None else mirror,
        )


PRESETS = {
    "paper": Preset(False, "resize", "replace", hubness=0.0, mirror=0, refine=False, match_colours=False),
    "balanced": Preset(True, "carry", "cut", hubness=0.375, mirror=1, refine=True, match_colours=True),
    "diverse": Preset(True, "carry", "cut", hubness=0.5, mirror=1, refine=True, match_colours=True),
}
DEFAULT_PRESET = "balanced"
HUBNESS_PARTS = 256  # hubness is counted in 1/256ths


def hubness_parts(hubness: float) -> int:
    """A hubness in [0, 1] as backends take it. Raises InputError for other numbers."""
    if not 0 <= checks.real("hubness", hubness) <= 1:
        raise InputError(f"hubness: got {hubness}, expected 0 to 1")
    return round(HUBNESS_PARTS * hubness)


def refines(preset: Preset, given: bool | None) -> bool:
    """Whether seams are refined: as given, else as the preset says. Raises InputError."""
    return preset.refine if (checked := _checked("refine", given)) is None else checked


def matches_colours(preset: Preset, given: bool | None, possible: bool) -> bool:
    """Whether colours are matched: as given, else as the preset says where the bank has colours. Raises InputError."""
    if _checked("match_colours", given) is None:
        return preset.match_colours and possible
    if given and not possible:
        raise InputError(
            "match_colours: got True, but the bank holds no colours of its pictures; build it again from them"
        )
    return bool(given)


def _checked(name: str, given: bool | None) -> bool | None:
    return None if given is None else checks.flag(name, given, "True, False or None")


def find(name: str) -> Preset:
    """The preset of this name. Raises InputError."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset: got {short(repr(name))}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
