"""Seams refined on the device, on the kernel's emulation: the maps of the rule in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import gpu_engines
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_cuda_walk import counting
from test_modes_backends import KINDS as MODE_KINDS
from test_modes_backends import MODES
from test_modes_backends import check as check_mode
from test_presets_everywhere import BANKS

import lpkernel as lp
from lpkernel import plan, refine
from lpkernel.backends import cuda_launches, registry
from lpkernel.backends.cuda import CudaBackend, Tuning
from lpkernel.backends.cuda_launches import STEP_TILES, Machine
from lpkernel.backends.device_bank import upload_bank
from lpkernel.backends.specification import NumpyBackend
from lpkernel.presets import PRESETS

HERE = torch.device("cpu")


@pytest.fixture
def counted(cuda: CudaBackend) -> Iterator[dict[str, int]]:
    with counting(cuda, "refine") as calls:
        yield calls


def refined(
    cuda: CudaBackend,
    world: World,
    maps: np.ndarray,
    in_codes: bool,
    shift: int = 0,
    allowed: np.ndarray | None = None,
    scales: list[int] | None = None,
) -> np.ndarray:
    """The maps as the kernel leaves them, of a bank as the backend lays it out."""
    side = maps.shape[-1]
    made = plan.random(side, 1, scales=[side] if scales is None else scales)
    request = world.request(made, [0], 1, candidates=allowed, in_codes=in_codes)
    bank = upload_bank(request, HERE, shift)
    found = torch.from_numpy(maps.astype(np.int32, copy=True)).view(torch.uint8)
    cuda._refine(bank, found, len(maps), side)
    return found.view(torch.int32).numpy()


def patchy(random: np.random.Generator, count: int, side: int, images: np.ndarray, block: int, stray: float) -> Any:
    """Maps of squares, with cells strewn in."""
    maps = images[random.integers(0, len(images), (count, *[-(-side // block)] * 2))]
    maps = maps.repeat(block, 1).repeat(block, 2)[:, :side, :side].copy()
    strewn = random.random(maps.shape) < stray
    maps[strewn] = images[random.integers(0, len(images), strewn.sum())]
    return maps


@pytest.mark.compiled
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 8, 16, 17, 32])
def test_any_side(cuda: CudaBackend, side: int) -> None:
    """Odd and even sides, of fewer cells than threads and more; codes, shifted codes and latents."""
    random = np.random.default_rng(side)
    world = World(9, side, channels=3, codes=40, seed=side)
    for block, stray in ((1, 0.0), (3, 0.1), (max(1, side // 2), 0.2)):
        maps = patchy(random, 2, side, np.arange(9), block, stray)
        wanted = refine.by_numpy(maps, world.codes, world.codebook)
        assert side < 4 or not np.array_equal(wanted, maps)
        for in_codes, shift in ((True, 0), (True, cuda_launches.CODE_SHIFT), (False, 0)):
            assert np.array_equal(refined(cuda, world, maps, in_codes, shift), wanted)


def test_the_largest_side(cuda: CudaBackend) -> None:
    """Parts of up to 256 cells, beside more images than lanes; one that winds through the map."""
    side = cuda_launches.REFINE_SIDE
    random = np.random.default_rng(0)
    world = World(60, side, channels=2, codes=30)
    maps = patchy(random, 1, side, np.arange(60), 2, 0.0)
    maps[0, 8:24, 20:36] = 59
    snake = np.full((side, side), 7)
    snake[1::4, :-1] = snake[3::4, 1:] = 8
    maps = np.stack([maps[0], snake])
    assert np.array_equal(refined(cuda, world, maps, True), refine.by_numpy(maps, world.codes, world.codebook))


def test_kept_cells_stay(cuda: CudaBackend) -> None:
    random = np.random.default_rng(1)
    world = World(12, 9, channels=5, codes=6)
    maps = patchy(random, 6, 9, np.arange(12), 2, 0.2)
    maps[:3, 3:6, 2:5] = maps[3, ::2] = maps[4] = -1
    wanted = refine.by_numpy(maps, world.codes, world.codebook)
    for in_codes in (True, False):
        assert np.array_equal(refined(cuda, world, maps, in_codes), wanted)


def test_only_some_images(cuda: CudaBackend) -> None:
    """Allowed images that are far apart, the first ones, and one alone."""
    random = np.random.default_rng(2)
    world = World(300, 8, channels=2, codes=9)
    for allowed in (np.arange(7, 300, 41), np.arange(12), np.array([5, 6, 7, 298, 299]), np.array([250])):
        maps = patchy(random, 3, 8, allowed, 2, 0.2)
        wanted = refine.by_numpy(maps, world.codes, world.codebook)
        for in_codes in (True, False):
            assert np.array_equal(refined(cuda, world, maps, in_codes, allowed=allowed), wanted)


def test_the_last_of_several_scales(cuda: CudaBackend) -> None:
    world = World(9, 6, channels=9)
    maps = patchy(np.random.default_rng(3), 4, 6, np.arange(9), 2, 0.2)
    wanted = refine.by_numpy(maps, world.codes, world.codebook)
    assert np.array_equal(refined(cuda, world, maps, False, scales=[3, 4, 6]), wanted)


def test_costs_beyond_32_bits(cuda: CudaBackend) -> None:
    """Two distances just below 2^31 each, and many of them around a part."""
    world = World(6, 8, channels=2, codes=2)
    world.codebook = np.array([[-16000, -16000], [16000, 16000]], np.int16)
    world.full = world.codebook[world.codes]
    wide = world.codebook.astype(np.int64)
    world.table = np.square(wide[:, None] - wide[None]).sum(2).astype(np.int32)
    assert world.table.max() == 2_048_000_000
    maps = patchy(np.random.default_rng(4), 8, 8, np.arange(6), 2, 0.3)
    wanted = refine.by_numpy(maps, world.codes, world.codebook)
    for in_codes in (True, False):
        assert np.array_equal(refined(cuda, world, maps, in_codes), wanted)


@pytest.mark.compiled
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_map(cuda: CudaBackend, data: st.DataObject) -> None:
    """Few codes, so that costs tie; few images, so that some are full."""
    side, images = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    world = World(images, side, channels=data.draw(st.sampled_from([1, 8, 17])), codes=data.draw(st.integers(1, 30)))
    allowed = np.flatnonzero(random.random(images) < 0.7)
    allowed = np.arange(images) if not len(allowed) else allowed
    block, stray = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([0, 0.1, 0.4]))
    maps = patchy(random, data.draw(st.integers(1, 3)), side, allowed, block, stray)
    maps[random.random(maps.shape) < data.draw(st.sampled_from([0, 0, 0.2]))] = -1
    wanted = refine.by_numpy(maps, world.codes, world.codebook)
    in_codes = data.draw(st.booleans())
    assert np.array_equal(refined(cuda, world, maps, in_codes, allowed=allowed), wanted)


@pytest.mark.parametrize("order", ["rev", "1", "2"])
def test_any_order_of_threads(cuda: CudaBackend, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMT_ORDER", order)
    world = World(9, 12, codes=9)
    maps = patchy(np.random.default_rng(5), 2, 12, np.arange(9), 3, 0.2)
    wanted = refine.by_numpy(maps, world.codes, world.codebook)
    for in_codes in (True, False):
        assert np.array_equal(refined(cuda, world, maps, in_codes), wanted)


WAYS = (Tuning(refine=True), Tuning(refine=True, walk=False), Tuning(refine=True, walk=False, steps=STEP_TILES[0]))


@pytest.mark.parametrize("tuning", WAYS, ids=["tables", "one launch", "step by step"])
@pytest.mark.parametrize("kind", BANKS)
def test_every_preset(
    cuda: CudaBackend, counted: dict[str, int], kind: str, tuning: Tuning, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole generations, with only some images allowed, and with a search radius; redrawn ones are refined, too."""
    cuda.tuning = tuning
    monkeypatch.setitem(registry.BACKENDS, "cuda", cuda)
    monkeypatch.setattr("lpkernel.backends.seams.refine.refined", refine.by_numpy)
    bank = BANKS[kind]
    options: tuple[dict[str, Any], ...] = (
        {"candidates": np.arange(bank.size) % 3 > 0},
        {"search_radius": 1},
        {"copy_limit": lp.CopyLimit(area=6)},
    )
    for preset in PRESETS:
        for more in options:
            found, wanted = (
                lp.generate(bank, 3, patch=3, preset=preset, refine=True, backend=name, **more)
                for name in ("cuda", "numpy")
            )
            assert found == wanted
    assert counted["refine"] >= 3 * len(PRESETS)


