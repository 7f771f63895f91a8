"""What a decoder does between its convolutions, for channels-last images, in Triton.

GroupNorm and SiLU, with the bias of the convolution before it:

    z = x[n, p, c] + before[c];  mean, variance of z over the pixels and the C / G channels of a group, for each image
    y[n, p, c] = f((z - mean) / sqrt(variance + eps) * weight[c] + bias[c]),  f(z) = z or z / (1 + exp(-z))

The end of a residual block, y = x + first[c] + second[c] + residual, rounded once; and that of a folded upsampling
(lpkernel/autoencoder/upsampling.py), whose phases are put in their places on the way:

    y[n, (2 i + a, 2 j + b), c] = x[n, (i + a, j + b), (2 a + b) C + c] + first[c]

Shapes: x, y, residual (N, P, C) float32, float16 or bfloat16, contiguous: a channels-last tensor (N, C, H, W) with
P = H W; phases (N, (H/2 + 1) (W/2 + 1), 4 C). Channel vectors (C,) of the same kind. float32: parts (N, slabs, 2, C),
each slab's means and sums of squares about them; affine (N, 2, C), what a channel is multiplied by and what is added.

Tiling: the pixels of an image are cut into slabs. A program of `moments` owns one slab and reads it in tiles of TP
pixels by all channels (CP columns, a power of two), the next tile while it works on one. Every number of the tile has
a mean and squares of its own, updated by the one in its place in the next tile (Welford 1962), so there is no exchange
between threads and no digits are lost where the mean is far from 0; at the end the TP rows become one (Chan et al.
1979). `moments` may first add biases and a residual, and write what comes of it. `affine` merges the slabs of one group
of one image, all at once; a bias before it moves the means and nothing else. `normalise` is one multiply and add.

Traffic: x is read twice and y written once, 6 N P C bytes for 16-bit numbers; where `moments` ends a residual block or
an upsampling, the first of these reads is its own. Images are read backwards in `moments` and forwards in `normalise`,
so that each begins with what the one before left in L2.

Numbers: float32 within; what is merged when depends on P, C and G alone, so an image has the same bits in any batch.

Limits: P C < 2^31 an image, phases included; CP <= 4096. Nothing is read back.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["pixels", "slab", "width"])
def moments(
    x_ptr, y_ptr, residual_ptr, first_ptr, second_ptr, parts_ptr,
    pixels, slab, width,
    CHANNELS: tl.constexpr, CP: tl.constexpr, TP: tl.constexpr,
    RESIDUAL: tl.constexpr, BIASES: tl.constexpr, PHASES: tl.constexpr,
):  # fmt: skip
    """Means and squares of the channels over a slab of an image of y = x + first + second + residual.

    BIASES: 0, 1 or 2 of first and second. y, which may be x, is written if it differs from x. PHASES: x holds phases;
    `width` is y's.
    """
    image = tl.num_programs(1) - 1 - tl.program_id(1)
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    start = image.to(tl.int64) * pixels * CHANNELS
    if PHASES:
        x_ptr += image.to(tl.int64) * (pixels // width // 2 + 1) * (width // 2 + 1) * 4 * CHANNELS
    else:
        x_ptr += start
    begin = number * slab
    end = tl.minimum(begin + slab, pixels)
    row, column = tl.arange(0, TP), tl.arange(0, CP)
    added = tl.zeros((CP,), tl.float32)
    if BIASES > 0:
        added += tl.load(first_ptr + column, mask=column < CHANNELS, other=0).to(tl.float32)
    if BIASES > 1:
        added += tl.load(second_ptr + column, mask=column < CHANNELS, other=0).to(tl.float32)
    mean = tl.zeros((TP, CP), tl.float32)
    squares = tl.zeros((TP, CP), tl.float32)
    count = 0.0
    x = _taken(x_ptr, begin + row, end, width, CHANNELS, CP, PHASES)
    if RESIDUAL:
        residual = _load(residual_ptr + start, begin + row, end, CHANNELS, CP)
    for p0 in range(begin, end, TP):
        value = x.to(tl.float32)
        x = _taken(x_ptr, p0 + TP + row, end, width, CHANNELS, CP, PHASES)
        if BIASES > 0:
            value += added[None, :]
        if RESIDUAL:
            value += residual.to(tl.float32)
            residual = _load(residual_ptr + start, p0 + TP + row, end, CHANNELS, CP)
        if RESIDUAL or BIASES > 0 or PHASES:
            rounded = value.to(y_ptr.dtype.element_ty)
            _store(y_ptr + start, rounded, p0 + row, end, CHANNELS, CP)
            value = rounded.to(tl.float32)
        count += 1.0
        apart = tl.where((p0 + row < end)[:, None], value - mean, 0.0)
        mean += apart * (1.0 / count)
        squares += apart * (value - mean)
    of_row = tl.maximum((end - begin - row + TP - 1) // TP, 0).to(tl.float32)[:, None]
    centre = tl.sum(mean * of_row, axis=0) / (end - begin)
    moved = mean - centre[None, :]
    total = tl.sum(squares + moved * moved * of_row, axis=0)
    at = (image.to(tl.int64) * tl.num_programs(0) + number) * 2 * CHANNELS + column
    tl.store(parts_ptr + at, centre, mask=column < CHANNELS)
    tl.store(parts_ptr + at + CHANNELS, total, mask=column < CHANNELS)


@triton.jit(do_not_specialize=["pixels", "slab", "slabs"])
def affine(
    parts_ptr, affine_ptr, weight_ptr, bias_ptr, before_ptr,
    pixels, slab, slabs, eps,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, JP: tl.constexpr, SP: tl.constexpr,
    AFFINE: tl.constexpr, BEFORE: tl.constexpr,
):  # fmt: skip
    """What the channels of group program_id(0) of image program_id(1) are multiplied by, and what is added."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    each, own = tl.arange(0, SP), tl.arange(0, JP)
    channel, within = group * (CHANNELS // GROUPS) + own, own < CHANNELS // GROUPS
    there = (each < slabs)[:, None] & within[None, :]
    at = (image * slabs + each[:, None]) * 2 * CHANNELS + channel[None, :]
    means = tl.load(parts_ptr + at, mask=there, other=0.0)
    squares = tl.load(parts_ptr + at + CHANNELS, mask=there, other=0.0)
    before = tl.zeros((JP,), tl.float32)
    if BEFORE:
        before += tl.load(before_ptr + channel, mask=within, other=0).to(tl.float32)
        means += before[None, :]
    # the last slab may be shorter
    count = tl.maximum(tl.minimum(pixels - each * slab, slab), 0).to(tl.float32)[:, None]
    numbers = pixels.to(tl.float32) * (CHANNELS // GROUPS)
    mean = tl.sum(tl.sum(means * count, axis=0), axis=0) / numbers
    moved = tl.where(there, means - mean, 0.0)
    variance = tl.sum(tl.sum(squares + moved * moved * count, axis=0), axis=0) / numbers
    scale = tl.zeros((JP,), tl.float32) + 1 / tl.sqrt(variance + eps)
    shift = before - mean
    if AFFINE:
        scale *= tl.load(weight_ptr + channel, mask=within, other=0).to(tl.float32)
        shift = shift * scale + tl.load(bias_ptr + channel, mask=within, other=0).to(tl.float32)
    else:
        shift *= scale
    tl.store(affine_ptr + image * 2 * CHANNELS + channel, scale, mask=within)
    tl.store(affine_ptr + image * 2 * CHANNELS + CHANNELS + channel, shift, mask=within)


@triton.jit(do_not_specialize=["pixels", "slab"])
def normalise(
    x_ptr, y_ptr, affine_ptr,
    pixels, slab,
    CHANNELS: tl.constexpr, CP: tl.constexpr, TP: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """y = f(x scale + shift) for slab program_id(0) of image program_id(1)."""
    image = tl.program_id(1).to(tl.int64)
    start = image * pixels * CHANNELS
    row, column = tl.arange(0, TP), tl.arange(0, CP)
    at = image * 2 * CHANNELS + column
    scale = tl.load(affine_ptr + at, mask=column < CHANNELS, other=0.0)
    shift = tl.load(affine_ptr + at + CHANNELS, mask=column < CHANNELS, other=0.0)
    begin = tl.program_id(0) * slab
    end = tl.minimum(begin + slab, pixels)
    for p0 in range(begin, end, TP):
        y = _load(x_ptr + start, p0 + row, end, CHANNELS, CP).to(tl.float32) * scale[None, :] + shift[None, :]
        if SILU:
            y = y / (1 + tl.exp(-y))
        _store(y_ptr + start, y.to(y_ptr.dtype.element_ty), p0 + row, end, CHANNELS, CP)


@triton.jit
def _load(x_ptr, pixel, end, CHANNELS: tl.constexpr, CP: tl.constexpr):
    """All channels of some pixels, 0 from `end` on."""
    column = tl.arange(0, CP)[None, :]
    live = (pixel < end)[:, None]
    if CP != CHANNELS:  # a mask by columns would make loads narrow
        live = live & (column < CHANNELS)
    return tl.load(x_ptr + pixel[:, None] * CHANNELS + column, mask=live, other=0)


@triton.jit
def _taken(x_ptr, pixel, end, width, CHANNELS: tl.constexpr, CP: tl.constexpr, PHASES: tl.constexpr):
    """As `_load`; with PHASES the pixels of an image `width` wide, each from its phase."""
    if PHASES:
        down, right = pixel // width, pixel % width
        place = ((down + 1) // 2 * (width // 2 + 1) + (right + 1) // 2) * 4 + down % 2 * 2 + right % 2
        column = tl.arange(0, CP)[None, :]
        live = (pixel < end)[:, None]
        if CP != CHANNELS:
            live = live & (column < CHANNELS)
        return tl.load(x_ptr + place[:, None] * CHANNELS + column, mask=live, other=0)
    return _load(x_ptr, pixel, end, CHANNELS, CP)


@triton.jit
def _store(y_ptr, y, pixel, end, CHANNELS: tl.constexpr, CP: tl.constexpr):
    """As `_load` reads."""
    column = tl.arange(0, CP)[None, :]
    live = (pixel < end)[:, None]
    if CP != CHANNELS:
        live = live & (column < CHANNELS)
    tl.store(y_ptr + pixel[:, None] * CHANNELS + column, y, mask=live)
