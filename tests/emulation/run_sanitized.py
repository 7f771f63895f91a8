"""Runs small problems through every CUDA kernel, built with a sanitizer, in a process of its own.

    run_sanitized.py SANITIZER [ORDER...]

SANITIZER is what -fsanitize= takes; its library must be preloaded. Prints the number of right answers of each thread
order (SIMT_ORDER; forwards without one); the sanitizer itself reports its findings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scans import World

from lpkernel import plan
from lpkernel.backends import cuda_launches
from lpkernel.backends.base import ScanRequest, TopkRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.specification import NumpyBackend

from .build import cuda_module

# The kernels of the scan: for codes, rows of distances and gathered distances; tiles of 1 and 4; groups of blocks.
CODES = [
    Tuning(form="rows", tile=1, group=1, threads=96, depth=2),
    Tuning(form="rows", tile=4, group=2, groups=1, threads=96, span=3, depth=2),
    Tuning(form="gather", group=3, threads=32),
]
LATENTS = [
    Tuning(form="latents", tile=1, group=1, threads=64),
    Tuning(form="latents", tile=1, group=2, threads=64, span=5),
    Tuning(form="latents", tile=4, group=3, groups=1, threads=64, split=1, span=2),
]


def scans() -> Iterator[tuple[Tuning, ScanRequest]]:
    """Plans with a resize, kept cells, start canvases, boundaries, offsets; tiles of 4 have rows without an image."""
    region = np.zeros((5, 5), bool)
    region[1:3, 2:4] = True
    for in_codes in (True, False):
        scales = [5] if in_codes else [4, 5]
        world = World(40, side=5, channels=3, codes=9)
        made = plan.random(5, 3, None, scales)
        guided = plan.edit(region, 3, None, "guided", scales)
        for tuning in CODES if in_codes else LATENTS:
            images = range(5 if tuning.tile == 4 else 2)
            yield tuning, world.request(made, images, 3, in_codes=in_codes)
        candidates = np.flatnonzero(np.arange(40) % 3 != 1)
        grouped = (CODES if in_codes else LATENTS)[1]
        stitched = plan.random(5, 3, None, scales, "cut", "carry", mirror=1)
        yield grouped, world.request(stitched, range(3), 3, hubness=200, in_codes=in_codes)
        yield grouped, world.request(guided, range(2), 8, 7, world.start(2), candidates, in_codes)
        if not in_codes:
            small = Tuning(steps=cuda_launches.STEP_TILES[0], rows=2)
            yield small, world.request(stitched, range(3), 3, hubness=200)
        tables = Tuning(walk=True, rows=2, refine=True)
        for refine in (False, True):
            stitches = world.request(stitched, range(3), 3, hubness=200, in_codes=in_codes)
            yield tables, replace(stitches, refine=refine)
            kept = world.request(guided, range(2), 8, 7, world.start(2), candidates, in_codes)
            yield tables, replace(kept, refine=refine)
    for in_codes in (True, False):  # more cells than threads, and parts of several cells
        large = World(9, side=17, channels=3, codes=9)
        refined = large.request(plan.random(17, 5, scales=[17], overlap="cut"), range(1), 3, in_codes=in_codes)
        yield Tuning(walk=True, refine=True), replace(refined, refine=True)
    # more codes than the kernels keep rows of distances for
    many = World(20, side=4, codes=cuda_launches.MOST_ROW_CODES + 1, channels=2)
    yield CODES[2], many.request(plan.reference(4, 2, None, [4]), range(2), 2, start=many.start(1), in_codes=True)


def searches() -> Iterator[TopkRequest]:
    """Both types with every kind of mask; 2 or 8 queries a warp, one tile of bank rows or several, slabs."""
    random = np.random.default_rng(0)
    for dtype, width in ((np.float32, 37), (np.int16, 33)):
        for number, (queries, rows, k) in enumerate([(2, 150, 3), (9, 1100, 10), (1, 50, 40), (19, 30, 2)]):
            own = random.random((queries, width)) < 0.6
            yield TopkRequest(
                queries=random.integers(-9, 10, (queries, width)).astype(dtype),
                bank=random.integers(-9, 10, (rows, width)).astype(dtype),
                k=k,
                patch_mask=(None, own[0], own, own)[number],
                candidate_mask=None if number % 2 == 0 else random.random(rows) < 0.5,
            )


def screens() -> Iterator[tuple[Tuning, TopkRequest]]:
    """The searches on tensor cores: both types, both kinds of masks; and one whose queries are all redone."""
    for request in searches():
        if len(request.queries) > 2:
            yield Tuning(search=(8, 1, 1, 1, 2)), request
    yield (
        Tuning(search=(2, 1, 1, 2, 1)),
        TopkRequest(np.zeros((2, 3), np.int16), np.ones((1100, 3), np.int16), 2, None, None),
    )


def neighbours(request: TopkRequest) -> NDArray[np.int64]:
    """The result of a search, by a full sort of exact sums."""
    shown = np.ones(request.queries.shape, bool) if request.patch_mask is None else request.patch_mask
    wide, bank = np.asarray(request.queries, np.int64), np.asarray(request.bank, np.int64)
    distances = (np.square(wide[:, None] - bank) * np.broadcast_to(shown, wide.shape)[:, None]).sum(2)
    if request.candidate_mask is not None:
        distances[:, ~np.asarray(request.candidate_mask)] = np.iinfo(np.int64).max
    return np.argsort(distances, axis=1, kind="stable")[:, : request.k]


def main() -> None:
    torch.set_num_threads(1)
    backend = CudaBackend(cuda_module(sanitize=sys.argv[1]), "cpu")
    scan_cases = [(tuning, request, NumpyBackend().scan(request)) for tuning, request in scans()]
    wanted_searches = [*((Tuning(), request) for request in searches()), *screens()]
    search_cases = [(tuning, request, neighbours(request)) for tuning, request in wanted_searches]
    for order in sys.argv[2:] or ["fwd"]:
        os.environ["SIMT_ORDER"] = order
        right = 0
        for tuning, request, wanted in scan_cases:
            backend.tuning = tuning
            right += np.array_equal(backend.scan(request), wanted)
        for tuning, search, nearest in search_cases:
            backend.tuning = tuning
            right += np.array_equal(backend.masked_topk(search).indices, nearest)
        print(order, right, "of", len(scan_cases) + len(search_cases), flush=True)


if __name__ == "__main__":
    main()
