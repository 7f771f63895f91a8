"""What a generation does, as data: scales, positions, masks and resize tables.

Random generation, guidance by a reference and region editing differ only in the `Plan` they run.
A plan knows nothing of banks, seeds or backends. Letters as in docs/method.md: M grid side of the
autoencoder, m side of a scale, P patch side, w stride, T steps of a scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lpkernel import checks
from lpkernel.arrays import host_array
from lpkernel.content import ByContent
from lpkernel.errors import InputError
from lpkernel.levels import level_axis

Bools = NDArray[np.bool_]
Ints = NDArray[np.int32]

OVERLAPS = ("replace", "fill", "cut")
STARTS = ("resize", "carry")
EDIT_MODES = ("free", "guided")
MAX_PASSES = 100
MAX_MIRROR = 8
RING = 2  # cells around a transplanted region that are compared


@dataclass(frozen=True, eq=False)
class Resize(ByContent):
    """Bilinear resize of one axis from side n to m, half-pixel centres, in 1/256ths.

    Output o blends inputs i0[o] and i1[o] with weights 256 - f[o] and f[o]; all (m,) int32.
    In two dimensions the four products of weights sum to 65536: add 32768, shift right by 16.
    """

    source: int
    target: int
    i0: Ints
    i1: Ints
    f: Ints

    @staticmethod
    def between(n: int, m: int) -> Resize:
        """The resize from side n to side m, both at least 1."""
        low, high, fraction = level_axis(n, m)
        return Resize(n, m, *(_frozen(table.astype(np.int32)) for table in (low, high, np.rint(256 * fraction))))


@dataclass(frozen=True, eq=False)
class Carry(ByContent):
    """One axis from side n to m by sources: output o takes the source of input index[o] = ((2 o + 1) n) // (2 m).

    index (m,) int32. The canvas is then made of bank cells of side m.
    """

    source: int
    target: int
    index: Ints

    @staticmethod
    def between(n: int, m: int) -> Carry:
        """The carry from side n to side m, both at least 1."""
        return Carry(n, m, _frozen(((2 * np.arange(m) + 1) * n // (2 * m)).astype(np.int32)))


@dataclass(frozen=True, eq=False)
class Scale(ByContent):
    """One raster pass at side m: T steps, each a position and two P x P masks.

    positions (T, 2) int32 are the (y, x) of the patch's corner; compare (T, P, P) bool marks the
    cells that enter the distance, write (T, P, P) bool those that are copied. `enter` brings the
    canvas to this scale from the previous one; None at the first.

    mirror (T, P, P) uint8: how many times each cell of the mirrored window, whose corner is (y, m - P - x), enters the
    distance in addition. overlap (T, 2) int32: the columns on the left and the rows on top that this pass has already
    written, across which the minimum error boundary runs; a step writes no cell that the boundary leaves to the canvas.
    """

    side: int
    enter: Resize | Carry | None
    positions: Ints
    compare: Bools
    write: Bools
    mirror: NDArray[np.uint8]
    overlap: Ints

    @property
    def resize(self) -> Resize | None:
        """`enter`, if it is a `Resize`."""
        return self.enter if isinstance(self.enter, Resize) else None

    @property
    def carry(self) -> Carry | None:
        """`enter`, if it is a `Carry`."""
        return self.enter if isinstance(self.enter, Carry) else None

    def part(self, steps: slice) -> Scale:
        """This scale with only some of its steps."""
        arrays = {name: getattr(self, name)[steps] for name in ("positions", "compare", "write", "mirror", "overlap")}
        return replace(self, **arrays)

    @cached_property
    def compared(self) -> tuple[NDArray[np.int64], ...]:
        """For each step the cells, y * m + x ascending, that enter the distance, each as often as it does."""
        patch = self.compare.shape[1]
        lists = []
        for (y, x), compare, mirror in zip(self.positions, self.compare, self.mirror, strict=True):
            counts = np.zeros((self.side, self.side), np.int64)
            counts[y : y + patch, x : x + patch] += compare
            x = self.side - patch - x
            counts[y : y + patch, x : x + patch] += mirror
            lists.append(np.repeat(np.arange(counts.size), counts.ravel()))
        return tuple(lists)

    @cached_property
    def kept(self) -> Bools:
        """(m, m) bool: cells that no step writes; they hold the starting canvas at this side."""
        kept = np.ones((self.side, self.side), bool)
        patch = self.write.shape[1]
        for (y, x), write in zip(self.positions, self.write, strict=True):
            kept[y : y + patch, x : x + patch] &= ~write
        return _frozen(kept)


class FlatPlan(NamedTuple):
    """A plan as int32 tables that a kernel can walk without Python; cells are y * side + x of their scale.

    scales (S, 5): side, first step, steps, first kept cell (in `cells`), kept cells.
    steps (T, 4): first compared cell (in `cells`), compared cells, first written cell, written cells.
    cells (.,): the cells that steps compare and write and that scales keep, each run ascending.
    resize (S, 3, M): i0, i1, f of `Resize` for the axis that enters scale s, zero beyond its side; zero at the first.
    cuts (T, 3): the patch's corner, and `overlap`: columns on the left, rows on top.
    """

    scales: Ints
    steps: Ints
    cells: Ints
    resize: Ints
    cuts: Ints


@dataclass(frozen=True, eq=False, repr=False)
class Plan(ByContent):
    """Scales of increasing side, the last at the autoencoder's grid side. Its arrays are read-only.

    `starts_known` says that the first scale compares cells of a starting canvas, so that a scan of
    this plan needs one. `first_step` is the random counter of its first step.
    """

    kind: str
    patch: int
    stride: int
    overlap: str
    scales: tuple[Scale, ...]
    starts_known: bool
    start: str = "resize"
    mirror: int = 0
    first_step: int = 0

    def __repr__(self) -> str:
        how = f"patch {self.patch}, stride {self.stride}, {self.overlap}"
        return f"Plan({self.kind}, sides {'-'.join(map(str, self.sides))}, {how}, {self.steps} steps)"

    @cached_property
    def sides(self) -> tuple[int, ...]:
        return tuple(scale.side for scale in self.scales)

    @cached_property
    def steps(self) -> int:
        """Steps over all scales; a step's index in this count, from `first_step` on, is its random counter."""
        return sum(len(scale.positions) for scale in self.scales)

    @cached_property
    def cuts(self) -> bool:
        """Whether any step leaves cells of its overlap to the canvas."""
        return any(bool(scale.overlap.any()) for scale in self.scales)

    @cached_property
    def keeps(self) -> bool:
        """Whether any scale has cells that no step writes."""
        return any(bool(scale.kept.any()) for scale in self.scales)

    @cached_property
    def mean_compared(self) -> float:
        """Cells that a step compares, on average."""
        counts = [len(cells) for scale in self.scales for cells in scale.compared]
        return sum(counts) / max(1, len(counts))

    @cached_property
    def most_compared(self) -> int:
        """Cells that a step compares, at most."""
        return max((len(cells) for scale in self.scales for cells in scale.compared), default=0)

    @cached_property
    def stages(self) -> tuple[Plan, ...]:
        """A plan with start "carry" as plans of one scale each, to be run in turn; any other plan as it is."""
        if self.start != "carry" or len(self.scales) == 1:
            return (self,)
        firsts = np.cumsum([self.first_step, *(len(scale.positions) for scale in self.scales)])
        known = [self.starts_known, *(True for _ in self.scales[1:])]
        return tuple(
            replace(self, scales=(replace(scale, enter=None),), first_step=int(first), starts_known=starts)
            for scale, first, starts in zip(self.scales, firsts[:-1], known, strict=True)
        )

    @cached_property
    def flat(self) -> FlatPlan:
        """The same plan for kernels that run it whole on a device."""
        scales: list[list[int]] = []
        steps: list[list[int]] = []
        cuts: list[list[int]] = []
        cells = [np.empty(0, np.int64)]
        resize = np.zeros((len(self.scales), 3, self.sides[-1]), np.int32)
        used = 0

        def add(run: NDArray[np.int64]) -> tuple[int, int]:
            nonlocal used
            cells.append(run)
            used += len(run)
            return used - len(run), len(run)

        for index, scale in enumerate(self.scales):
            first = len(steps)
            corners = scale.positions[:, 0].astype(np.int64) * scale.side + scale.positions[:, 1]
            for corner, compared, write in zip(corners, scale.compared, scale.write, strict=True):
                written = np.flatnonzero(write)
                written = corner + written // self.patch * scale.side + written % self.patch
                steps.append([*add(compared), *add(written)])
            cuts += np.column_stack([corners, scale.overlap]).tolist()
            scales.append([scale.side, first, len(steps) - first, *add(np.flatnonzero(scale.kept))])
            if scale.resize is not None:
                resize[index, :, : scale.side] = scale.resize.i0, scale.resize.i1, scale.resize.f
        runs = np.array(steps).reshape(-1, 4), np.concatenate(cells)
        tables = (np.array(scales), *runs, resize, np.array(cuts).reshape(-1, 3))
        return FlatPlan(*(_frozen(table.astype(np.int32)) for table in tables))


