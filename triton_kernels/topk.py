"""masked_topk in Triton: masked squared L2 distance and the K nearest, fused.

    distance(q, b) = sum over d with mask[q, d] of (queries[q, d] - bank[b, d])^2

Shapes: queries (Q, D), bank (B, D) float32 or int16, rows `*_stride` apart, columns adjacent; mask (Q or 1, D) uint8,
mask_stride 0 when shared; allowed (B,) uint8; weights (B,) float64 and range (2,) float64, the least and the largest of
them (WEIGHTED, float32 alone); distances (Q, K) float32 or int32 and indices (Q, K) int64.

Tiling: a program of `search` owns TQ queries and a slab of the bank, streams it in tiles of TB rows and TD columns, and
leaves the slab's KP smallest keys in keys (Q, slabs, KP). `merge` owns one query. No (Q, B) matrix exists; traffic is
B * D values for each TQ queries, and slabs * KP keys a query.

Numbers: int16 differences are squared and added in int32, exact (the caller has checked that they fit). float32 ones
are summed directly, TD columns in float32 and these sums in float64, so a screened distance is within about 5e-7 of
the exact one for any D; the survivors are measured again in float64 by `merge`, and what is returned is the float32
rounding of that, in its order, ties to the lowest index. Masked entries are replaced before they are squared, so their
NaN or infinity never counts.

Near-ties: K is below KP, and a row that is not among the KP is no nearer than the last of them, less 5e-7. `merge`
flags a query whose K-th exact distance is not nearer than that, and both kernels run once more (REDO), for flagged
queries alone, in float64. Without a flag these two launches end at once; nothing is read back to decide. K = KP = 128
always runs twice.

Small distances: a square that underflows is off by 2^-150 at most, so 5e-7 holds from D * 2^-127 on; a query whose
KP-th distance is below twice that is flagged, too.

Weights: what is ranked is the float32 rounding of weight times sum, a product in float64. A row whose sum underflows or
overflows float32 may then be anywhere below the largest weight * D * 2^-126 or above the least * 2^126; a query whose
KP-th is there is flagged, too.

Limits: K <= 128, B < 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .keys import (
    EMPTY_KEY,
    keep_smallest,
    key_distance,
    key_index,
    no_keys,
    pack_floats,
    pack_integers,
)

INTEGERS = ["queries", "bank", "width", "mask_stride", "slab", "slabs", "k"]
NEARER = tl.constexpr(1 - 1e-6)  # a distance below this times a screened one is the nearer of both
OVERFLOW = tl.constexpr(2.0**126)
UNDERFLOW = tl.constexpr(2.0**-126)  # a column's part of the distance below which a query is done once more


@triton.jit(do_not_specialize=INTEGERS)
def search(
    queries_ptr, bank_ptr, mask_ptr, allowed_ptr, row_weights_ptr, keys_ptr, flags_ptr,
    queries, bank, width, query_stride, bank_stride, mask_stride, slab, slabs,
    TQ: tl.constexpr, TB: tl.constexpr, TD: tl.constexpr, KP: tl.constexpr,
    INTEGER: tl.constexpr, MASKED: tl.constexpr, CANDIDATES: tl.constexpr, WEIGHTED: tl.constexpr, REDO: tl.constexpr,
):  # fmt: skip
    """The KP smallest keys of slab program_id(1) for the TQ queries of program_id(0)."""
    rows = tl.program_id(0) * TQ + tl.arange(0, TQ)
    live = rows < queries
    if REDO:
        live = live & (tl.load(flags_ptr + rows, mask=live, other=0) != 0)
    ours_ptr = queries_ptr + rows.to(tl.int64)[None, :] * query_stride
    weights_ptr = mask_ptr + rows.to(tl.int64)[None, :] * mask_stride
    best = no_keys(TQ, KP)
    begin = tl.program_id(1) * slab
    end = tl.minimum(begin + slab, bank)
    if REDO:
        end = tl.where(tl.max(live.to(tl.int32), axis=0) > 0, end, begin)
    for b0 in range(begin, end, TB):
        cols = b0 + tl.arange(0, TB)
        inside = cols < end
        if CANDIDATES:
            inside = inside & (tl.load(allowed_ptr + cols, mask=inside, other=0) != 0)
        theirs_ptr = bank_ptr + cols.to(tl.int64)[None, :] * bank_stride
        if INTEGER:
            total = tl.zeros((TQ, TB), tl.int32)
        else:
            total = tl.zeros((TQ, TB), tl.float64)
        for d0 in range(0, width, TD):
            column = d0 + tl.arange(0, TD)
            within = (column < width)[:, None]
            ours = tl.load(ours_ptr + column[:, None], mask=live[None, :] & within, other=0)
            theirs = tl.load(theirs_ptr + column[:, None], mask=inside[None, :] & within, other=0)
            if INTEGER:
                ours = ours.to(tl.int32)
                theirs = theirs.to(tl.int32)
            if REDO:
                ours = ours.to(tl.float64)
                theirs = theirs.to(tl.float64)
            difference = ours[:, :, None] - theirs[:, None, :]
            if MASKED:
                counts = tl.load(weights_ptr + column[:, None], mask=live[None, :] & within, other=0) != 0
                difference = tl.where(counts[:, :, None], difference, 0)
            # Columns first: then a thread holds all columns of a pair, and sums over them need no exchange.
            total += tl.sum(difference * difference, axis=0).to(total.dtype)
        if INTEGER:
            keys = pack_integers(total, cols[None, :])
        else:
            if WEIGHTED:
                factor = tl.load(row_weights_ptr + cols, mask=inside, other=0.0)
                total = total * factor[None, :]
            keys = pack_floats(total.to(tl.float32), cols[None, :])
        best = keep_smallest(best, tl.where(inside[None, :], keys, EMPTY_KEY))
    at = (rows.to(tl.int64) * slabs + tl.program_id(1))[:, None] * KP + tl.arange(0, KP)[None, :]
    tl.store(keys_ptr + at, best, mask=live[:, None])


@triton.jit(do_not_specialize=INTEGERS)
def merge(
    queries_ptr, bank_ptr, mask_ptr, row_weights_ptr, range_ptr, keys_ptr, flags_ptr, distances_ptr, indices_ptr,
    width, query_stride, bank_stride, mask_stride, slabs, k,
    KP: tl.constexpr, SLOTS: tl.constexpr, TD: tl.constexpr, INTEGER: tl.constexpr, MASKED: tl.constexpr,
    WEIGHTED: tl.constexpr, REDO: tl.constexpr,
):  # fmt: skip
    """The k smallest of one query's slabs * KP <= SLOTS keys, in order."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.arange(0, SLOTS)
    held = slabs * KP
    kept = k
    if REDO:
        wanted = tl.load(flags_ptr + row) != 0
        held = tl.where(wanted, held, 0)
        kept = tl.where(wanted, k, 0)
    keys = tl.load(keys_ptr + row * slabs * KP + slot, mask=slot < held, other=EMPTY_KEY)
    keys = tl.where(key_index(keys) < 0, EMPTY_KEY, keys)
    best = tl.reshape(keep_smallest(no_keys(1, KP), keys[None, :]), (KP,))
    index = key_index(best)
    worst = key_distance(tl.max(best, axis=0)).to(tl.float32, bitcast=True)
    if not INTEGER:
        found = index >= 0
        theirs_ptr = bank_ptr + tl.where(found, index, 0).to(tl.int64)[:, None] * bank_stride
        total = tl.zeros((KP,), tl.float64)
        for d0 in range(0, width, TD):
            column = d0 + tl.arange(0, TD)
            within = column < width
            ours = tl.load(queries_ptr + row * query_stride + column, mask=within, other=0)
            theirs = tl.load(theirs_ptr + column[None, :], mask=found[:, None] & within[None, :], other=0)
            difference = ours.to(tl.float64)[None, :] - theirs.to(tl.float64)
            if MASKED:
                counts = tl.load(mask_ptr + row * mask_stride + column, mask=within, other=0) != 0
                difference = tl.where(counts[None, :], difference, 0.0)
            difference = tl.where(within[None, :], difference, 0.0)
            total += tl.sum(difference * difference, axis=1)
        if WEIGHTED:
            total = total * tl.load(row_weights_ptr + tl.where(found, index, 0), mask=found, other=0.0)
        best = tl.where(found, pack_floats(total.to(tl.float32), index), best)
    # Keys are all different, so the number of smaller ones is the place in the order.
    rank = tl.sum((best[None, :] < best[:, None]).to(tl.int32), axis=1)
    if INTEGER:
        distance = key_distance(best)
    else:
        distance = tl.where(index < 0, float("inf"), key_distance(best).to(tl.float32, bitcast=True))
        if not REDO:
            low = width.to(tl.float32) * UNDERFLOW
            if WEIGHTED:
                apart = worst.to(tl.float64)
                lost = low.to(tl.float64) * tl.maximum(tl.load(range_ptr + 1), 1.0)
                told = (apart >= lost) & (apart <= tl.load(range_ptr) * OVERFLOW)
            else:
                told = worst >= low
            last = tl.max(tl.where(rank == k - 1, key_distance(best), 0), axis=0).to(tl.float32, bitcast=True)
            all_kept = tl.min(index, axis=0) < 0  # a slot is empty
            tl.store(flags_ptr + row, (((told & (last < worst * NEARER)) | all_kept) == 0).to(tl.uint8))
    tl.store(distances_ptr + row * k + rank, distance, mask=rank < kept)
    tl.store(indices_ptr + row * k + rank, tl.where(index < 0, -1, index).to(tl.int64), mask=rank < kept)
