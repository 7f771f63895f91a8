"""Plans whose images walk through tables of distances, on the kernels' emulation: the specification's source maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gpu_engines
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_modes_backends import KINDS as MODE_KINDS
from test_modes_backends import MODES
from test_modes_backends import check as check_mode
from test_presets_everywhere import BANKS
from test_scan import BEYOND, KINDS, any_request, make

import lpkernel
from lpkernel import plan
from lpkernel.backends import cuda_launches, device_walk, registry, stages
from lpkernel.backends.base import ScanRequest
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.cuda_launches import Launch, Machine, Walk
from lpkernel.backends.specification import NumpyBackend
from lpkernel.presets import PRESETS

SPECIFICATION = NumpyBackend()
BOTH = ("cuda", "numpy")


class Counted:
    """The extension, counting its calls."""

    def __init__(self, module: Any, names: Sequence[str]) -> None:
        self.module, self.calls = module, dict.fromkeys(names, 0)

    def __getattr__(self, name: str) -> Any:
        if name in self.calls:
            self.calls[name] += 1
        return getattr(self.module, name)


@contextmanager
def counting(cuda: CudaBackend, *names: str) -> Iterator[dict[str, int]]:
    """How often these functions of the extension are called meanwhile."""
    before, counted = cuda._given, Counted(cuda._given, names)
    cuda._given = counted  # type: ignore[assignment]
    yield counted.calls
    cuda._given = before


@pytest.fixture
def counted(cuda: CudaBackend) -> Iterator[dict[str, int]]:
    with counting(cuda, "walk", "walk_tables", "scan", "steps") as calls:
        yield calls


def check(cuda: CudaBackend, request: ScanRequest, rows: int = 1 << 14) -> None:
    cuda.tuning = Tuning(walk=True, rows=rows)
    assert np.array_equal(cuda.scan(request), SPECIFICATION.scan(request))


@pytest.mark.parametrize("kind", KINDS)
def test_every_plan(cuda: CudaBackend, counted: dict[str, int], kind: str) -> None:
    """Banks of one image, of a few that lanes share, and of several warps; images in two batches."""
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


def test_large_banks(cuda: CudaBackend) -> None:
    """Several warps, and threads of one, two and four bank images, ragged at the end; few codes, so ties."""
    made = plan.random(4, 3, 1, scales=[3, 4], overlap="cut")
    for size, k in ((70, 1), (600, 10), (1030, 3)):
        check(cuda, World(size, side=4, codes=5, channels=2).request(made, [0, 7], k, hubness=32 if k == 1 else 0))


def test_ties_and_only_some_images(cuda: CudaBackend) -> None:
    """All bank images alike, two codes, and fewer allowed images than neighbours."""
    for size, codes, stride in ((300, 2, 3), (40, 1, 1), (300, 2, 150)):
        allowed = np.flatnonzero(np.arange(size) % stride == stride // 2)
        world = World(size, side=5, codes=codes, channels=1)
        check(cuda, world.request(plan.random(5, 2, scales=[4, 5]), range(3), 10, candidates=allowed))
        check(cuda, world.request(plan.random(5, 2, scales=[5]), [3], 128, candidates=allowed, in_codes=True))


def test_more_cells_than_are_staged_at_a_time(cuda: CudaBackend) -> None:
    made, world = plan.reference(12, 6, 6, scales=[12], mirror=8), World(7, side=12)
    assert made.most_compared > 288
    check(cuda, world.request(made, [0, 1], 3, start=world.start(2), in_codes=True))


@pytest.mark.parametrize("in_codes", [False, True])
def test_one_start_for_all_images(cuda: CudaBackend, in_codes: bool) -> None:
    world = World(20, side=6, channels=9)
    made = make("edit-guided", 6, 3, None, None if in_codes else [4, 6])
    check(cuda, world.request(made, range(11), 3, start=world.start(1), in_codes=in_codes), rows=9)


@pytest.mark.compiled
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_plan(cuda: CudaBackend, data: st.DataObject) -> None:
    check(cuda, any_request(data, side=9, patch=6, size=60, channels=19, images=6, k=128), data.draw(st.integers(1, 6)))


@pytest.mark.parametrize("order", ["rev", "1", "2"])
def test_any_order_of_threads(cuda: CudaBackend, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_ORDER", order)
    made = plan.random(6, 3, scales=[5, 6], overlap="cut")
    check(cuda, World(70, side=6, codes=9).request(made, range(2), 3))


@pytest.mark.parametrize("kind", MODE_KINDS)
def test_every_mode(cuda: CudaBackend, counted: dict[str, int], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.tuning = Tuning(walk=True)
    monkeypatch.setitem(registry.BACKENDS, "cuda", cuda)
    for mode in MODES:
        check_mode(mode, kind, "cuda")
    assert counted["walk"] >= len(MODES) and counted["scan"] == counted["steps"] == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_as_the_launch_table_chooses(
    cuda: CudaBackend, counted: dict[str, int], preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call per generation, whatever the number of scales."""
    cuda.tuning = Tuning()
    monkeypatch.setitem(registry.BACKENDS, "cuda", cuda)
    bank = BANKS["codes"]
    for seed in (0, 1):
        made, wanted = (lpkernel.generate(bank, 3, patch=3, seed=seed, preset=preset, backend=name) for name in BOTH)
        assert np.array_equal(made.sources, wanted.sources)
    assert counted["walk"] == 2 and counted["scan"] == counted["steps"] == 0