def default_stride(patch: int) -> int:
    """w = floor(P / 3 + 1/2), at least 1 (the paper, section 3)."""
    return max(1, int(patch / 3 + 0.5))


@lru_cache(maxsize=64)
def default_scales(side: int, count: int = 5) -> tuple[int, ...]:
    """Sides from 10/16 of the grid to the grid, as in the paper: 10, 12, 13, 15, 16 for M = 16."""
    sides = np.floor(np.linspace(side * 10 / 16, side, count) + 0.5).astype(int)
    return tuple(int(m) for m in np.unique(sides))


def fitting(sides: Sequence[int], patch: int) -> tuple[int, ...]:
    """The sides that a patch fits; the last one in any case."""
    return tuple(m for m in sides if m >= patch) or tuple(sides[-1:])


def random(
    side: int = 16,
    patch: int = 6,
    stride: int | None = None,
    scales: Sequence[int] | None = None,
    overlap: str = "replace",
    start: str = "resize",
    mirror: int = 0,
) -> Plan:
    """Generation from nothing: no cell is known at the first step.

    scales: increasing sides ending at `side` (M), none below P; default those of `default_scales` that a patch fits.
    overlap: "replace" overwrites the whole patch; "fill" writes only unknown cells at the first
    scale; "cut" lets a minimum error boundary decide which cells of the overlap stay (Efros and Freeman, "Image
    quilting for texture synthesis and transfer", 2001). start: what a scale after the first starts from: "resize", the
    canvas resized; "carry", the bank cells of this scale at the sources of the previous one. mirror: how many times, 0
    to 8, cells that mirror the patch and are already known enter the distance. Raises InputError.
    """
    side, patch, stride, sides, mirror = _whole_numbers(side, patch, stride, scales, mirror)
    _check_texts(overlap, start)
    sides = sides or fitting(default_scales(side), patch)
    return _whole("random", side, patch, stride, sides, overlap, False, 1, start, mirror)


