"""The CUDA scan, its source and its compiled code run on the CPU, equals the specification bit for bit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_scan import BEYOND, KINDS, any_request, make

from lpkernel import plan
from lpkernel.backends import cuda_launches, device_bank, stages
from lpkernel.backends.base import CodeBank, LatentBank, ScanRequest, TopkRequest
from lpkernel.backends.cuda import CudaBackend, Tuning, _machine, _scratch_bytes, _work
from lpkernel.backends.cuda_launches import STEP_TILES, Machine, Work
from lpkernel.backends.device_bank import bank_bytes, offset_bytes
from lpkernel.backends.specification import NumpyBackend
from lpkernel.backends.store import Store
from lpkernel.errors import BackendUnavailable, InputError

SPECIFICATION = NumpyBackend()
# Launches that the table would not choose for banks this small: tile edges, groups of blocks, slabs without images,
# several tiles a group, few staged cells.
SHAPES = [
    Tuning(walk=False),
    Tuning(tile=4, group=1),
    Tuning(tile=1, group=2, threads=96, span=5),
    Tuning(tile=4, group=3, groups=1, threads=128, split=1, span=2),
]
ROWS = [
    Tuning(form="rows", tile=1, group=1, threads=96, depth=3),
    Tuning(form="rows", tile=4, group=1, threads=128, depth=1),
    Tuning(form="rows", tile=4, group=2, groups=1, threads=96, span=3, depth=2),
    Tuning(form="gather", group=3, threads=32),
]


def check(cuda: CudaBackend, tuning: Tuning, request: object) -> None:
    cuda.tuning = tuning
    assert np.array_equal(cuda.scan(request), SPECIFICATION.scan(request)), tuning  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scales", [None, [6, 8]])
def test_every_plan_in_every_shape(cuda: CudaBackend, kind: str, scales: list[int] | None) -> None:
    for size, images in [(1, [3]), (2, [0, 2**32 - 1]), (7, [5, 1, 8]), (33, [0, 1, 2, 3, 9])]:
        world = World(size, side=8, channels=3, seed=size)
        made = make(kind, 8, 3, None, scales)
        start = world.start(len(images)) if made.starts_known or kind == "edit-free" else None
        for number, tuning in enumerate(SHAPES):
            check(cuda, tuning, world.request(made, images, (1, 3, 10, 128)[number], seed=size, start=start))
        for number, tuning in enumerate(ROWS if scales is None else []):
            k = (3, 10, 128, 1)[number]
            check(cuda, tuning, world.request(made, images, k, seed=size, start=start, in_codes=True))


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["random-replace", "reference", "edit-free"])
@pytest.mark.parametrize(("options", "hubness"), BEYOND)
def test_options_beyond_the_paper(cuda: CudaBackend, kind: str, options: dict[str, Any], hubness: int) -> None:
    """Few codes, so that boundaries and ranks tie; the full side in codes, with every shape in turn."""
    for size, patch, scales in ((33, 3, [8]), (9, 4, [5, 8])):
        world = World(size, side=8, channels=3, codes=4, seed=size)
        made = make(kind, 8, patch, None, scales, **options)
        start = world.start(3) if made.starts_known or kind == "edit-free" else None
        carries = len(scales) == 1 or made.start == "carry"
        for in_codes in (False, True) if carries else (False,):
            request = world.request(made, [0, 1, 7], 3, 5, start, None, in_codes, hubness)
            tunings = SHAPES[:1] if len(scales) > 1 else ROWS if in_codes else SHAPES
            check(cuda, tunings[(BEYOND.index((options, hubness)) + KINDS.index(kind)) % len(tunings)], request)


@pytest.mark.parametrize(("in_codes", "of_latents"), [(False, False), (False, True), (True, False)])
def test_a_search_radius_equals_a_bank_of_shifted_copies(cuda: CudaBackend, in_codes: bool, of_latents: bool) -> None:
    cuda.tuning = SHAPES[0]
    world, allowed = World(5, side=6, channels=3, codes=4), np.array([0, 2, 3])
    made = make("edit-free", 6, 3, None, [4, 6], start="carry", overlap="cut")
    given: dict[str, Any] = {"images": [0, 7], "k": 3, "start": world.start(2), "hubness": 64, "in_codes": in_codes}
    found = world.request(made, candidates=allowed, radius=1, of_latents=of_latents, **given)
    views = world.shifted(1).request(made, candidates=found.candidates, **given)
    assert np.array_equal(cuda.scan(found), SPECIFICATION.scan(views))
    for one, other in zip(stages.requests(found), stages.requests(views), strict=True):
        assert bank_bytes(one) == bank_bytes(other)


@pytest.mark.compiled
@pytest.mark.parametrize("in_codes", [False, True])
def test_boundaries_of_the_widest_patch(cuda: CudaBackend, in_codes: bool) -> None:
    world = World(3, side=34, channels=2, codes=5)
    made = plan.random(34, 32, 2, [34], overlap="cut")
    for tuning in (ROWS if in_codes else SHAPES)[1:3]:
        check(cuda, tuning, world.request(made, [0, 5], 2, in_codes=in_codes))
    cuda.tuning = SHAPES[0]
    wider = World(1, side=34).request(plan.random(34, 33, 1, [34], overlap="cut"), [0], 1)
    assert cuda.unsupported(wider) == ["cuts patches of up to 32 cells, got 33"]
    assert cuda.unsupported(replace(wider, plan=plan.random(34, 33, 1, [34]))) == []


@pytest.mark.parametrize("search", [False, True])
def test_kept_banks_go_where_memory_is_short(cuda: CudaBackend, search: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that was made from them, so that another bank fits; a bank that fits beside them does not end them."""
    monkeypatch.setattr(cuda._store, "memory", device_bank.MemoryBudget(cuda._store.forget))
    cuda.tuning = Tuning(steps=STEP_TILES[0])
    made = plan.random(8, 4, scales=[8])
    kept = World(300, side=8, channels=3).request(made, range(9), 3, in_codes=True, hubness=64)
    first = cuda.scan(kept)
    stores: list[Store[Any]] = [cuda._store._banks, cuda._store._offsets, *cuda._steps.stores]
    assert all(store._kept for store in stores)
    asked: ScanRequest | TopkRequest = World(40, side=8, channels=3).request(made, range(50), 3, in_codes=True)
    if search:
        rows = np.zeros((9000, 8), np.float32)
        asked = TopkRequest(rows[:100], rows, 7, None, None)
    monkeypatch.setattr(cuda._store, "memory", device_bank.MemoryBudget(cuda._store.forget))
    monkeypatch.setattr(device_bank, "free_bytes", lambda device, enough: enough)
    assert cuda.unsupported(asked) == [] and all(store._kept for store in stores)
    monkeypatch.setattr(
        device_bank, "free_bytes", lambda device, enough: 0 if any(store._kept for store in stores) else enough
    )
    assert cuda.unsupported(asked) == [] and not any(store._kept for store in stores)
    assert np.array_equal(cuda.scan(kept), first)  # made anew