@pytest.mark.parametrize("kind", MODE_KINDS)
def test_every_mode(cuda: CudaBackend, counted: dict[str, int], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With kept cells and given canvases."""
    cuda.tuning = Tuning(refine=True)
    monkeypatch.setitem(registry.BACKENDS, "cuda", cuda)
    for mode in MODES:
        check_mode(mode, kind, "cuda")
    assert counted["refine"] > 0


def test_what_is_refined_on_the_device(cuda: CudaBackend, counted: dict[str, int]) -> None:
    """Many maps, of sides that a block can hold. The host refines the rest, and nothing is refined unasked."""
    most = cuda_launches.refine_bytes(64, refine.limits(64)[0])
    assert most <= Machine(108, 163 << 10, 80).shared
    for tuning, count, side, here in (
        (None, 255, 16, False),
        (None, 256, 16, True),
        (None, 256, 65, False),
        (True, 1, 64, True),
        (True, 1, 65, False),
        (False, 4096, 16, False),
    ):
        cuda.tuning = Tuning(refine=tuning)
        assert cuda._refines(count, side, HERE) is here
    cuda.tuning = Tuning(refine=True)
    world = World(9, 6)
    request = world.request(plan.random(6, 3, scales=[6]), range(3), 3, in_codes=True)
    assert np.array_equal(cuda.scan(request), NumpyBackend().scan(request)) and counted["refine"] == 0


def test_sides_beyond_the_kernel_s_are_refined_on_the_host(cuda: CudaBackend, counted: dict[str, int]) -> None:
    cuda.tuning = Tuning(refine=True)
    side = cuda_launches.REFINE_SIDE + 1
    request = World(5, side).request(plan.random(side, side // 2, side // 2, scales=[side]), [0], 1)
    refining = replace(request, refine=True)
    assert np.array_equal(cuda.scan(refining), NumpyBackend().scan(refining)) and counted["refine"] == 0


def test_ways_are_compared_before_they_are_timed(
    cuda: CudaBackend, counted: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list(gpu_engines.compare_refining(cuda, gpu_engines.bank_of(9, 8, 20), [2], "cpu", 3, 0.0))
    assert len(lines) == len(gpu_engines.REFINING) and counted["refine"] > 0
    monkeypatch.setattr(cuda, "_refine", lambda *_: None)
    with pytest.raises(SystemExit, match="refined on the device: source maps differ, B=9, N=2"):
        list(gpu_engines.compare_refining(cuda, gpu_engines.bank_of(9, 8, 20), [2], "cpu", 3, 0.0))


def test_wrong_buffers_are_refused(cuda: CudaBackend) -> None:
    native = cuda._native()
    tensor = torch.zeros(1 << 16, dtype=torch.uint8)
    room = (tensor.data_ptr(), tensor.nbytes)
    numbers = {
        **{"images": 2, "side": 4, "rounds": 2, "sweeps": 4, "part": 1, "most": 3, "allowed": 3, "pitch": 8},
        **{"codes": 4, "rows": 4, "width": 1, "code_shift": 0, "shared": cuda_launches.refine_bytes(4, 1)},
    }
    buffers = dict.fromkeys(("bank", "table", "candidates", "maps"), room)

    def call(**changes: Any) -> None:
        given = {name: changes.get(name, value) for name, value in numbers.items()}
        native.refine(given, {name: changes.get(name, value) for name, value in buffers.items()}, 0, 0)

    call()
    call(codes=0, rows=0, width=8)
    for changes, words in (
        ({"bank": (room[0], 4 * 4 * 8 * 2 - 1)}, "bank"),
        ({"bank": (0, 1000)}, "bank: null"),
        ({"table": (room[0], 4 * 4 * 4 - 1)}, "table"),
        ({"candidates": (room[0], 11)}, "candidates"),
        ({"maps": (room[0], 2 * 4 * 4 * 4 - 1)}, "maps"),
        ({"maps": (room[0] + 2, 1000)}, "maps"),
        ({"images": 0}, "images"),
        ({"side": 65}, "side"),
        ({"side": 0}, "side"),
        ({"part": 17}, "part"),
        ({"part": -1}, "part"),
        ({"most": 17}, "most"),
        ({"rounds": -1}, "rounds"),
        ({"sweeps": 101}, "sweeps"),
        ({"allowed": 0}, "allowed"),
        ({"pitch": 2}, "pitch"),
        ({"codes": 6}, "codes"),
        ({"rows": 5}, "codes"),
        ({"width": 8}, "width"),
        ({"codes": 0, "rows": 0, "width": 12}, "width"),
        ({"code_shift": 3}, "code_shift"),
        ({"shared": 0}, "shared"),
    ):
        with pytest.raises(ValueError, match=words):
            call(**changes)
    with pytest.raises(RuntimeError, match="cudaErrorInvalidDevice"):
        native.refine(numbers, buffers, 7, 0)
