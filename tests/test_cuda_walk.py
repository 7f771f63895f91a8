"""Plans whose images walk through tables of distances, on the CUDA kernels' emulation: the specification's source maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_scan import BEYOND, KINDS, any_request, make

import lpkernel
from lpkernel import plan
from lpkernel.backends import cuda_launches, device_walk, registry
from lpkernel.backends.base import ScanRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.cuda_launches import Machine, Walk
from lpkernel.backends.specification import NumpyBackend
from lpkernel.bank import Bank
from lpkernel.presets import PRESETS

SPECIFICATION = NumpyBackend()


class Counted:
    """The extension, counting its calls."""

    def __init__(self, module: Any) -> None:
        self.module, self.calls = module, dict.fromkeys(("walk", "walk_tables", "scan", "steps"), 0)

    def __getattr__(self, name: str) -> Any:
        if name in self.calls:
            self.calls[name] += 1
        return getattr(self.module, name)


@pytest.fixture
def counted(cuda: CudaBackend) -> Iterator[dict[str, int]]:
    before, counted = cuda._given, Counted(cuda._given)
    cuda._given = counted  # type: ignore[assignment]
    yield counted.calls
    cuda._given = before


def check(cuda: CudaBackend, request: ScanRequest, rows: int = 1 << 14) -> None:
    cuda.tuning = Tuning(walk=True, rows=rows)
    assert np.array_equal(cuda.scan(request), SPECIFICATION.scan(request))


@pytest.mark.parametrize("kind", KINDS)
def test_every_plan(cuda: CudaBackend, counted: dict[str, int], kind: str) -> None:
    """Banks of one image, of few that lanes share, of several warps; images in two batches."""
    for size, images, scales, k in ((1, [3], [6], 1), (5, [5, 2**32 - 1], [4, 6], 3), (17, [0, 1, 2], [3, 4, 6], 128)):
        world = World(size, side=6, channels=3, seed=size)
        made = make(kind, 6, 3, None, scales)
        start = world.start(len(images)) if made.starts_known or kind == "edit-free" else None
        check(cuda, world.request(made, images, k, size, start), rows=2)
        if len(scales) == 1:
            check(cuda, world.request(made, images, k, size, start, in_codes=True))
    assert counted == {"walk": 4, "walk_tables": 4, "scan": 0, "steps": 0}


@pytest.mark.compiled
@pytest.mark.parametrize(("options", "hubness"), BEYOND)
def test_options_beyond_the_paper(
    cuda: CudaBackend, counted: dict[str, int], options: dict[str, Any], hubness: int
) -> None:
    """Few codes, so that boundaries and ranks tie; a plan that carries is one launch, unless a canvas is given."""
    world = World(40, side=6, channels=3, codes=4)
    for kind, scales in (("random-replace", [4, 6]), ("edit-free", [4, 6]), ("random-replace", [6])):
        made = make(kind, 6, 3, None, scales, **options)
        carries = len(scales) == 1 or made.start == "carry"
        start = world.start(1) if kind == "edit-free" else None
        before = counted["walk"]
        check(cuda, world.request(made, [0, 1, 7], 3, 5, start, in_codes=carries, hubness=hubness))
        stages = len(made.stages) if start is not None else 1
        assert counted["walk"] - before == stages
    assert counted["scan"] == counted["steps"] == 0
