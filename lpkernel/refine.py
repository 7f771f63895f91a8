"""Refined seams: cells and small parts of a source map join a neighbouring part where that makes seams cheaper.

A step copies what best continues what is written so far. What later steps write beside it may fit less well, and
boundaries that cross leave single cells behind. So a finished map s is changed to lower the cost of its seams,

    E(s) = sum over neighbouring cells i, j with s_i != s_j of  d_i(s_i, s_j) + d_j(s_i, s_j)

with d_i(a, b) the squared distance of the fixed-point values of images a and b at cell i: the seam cost of graph cut
textures (Kwatra et al. 2003), lowered by iterated conditional modes (Besag 1986) in ROUNDS rounds of

1. a pass over the parts, the connected sets of cells of one image, as they are when it begins and in the order of their
   first cells: a part of at most 1 / PART of the cells becomes the image beside it that costs least;
2. SWEEPS sweeps over the cells, or fewer once nothing moves, each over the cells with an even y + x and then over the
   others: each becomes the image above, left, right or below it that costs least. Cells of one colour are not
   neighbours, so their order does not matter.

A cell or part moves only if that is cheaper; of equals the first that is met is taken, cells in raster order and above,
left, right, below of each. No image takes what would give it more than 1 / SHARE of the map (in 2. counted when half a
sweep begins), so that no source takes over. Kept cells (-1) stay, and nothing is compared with them. All arithmetic is
in integers, so the map is the same everywhere. Figures: docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel import _native
from lpkernel.errors import InputError
from lpkernel.pictures.seams import areas
from lpkernel.views import looked_up

ROUNDS, SWEEPS = 2, 4
PART = 16
SHARE = 5
PLACES = ((0, 0), (-1, 0), (0, -1), (0, 1), (1, 0))  # a cell and its neighbours
_CHUNK = 64  # maps refined at once

Maps = NDArray[np.int32]
Cells = NDArray[np.int16]


def gathered(maps: Maps, read: Callable[[NDArray[np.int32]], Cells]) -> Maps:
    """Maps refined with only the cells of the images that are in them: read(numbers (u,)) gives (u, M, M, C) int16."""
    numbers, labels = np.unique(np.maximum(maps, 0), return_inverse=True)
    found = refined(np.where(maps < 0, -1, labels.reshape(maps.shape)), read(numbers))
    return np.where(found < 0, -1, numbers[np.maximum(found, 0)]).astype(np.int32)


def refined(maps: NDArray[np.integer], cells: Cells, vectors: Cells | None = None) -> Maps:
    """Maps (N, M, M), refined; `cells` are (B, M, M) codes of `vectors` (V, C), or (B, M, M, C) values, int16."""
    if _native.cpu_reasons():
        return by_numpy(maps, cells, vectors)
    cells = cells if cells.flags.c_contiguous and cells.flags.aligned else np.ascontiguousarray(cells)
    try:
        found: Maps = _native.cpu().refine(
            np.ascontiguousarray(maps, np.int32),
            cells,
            vectors,
            ROUNDS,
            SWEEPS,
            *limits(maps.shape[-1]),
            torch.get_num_threads(),
        )
    except ValueError as error:
        if str(error).startswith("codes: "):
            raise InputError(str(error)) from error
        raise
    return found


def limits(side: int) -> tuple[int, int]:
    """The most cells that a moving part may have, and that one image may have of a map."""
    return side * side // PART, side * side // SHARE


def by_numpy(maps: NDArray[np.integer], cells: Cells, vectors: Cells | None = None) -> Maps:
    """`refined` in NumPy: the reference for the native code, and used by installations without it."""
    out = np.empty(maps.shape, np.int32)
    for start in range(0, len(maps), _CHUNK):
        some = slice(start, start + _CHUNK)
        padded = np.pad(maps[some], ((0, 0), (1, 1), (1, 1)), constant_values=-1)
        for _ in range(ROUNDS):
            for one in padded:
                _move_parts(one, cells, vectors)
            for _ in range(SWEEPS):
                moved = [_half_sweep(padded, colour, cells, vectors) for colour in (0, 1)]
                if not any(moved):
                    break
        out[some] = padded[:, 1:-1, 1:-1]
    return out


def _move_parts(padded: Maps, cells: Cells, vectors: Cells | None) -> None:
    """The pass over the parts of one map within a frame of -1, in place."""
    side = len(padded) - 2
    part_of = np.pad(areas(padded[None, 1:-1, 1:-1])[0], 1, constant_values=-1)
    most_of_part, most = limits(side)
    for part in np.unique(part_of[padded >= 0]):
        inside = np.argwhere(part_of == part)
        own = padded[tuple(inside[0])]
        if len(inside) > most_of_part:
            continue
        beside = (inside[:, None] + PLACES[1:]).reshape(-1, 2)
        pairs = np.stack([inside.repeat(4, axis=0), beside])  # (2, p, 2): the places of each pair of neighbours
        outside = (part_of[*beside.T] != part) & (padded[*beside.T] >= 0)
        pairs = pairs[:, outside]
        theirs = padded[*pairs[1].T]

        def cost(image: int) -> int:
            at = (pairs - 1).reshape(-1, 2).T  # noqa: B023
            other = np.tile(theirs, 2)  # noqa: B023
            apart = _values(cells, vectors, np.full_like(other, image), *at) - _values(cells, vectors, other, *at)
            return int(np.square(apart).sum())

        best, least = own, cost(own)
        for image in dict.fromkeys(theirs.tolist()):
            fits = (padded == image).sum() + len(inside) <= most
            if image != own and fits and (found := cost(image)) < least:
                best, least = image, found
        padded[*inside.T] = best


def _half_sweep(padded: Maps, colour: int, cells: Cells, vectors: Cells | None) -> bool:
    """Refine the cells of one colour of maps within a frame of -1, in place; returns whether any has moved."""
    side = padded.shape[1] - 2
    around = np.stack([padded[:, 1 + dy : 1 + dy + side, 1 + dx : 1 + dx + side] for dy, dx in PLACES])
    seam = ((around[1:] >= 0) & (around[1:] != around[0])).any(0) & (around[0] >= 0)
    image, y, x = np.nonzero(seam & (np.indices((side, side)).sum(0) % 2 == colour))
    labels = around[:, image, y, x]  # (5, A): the cells' own and their neighbours'
    places = [((y + dy).clip(0, side - 1), (x + dx).clip(0, side - 1)) for dy, dx in PLACES]
    values = np.stack([_values(cells, vectors, np.maximum(labels, 0), *place) for place in places])  # (5, 5, A, C)

    def cost(number: int) -> NDArray[np.int64]:
        """Cost of the seams if the cells were from the images labels[number]."""
        total = np.zeros(len(image), np.int64)
        for near in range(1, len(PLACES)):
            apart = np.square(values[[0, near], number] - values[[0, near], near]).sum((0, -1))
            total += np.where((labels[near] >= 0) & (labels[near] != labels[number]), apart, 0)
        return total

    counts = _counts(padded, image, labels)
    chosen, least = labels[0].copy(), cost(0)
    for near in range(1, len(PLACES)):
        found = cost(near)
        better = (labels[near] >= 0) & (counts[near] < limits(side)[1]) & (found < least)
        chosen[better], least[better] = labels[near][better], found[better]
    padded[image, 1 + y, 1 + x] = chosen
    return bool((chosen != labels[0]).any())


def _counts(padded: Maps, image: NDArray[np.int64], labels: Maps) -> NDArray[np.int64]:
    """(5, A): how many cells of its map have each label."""
    owners = np.arange(len(padded))[:, None, None] << 32
    keys, counts = np.unique(owners + padded, return_counts=True)
    return counts[np.searchsorted(keys, (image << 32) + labels)]


def _values(
    cells: Cells, vectors: Cells | None, images: Maps, y: NDArray[np.int64], x: NDArray[np.int64]
) -> NDArray[np.int64]:
    found = cells[images, y, x]
    return (found if vectors is None else looked_up(vectors, found)).astype(np.int64)
