"""Packed keys in Triton: exact selection, and the draw.

A key is (distance << 32) | index in int64, so the smaller key is the nearer image and, of equal ones, the lower index:
a total order, the same for any tiling. Distances that have an offset may be negative, and so are their keys. float32
distances >= 0 enter by their bits, NaN after infinity. Unused slots hold EMPTY_KEY - slot, all different, above every
key of an image; their index, the low word, is negative.

Selection keeps the K smallest keys of a row in registers and inserts while a tile's minimum is below the largest kept.
The expected number of insertions is K (1 + ln(A / K)) over the whole bank, of which all but the first K cost one
comparison a tile when they do not happen. It needs no more than min and max of int64, which every target and the
interpreter have; a bitonic sort (tl.sort, tl.topk) of every tile would cost more than the distances for K <= 16,
compiles ten times as long, and its exclusive-or reduction takes the interpreter minutes.
"""

from __future__ import annotations

import triton
import triton.language as tl

EMPTY_KEY = tl.constexpr(0x7FFFFFFFFFFFFFFF)
NAN_BITS = tl.constexpr(0x7FC00000)


@triton.jit
def pack_integers(distances, indices):
    """int32 distances and int32 indices >= 0 -> int64 keys."""
    return (distances.to(tl.int64) << 32) | indices.to(tl.int64)


@triton.jit
def pack_floats(distances, indices):
    """float32 distances >= 0, infinite or NaN."""
    bits = tl.where(distances == distances, distances.to(tl.int32, bitcast=True), NAN_BITS)
    return pack_integers(bits, indices)


@triton.jit
def key_index(keys):
    """int32; negative where the slot is empty."""
    return keys.to(tl.int32)


@triton.jit
def key_distance(keys):
    """int32, INT32_MAX where the slot is empty."""
    return (keys >> 32).to(tl.int32)


@triton.jit
def no_keys(ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """(ROWS, SLOTS) empty slots."""
    return tl.full((ROWS, SLOTS), EMPTY_KEY, tl.int64) - tl.arange(0, SLOTS).to(tl.int64)[None, :]


@triton.jit
def keep_smallest(best, keys):
    """The smallest of best (rows, K) and keys (rows, t), all different but EMPTY_KEY, in no order: (rows, K)."""
    worst = tl.max(best, axis=1)
    nearest = tl.min(keys, axis=1)
    while tl.max((nearest < worst).to(tl.int32), axis=0) > 0:
        enters = (nearest < worst)[:, None]
        best = tl.where((best == worst[:, None]) & enters, nearest[:, None], best)
        keys = tl.where(keys == nearest[:, None], EMPTY_KEY, keys)
        worst = tl.max(best, axis=1)
        nearest = tl.min(keys, axis=1)
    return best


@triton.jit
def key_of_rank(keys, rank):
    """The key (rows,) with `rank` (rows,) int32 smaller ones among keys (rows, t)."""
    found = tl.min(keys, axis=1)
    while tl.max(rank, axis=0) > 0:
        keys = tl.where((keys == found[:, None]) & (rank > 0)[:, None], EMPTY_KEY, keys)
        found = tl.min(keys, axis=1)
        rank = tl.maximum(rank - 1, 0)
    return found


@triton.jit
def philox(image, step, key_low, key_high):
    """First word of Philox 4x32-10 for the counter (image, step, 0, 0), as uint64 below 2^32 (see lpkernel.philox)."""
    word: tl.constexpr = 0xFFFFFFFF
    c0 = image.to(tl.uint64) & word
    c1 = c0 * 0 + (step.to(tl.uint64) & word)
    c2 = c0 * 0
    c3 = c0 * 0
    k0 = key_low.to(tl.uint64) & word
    k1 = key_high.to(tl.uint64) & word
    for _ in tl.static_range(10):
        left = c0 * 0xD2511F53
        right = c2 * 0xCD9E8D57
        c0 = (right >> 32) ^ c1 ^ k0
        c1 = right & word
        c2 = (left >> 32) ^ c3 ^ k1
        c3 = left & word
        k0 = (k0 + 0x9E3779B9) & word
        k1 = (k1 + 0xBB67AE85) & word
    return c0


@triton.jit
def pick(u, count):
    """Index in [0, count) that the word u draws: (u * count) >> 32."""
    return ((u * count.to(tl.uint64)) >> 32).to(tl.int32)
