"""Colours of a result matched where parts of different examples meet.

A part is a 4-connected set of cells copied from one bank image with one shift. Two parts may show the same cheek in
different light, so each part p is given one colour offset o_p, the least squares solution over all pairs of
neighbouring cells i, j of two parts a, b, for each of red, green and blue:

    sum w (o_b - o_a - r)^2 + RIGIDITY sum_p (cells of p) o_p^2,
    r = ((c_a(i) - c_b(i)) + (c_a(j) - c_b(j))) / 2,    w = exp(-|r|^2 / (3 ALIKE^2))

c_a(i) is the mean colour that the example of part a has in cell i of its own picture, so r compares the two examples at
one place, and a face beside a background (a large r) has no pull. An offset's tint, what it has besides the same
lightness for all three colours, is limited to TINT levels: larger ones are visible, on eyes above all. The offsets of
the cells, interpolated bilinearly, are added to the decoded pixels. An image's pixels depend on no other image.
Figures: docs/evaluation.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ALIKE = 25.0  # levels: root mean square of r over the three colours at which w has fallen to exp(-1)
RIGIDITY = 0.1  # weight of an offset itself, per cell
TINT = 8.0  # levels; FID is 84.8 without this limit, 85.0 with it, 87.1 with no tint at all, 87.5 unmatched
# Axes: lightness, red against blue, green against both.
_AXES = np.array([[1 / 3, 1 / 3, 1 / 3], [1 / 2, 0, -1 / 2], [-1 / 4, 1 / 2, -1 / 4]])
_COLOURS = np.linalg.inv(_AXES)

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]


def areas(sources: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N, M, M): for each cell the first cell, in raster order, of the 4-connected area of equal sources it is in."""
    count, height, width = sources.shape
    labels = np.arange(height * width).reshape(height, width) * np.ones((count, 1, 1), np.int64)
    below = sources[:, 1:] == sources[:, :-1]
    beside = sources[:, :, 1:] == sources[:, :, :-1]
    while True:  # every area takes its lowest label, one cell further per round
        before = labels.copy()
        for same, first, second in (
            (below, labels[:, :-1], labels[:, 1:]),
            (beside, labels[:, :, :-1], labels[:, :, 1:]),
        ):
            lowest = np.minimum(first, second)
            for view in (first, second):  # the views overlap, so labels may only fall
                np.minimum(view, lowest, out=view, where=same)
        if np.array_equal(labels, before):
            return labels


def matched(
    images: Pixels, sources: NDArray[np.integer], shifts: NDArray[np.integer] | None, colours: NDArray[np.uint8]
) -> Pixels:
    """(N, S, S, 3) uint8: decoded images with the colours of their parts matched.

    sources (N, M, M), -1 where no bank image was copied: there nothing is compared, and nothing moved. shifts
    (N, M, M, 2) or None: how far beside its place each cell was copied from. colours (B, M, M, 3): the mean colours of
    the bank images' cells.
    """
    return with_offsets(images, offsets(sources, shifts, colours))


def with_offsets(images: Pixels, cells: NDArray[np.float32]) -> Pixels:
    """(N, S, S, 3) uint8: images with the offsets of their cells, (N, 3, M, M) as of `offsets`, added."""
    out = images.copy()
    for image, moved in zip(out, cells, strict=True):
        if moved.any():
            size = image.shape[1::-1]
            planes = [np.asarray(Image.fromarray(one).resize(size, Image.Resampling.BILINEAR)) for one in moved]
            image[:] = np.rint(image + np.stack(planes, -1)).clip(0, 255)
    return out