def test_what_walks(cuda: CudaBackend, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Small banks, or few images, where memory and kernels allow it. The other launches run the rest."""
    card = Machine(132, 227 << 10, 90)
    for images, size, walks in ((4096, 16, True), (10**6, 16, True), (16, 999, True), (4096, 999, False)):
        tables = device_walk.table_bytes((8, 16), size)
        assert cuda_launches.choose_walk(images, size, tables, card) is walks
    assert not cuda_launches.choose_walk(
        16, 999, device_walk.table_bytes((8, 16), 999), Machine(46, 99 << 10, 89, 8 << 30)
    )

    world, device = World(9, side=6), torch.device("cpu")
    request = world.request(plan.random(6, 3, scales=[3, 6], start="carry"), range(3), 3, in_codes=True)
    cuda.tuning = Tuning()
    first = next(stages.requests(request))
    assert isinstance(cuda._prepare(first, device).launch, Walk)  # type: ignore[union-attr]
    for tuning in (Tuning(walk=False), Tuning(steps=False), Tuning(group=1)):
        cuda.tuning = tuning
        assert isinstance(cuda._prepare(first, device).launch, Launch)  # type: ignore[union-attr]
    cuda.tuning = Tuning()
    monkeypatch.setattr(cuda._store.memory, "reasons", lambda need, device: ["too much"])
    assert np.array_equal(cuda.scan(request), SPECIFICATION.scan(request))
    monkeypatch.undo()
    for refused in (
        World(1, side=65).request(plan.random(65, 64, 64, scales=[65]), [0], 1),
        World(2049, side=3, codes=2).request(plan.random(3, 3, 3, scales=[3]), [0], 1),
        World(3, side=3, channels=513).request(plan.random(3, 3, 3, scales=[3]), [0], 1),
    ):
        check(cuda, refused)
    assert counted["walk"] == 0 and counted["scan"] == 5


def test_tables_are_kept(cuda: CudaBackend, counted: dict[str, int]) -> None:
    """Tables depend on the bank images and the sides, not on the plan's steps."""
    world = World(9, side=6)
    for stride in (1, 3):
        check(cuda, world.request(plan.random(6, 3, stride, scales=[4, 6]), range(3), 3))
    assert counted["walk_tables"] == 1
    check(cuda, world.request(plan.random(6, 3, scales=[4, 6]), range(3), 3, candidates=np.array([1, 4])))
    assert counted["walk_tables"] == 2


def test_ways_are_compared_before_they_are_timed(
    cuda: CudaBackend, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(gpu_engines.WAYS, "step by step")
    lines = list(gpu_engines.compare(cuda, gpu_engines.bank_of(5, 6, 20), [2], "cpu", 3, 0.0))
    assert len(lines) == 2 * len(gpu_engines.PRESETS) and counted["walk"] and counted["scan"]
    monkeypatch.setattr(cuda, "_run_walk", lambda *_: np.zeros((2, 6, 6), np.int32))
    with pytest.raises(SystemExit, match="one launch: source maps differ, B=5, N=2, paper"):
        list(gpu_engines.compare(cuda, gpu_engines.bank_of(5, 6, 20), [2], "cpu", 3, 0.0))