def reference(
    side: int = 16,
    patch: int = 6,
    stride: int | None = None,
    scales: Sequence[int] | None = None,
    passes: int = 1,
    overlap: str = "replace",
    start: str = "resize",
    mirror: int = 0,
) -> Plan:
    """Generation guided by a canvas that starts as an encoded image: every cell is known. One scale by default.

    Each scale's raster pass is made `passes` times, 1 to 100. They are steps of the same scale, so the random
    counter runs on from pass to pass and every pass draws anew. Other options: as in `random`. Raises InputError.
    """
    if not 1 <= checks.integer("passes", passes) <= MAX_PASSES:
        raise InputError(f"passes: got {passes}, expected 1 to {MAX_PASSES}")
    side, patch, stride, sides, mirror = _whole_numbers(side, patch, stride, scales, mirror)
    _check_texts(overlap, start)
    sides = sides or (side,)
    return _whole("reference", side, patch, stride, sides, overlap, True, passes, start, mirror)


def edit(
    region: Bools,
    patch: int = 6,
    stride: int | None = None,
    mode: str = "free",
    scales: Sequence[int] | None = None,
    free: Bools | None = None,
    overlap: str = "replace",
    start: str = "resize",
    mirror: int = 0,
) -> Plan:
    """Rewriting a region of a canvas: only steps that meet the region are taken, and only its cells written.

    region: (M, M) bool. mode "free": its cells are unknown at first, so they grow from their
    surroundings; "guided": they are known, so the result stays near what is there. free: (M, M) bool, cells of a
    guided region that are unknown nevertheless (a seam to be closed). At a side m < M a cell belongs to the
    region, and is unknown, if it overlaps such a cell. Steps run in raster order, but one with nothing known to compare
    waits until there is, so that a region grows from its surroundings. One scale by default. Other options: as in
    `random`; cells outside the region do not count as overlap. Raises InputError.
    """
    region, mode = _checked_region(region), checks.text("mode", mode)
    if mode not in EDIT_MODES:
        raise InputError(f"mode: got {mode!r}, expected one of {', '.join(EDIT_MODES)}")
    side, patch, stride, sides, mirror = _whole_numbers(region.shape[0], patch, stride, scales, mirror)
    kind, unknown = f"edit-{mode}", region if mode == "free" else np.zeros_like(region)
    if free is not None:
        unknown = host_array("free", free)
        if unknown.shape != region.shape or unknown.dtype != np.bool_ or (unknown & ~region).any():
            raise InputError("free: expected a bool mask of cells of the region, of the region's shape")
        if mode != "guided":
            raise InputError(f"free: names cells of a guided region, but the mode is {mode!r}; use guided")
        kind = "edit-mixed"
    return _build(kind, side, patch, stride, sides or (side,), overlap, region, unknown, 1, start, mirror)


