"""Steps of a plan in Triton: distances, selection, draw, boundaries, copy; canvas resize between scales.

    distance of image b = sum over the compared cells of table[canvas code, code of b]        codes
                                                      or |canvas cell - cell of b|^2           int16 latents
                        - offset of b at this step, where there are offsets (hubness)

Shapes, all on the device (lpkernel/backends/device_bank.py): bank (cells, pitch, W) int16, cell-major, W = 1 for codes;
table (V, .) int32; canvas (N, side * side, W) int16; steps and cells of `FlatPlan`; keys (N, slabs, K) int64;
sources (N, M * M) int32; offsets (T, A) int32. Letters: N images, A allowed bank images, K slots, T* tile sizes.

Two ways through a scale, the same functions in both:

- `walk`: a program owns TN images and runs all steps of the scale; the bank streams past it in tiles of TB images. One
  launch a scale. For small banks, and for batches that fill the device.
- `search` + `finish`: for few images and a large bank. A program of `search` owns TN images and one slab of the bank
  and leaves the slab's K smallest keys; `finish` owns an image, merges the slabs, draws and copies. Two
  launches a step.
- Of a plan with boundaries every step goes that second way, and one that has some takes a third launch: `finish` only
  leaves the chosen image, `stitch` copies as far as the boundaries let it.

Traffic of a step: compared cells * A * W * 2 bytes of bank for each TN images (L2 or HBM), one table entry a pair and
cell (L1), slabs * K keys an image. Distances live in registers only.

Exactness: everything is int32. With DOT, the products of a cell's 16 channels are one tl.dot of float16 operands into
a fresh float32 accumulator: |value| <= 1023 is exact in float16, and every partial sum is an integer of magnitude at
most 16 * 1023^2 < 2^24, exact in float32 in any order; it becomes an integer before the next cell is added. The
caller passes DOT only if all values are that small. |q|^2 + |b|^2 - 2 q.b may wrap modulo 2^32 and still ends exact.

Ties: the lowest bank index (keys.py); of a boundary the lowest column, from the last row upwards. Limits: K <= 128,
V <= 32768, P <= 16 with boundaries, N * side^2 * W bound by memory only, A < 2^31.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .keys import EMPTY_KEY, keep_smallest, key_index, key_of_rank, no_keys, pack_integers, philox, pick

INTEGERS = [
    "first_step",
    "step_count",
    "step",
    "images",
    "allowed",
    "table_pitch",
    "canvas_cells",
    "source_cells",
    "k",
    "slab",
    "slabs",
    "scale",
    "side",
    "old_side",
    "start_first",
    "start_count",
    "resize_side",
    "counter",
    "offset_pitch",
    "copies",
    "patch",
    "corner",
    "left",
    "top",
]  # kernel arguments that must not multiply the compiled variants


@triton.jit
def code_distances(
    bank_ptr, table_ptr, canvas_ptr, cells_ptr, rows, cols, inside, first, count, pitch, table_pitch, canvas_cells,
    TN: tl.constexpr, TB: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """(TN, TB) int32: sums of table entries over `count` cells listed from `first`."""
    total = tl.zeros((TN, TB), tl.int32)
    for i in tl.range(first, first + count, loop_unroll_factor=UNROLL):
        cell = tl.load(cells_ptr + i)
        # Loaded as a row of the tile: a vector would change its layout through shared memory.
        theirs_ptr = bank_ptr + cell.to(tl.int64) * pitch + cols[None, :]
        theirs = tl.load(theirs_ptr, mask=inside[None, :], other=0).to(tl.int32)
        ours = tl.load(canvas_ptr + rows.to(tl.int64) * canvas_cells + cell).to(tl.int32)
        total += tl.load(table_ptr + (ours * table_pitch)[:, None] + theirs)
    return total


@triton.jit
def latent_distances(
    bank_ptr, canvas_ptr, cells_ptr, rows, cols, inside, first, count, pitch, canvas_cells,
    W: tl.constexpr, TN: tl.constexpr, TB: tl.constexpr, DOT: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """(TN, TB) int32: sums of squared differences over `count` cells listed from `first` and W channels."""
    CH: tl.constexpr = 16 if DOT or W > 8 else 8
    total = tl.zeros((TN, TB), tl.int32)
    for i in tl.range(first, first + count, loop_unroll_factor=UNROLL):
        cell = tl.load(cells_ptr + i)
        for begin in tl.static_range(0, W, CH):
            channel = begin + tl.arange(0, CH)
            # Channels first: then a thread holds all channels of a pair, and sums over them need no exchange.
            theirs_ptr = bank_ptr + (cell.to(tl.int64) * pitch + cols)[None, :] * W + channel[:, None]
            theirs = tl.load(theirs_ptr, mask=inside[None, :] & (channel < W)[:, None], other=0)
            at = rows.to(tl.int64) * canvas_cells + cell
            if DOT:
                ours = tl.load(canvas_ptr + at[:, None] * W + channel[None, :], mask=(channel < W)[None, :], other=0)
                product = tl.dot(ours.to(tl.float16), theirs.to(tl.float16))
                wide = theirs.to(tl.int32)
                norms = tl.sum(wide * wide, axis=0)
                wide = ours.to(tl.int32)
                total += tl.sum(wide * wide, axis=1)[:, None] + norms[None, :] - 2 * product.to(tl.int32)
            else:
                ours = tl.load(canvas_ptr + at[None, :] * W + channel[:, None], mask=(channel < W)[:, None], other=0)
                difference = ours.to(tl.int32)[:, :, None] - theirs.to(tl.int32)[:, None, :]
                total += tl.sum(difference * difference, axis=0)
    return total


@triton.jit
def nearest(
    bank_ptr, table_ptr, canvas_ptr, cells_ptr, offsets_ptr, rows, begin, end, first, count, pitch, table_pitch,
    canvas_cells, step, offset_pitch,
    W: tl.constexpr, TN: tl.constexpr, TB: tl.constexpr, KP: tl.constexpr, DOT: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """(TN, KP) keys of the KP smallest among the bank images begin <= b < end. offset_pitch: A; 0 without offsets."""
    best = no_keys(TN, KP)
    for b0 in range(begin, end, TB):
        cols = b0 + tl.arange(0, TB)
        inside = cols < end
        if W == 1:
            distances = code_distances(
                bank_ptr, table_ptr, canvas_ptr, cells_ptr, rows, cols, inside, first, count, pitch, table_pitch,
                canvas_cells, TN, TB, UNROLL,
            )  # fmt: skip
        else:
            distances = latent_distances(
                bank_ptr, canvas_ptr, cells_ptr, rows, cols, inside, first, count, pitch, canvas_cells,
                W, TN, TB, DOT, UNROLL,
            )  # fmt: skip
        offset_ptr = offsets_ptr + offset_pitch.to(tl.int64) * step
        if W == 1:  # a row of the tile, as in code_distances
            distances -= tl.load(offset_ptr + cols[None, :], mask=(inside & (cols < offset_pitch))[None, :], other=0)
        else:
            distances -= tl.load(offset_ptr + cols, mask=inside & (cols < offset_pitch), other=0)[None, :]
        keys = pack_integers(distances, cols[None, :])
        best = keep_smallest(best, tl.where(inside[None, :], keys, EMPTY_KEY))
    return best


@triton.jit
def draw(keys, compared, image, step, seed_ptr, k, allowed):
    """(TN,) int32: the bank position that each image copies, from keys (TN, t); any if nothing was compared."""
    u = philox(image, step, tl.load(seed_ptr), tl.load(seed_ptr + 1))
    rank = tl.where(compared > 0, pick(u, tl.minimum(k, allowed)), 0)
    return tl.where(compared > 0, key_index(key_of_rank(keys, rank)), pick(u, allowed))


@triton.jit
def copy_cells(
    bank_ptr, canvas_ptr, sources_ptr, rows, chosen, source, cell, mask, pitch, canvas_cells, source_cells,
    W: tl.constexpr, WP: tl.constexpr,
):  # fmt: skip
    """Writes the cells (t,) where mask (rows, t): the chosen image's content to the canvas, its index to sources."""
    channel = tl.arange(0, WP)
    deep = mask[:, :, None] & (channel < W)[None, None, :]
    at = (cell.to(tl.int64) * pitch)[None, :] + chosen[:, None]
    values = tl.load(bank_ptr + at[:, :, None] * W + channel[None, None, :], mask=deep, other=0)
    at = rows.to(tl.int64)[:, None] * canvas_cells + cell[None, :]
    tl.store(canvas_ptr + at[:, :, None] * W + channel[None, None, :], values, mask=deep)
    at = rows.to(tl.int64)[:, None] * source_cells + cell[None, :]
    tl.store(sources_ptr + at, source[:, None] + tl.zeros_like(cell)[None, :], mask=mask)


