"""GroupNorm and SiLU of channels-last images in Triton, for the decoders.

    mean, variance over the pixels and the C / G channels of a group, for each image
    y[n, p, c] = f((x[n, p, c] - mean) / sqrt(variance + eps) * weight[c] + bias[c]),  f(z) = z or z / (1 + exp(-z))

Shapes: x, y (N, P, C) float32, float16 or bfloat16, contiguous: a channels-last tensor (N, C, H, W) with P = H W.
weight, bias (C,) of the same kind. parts (N, slabs, G, 2) float32: each slab's means, and sums of squares about them.

Tiling: the pixels of an image are cut into at most 64 slabs. A program of `moments` owns one slab of one image and
reads it in tiles of TP pixels and all channels, laid out as (pixel, group GP, channel JP), both powers of two; it
merges the tiles' means and squares one after another (Chan et al. 1979), so no digits are lost where the mean is far
from 0. A program of `normalise` owns TP pixels: it merges the slabs of its image, all at once, and writes its pixels.

Traffic: x is read twice and y written once, 6 N P C bytes for 16-bit numbers; parts are 8 N slabs G bytes. Separate
GroupNorm and SiLU read three times and write twice. Of an image below some 16 MB the second read is from L2.

Numbers: float32 within; what is merged when depends on P, C and G alone, so an image has the same bits in any batch.

Limits: N P C < 2^63 with P C < 2^31 an image; GP JP <= 4096. Two launches; nothing is read back.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pixels", "slab"])
def moments(
    x_ptr, parts_ptr,
    pixels, slab,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, TP: tl.constexpr, GP: tl.constexpr, JP: tl.constexpr,
):  # fmt: skip
    """Mean and squares of the groups over slab program_id(1) of image program_id(0)."""
    image, number = tl.program_id(0), tl.program_id(1)
    columns, within = _columns(CHANNELS, GROUPS, GP, JP)
    image_ptr = x_ptr + image.to(tl.int64) * pixels * CHANNELS
    begin = number * slab
    end = tl.minimum(begin + slab, pixels)
    mean = tl.zeros((GP,), tl.float32)
    squares = tl.zeros((GP,), tl.float32)
    count = 0.0
    for p0 in range(begin, end, TP):
        rows = p0 + tl.arange(0, TP)
        live = (rows < end)[:, None] & within[None, :]
        x = tl.load(image_ptr + rows[:, None] * CHANNELS + columns[None, :], mask=live, other=0).to(tl.float32)
        more = tl.minimum(end - p0, TP).to(tl.float32) * (CHANNELS // GROUPS)
        here = _groups(x, GP, JP) / more
        apart = tl.where(live, x - _spread(here, GP, JP)[None, :], 0.0)
        total = count + more
        moved = here - mean
        squares += _groups(apart * apart, GP, JP) + moved * moved * (count * (more / total))
        mean += moved * (more / total)
        count = total
    group = tl.arange(0, GP)
    at = ((image.to(tl.int64) * tl.num_programs(1) + number) * GROUPS + group) * 2
    tl.store(parts_ptr + at, mean, mask=group < GROUPS)
    tl.store(parts_ptr + at + 1, squares, mask=group < GROUPS)


@triton.jit(do_not_specialize=["pixels", "slab", "slabs"])
def normalise(
    x_ptr, y_ptr, weight_ptr, bias_ptr, parts_ptr,
    pixels, slab, slabs, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, TP: tl.constexpr, GP: tl.constexpr, JP: tl.constexpr,
    SP: tl.constexpr, AFFINE: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """TP pixels from program_id(1) * TP on of image program_id(0)."""
    image = tl.program_id(0)
    columns, within = _columns(CHANNELS, GROUPS, GP, JP)
    each, group = tl.arange(0, SP), tl.arange(0, GP)
    there = (each < slabs)[:, None] & (group < GROUPS)[None, :]
    at = ((image.to(tl.int64) * slabs + each[:, None]) * GROUPS + group[None, :]) * 2
    means = tl.load(parts_ptr + at, mask=there, other=0.0)
    squares = tl.load(parts_ptr + at + 1, mask=there, other=0.0)
    # the last slab may be shorter
    count = tl.maximum(tl.minimum(pixels - each * slab, slab), 0).to(tl.float32)[:, None]
    mean = tl.sum(means * count, axis=0) / pixels
    moved = tl.where(there, means - mean[None, :], 0.0)
    variance = tl.sum(squares / (CHANNELS // GROUPS) + moved * moved * count, axis=0) / pixels
    scale, shift = _spread(1 / tl.sqrt(variance + eps), GP, JP), _spread(mean, GP, JP)
    rows = tl.program_id(1) * TP + tl.arange(0, TP)
    live = (rows < pixels)[:, None] & within[None, :]
    place = image.to(tl.int64) * pixels * CHANNELS + rows[:, None] * CHANNELS + columns[None, :]
    x = tl.load(x_ptr + place, mask=live, other=0).to(tl.float32)
    y = (x - shift[None, :]) * scale[None, :]
    if AFFINE:
        weight = tl.load(weight_ptr + columns, mask=within, other=0).to(tl.float32)
        bias = tl.load(bias_ptr + columns, mask=within, other=0).to(tl.float32)
        y = y * weight[None, :] + bias[None, :]
    if SILU:
        y = y / (1 + tl.exp(-y))
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=live)


@triton.jit
def _columns(CHANNELS: tl.constexpr, GROUPS: tl.constexpr, GP: tl.constexpr, JP: tl.constexpr):
    """The channel of each of the GP * JP columns, and whether there is one."""
    column = tl.arange(0, GP * JP)
    if GP * JP == CHANNELS:  # said in so many words, so that loads are wide
        return column, column < CHANNELS
    group, own = column // JP, column % JP
    return group * (CHANNELS // GROUPS) + own, (group < GROUPS) & (own < CHANNELS // GROUPS)


@triton.jit
def _groups(values, GP: tl.constexpr, JP: tl.constexpr):
    """(TP, GP * JP) -> the sums of each group (GP,)."""
    return tl.sum(tl.reshape(tl.sum(values, axis=0), (GP, JP)), axis=1)


@triton.jit
def _spread(values, GP: tl.constexpr, JP: tl.constexpr):
    """(GP,) -> one for each column (GP * JP,)."""
    return tl.reshape(tl.broadcast_to(values[:, None], (GP, JP)), (GP * JP,))