def grown(cells: Bools) -> Bools:
    """The cells and their eight neighbours."""
    wide = np.pad(cells, 1)
    rows = wide[:-2] | wide[1:-1] | wide[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def transplant(region: Bools) -> Plan:
    """Rewriting a region in one step, so that all of it comes from one bank image.

    region: (M, M) bool. The cells outside it within `RING` cells, along either axis, are compared; there must be
    at least one. Raises InputError.
    """
    region = _checked_region(region)
    side = len(region)
    near = region.copy()
    for _ in range(RING):
        near = grown(near)
    if not (near & ~region).any():
        raise InputError("region: holds every cell, so there is nothing around it to compare; make new images instead")
    held = [np.flatnonzero(near.any(axis=axis)) for axis in (1, 0)]
    patch = max(int(cells[-1] - cells[0]) + 1 for cells in held)
    y, x = (min(int(cells[0]), side - patch) for cells in held)
    window = np.s_[y : y + patch, x : x + patch]
    masks = (near & ~region)[window][None].copy(), region[window][None].copy()
    none = np.zeros((1, patch, patch), np.uint8), np.zeros((1, 2), np.int32)
    scale = Scale(side, None, *map(_frozen, (np.array([[y, x]], np.int32), *masks, *none)))
    return Plan("transplant", patch, patch, "replace", (scale,), True)


def _checked_region(region: Bools) -> Bools:
    region = host_array("region", region)
    if region.ndim != 2 or region.shape[0] != region.shape[1] or region.dtype != np.bool_:
        got = f"shape {region.shape} {region.dtype}"
        raise InputError(f"region: got {got}, expected a square bool mask at the grid side")
    if not region.any():
        raise InputError("region: no cell is set, so there is nothing to edit")
    return region


def _check_texts(overlap: str, start: str) -> None:
    """Raise InputError for others, before the cache of plans hashes them."""
    for name, value in (("overlap", overlap), ("start", start)):
        if type(value) is not str:
            checks.text(name, value)


def _whole_numbers(
    side: int, patch: int, stride: int | None, scales: Sequence[int] | None, mirror: int
) -> tuple[int, int, int | None, tuple[int, ...], int]:
    """The arguments with their types checked; no scales as an empty tuple. Raises InputError."""
    return (
        checks.integer("side", side),
        checks.integer("patch", patch),
        None if stride is None else checks.integer("stride", stride),
        () if scales is None else checks.integers("scales", scales),
        checks.integer("mirror", mirror),
    )


@lru_cache(maxsize=64)  # building a plan takes longer than running it on a small bank
def _whole(
    kind: str,
    side: int,
    patch: int,
    stride: int | None,
    sides: tuple[int, ...],
    overlap: str,
    all_known: bool,
    passes: int,
    start: str,
    mirror: int,
) -> Plan:
    whole = np.ones((max(side, 0),) * 2, bool)
    unknown = ~whole if all_known else whole
    return _build(kind, side, patch, stride, sides, overlap, whole, unknown, passes, start, mirror)


def _build(
    kind: str,
    side: int,
    patch: int,
    stride: int | None,
    sides: Sequence[int],
    overlap: str,
    region: Bools,
    unknown: Bools,
    passes: int,
    start: str,
    mirror: int,
) -> Plan:
    """region: cells that may be written; unknown: those of them that are not known at first; both (side, side)."""
    stride = default_stride(patch) if stride is None else stride
    sides = list(sides)
    _check(side, patch, stride, sides, overlap, start, mirror)
    scales: list[Scale] = []
    starts_known = False
    for m in sides:
        writable = _region_at(region, m)
        known = np.ones((m, m), bool) if scales else ~_region_at(unknown, m)
        starts_known = starts_known or (not scales and bool(known.any()))
        way = Carry if start == "carry" else Resize
        enter = way.between(scales[-1].side, m) if scales else None
        rule = overlap if overlap != "fill" or not scales else "replace"
        scales.append(_scale(m, patch, stride, enter, writable, known, rule, passes, mirror))
        if not len(scales[-1].positions):
            raise InputError("overlap: fill writes unknown cells only, and this plan has none; use replace or cut")
    return Plan(kind, patch, stride, overlap, tuple(scales), starts_known, start, mirror)


def _check(side: int, patch: int, stride: int, sides: list[int], overlap: str, start: str, mirror: int) -> None:
    if patch < 1:
        raise InputError(f"patch: got {patch}, expected a side of at least 1 cell")
    if stride < 1 or stride > patch:
        raise InputError(f"stride: got {stride}, expected 1 to the patch side {patch}, or cells would stay empty")
    if not sides or sides[-1] != side or any(a >= b for a, b in pairwise(sides)):
        raise InputError(f"scales: got {sides}, expected increasing sides ending at the grid side {side}")
    if patch > sides[0]:
        raise InputError(
            f"patch: got {patch}, larger than the smallest scale {sides[0]}; use a smaller patch or larger scales"
        )
    if overlap not in OVERLAPS:
        raise InputError(f"overlap: got {overlap!r}, expected one of {', '.join(OVERLAPS)}")
    if start not in STARTS:
        raise InputError(f"start: got {start!r}, expected one of {', '.join(STARTS)}")
    if not 0 <= mirror <= MAX_MIRROR:
        raise InputError(f"mirror: got {mirror}, expected 0 to {MAX_MIRROR} times")


def _offsets(m: int, patch: int, stride: int) -> list[int]:
    """0, w, 2w, ... up to m - P, and m - P itself."""
    last = m - patch
    return sorted({*range(0, last + 1, stride), last})


def _region_at(region: Bools, m: int) -> Bools:
    """Cells of an m x m grid that overlap a region cell of the full grid, in exact integers."""
    side = len(region)
    overlaps = np.zeros((m, side), bool)
    for o in range(m):
        overlaps[o, o * side // m : -(-(o + 1) * side // m)] = True
    return overlaps @ region @ overlaps.T


def _scale(
    m: int,
    patch: int,
    stride: int,
    enter: Resize | Carry | None,
    writable: Bools,
    known: Bools,
    rule: str,
    passes: int,
    mirror: int,
) -> Scale:
    known = known.copy()
    positions, compare, write, mirrored, overlap = [], [], [], [], []
    offsets, outward = _offsets(m, patch, stride), not writable.all()
    for _ in range(passes):
        written = np.zeros_like(known)
        waiting = [(y, x) for y, x in product(offsets, offsets) if writable[y : y + patch, x : x + patch].any()]
        while waiting:
            ready = (c for c in waiting if not outward or known[c[0] : c[0] + patch, c[1] : c[1] + patch].any())
            y, x = next(ready, waiting[0])
            waiting.remove((y, x))
            window = np.s_[y : y + patch, x : x + patch]
            cells = writable[window] & ~known[window] if rule == "fill" else writable[window]
            if not cells.any():
                continue
            positions.append((y, x))
            compare.append(known[window].copy())
            write.append(cells.copy())
            mirrored.append(_mirrored(known, y, x, patch) * np.uint8(mirror))
            overlap.append(_overlap(cells, written[window]) if rule == "cut" else (0, 0))
            known[window] |= cells
            written[window] |= cells
    corners, widths = (np.array(pairs, np.int32).reshape(-1, 2) for pairs in (positions, overlap))
    masks = np.array(compare), np.array(write), np.array(mirrored)
    return Scale(m, enter, *map(_frozen, (corners, *masks, widths)))


def _mirrored(known: Bools, y: int, x: int, patch: int) -> Bools:
    """The known cells of the mirrored window that the patch itself does not hold, (P, P)."""
    m = len(known)
    beside = known.copy()
    beside[y : y + patch, x : x + patch] = False
    return beside[y : y + patch, m - patch - x : m - x]


def _overlap(cells: Bools, written: Bools) -> tuple[int, int]:
    """How many columns from the left, and rows from the top, hold no cell that this pass writes for the first time."""
    fresh: Bools = cells & ~written
    left, top = (int(np.append(fresh.any(axis), True).argmax()) for axis in (0, 1))
    return left * bool(written[:, :left].any()), top * bool(written[:top].any())


def _frozen(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