@triton.jit
def copy_patch(
    bank_ptr, canvas_ptr, sources_ptr, candidates_ptr, cells_ptr, rows, live, chosen, first, count, pitch,
    canvas_cells, source_cells, W: tl.constexpr, WP: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Copies the `count` cells listed from `first`."""
    source = tl.load(candidates_ptr + chosen, mask=live, other=0)
    for i in range(0, count, TC):
        slot = i + tl.arange(0, TC)
        cell = tl.load(cells_ptr + first + slot, mask=slot < count, other=0)
        mask = live[:, None] & (slot < count)[None, :]
        copy_cells(
            bank_ptr, canvas_ptr, sources_ptr, rows, chosen, source, cell, mask, pitch, canvas_cells, source_cells,
            W, WP,
        )  # fmt: skip


@triton.jit(do_not_specialize=INTEGERS)
def walk(
    bank_ptr, table_ptr, candidates_ptr, canvas_ptr, sources_ptr, steps_ptr, cells_ptr, offsets_ptr, images_ptr,
    seed_ptr, first_step, step_count, counter, images, allowed, pitch_8, table_pitch, canvas_cells, source_cells,
    offset_pitch, k,
    W: tl.constexpr, WP: tl.constexpr, TN: tl.constexpr, TB: tl.constexpr, KP: tl.constexpr, TC: tl.constexpr,
    DOT: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """All steps of a scale for the TN images of this program.

    pitch_8: bank pitch / 8 for codes, A for latents. counter: the random counter of the plan's first step.
    """
    rows = tl.program_id(0) * TN + tl.arange(0, TN)
    live = rows < images
    image = tl.load(images_ptr + rows, mask=live, other=0)
    read = tl.where(live, rows, 0)
    pitch = pitch_8 * 8 if W == 1 else pitch_8
    for step in range(first_step, first_step + step_count):
        compare_first = tl.load(steps_ptr + 4 * step)
        compared = tl.load(steps_ptr + 4 * step + 1)
        write_first = tl.load(steps_ptr + 4 * step + 2)
        written = tl.load(steps_ptr + 4 * step + 3)
        keys = nearest(
            bank_ptr, table_ptr, canvas_ptr, cells_ptr, offsets_ptr, read, 0, tl.where(compared > 0, allowed, 0),
            compare_first, compared, pitch, table_pitch, canvas_cells, step, offset_pitch,
            W, TN, TB, KP, DOT, UNROLL,
        )  # fmt: skip
        chosen = draw(keys, compared, image, tl.zeros_like(rows) + counter + step, seed_ptr, k, allowed)
        tl.debug_barrier()  # all threads have read the canvas
        copy_patch(
            bank_ptr, canvas_ptr, sources_ptr, candidates_ptr, cells_ptr, rows, live, chosen, write_first, written,
            pitch, canvas_cells, source_cells, W, WP, TC,
        )  # fmt: skip
        tl.debug_barrier()  # and see what the others wrote


@triton.jit(do_not_specialize=INTEGERS)
def search(
    bank_ptr, table_ptr, canvas_ptr, steps_ptr, cells_ptr, offsets_ptr, keys_ptr,
    step, images, allowed, pitch_8, table_pitch, canvas_cells, offset_pitch, slab, slabs,
    W: tl.constexpr, TN: tl.constexpr, TB: tl.constexpr, KP: tl.constexpr, DOT: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The KP smallest keys of slab program_id(1), `slab` bank images, for the TN images of program_id(0)."""
    rows = tl.program_id(0) * TN + tl.arange(0, TN)
    live = rows < images
    begin = tl.program_id(1) * slab
    pitch = pitch_8 * 8 if W == 1 else pitch_8
    keys = nearest(
        bank_ptr, table_ptr, canvas_ptr, cells_ptr, offsets_ptr, tl.where(live, rows, 0), begin,
        tl.minimum(begin + slab, allowed), tl.load(steps_ptr + 4 * step), tl.load(steps_ptr + 4 * step + 1), pitch,
        table_pitch, canvas_cells, step, offset_pitch,
        W, TN, TB, KP, DOT, UNROLL,
    )  # fmt: skip
    at = (rows.to(tl.int64) * slabs + tl.program_id(1))[:, None] * KP + tl.arange(0, KP)[None, :]
    tl.store(keys_ptr + at, keys, mask=live[:, None])


@triton.jit(do_not_specialize=INTEGERS)
def finish(
    bank_ptr, candidates_ptr, canvas_ptr, sources_ptr, steps_ptr, cells_ptr, images_ptr, seed_ptr, keys_ptr, chosen_ptr,
    step, counter, allowed, pitch_8, canvas_cells, source_cells, k, slabs, copies,
    W: tl.constexpr, WP: tl.constexpr, KP: tl.constexpr, SLOTS: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """Merge of one image's slabs * KP <= SLOTS keys, draw, and copy if `copies` is 1; if it is 0, chosen (N,) int32."""
    rows = tl.program_id(0) + tl.arange(0, 1)
    slot = tl.arange(0, SLOTS)
    compared = tl.load(steps_ptr + 4 * step + 1)
    held = tl.where(compared > 0, slabs * KP, 0)
    keys = tl.load(keys_ptr + rows.to(tl.int64)[:, None] * slabs * KP + slot[None, :], mask=(slot < held)[None, :],
                   other=EMPTY_KEY)  # fmt: skip
    image = tl.load(images_ptr + rows)
    chosen = draw(keys, compared, image, tl.zeros_like(rows) + counter + step, seed_ptr, k, allowed)
    tl.store(chosen_ptr + rows, chosen, mask=copies + tl.zeros_like(rows) == 0)
    pitch = pitch_8 * 8 if W == 1 else pitch_8
    copy_patch(
        bank_ptr, canvas_ptr, sources_ptr, candidates_ptr, cells_ptr, rows, rows >= 0, chosen,
        tl.load(steps_ptr + 4 * step + 2), tl.load(steps_ptr + 4 * step + 3) * copies, pitch, canvas_cells,
        source_cells, W, WP, TC,
    )  # fmt: skip


@triton.jit
def boundary(
    bank_ptr, table_ptr, canvas_ptr, row, chosen, corner, down, across, patch, width, pitch, table_pitch, canvas_cells,
    W: tl.constexpr, PP: tl.constexpr,
):  # fmt: skip
    """(PP,) int32: the column where an image's path runs, for each of `patch` rows of an overlap of `width` columns.

    Cell (r, c) of the overlap is corner + r * down + c * across. As lpkernel.backends.specification._boundary.
    """
    FAR: tl.constexpr = 0x7FFFFFFF
    r = tl.arange(0, PP)
    column = tl.arange(0, PP)
    cell = corner + r[:, None] * down + column[None, :] * across
    inside = (r < patch)[:, None] & (column < width)[None, :]
    ours_ptr = canvas_ptr + row * canvas_cells * W
    theirs_ptr = bank_ptr + chosen.to(tl.int64) * W
    if W == 1:
        ours = tl.load(ours_ptr + cell, mask=inside, other=0).to(tl.int32)
        theirs = tl.load(theirs_ptr + cell.to(tl.int64) * pitch, mask=inside, other=0).to(tl.int32)
        errors = tl.load(table_ptr + ours * table_pitch + theirs, mask=inside, other=0)
    else:
        errors = tl.zeros((PP, PP), tl.int32)
        for begin in tl.static_range(0, W, 8):
            channel = begin + tl.arange(0, 8)[:, None, None]
            deep = inside[None, :, :] & (channel < W)
            ours = tl.load(ours_ptr + cell[None, :, :] * W + channel, mask=deep, other=0).to(tl.int32)
            place = cell.to(tl.int64)[None, :, :] * pitch * W + channel
            difference = ours - tl.load(theirs_ptr + place, mask=deep, other=0).to(tl.int32)
            errors += tl.sum(difference * difference, axis=0)
    sums = tl.where((column < width)[None, :], errors, FAR)
    near = (r[:, None] <= column[None, :] + 1) & (r[:, None] >= column[None, :] - 1)
    for i in range(1, patch):
        above = tl.sum(tl.where(column[None, :] == i - 1, tl.trans(sums), 0), axis=1)
        least = tl.min(tl.where(near, above[:, None], FAR), axis=0)[None, :]
        sums = tl.where((r == i)[:, None] & (column < width)[None, :], errors + least, sums)
    path = tl.zeros((PP,), tl.int32)
    open = column < width
    for i in range(0, patch):
        of_row = tl.sum(tl.where((r == patch - 1 - i)[:, None], sums, 0), axis=0)
        of_row = tl.where(open, of_row, FAR)
        at = tl.min(tl.where(open & (of_row == tl.min(of_row, axis=0)), column, PP), axis=0)
        path = tl.where(r == patch - 1 - i, at, path)
        open = (column < width) & (column >= at - 1) & (column <= at + 1)
    return tl.where(width > 0, path, 0)


@triton.jit(do_not_specialize=INTEGERS)
def stitch(
    bank_ptr, table_ptr, candidates_ptr, canvas_ptr, sources_ptr, steps_ptr, cells_ptr, chosen_ptr,
    step, side, patch, corner, left, top, pitch_8, table_pitch, canvas_cells, source_cells,
    W: tl.constexpr, WP: tl.constexpr, PP: tl.constexpr, TC: tl.constexpr,
):  # fmt: skip
    """The copy of a step with boundaries, as lpkernel.backends.specification.kept_by_cut: one program an image.

    Squared distances of canvas and new cells over the `left` columns and `top` rows of a patch (P <= PP) at `corner`
    are summed along paths that move by at most one a row; cells left of one path or above the other stay.
    """
    rows = tl.program_id(0) + tl.arange(0, 1)
    row = tl.program_id(0).to(tl.int64)
    chosen = tl.load(chosen_ptr + row)
    pitch = pitch_8 * 8 if W == 1 else pitch_8
    from_left = boundary(
        bank_ptr, table_ptr, canvas_ptr, row, chosen, corner, side, 1, patch, left, pitch, table_pitch, canvas_cells,
        W, PP,
    )  # fmt: skip
    from_top = boundary(
        bank_ptr, table_ptr, canvas_ptr, row, chosen, corner, 1, side, patch, top, pitch, table_pitch, canvas_cells,
        W, PP,
    )  # fmt: skip
    tl.debug_barrier()  # all threads have read the canvas
    picked = tl.load(chosen_ptr + rows)
    source = tl.load(candidates_ptr + picked)
    first = tl.load(steps_ptr + 4 * step + 2)
    count = tl.load(steps_ptr + 4 * step + 3)
    place = tl.arange(0, PP)[None, :]
    for i in range(0, count, TC):
        slot = i + tl.arange(0, TC)
        cell = tl.load(cells_ptr + first + slot, mask=slot < count, other=0)
        y = cell // side - corner // side
        x = cell % side - corner % side
        kept = x < tl.sum(tl.where(y[:, None] == place, from_left[None, :], 0), axis=1)
        kept = kept | (y < tl.sum(tl.where(x[:, None] == place, from_top[None, :], 0), axis=1))
        copy_cells(
            bank_ptr, canvas_ptr, sources_ptr, rows, picked, source, cell, ((slot < count) & ~kept)[None, :], pitch,
            canvas_cells, source_cells, W, WP,
        )  # fmt: skip


@triton.jit(do_not_specialize=INTEGERS)
def enter(
    old_ptr, canvas_ptr, sources_ptr, start_ptr, kept_ptr, resize_ptr,
    scale, side, old_side, source_cells, resize_side, start_first, start_count,
    W: tl.constexpr, WP: tl.constexpr, TC: tl.constexpr, FIRST: tl.constexpr,
):  # fmt: skip
    """The canvas (N, side * side, W) at the beginning of a scale, TC cells of an image a program; sources become -1.

    FIRST: the starting canvas, or zeros. Else the bilinear resize of the old canvas, of side old_side:
    four corners times two weights of 8 bits, plus 32768, shifted right by 16; kept cells take the starting canvas.
    start (., W): start_count canvases (0, 1 or N) of side * side cells, from cell start_first on.
    """
    row = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * TC + tl.arange(0, TC)
    channel = tl.arange(0, WP)
    inside = cell < side * side
    deep = inside[:, None] & (channel < W)[None, :]
    begin = start_first.to(tl.int64) + tl.minimum(row, start_count.to(tl.int64) - 1) * side * side
    given = inside & (tl.minimum(start_count, 1) > tl.zeros_like(cell))
    if FIRST:
        values = tl.load(
            start_ptr + (begin + cell)[:, None] * W + channel[None, :], mask=deep & given[:, None], other=0
        )
    else:
        y = cell // side
        x = cell % side
        table = resize_ptr + scale * 3 * resize_side
        y0 = tl.load(table + y, mask=inside, other=0)
        y1 = tl.load(table + resize_side + y, mask=inside, other=0)
        fy = tl.load(table + 2 * resize_side + y, mask=inside, other=0)[:, None]
        x0 = tl.load(table + x, mask=inside, other=0)
        x1 = tl.load(table + resize_side + x, mask=inside, other=0)
        fx = tl.load(table + 2 * resize_side + x, mask=inside, other=0)[:, None]
        corner = old_ptr + row * old_side * old_side * W + channel[None, :]
        v00 = tl.load(corner + (y0 * old_side + x0)[:, None] * W, mask=deep, other=0).to(tl.int32)
        v01 = tl.load(corner + (y0 * old_side + x1)[:, None] * W, mask=deep, other=0).to(tl.int32)
        v10 = tl.load(corner + (y1 * old_side + x0)[:, None] * W, mask=deep, other=0).to(tl.int32)
        v11 = tl.load(corner + (y1 * old_side + x1)[:, None] * W, mask=deep, other=0).to(tl.int32)
        left = v00 * (256 - fy) + v10 * fy
        right = v01 * (256 - fy) + v11 * fy
        values = ((left * (256 - fx) + right * fx + 32768) >> 16).to(tl.int16)
        kept = tl.load(kept_ptr + cell, mask=given, other=0)[:, None] != 0
        start = tl.load(start_ptr + (begin + cell)[:, None] * W + channel[None, :], mask=deep & kept, other=0)
        values = tl.where(kept, start, values)
    tl.store(canvas_ptr + (row * side * side + cell)[:, None] * W + channel[None, :], values, mask=deep)
    tl.store(sources_ptr + row * source_cells + cell, tl.zeros_like(cell) - 1, mask=inside)