def offsets(
    sources: NDArray[np.integer], shifts: NDArray[np.integer] | None, colours: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """(N, 3, M, M): what is added to the three colours of each cell. Arguments as of `matched`."""
    count, side, _ = sources.shape
    owners = sources.reshape(count, -1).astype(np.int64)
    kinds, moved = owners, np.zeros((*owners.shape, 2), np.int64)
    if shifts is not None:
        moved = shifts.reshape(moved.shape).astype(np.int64)
        kinds = (owners * 256 + moved[..., 0]) * 256 + moved[..., 1]
    parts = areas(kinds.reshape(sources.shape)).reshape(owners.shape)
    i, j = _neighbours(side)
    copied = owners >= 0
    image, seam = np.nonzero((parts[:, i] != parts[:, j]) & copied[:, i] & copied[:, j])
    i, j = i[seam], j[seam]

    def seen(of: NDArray[np.int64], at: NDArray[np.int64]) -> Floats:
        """The colours that the examples of the cells `of` have at the cells `at`, moved as those are."""
        y, x = np.divmod(at, side)
        dy, dx = moved[image, of].T
        place = (y + dy).clip(0, side - 1), (x + dx).clip(0, side - 1)
        return colours[(owners[image, of], *place)].astype(np.float64)

    wanted = ((seen(i, i) - seen(j, i)) + (seen(i, j) - seen(j, j))) / 2
    weight = np.exp(-np.square(wanted).sum(1) / (3 * ALIKE**2))
    found = np.zeros((count, 3, side * side), np.float32)
    ends = np.searchsorted(image, np.arange(count + 1))
    for n, some in enumerate(map(slice, ends[:-1], ends[1:])):
        if some.start < some.stop:
            _, part = np.unique(parts[n], return_inverse=True)
            solved = _solution(part, part[i[some]], part[j[some]], wanted[some], weight[some])
            found[n] = _tamed(solved).T[:, part]
    return found.reshape(count, 3, side, side)


def _neighbours(side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of cells of a map that lie beside each other, then those that lie above each other."""
    cells = np.arange(side * side).reshape(side, side)
    first, second = (cells[:, :-1], cells[:-1]), (cells[:, 1:], cells[1:])
    return np.concatenate([part.ravel() for part in first]), np.concatenate([part.ravel() for part in second])


def _solution(
    part: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64], wanted: Floats, weight: Floats
) -> Floats:
    """(P, 3): the offsets of one image's parts, their tints not yet limited.

    part (M^2,): that of each cell; the seams (s,) are between a and b.
    """
    count = int(part.max()) + 1

    def summed(number: NDArray[np.int64], values: Floats, size: int) -> Floats:
        return np.bincount(number, values, size).astype(np.float64, copy=False)

    pairs = np.concatenate([a * count + a, b * count + b, a * count + b, b * count + a])
    matrix = summed(pairs, np.concatenate([weight, weight, -weight, -weight]), count * count).reshape(count, count)
    matrix[np.diag_indices(count)] += RIGIDITY * np.bincount(part, minlength=count)
    pull = weight[:, None] * wanted
    both = np.concatenate([a, b])
    sums = [summed(both, np.concatenate([-one, one]), count) for one in pull.T]
    return np.asarray(np.linalg.solve(matrix, np.stack(sums, 1)))


def _tamed(offsets: Floats) -> Floats:
    """Offsets (P, 3) with their tints limited."""
    along = offsets @ _AXES.T
    tint = np.sqrt(np.square(along[:, 1:]).sum(1))
    along[:, 1:] *= (TINT / np.maximum(tint, TINT))[:, None]
    return along @ _COLOURS.T


def cell_colours(pictures: Pixels, side: int) -> NDArray[np.uint8]:
    """(n, side, side, 3): the mean colours of the cells of pictures (n, S, S, 3), rounded to the nearest."""
    edges = np.arange(side + 1) * pictures.shape[1] // side
    sums = np.add.reduceat(pictures, edges[:-1], axis=1, dtype=np.int64)
    sums = np.add.reduceat(sums, edges[:-1], axis=2)
    lengths = np.diff(edges)
    return np.rint(sums / (lengths[:, None] * lengths)[..., None]).astype(np.uint8)
