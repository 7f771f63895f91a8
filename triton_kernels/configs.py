"""Launch configurations as data: no autotuning at run time, so that a result costs the same in every process.

Keyed by family ("cuda" with warps of 32, "hip" with waves of 64), domain and key slots. Reasons, all arithmetic, none
measured: a program keeps TN * TB int32 distances and int64 keys in registers, 3 of them a pair; at 4 to 16 pairs a
thread that is at most 48 of the 255, and leaves room for UNROLL cells of loads in flight. Codes share only 2 bytes of
bank a pair between images, so TN = 1 and a long TB; latents share 32, and tl.dot wants 16 rows, so TN = 16. A bank that
is smaller than a tile gets the small tile. The results do not depend on any of this.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

SLOTS = (4, 16, 128)  # key slots a row: the smallest that holds K is taken
MOST_NEIGHBOURS = SLOTS[-1]
MERGED = (64, 512, 2048)  # keys of an image that `finish` and the merge of masked_topk hold at once
DOT_LIMIT = 1023  # largest magnitude for which 16 products of float16 sum exactly in float32
DOT_IMAGES, DOT_BANK = 4, 512  # images and bank images from which the dot product's tile pays
PROGRAMS = 2  # a multiprocessor, that slabs of the bank aim at


@dataclass(frozen=True)
class Tile:
    """Of the scan: images and bank images of a tile, loop unrolling, cells copied at a time, warps, stages."""

    images: int
    bank: int
    unroll: int
    cells: int
    warps: int
    stages: int = 1


class Search(NamedTuple):
    """Of masked_topk: queries, bank rows and columns of a tile, warps, stages."""

    queries: int
    rows: int
    columns: int
    warps: int
    stages: int = 1


CODES, LATENTS, DOT = "codes", "latents", "latents-dot"

_SMALL_CODES, _CODES = Tile(1, 64, 4, 64, 1), Tile(1, 1024, 4, 64, 8)
_LATENTS = Tile(1, 256, 2, 64, 4)

# (family, domain, key slots) -> tiles: the first whose bank tile holds the bank, else the last. The sizes keep every
# kernel free of spills on sm_80, 90, 100 and gfx942.
SCAN: dict[tuple[str, str, int], tuple[Tile, ...]] = {}
for _slots in SLOTS:
    SCAN["cuda", CODES, _slots] = SCAN["hip", CODES, _slots] = (_SMALL_CODES, _CODES)
    SCAN["cuda", LATENTS, _slots] = (Tile(1, 64, 4, 64, 2), _LATENTS)
    SCAN["hip", LATENTS, _slots] = (Tile(1, 64, 4, 64, 1), _LATENTS)
    SCAN["cuda", DOT, _slots] = SCAN["hip", DOT, _slots] = (Tile(16, 128 if _slots < 128 else 64, 1, 8, 4),)

# (family, key slots) -> the search of masked_topk. More slots, fewer queries: (queries, slots) int64 keys are kept.
TOPK: dict[tuple[str, int], Search] = {
    (family, slots): Search(8, 64, 8, 4) for family in ("cuda", "hip") for slots in SLOTS[:2]
}
TOPK["cuda", 128] = Search(4, 32, 8, 4)  # 64 rows would spill on sm_100
TOPK["hip", 128] = Search(4, 64, 8, 4)
MERGE_COLUMNS = 8
ENTER_CELLS = 32
FINISH_CELLS = 64
CUT = {8: 1, 16: 4}  # patch side that `stitch` holds -> warps: at most 64 values a thread of 8 channels
MOST_CUT = max(CUT)
NORM_VALUES, NORM_WARPS = 2048, 4  # of a tile of `moments`: 16 numbers a thread, as many means and squares
PIXEL_VALUES = 2 * NORM_VALUES  # of a tile of `normalise`: four loads of 16 bytes in flight, of 16 bits
NORM_SLABS = 256  # of an image at most: with a few images enough programs for a GPU
MERGED_VALUES = 4096  # slabs by channels of a group, as powers of two, that `affine` holds
NORM_COLUMNS = 4096  # channels at most, as a power of two
# (channels, groups) that are compiled ahead of time: of the VQ-GANs and KL autoencoders in use, and of the embedded one
NORMS = ((128, 32), (256, 32), (512, 32), (288, 8), (160, 8), (64, 8))


class Norm(NamedTuple):
    """Of a GroupNorm: channels, and those of a group, as powers of two; pixels of a tile; most slabs."""

    columns: int
    own: int
    pixels: int
    slabs: int


def norm(channels: int, groups: int) -> Norm | None:
    """The tiles of a GroupNorm; None where a pixel does not fit in one."""
    columns, own = power(channels), power(channels // groups)
    if columns > NORM_COLUMNS:
        return None
    return Norm(columns, own, max(1, NORM_VALUES // columns), min(NORM_SLABS, MERGED_VALUES // own))


def pixel_tile(columns: int) -> int:
    """Pixels of a tile of `normalise`."""
    return max(1, PIXEL_VALUES // columns)


def norm_slabs(pixels: int, tile: Norm) -> tuple[int, int]:
    """Pixels of a slab, whole tiles of either size, and slabs of an image, none empty."""
    least = max(tile.pixels, pixel_tile(tile.columns))
    slab = -(-pixels // (least * tile.slabs)) * least
    return slab, -(-pixels // slab)


def search_slots(k: int, integer: bool) -> int:
    """Key slots of a search: where it is screened, one to spare shows that no other row is as near."""
    return slots_for(k if integer else min(k + 1, MOST_NEIGHBOURS))


def slots_for(k: int) -> int:
    """Key slots that hold k neighbours. Raises ValueError beyond MOST_NEIGHBOURS."""
    return _least(SLOTS, k)


def merged_for(count: int) -> int:
    """Room for `count` keys in a merge."""
    return _least(MERGED, count)


def _least(sizes: tuple[int, ...], count: int) -> int:
    for size in sizes:
        if count <= size:
            return size
    raise ValueError(f"{count} exceeds {sizes[-1]}")


@dataclass(frozen=True)
class Launch:
    """How a scan runs: its tile, with tl.dot or not, the slabs of the bank (1: `walk`), key slots."""

    tile: Tile
    dot: bool
    slabs: int
    slots: int

    def slab(self, allowed: int) -> int:
        """Bank images of a slab: whole tiles."""
        return slab(allowed, self.tile.bank, self.slabs)


def choose(
    family: str,
    in_codes: bool,
    images: int,
    allowed: int,
    k: int,
    largest: int,
    multiprocessors: int,
    cuts: bool = False,
) -> Launch:
    """The launch of a scan of `images` over `allowed` bank images whose values are at most `largest` in magnitude.

    A bank of one tile, or a batch that fills the device by itself, is walked. Otherwise the bank is cut so that the
    programs of a step are PROGRAMS a multiprocessor, as far as its tiles and the merge allow. cuts: the plan has
    boundaries, so every step is a `search`, which there is for the last tile only.
    """
    dot = not in_codes and images >= DOT_IMAGES and allowed >= DOT_BANK and largest <= DOT_LIMIT
    slots = slots_for(k)
    tiles = SCAN[family, CODES if in_codes else DOT if dot else LATENTS, slots]
    tile = next((tile for tile in tiles if tile.bank >= allowed and not cuts), tiles[-1])
    rows = -(-images // tile.images)
    wanted = 1 if rows >= multiprocessors else -(-PROGRAMS * multiprocessors // rows)
    return Launch(tile, dot, cut(allowed, tile.bank, wanted, slots), slots)


def cut(rows: int, tile: int, wanted: int, slots: int) -> int:
    """Slabs of whole tiles, about as many as wanted, none empty, whose keys one merge holds."""
    tiles = max(1, -(-rows // tile))
    slabs = max(1, min(wanted, tiles, MERGED[-1] // slots))
    return -(-tiles // -(-tiles // slabs))


def slab(rows: int, tile: int, slabs: int) -> int:
    """Rows of a slab: whole tiles."""
    return -(-rows // (tile * slabs)) * tile


Shipped = tuple[str, Any, dict[str, str], dict[str, Any], int, int]


def shipped(family: str = "cuda", width: int = 16) -> list[Shipped]:
    """Every kernel configuration that can run for banks of `width` channels, for compiling ahead of time.

    Entries: (name, kernel, signature, constexprs, num_warps, num_stages). Needs triton.
    """
    return [*_scan_kernels(family, width), *_topk_kernels(family), *_norm_kernels()]


def _scan_kernels(family: str, width: int) -> Iterator[Shipped]:
    from . import scan

    for (of, domain, slots), tiles in SCAN.items():
        for tile in tiles if of == family else ():
            w = 1 if domain == CODES else width
            shape = {"W": w, "TN": tile.images, "TB": tile.bank, "KP": slots}
            how = {"DOT": domain == DOT, "UNROLL": tile.unroll}
            copy = {"WP": power(w), "TC": tile.cells}
            label = f"{domain}-{tile.images}x{tile.bank}-k{slots}"
            yield _entry(f"walk-{label}", scan.walk, shape | how | copy, tile.warps, tile.stages)
            if tile == tiles[-1]:
                yield _entry(f"search-{label}", scan.search, shape | how, tile.warps, tile.stages)
    for w in (1, width):
        one = {"W": w, "WP": power(w), "TC": FINISH_CELLS}
        for slots in SLOTS:
            for merged in MERGED:
                if merged >= slots:
                    entry = one | {"KP": slots, "SLOTS": merged}
                    yield _entry(f"finish-w{w}-k{slots}-{merged}", scan.finish, entry, finish_warps(merged), 1)
        for room, warps in CUT.items():
            yield _entry(f"stitch-w{w}-p{room}", scan.stitch, one | {"PP": room}, warps, 1)
        for first in (True, False) if w > 1 else (True,):
            entry = one | {"TC": ENTER_CELLS, "FIRST": first}
            yield _entry(f"enter-w{w}-{'first' if first else 'resize'}", scan.enter, entry, 1, 1)


def _topk_kernels(family: str) -> Iterator[Shipped]:
    from . import topk

    for (of, slots), tile in TOPK.items():
        for integer in (False, True) if of == family else ():
            for masked in (False, True):
                # With weights the masked ones alone, which take no fewer registers.
                for weighted, redo in itertools.product((False, True), repeat=2):
                    if (weighted and not masked) or (integer and (weighted or redo)):
                        continue
                    kind = f"{'int16' if integer else 'float32'}{'-masked' if masked else ''}"
                    kind += f"{'-weighted' if weighted else ''}-k{slots}{'-redo' if redo else ''}"
                    base = {"KP": slots, "INTEGER": integer, "MASKED": masked, "WEIGHTED": weighted, "REDO": redo}
                    shape = {"TQ": tile.queries, "TB": tile.rows, "TD": tile.columns, "CANDIDATES": True}
                    yield _entry(f"topk-{kind}", topk.search, base | shape, tile.warps, tile.stages)
                    for merged in MERGED:
                        if merged >= slots:
                            entry = base | {"SLOTS": merged, "TD": MERGE_COLUMNS}
                            yield _entry(f"topk-merge-{kind}-{merged}", topk.merge, entry, finish_warps(merged), 1)


def _norm_kernels() -> Iterator[Shipped]:
    from . import norm as kernels

    for channels, groups in NORMS:
        tile = norm(channels, groups)
        assert tile is not None
        shape = {"CHANNELS": channels, "CP": tile.columns}
        small, large = shape | {"TP": tile.pixels}, shape | {"TP": pixel_tile(tile.columns)}
        merge = {"CHANNELS": channels, "GROUPS": groups, "JP": tile.own, "SP": tile.slabs}
        for label, kernel, constexprs in (
            ("moments", kernels.moments, small | {"RESIDUAL": False, "BIASES": 0, "PHASES": False}),
            ("moments-biased", kernels.moments, small | {"RESIDUAL": False, "BIASES": 1, "PHASES": False}),
            ("moments-residual", kernels.moments, small | {"RESIDUAL": True, "BIASES": 2, "PHASES": False}),
            ("moments-phases", kernels.moments, small | {"RESIDUAL": False, "BIASES": 1, "PHASES": True}),
            ("affine", kernels.affine, merge | {"AFFINE": True, "BEFORE": True}),
            ("normalise", kernels.normalise, large | {"SILU": True}),
        ):
            signature = {
                name: "constexpr" if name in constexprs else NORM_TYPES.get(name, "i32") for name in kernel.arg_names
            }
            yield f"norm-{label}-{channels}-{groups}", kernel, signature, constexprs, NORM_WARPS, 1


NORM_TYPES = {
    **dict.fromkeys(
        ("x_ptr", "y_ptr", "residual_ptr", "first_ptr", "second_ptr", "weight_ptr", "bias_ptr", "before_ptr"), "*bf16"
    ),
    **dict.fromkeys(("parts_ptr", "affine_ptr"), "*fp32"),
    "eps": "fp32",
}


def finish_warps(merged: int) -> int:
    """Warps of a program that merges this many keys."""
    return {64: 1, 512: 4, 2048: 4}[merged]


def power(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << max(0, number - 1).bit_length()


POINTERS = {
    "images_ptr": "*i32",
    "seed_ptr": "*i32",
    "table_ptr": "*i32",
    "candidates_ptr": "*i32",
    "sources_ptr": "*i32",
    "steps_ptr": "*i32",
    "cells_ptr": "*i32",
    "offsets_ptr": "*i32",
    "chosen_ptr": "*i32",
    "resize_ptr": "*i32",
    "keys_ptr": "*i64",
    "indices_ptr": "*i64",
    "kept_ptr": "*u8",
    "mask_ptr": "*u8",
    "allowed_ptr": "*u8",
    "flags_ptr": "*u8",
    "row_weights_ptr": "*fp64",
    "range_ptr": "*fp64",
}


def _entry(name: str, kernel: Any, constexprs: dict[str, Any], warps: int, stages: int) -> Shipped:
    integer = constexprs.get("INTEGER", True)
    content = "*i16" if integer else "*fp32"
    signature = {}
    for argument in kernel.arg_names:
        if argument in constexprs:
            signature[argument] = "constexpr"
        elif argument == "distances_ptr":
            signature[argument] = "*i32" if integer else "*fp32"
        else:
            signature[argument] = POINTERS.get(argument, content) if argument.endswith("_ptr") else "i32"
    return name, kernel, signature, constexprs, warps, stages
