"""Plans that run step by step, on the CUDA kernels' emulation: the specification's source maps, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from emulation.build import cuda_module
from scans import World
from test_scan import BEYOND, KINDS, make

from lpkernel import plan
from lpkernel.backends import cuda as cuda_backend
from lpkernel.backends import cuda_launches, device_steps
from lpkernel.backends.base import ScanRequest
from lpkernel.backends.cuda import CudaBackend, Tuning, _machine
from lpkernel.backends.cuda_launches import STEP_TILES, Machine, StepTile, Work
from lpkernel.backends.device_bank import upload_bank
from lpkernel.backends.specification import NumpyBackend

SPECIFICATION = NumpyBackend()
SMALL, WIDE = STEP_TILES


class Counted:
    """The extension, counting plans that ran step by step."""

    def __init__(self, module: Any) -> None:
        self.module, self.steps_run = module, 0

    def steps(self, *arguments: Any) -> None:
        self.steps_run += 1
        self.module.steps(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


@pytest.fixture
def counted(cuda: CudaBackend) -> Iterator[Counted]:
    given, counted = cuda._given, Counted(cuda._given)
    cuda._given = counted  # type: ignore[assignment]
    yield counted
    cuda._given = given


def check(cuda: CudaBackend, request: ScanRequest, tile: StepTile = SMALL, rows: int = 1 << 14) -> None:
    cuda.tuning = Tuning(steps=tile, rows=rows)
    assert np.array_equal(cuda.scan(request), SPECIFICATION.scan(request)), tile


@pytest.mark.parametrize("kind", KINDS)
def test_every_plan(cuda: CudaBackend, counted: Counted, kind: str) -> None:
    for size, images, scales in ((1, [3], [6]), (33, [5, 2**32 - 1], [4, 6]), (7, [0, 1, 2], [6])):
        world = World(size, side=6, channels=3, seed=size)
        made = make(kind, 6, 3, None, scales)
        start = world.start(len(images)) if made.starts_known or kind == "edit-free" else None
        in_codes = size == 7
        check(cuda, world.request(made, images, 3, size, start, in_codes=in_codes), rows=2)
    assert counted.steps_run == 3


@pytest.mark.compiled
@pytest.mark.parametrize(("options", "hubness"), BEYOND)
def test_options_beyond_the_paper(cuda: CudaBackend, options: dict[str, Any], hubness: int) -> None:
    world = World(40, side=6, channels=3, codes=4)
    for scales in ([6], [4, 6]):
        made = make("random-replace", 6, 3, None, scales, **options)
        carries = len(scales) == 1 or made.start == "carry"
        check(cuda, world.request(made, [0, 1, 7], 3, 5, in_codes=carries, hubness=hubness))


@pytest.mark.compiled
@pytest.mark.parametrize("tile", STEP_TILES)
def test_tiles(cuda: CudaBackend, tile: StepTile) -> None:
    """Several tiles of both kinds, ragged at their ends, and a sample that is not the whole bank."""
    world = World(2500 if tile == SMALL else 300, side=4, codes=40)
    made = plan.random(4, 3, 1, scales=[4])
    check(cuda, world.request(made, range(tile.images + 1), 10, in_codes=True), tile)


@pytest.mark.parametrize("k", [1, 3, 128])
def test_ties_and_overflowing_lists(cuda: CudaBackend, k: int) -> None:
    """Two codes: more bank images than a list holds are as near as the nearest; all alike; fewer than neighbours."""
    made = plan.random(4, 2, 1, scales=[4])
    for size, codes in ((2300, 2), (1500, 1), (60, 2)):
        world = World(size, side=4, codes=codes, channels=1)
        check(cuda, world.request(made, [0, 7], k, in_codes=True))
        check(cuda, world.request(made, [3], k, hubness=64))


def test_a_block_that_finds_more_than_it_holds(cuda: CudaBackend) -> None:
    world = World(1300, side=3, codes=1, channels=1)
    check(cuda, world.request(plan.random(3, 2, 1, scales=[3]), range(40), 5, in_codes=True), WIDE)


def test_steps_that_need_more_shared_memory_run_in_one_launch(
    cuda: CudaBackend, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, made = World(40, side=6), plan.random(6, 3, 1, scales=[6])
    width = device_steps.step_width(device_steps.channels_of(world.request(made, [0], 3)))
    need = counted.step_choose_bytes(max(len(cells) for cells in made.scales[0].compared), width, 0)
    for shared in (need, need - 1):
        monkeypatch.setattr(cuda_backend, "_machine", lambda device, shared=shared: Machine(4, shared, 80))
        check(cuda, world.request(made, [0, 1], 3))
        assert counted.steps_run == 1


def test_only_some_images(cuda: CudaBackend) -> None:
    world = World(300, side=5, codes=10)
    allowed = np.flatnonzero(np.arange(300) % 3 == 1)
    check(cuda, world.request(plan.random(5, 3, scales=[4, 5]), [1, 5], 4, candidates=allowed, hubness=32))


@pytest.mark.parametrize("in_codes", [False, True])
def test_one_start_for_all_images(cuda: CudaBackend, in_codes: bool) -> None:
    world = World(20, side=6)
    made = make("edit-guided", 6, 3, None, None if in_codes else [4, 6])
    check(cuda, world.request(made, range(6), 3, start=world.start(1), in_codes=in_codes), rows=4)


def test_large_values_and_wide_cells(cuda: CudaBackend, counted: Counted) -> None:
    """The largest values exact in float16, so that scores are off by thousands; larger ones do not run step by step."""
    made = plan.random(4, 2, 1, scales=[4])
    for spread, channels, ran in ((2048, 20, 1), (2049, 3, 0)):
        world = World(50, side=4, channels=channels, codes=30, spread=1)
        world.codebook[:] = world.random.integers(-spread, spread + 1, world.codebook.shape)
        world.codebook[0] = spread
        world.full = world.codebook[world.codes]
        world.table = np.square(world.codebook[:, None].astype(np.int64) - world.codebook[None]).sum(2).astype(np.int32)
        for in_codes in (False, True):
            counted.steps_run = 0
            check(cuda, world.request(made, range(3), 5, in_codes=in_codes))
            assert counted.steps_run == ran


def test_a_start_of_large_values_runs_as_a_whole(cuda: CudaBackend, counted: Counted) -> None:
    world = World(20, side=6, channels=3)
    world.codes[world.codes == 19] = 0
    world.full = world.codebook[world.codes]
    world.codebook[19] = 2049
    start = world.start(2)
    start[0, 0, 0] = 19
    check(cuda, world.request(make("edit-guided", 6, 3, None, [6]), range(2), 3, start=start))
    assert counted.steps_run == 0


def test_slacks_bound_what_scores_are_off_by() -> None:
    """In float32, summed in a bad order: largest first."""
    world = World(64, side=4, channels=16, codes=64, spread=2047)
    request = world.request(plan.random(4, 3, 1, scales=[4]), [0], 3)
    bank = device_steps.make_step_bank(upload_bank(request, torch.device("cpu")), None, 16)
    assert bank.magnitude <= 2047 and bank.longest >= np.square(world.full.astype(np.int64)).sum(3).max()
    constants = device_steps.make_constants(request, bank, None)
    slacks = device_steps.slacks(request, 16, bank.longest, constants.farthest)
    (scale,) = request.plan.scales
    full = world.full.reshape(64, 16, 16)
    for step, compared in enumerate(scale.compared):
        if not len(compared):
            continue
        rows = full[:, compared].reshape(64, -1)
        products = rows[:1].astype(np.float32) * rows
        order = np.argsort(-np.abs(products), axis=1)
        sums = np.cumsum(np.take_along_axis(products, order, 1), axis=1, dtype=np.float32)[:, -1]
        found = constants.content[step, :64].numpy() - 2 * sums
        true = np.square(rows.astype(np.int64)).sum(1) - 2 * (rows.astype(np.int64) * rows[0]).sum(1)
        assert (2 * np.abs(found.astype(np.float64) - true) <= slacks[step]).all()


def test_which_plans_run_step_by_step(cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with many images and a large bank, where memory suffices."""
    machine = Machine(132, 227 << 10, 90)
    work = Work(4096, 30_000, 20.0, 32, 10, 1024, 1)
    assert cuda_launches.choose_steps(work, machine) in STEP_TILES
    for few in ({"images": 1}, {"allowed": 16}):
        assert cuda_launches.choose_steps(Work(**{**vars(work), **few}), machine) is None
    monkeypatch.setattr(cuda_launches, "STEP_IMAGES", 4)
    monkeypatch.setattr(cuda_launches, "STEP_PAIRS", 2000)
    world = World(600, side=4, channels=3)
    request = world.request(plan.random(4, 2, 1, scales=[4]), range(4), 3, in_codes=True)
    cuda.tuning, device = Tuning(walk=False), torch.device("cpu")
    assert isinstance(cuda._prepare(request, device).launch, StepTile)  # type: ignore[union-attr]
    monkeypatch.setattr(cuda._store.memory, "reasons", lambda need, device: ["too much"])
    assert not isinstance(cuda._prepare(request, device).launch, StepTile)  # type: ignore[union-attr]


def test_tiles_fit_banks_and_devices() -> None:
    assert device_steps.PITCH % max(tile.bank for tile in STEP_TILES) == 0
    for images, bank in ((16, 128), (128, 256)):
        with pytest.raises(ValueError, match="tile: expected"):
            cuda_module().step_groups(images, bank, 10, 1)
    assert _machine(torch.device("cpu")).shared >= cuda_launches.STEP_SHARED
