"""What source maps (N, M, M) say about copying; cells of -1 came from no source and are not counted."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lpkernel.copies import largest_areas

Maps = NDArray[np.integer]

HUBS = 0.02  # the share of the bank whose most used images are called hubs


def distinct_sources(maps: Maps) -> NDArray[np.int64]:
    """(N,): how many bank images each map names."""
    return np.array([len(np.unique(one[one >= 0])) for one in maps], np.int64)


def copied_areas(maps: Maps) -> NDArray[np.float64]:
    """(N,): the largest 4-connected area from one bank image, as a share of all cells."""
    return largest_areas(maps) / (maps.shape[1] * maps.shape[2])


def hub_share(maps: Maps, bank_images: int) -> tuple[float, int]:
    """The share of all copied cells from the most used images, and their number: 2 % of the bank, at least one."""
    hubs = math.ceil(HUBS * bank_images)
    counts = np.sort(np.bincount(maps[maps >= 0]))[::-1]
    return float(counts[:hubs].sum() / max(1, counts.sum())), hubs


def seam_energy(maps: Maps, cells: NDArray[np.integer]) -> float | None:
    """Mean squared distance of neighbouring cells (N, M, M, C) of different sources, over that of one source.

    1 where seams are as smooth as the inside of an example. None where there are no seams, or nothing but seams.
    """
    totals = np.zeros((2, 2))  # rows: one source, two sources; columns: sum of distances, pairs
    for axis in (1, 2):
        first, second = (np.moveaxis(maps, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        values = np.moveaxis(cells, axis, 0).astype(np.float64)
        distances = np.square(values[1:] - values[:-1]).sum(axis=-1)
        counted = (first >= 0) & (second >= 0)
        for row, chosen in enumerate((counted & (first == second), counted & (first != second))):
            totals[row] += distances[chosen].sum(), chosen.sum()
    (inside, inside_pairs), (across, across_pairs) = totals
    return float(across / across_pairs / (inside / inside_pairs)) if inside > 0 and across_pairs else None
