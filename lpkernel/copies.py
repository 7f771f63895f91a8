"""How much of one source a result copies, and redrawing what copies too much.

Copying long stretches of one example is the known weakness of nearest-patch synthesis (the paper, section 2). A
`CopyLimit` caps it: an image over the limit is drawn again with other random numbers, up to `tries` times.
Try t of image i runs with the random counter of image i + t * 2^28 of the same seed, so a redrawn image is the
same whatever the batch, the backend and the other images; images 2^28 and beyond are left for these tries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel import checks
from lpkernel.errors import InputError
from lpkernel.pictures.seams import areas

Maps = NDArray[np.int32]

TRY_OFFSET = 2**28
MAX_TRIES = 15  # 16 * 2^28 = 2^32, the number of image numbers


@dataclass(frozen=True)
class CopyLimit:
    """At most `share` (0 to 1) of an image's copied cells from one source, and at most `area` 4-connected cells.

    A bank image and its mirror image (`Bank.build` with `flip`) are one source.

    None omits a cap; at least one is needed. An image over the limit is redrawn up to `tries` (0 to 15) times; if none
    is within it, the one that is least over is kept, the earliest on a tie. Raises InputError.
    """

    share: float | None = None
    area: int | None = None
    tries: int = 8

    def __post_init__(self) -> None:
        if self.share is None and self.area is None:
            raise InputError("copy limit: got neither a share nor an area, expected at least one of them")
        if self.share is not None and not 0 < checks.real("copy limit: share", self.share) <= 1:
            raise InputError(f"copy limit: share is {self.share}, expected more than 0 and at most 1")
        if self.area is not None and checks.integer("copy limit: area", self.area) < 1:
            raise InputError(f"copy limit: area is {self.area}, expected at least 1 cell")
        if not 0 <= checks.integer("copy limit: tries", self.tries) <= MAX_TRIES:
            raise InputError(f"copy limit: tries is {self.tries}, expected 0 to {MAX_TRIES}")

    def excess(self, sources: NDArray[np.integer]) -> NDArray[np.float64]:
        """(N,): how much each map copies, as a multiple of the limit; above 1 is over it."""
        over = np.zeros(len(sources))
        if self.share is not None:
            over = np.maximum(over, largest_shares(sources) / self.share)
        if self.area is not None:
            over = np.maximum(over, largest_areas(sources) / self.area)
        return over


def largest_shares(sources: NDArray[np.integer]) -> NDArray[np.float64]:
    """(N,): the share of the copied cells of each map (N, M, M) that its most used source gave; 0 if none are."""
    shares = np.zeros(len(sources))
    for i, one in enumerate(sources):
        copied = one[one >= 0]
        if copied.size:
            shares[i] = np.unique(copied, return_counts=True)[1].max() / copied.size
    return shares


def largest_areas(sources: NDArray[np.integer]) -> NDArray[np.int64]:
    """(N,): cells of the largest 4-connected area from one source in each map (N, M, M); -1 is not counted."""
    labels = areas(sources)
    labels[sources < 0] = -1
    return np.array(
        [np.bincount(one[one >= 0], minlength=1).max() for one in labels.reshape(len(labels), -1)], np.int64
    )


def redraw(
    limit: CopyLimit,
    sources: Maps,
    first_image: int,
    scan: Callable[[NDArray[np.int64], NDArray[np.int64]], Maps],
    examples: Callable[[Maps], NDArray[np.integer]],
) -> tuple[Maps, dict[str, Any]]:
    """The maps with those over the limit drawn again, and what was done, ready for JSON.

    scan(rows, images) makes the maps of these `rows` of the call anew, with the random counters `images`.
    examples(maps) renumbers maps by what counts as one source: an image with its other views (`lpkernel.views`) and its
    mirror image.
    """

    def excess(maps: Maps) -> NDArray[np.float64]:
        return limit.excess(examples(maps))

    if first_image + len(sources) > TRY_OFFSET:
        last = first_image + len(sources) - 1
        raise InputError(f"first_image: image {last} with a copy limit, expected image numbers below {TRY_OFFSET}")
    best, sources = excess(sources), sources.copy()
    kept = np.zeros(len(sources), np.int64)
    for attempt in range(1, limit.tries + 1):
        rows = np.flatnonzero(best > 1)
        if not rows.size:
            break
        again = scan(rows, first_image + rows + attempt * TRY_OFFSET)
        over = excess(again)
        better = over < best[rows]
        sources[rows[better]], best[rows[better]], kept[rows[better]] = again[better], over[better], attempt
    return sources, {
        "share": limit.share,
        "area": limit.area,
        "tries": limit.tries,
        "try_kept": {str(first_image + row): int(kept[row]) for row in np.flatnonzero(kept)},
        "still_over": [int(first_image + row) for row in np.flatnonzero(best > 1)],
    }
