"""Named sets of the method's options (docs/method.md): "paper" as published, the others with less averaging."""

from __future__ import annotations

from dataclasses import dataclass

from lpkernel.errors import InputError
from lpkernel.plan import default_scales


@dataclass(frozen=True)
class Preset:
    """Defaults of `generate`'s options of these names. halved: two scales, M/2 and M, instead of the paper's five."""

    halved: bool
    start: str
    overlap: str
    hubness: float
    mirror: int
    match_colours: bool

    def scales(self, side: int, patch: int) -> tuple[int, ...]:
        """The grid sides for a grid of `side`: five, or M/2 and M; those that a patch fits."""
        sides = (side // 2, side) if self.halved else default_scales(side)
        return tuple(m for m in sides if m >= patch) or (side,)


PRESETS = {
    "paper": Preset(halved=False, start="resize", overlap="replace", hubness=0.0, mirror=0, match_colours=False),
    "balanced": Preset(halved=True, start="carry", overlap="cut", hubness=0.375, mirror=1, match_colours=True),
    "diverse": Preset(halved=True, start="carry", overlap="cut", hubness=0.5, mirror=1, match_colours=True),
}
DEFAULT_PRESET = "balanced"


def matches_colours(preset: Preset, given: bool | None, possible: bool) -> bool:
    """Whether colours are matched: as given, else as the preset says where the bank has colours. Raises InputError."""
    if given is None:
        return preset.match_colours and possible
    if not isinstance(given, bool):
        raise InputError(f"match_colours: got {given!r}, expected True, False or None")
    if given and not possible:
        raise InputError(
            "match_colours: got True, but the bank holds no colours of its pictures; build it again from them"
        )
    return given


def find(name: str) -> Preset:
    """The preset of a name. Raises InputError."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name]