def test_each_stage_must_fit(cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second stage of a plan that carries has one starting canvas per image; offsets count until uploaded."""
    cuda.tuning = SHAPES[0]
    world = World(40, side=8, channels=3)
    request = world.request(plan.random(8, 4, scales=[4, 8], start="carry"), range(50), 3, in_codes=True, hubness=64)
    first, second = stages.requests(request)
    needs: list[int] = []
    monkeypatch.setattr(device_bank, "free_bytes", lambda device, enough: needs.append(enough))
    assert cuda.unsupported(request) == cuda.unsupported(second) == []
    assert needs[1] - needs[2] == 50 * 8 * 8 * 2
    cuda.scan(request)
    assert cuda.unsupported(request) == [] and len(needs) == 3  # memory that sufficed once is not checked again
    cuda._store.memory = device_bank.MemoryBudget()
    assert cuda.unsupported(request) == []
    for before, after, stage in zip(needs[:2], needs[3:], (first, second), strict=True):
        assert before - after == bank_bytes(stage) + offset_bytes(stage)


@pytest.mark.parametrize("in_codes", [False, True])
def test_one_start_for_all_images(cuda: CudaBackend, in_codes: bool) -> None:
    world = World(20, side=8)
    made = make("edit-guided", 8, 3, None, None if in_codes else [6, 8])
    for tuning in (ROWS if in_codes else SHAPES)[:3]:
        check(cuda, tuning, world.request(made, range(6), 3, start=world.start(1), in_codes=in_codes))


@pytest.mark.compiled
@pytest.mark.parametrize("k", [1, 3, 10, 128])
@pytest.mark.parametrize("in_codes", [False, True])
def test_large_bank(cuda: CudaBackend, k: int, in_codes: bool) -> None:
    """Several chunks of bank images for each thread, and slabs that end inside one."""
    made = plan.random(5, 3, 2, scales=[5])
    for size in (250, 5000):
        world = World(size, side=5, codes=40, seed=k)
        for tuning in ROWS[:3] if in_codes else SHAPES[1:4:2]:
            images = range(2 if size == 5000 else 5)
            check(cuda, tuning, world.request(made, images, k, seed=k, in_codes=in_codes))


@pytest.mark.parametrize("in_codes", [False, True])
def test_ties_and_candidates(cuda: CudaBackend, in_codes: bool) -> None:
    """Two codes, so almost every distance occurs often; and fewer allowed images than neighbours."""
    world = World(300, side=6, codes=2, channels=1)
    made = plan.random(6, 2, scales=[6])
    masks = [
        np.arange(300) % 3 == 1,
        np.arange(300) > 297,
        np.arange(300) == 150,
        np.random.default_rng(0).random(300) < 0.5,
    ]
    for mask in masks:
        for tuning in ROWS if in_codes else SHAPES:
            request = world.request(made, range(5), 10, candidates=np.flatnonzero(mask), in_codes=in_codes)
            check(cuda, tuning, request)


def test_equal_images_give_the_lowest_indices(cuda: CudaBackend) -> None:
    world = World(200, side=4, codes=1)
    request = world.request(plan.reference(4, 2), range(9), 3, start=world.start(1), in_codes=True)
    for tuning in ROWS:
        cuda.tuning = tuning
        assert set(np.unique(cuda.scan(request))) == {0, 1, 2}


@pytest.mark.compiled
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_plan(cuda: CudaBackend, data: st.DataObject) -> None:
    request = any_request(data, side=9, patch=6, size=60, channels=19, images=6, k=128)
    in_codes = isinstance(request.bank, CodeBank)
    tuning = data.draw(st.sampled_from(ROWS if in_codes else SHAPES), "tuning")
    check(cuda, replace(tuning, group=data.draw(st.integers(1, 3), "G")), request)


@pytest.mark.parametrize("order", ["rev", "1", "2", "3"])
def test_any_order_of_threads(cuda: CudaBackend, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_ORDER", order)
    world = World(70, side=6, codes=9)
    for in_codes in (False, True):
        made = plan.random(6, 3, scales=[6] if in_codes else [5, 6])
        for tuning in (ROWS if in_codes else SHAPES)[2:]:
            check(cuda, tuning, world.request(made, range(5), 3, in_codes=in_codes))


def test_banks_stay_on_the_device(cuda: CudaBackend) -> None:
    cuda.tuning = SHAPES[0]
    world = World(30, side=6)
    request = world.request(plan.random(6, 3, scales=[6]), range(2), 3, in_codes=True)
    cuda.scan(request)
    kept = cuda._store.bank(request, torch.device("cpu"), 1 << 30, cuda_launches.CODE_SHIFT)
    assert kept is cuda._store.bank(request, torch.device("cpu"), 1 << 30, cuda_launches.CODE_SHIFT)
    assert kept is cuda._store.held(request, torch.device("cpu"), cuda_launches.CODE_SHIFT)


def test_no_images_and_wrong_requests(cuda: CudaBackend) -> None:
    cuda.tuning = SHAPES[0]
    world = World(5, side=4)
    made = plan.reference(4, 2)
    request = world.request(made, [], 3, start=world.start(1), in_codes=True)
    assert cuda.scan(request).shape == (0, 4, 4)
    request = world.request(made, [1], 3, start=world.start(1), in_codes=True)
    request = replace(request, canvas=(world.start(1) + 20,))
    with pytest.raises(InputError, match="codes run from"):
        cuda.scan(request)
    with pytest.raises(InputError, match="seed"):
        cuda.scan(replace(request, seed=2**64))
    large = World(129, side=4).request(made, [1], 129, start=world.start(1))
    assert "128 neighbours" in cuda.unsupported(large)[0]
    assert "not on cuda" in cuda.unsupported(replace(request, device="cuda"))[0]
    assert cuda.unsupported(request) == []


@pytest.mark.parametrize(
    ("work", "form", "tile", "group"),
    [
        (Work(16, 16, 30, 36, 3, 1024, 1), "gather", 1, 1),
        (Work(16, 16, 30, 36, 3, 0, 16), "latents", 1, 1),
        (Work(10_000, 30_000, 30, 36, 3, 1024, 1), "rows", 4, 1),
        (Work(10_000, 30_000, 30, 36, 3, 0, 16), "latents", 4, 1),
    ],
)
def test_launch_table(work: Work, form: str, tile: int, group: int) -> None:
    launch = cuda_launches.choose(work, Machine(132, 227 << 10, 90))
    assert (launch.form, launch.tile, launch.group) == (form, tile, group)


@pytest.mark.parametrize(("codes", "width"), [(1024, 1), (0, 16)])
def test_few_images_and_a_large_bank_fill_the_device(codes: int, width: int) -> None:
    for images in (1, 4, 16):
        launch = cuda_launches.choose(Work(images, 30_000, 30, 36, 3, codes, width), Machine(132, 227 << 10, 90))
        assert 48 <= -(-images // launch.tile) * launch.group <= 264


def test_cuda_imports_without_a_device() -> None:
    """A machine without CUDA gets a reason, not an error."""
    code = "from lpkernel.backends.cuda import CudaBackend; print(CudaBackend().unavailable())"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.startswith("[")


def test_a_scan_beyond_the_free_memory_is_refused(cuda: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes take one value a cell, latents 8 or more; the estimate covers what is allocated."""
    cuda.tuning = SHAPES[0]
    cuda._store.memory = device_bank.MemoryBudget()
    for in_codes, channels, start_values in ((True, 3, 1), (False, 3, 8), (False, 9, 16)):
        world = World(40, side=8, channels=channels)
        request = world.request(plan.reference(8, 4), range(50), 3, start=world.start(50), in_codes=in_codes)
        launch = cuda_launches.choose(_work(request), _machine(torch.device("cpu")))
        tiles = -(-50 // launch.tile) * launch.group
        starts, canvases = 50 * 64 * start_values * 2, tiles * 2 * launch.tile * 64 * start_values * 2
        need = _scratch_bytes(request, _work(request), launch, 4)
        assert need == canvases + starts + 50 * 64 * 4 + 2 * tiles * launch.tile * 3 * 8
        need += bank_bytes(request)
        monkeypatch.setattr(device_bank, "free_bytes", lambda device, enough, free=need: free)
        assert cuda.unsupported(request) == []
        monkeypatch.setattr(device_bank, "free_bytes", lambda device, enough, free=need - 1: free)
        assert cuda.unsupported(request) == [
            f"needs {need / 2**20:.0f} MiB on cpu, where {need / 2**20:.0f} MiB are free"
        ]


def test_a_canvas_of_too_many_values_is_refused(cuda: CudaBackend) -> None:
    cuda.tuning = SHAPES[0]
    request = World(1, side=64).request(plan.random(64, 32, 32, scales=[64]), [0], 1)
    deep = np.broadcast_to(np.int16(0), (1, 64, 64, 2**17 - 7))
    latents = replace(request, bank=LatentBank(lambda side: deep, 1))
    assert cuda.unsupported(latents) == ["canvas of side 64 with 131072 channels is too large"]
    with pytest.raises(BackendUnavailable, match="backend cuda cannot run this: canvas of side 64"):
        cuda.scan(latents)
