"""Named sets of the method's options (docs/method.md): "paper" as published, the others with less averaging."""

from __future__ import annotations

from dataclasses import dataclass

from lpkernel.errors import InputError
from lpkernel.plan import default_scales


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
        sides = (side // 2, side) if self.halved else default_scales(side)
        return tuple(m for m in sides if m >= patch) or (side,)


PRESETS = {
    "paper": Preset(False, "resize", "replace", hubness=0.0, mirror=0, refine=False, match_colours=False),
    "balanced": Preset(True, "carry", "cut", hubness=0.375, mirror=1, refine=True, match_colours=True),
    "diverse": Preset(True, "carry", "cut", hubness=0.5, mirror=1, refine=True, match_colours=True),
}
DEFAULT_PRESET = "balanced"


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
    if given is not None and not isinstance(given, bool):
        raise InputError(f"{name}: got {given!r}, expected True, False or None")
    return given


def find(name: str) -> Preset:
    """The preset of this name. Raises InputError."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
