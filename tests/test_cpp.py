"""The C++ backend: the same bits for any threads, instruction set and strategy; bad arguments never crash it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scans import World
from test_scan import KINDS, make

from lpkernel import _native, plan
from lpkernel.backends import cpp
from lpkernel.backends.base import CodeBank, LatentBank, ScanRequest, TopkRequest
from lpkernel.backends.cpp import CppBackend, Tuning
from lpkernel.backends.specification import NumpyBackend
from lpkernel.errors import BackendUnavailable, InputError
from lpkernel.levels import level_axis
from lpkernel.search.ops import masked_topk

if _reasons := _native.cpu_reasons():
    pytest.skip(f"cpp: {_reasons[0]}", allow_module_level=True)

SPECIFICATION = NumpyBackend()
ISAS = _native.cpu().build_info()["isa"]
WAYS = {
    "as usual": Tuning(),
    "groups of 3": Tuning(group=3, pairs=0, seeded=1, screened=1),
    "bank divided": Tuning(split=0, pairs=0, seeded=1, screened=1),
    "alone": Tuning(group=1, pairs=0, seeded=1 << 40),
    "levels made where needed": Tuning(levels=-1, some=-1, pairs=0, seeded=1),
    "levels kept in part": Tuning(levels=-1, split=0),
}


@pytest.fixture(params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def backend(way: str = "as usual") -> CppBackend:
    made = CppBackend()
    made.tuning = WAYS[way]
    return made


def cases() -> Iterator[ScanRequest]:
    """Both domains; bank sizes around those of blocks and tiles; ties, since codes are few; few and many images."""
    for size, codes, k in [(1, 5, 1), (16, 4, 3), (33, 40, 7), (64, 3, 2), (65, 60, 128), (200, 2, 10), (1030, 30, 5)]:
        world = World(size, side=9, channels=3, codes=codes, seed=size)
        allowed = np.flatnonzero(world.random.random(size) < 0.7) if size > 2 else None
        for images in ([0, 1], range(7)):
            one, two = plan.random(9, 4, scales=[9]), plan.random(9, 4, scales=[6, 9])
            start = world.start(1)
            yield world.request(one, images, k, in_codes=True)
            yield world.request(one, images, k, candidates=allowed)
            yield world.request(one, images, k, candidates=allowed, in_codes=True)
            yield world.request(two, images, k, seed=2**63)
            yield world.request(plan.reference(9, 5, scales=[7, 9]), images, k, start=start)
            yield world.request(plan.reference(9, 5), images, k, start=start, in_codes=True)
            if size in (16, 65):  # also as views, which are searched in place
                carried = plan.random(9, 4, scales=[6, 9], start="carry", overlap="cut")
                yield world.request(one, images, k, candidates=allowed, in_codes=True, radius=1)
                yield world.request(one, images, k, candidates=allowed, radius=1, of_latents=True)
                yield world.request(two, images, k, radius=1)
                yield world.request(carried, images, k, candidates=allowed, in_codes=True, radius=1, hubness=64)


@pytest.fixture(scope="module")
def expected() -> list[tuple[ScanRequest, np.ndarray]]:
    return [(request, SPECIFICATION.scan(request)) for request in cases()]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("way", WAYS)
def test_scans_are_the_same_on_every_way(
    way: str, isa: str, threads: int, expected: list[tuple[ScanRequest, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    for request, sources in expected:
        assert np.array_equal(backend(way).scan(request), sources)


def hard_request(data: st.DataObject) -> ScanRequest:
    """Any plan on a bank of ties, of copies of few images, or of cells as far apart as 31 bits allow."""
    side = data.draw(st.integers(3, 8), "side")
    patch = data.draw(st.integers(2, min(side, 5)), "patch")
    stride = data.draw(st.integers((patch + 1) // 2, patch), "stride")
    scales = sorted({*data.draw(st.sets(st.integers(patch, side), max_size=1), "scales"), side})
    options: dict[str, Any] = {"start": data.draw(st.sampled_from(plan.STARTS), "start")}
    options["mirror"] = data.draw(st.sampled_from([0, 0, 1, 3]), "mirror")
    if data.draw(st.booleans(), "cut"):
        options["overlap"] = "cut"
    kind = data.draw(st.sampled_from(KINDS), "kind")
    made = make(kind, side, patch, stride, scales, **options)

    size, codes = (data.draw(st.sampled_from(sizes)) for sizes in ((1, 2, 5, 17, 32, 70, 300), (1, 2, 7, 60)))
    world = World(size, side, data.draw(st.sampled_from([1, 3, 13]), "C"), codes, seed=data.draw(st.integers(0, 99)))
    if data.draw(st.booleans(), "copies"):
        world.codes = world.codes[world.random.integers(0, data.draw(st.integers(1, 9), "originals"), size) % size]
    if data.draw(st.booleans(), "at the limit"):
        most = max(len(cells) for scale in made.scales for cells in scale.compared) * world.codebook.shape[1]
        world.codebook = np.sign(world.codebook) * np.int16(min(1023, np.sqrt((2**31 - 1) / max(1, most)) // 2))
    world.full = world.codebook[world.codes]
    wide = world.codebook.astype(np.int64)
    world.table = np.square(wide[:, None] - wide[None]).sum(2).astype(np.int32)

    allowed = np.flatnonzero(world.random.random(size) < data.draw(st.sampled_from([0.6, 1.0]), "allowed"))
    by_codes = len(scales) == 1 or made.start == "carry"
    radius = data.draw(st.sampled_from([0, 0, 1]), "radius") if size <= 17 else 0
    return world.request(
        replace(made, first_step=data.draw(st.sampled_from([0, 5]), "first step")),
        range(data.draw(st.sampled_from([1, 3, 7, 18]), "images")),
        data.draw(st.sampled_from([1, 3, 50]), "K"),
        data.draw(st.integers(0, 2**64 - 1), "seed"),
        None if kind.startswith("random") else world.start(1),
        allowed if len(allowed) else None,
        in_codes=by_codes and data.draw(st.booleans(), "codes"),
        hubness=data.draw(st.sampled_from([0, 64, 255, 256]), "hubness"),
        radius=radius,
        either=data.draw(st.booleans(), "either"),
    )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_plan_is_the_same_on_every_way(data: st.DataObject) -> None:
    request = hard_request(data)
    wanted, runner, before = SPECIFICATION.scan(request), CppBackend(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        for isa in ISAS:
            patch.setenv("LPKERNEL_ISA", isa)
            runner.tuning = Tuning(
                group=data.draw(st.sampled_from([1, 3, 64]), "group"),
                split=data.draw(st.sampled_from([0, 1 << 17]), "split"),
                seeded=data.draw(st.sampled_from([1, 1 << 40]), "seeded"),
                pairs=data.draw(st.sampled_from([0, 32]), "pairs"),
                screened=data.draw(st.sampled_from([1, 1 << 40]), "screened"),
                coarse=data.draw(st.sampled_from([1, 1 << 40]), "coarse"),
                levels=data.draw(st.sampled_from([-1, 1 << 40]), "levels"),
                some=data.draw(st.sampled_from([-1, 1 << 40]), "some"),
                few=data.draw(st.sampled_from([1, 1 << 40]), "few"),
            )
            torch.set_num_threads(data.draw(st.integers(1, 4), "threads"))
            try:
                assert np.array_equal(runner.scan(request), wanted)
            finally:
                torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("images", "size", "levels", "either", "kind"),
    [
        (4, 60, 1 << 20, True, LatentBank),
        (3, 60, 1 << 20, True, CodeBank),  # too few to lay latents out
        (4, 32, 1 << 20, True, CodeBank),  # all distances are tabulated
        (4, 60, 1 << 10, True, CodeBank),  # too many to keep
        (4, 60, 1 << 20, False, CodeBank),  # asked for
    ],
)
def test_codes_are_compared_as_latents_where_these_pay(
    images: int, size: int, levels: int, either: bool, kind: type
) -> None:
    world, runner = World(size, side=6, channels=5, codes=9), CppBackend()
    runner.tuning = Tuning(levels=levels)
    steps = plan.random(6, 3, 3, scales=[4, 6], start="carry")
    request = world.request(steps, range(images), 3, in_codes=True, either=either)
    banks = runner._banks(request)
    assert isinstance(banks[6], kind)
    assert isinstance(banks[4], LatentBank)
    assert np.array_equal(runner.scan(request), SPECIFICATION.scan(request))


def test_codes_stay_codes_where_nothing_says_how_large_their_latents_are() -> None:
    world = World(60, side=6)
    codes = replace(world.code_bank, latents=LatentBank(world.level, 60))
    request = replace(world.request(plan.random(6, 3, 3, scales=[6]), range(4), 3), bank=codes)
    assert CppBackend()._banks(request) == {6: codes}


@pytest.mark.parametrize("size", [1, 2, 63, 500, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("k", [1, 10, 128])
def test_scans_of_ragged_banks(size: int, k: int) -> None:
    world = World(size, side=6, channels=5, codes=9, seed=k)
    for in_codes in (False, True):
        for way in ("groups of 3", "bank divided"):
            request = world.request(plan.random(6, 3, 3, scales=[6]), [5, 3], k, in_codes=in_codes)
            assert np.array_equal(backend(way).scan(request), SPECIFICATION.scan(request))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codes", [2, 700])
@pytest.mark.parametrize("families", [0, 200])
@pytest.mark.parametrize("images", [1, 6, 20, 33, 70])
def test_screening_of_codes_loses_nothing(
    images: int, families: int, codes: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of 16, 32 and 64 queries, several tiles; real distances (700 codes) and ties everywhere (2).

    Images that are all equally far apart, which bytes screen, and families of near ones, which groups of codes do.
    """
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    world = World(2500, side=7, channels=8, codes=codes, spread=400)
    if families:
        strewn = world.random.random(world.codes.shape) < 0.1
        alike = world.codes[world.random.integers(0, families, len(world.codes))]
        world.codes = np.where(strewn, world.codes, alike)
        world.full = world.codebook[world.codes]
    request = world.request(plan.random(7, 5, 2, scales=[7]), range(images), 10, in_codes=True, hubness=families)
    want = SPECIFICATION.scan(request)
    for tuning in (Tuning(screened=1, seeded=1), Tuning(screened=1, seeded=1 << 40, group=100)):
        runner = backend()
        runner.tuning = tuning
        assert np.array_equal(runner.scan(request), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("codes", [2, 700])
@pytest.mark.parametrize("channels", [8, 9])
@pytest.mark.parametrize("size", [64, 700, 2500])
def test_coarse_comparison_of_latents_loses_nothing(
    size: int, channels: int, codes: int, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some and many images left by the bounds; several chunks of blocks, the last ragged; few and many neighbours."""
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    world = World(size, side=7, channels=channels, codes=codes, spread=400)
    allowed = np.flatnonzero(world.random.random(size) < 0.9)
    for images, k in [(1, 10), (6, 3), (5, 100)]:
        request = world.request(plan.random(7, 5, 2, scales=[6, 7]), range(images), k, candidates=allowed)
        want = SPECIFICATION.scan(request)
        for tuning in (Tuning(pairs=0, coarse=1), Tuning(pairs=0, coarse=1, split=0, seeded=1)):
            runner = backend()
            runner.tuning = tuning
            assert np.array_equal(runner.scan(request), want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("packed", [1, 1000])
def test_masked_topk_is_the_same_on_every_way(
    dtype: str, isa: str, packed: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    runner = backend()
    runner.tuning = Tuning(packed=packed)
    random = np.random.default_rng(0)
    for q, b, d, k in [(1, 1, 1, 1), (3, 64, 7, 5), (5, 65, 16, 65), (9, 700, 33, 10), (2, 130, 0, 3), (4, 300, 1, 9)]:
        queries, bank = (random.integers(-3, 4, (rows, d)).astype(dtype) for rows in (q, b))
        allowed = random.random(b) < 0.6
        for mask in (None, random.random(d) < 0.5, random.random((q, d)) < 0.5):
            for candidates in (None, allowed, np.zeros(b, bool)):
                request = TopkRequest(queries, bank, k, mask, candidates)
                for mine, theirs in zip(runner.masked_topk(request), SPECIFICATION.masked_topk(request), strict=True):
                    assert mine.dtype == theirs.dtype
                    assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scale", [1e-22, 1e-3, 1.0, 1e15, 1e19])
def test_screening_loses_nothing(isa: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Screened and direct answers agree, from denormal products to overflow, with NaN and infinity among the rows."""
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    random = np.random.default_rng(1)
    bank = (random.standard_normal((800, 40)) * scale).astype(np.float32)
    bank[5, 3], bank[6, 0], bank[7, 1] = np.nan, np.inf, -np.inf
    bank[100:200] = bank[0]
    queries = bank[190:210] + random.standard_normal((20, 40)).astype(np.float32) * np.float32(scale / 8)
    queries[4, 2] = np.nan
    for mask in (None, random.random(40) < 0.7, random.random((20, 40)) < 0.7):
        request = TopkRequest(queries, bank, 400, mask, None)
        answers = []
        for packed in (1, 1000):
            runner = backend()
            runner.tuning = Tuning(packed=packed)
            answers.append(runner.masked_topk(request))
        assert np.array_equal(answers[0].indices, answers[1].indices)
        assert np.array_equal(answers[0].distances, answers[1].distances, equal_nan=True)
        with np.errstate(over="ignore", invalid="ignore"):
            exact = SPECIFICATION.masked_topk(request)
        np.testing.assert_allclose(answers[0].distances, exact.distances, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "int16"])
@pytest.mark.parametrize("d", [1, 3, 4, 15, 16, 17, 31, 33, 64, 519])
def test_rows_compared_in_place(d: int, dtype: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths around whole vectors, banks and numbers of queries around whole tiles, scattered candidates."""
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    random = np.random.default_rng(d)
    most = min(int(np.sqrt((2**31 - 1) / d) / 2), 2**14)
    for q, b in [(1, 1), (2, 15), (3, 16), (4, 17), (5, 63), (6, 65), (9, 200)]:
        queries, bank = (random.integers(-most, most + 1, (rows, d)).astype(dtype) for rows in (q, b))
        bank[: b // 2] = bank[b // 2 : b // 2 * 2]  # ties
        for mask in (None, random.random(d) < 0.6, random.random((q, d)) < 0.6):
            for allowed in (None, random.random(b) < 0.6):
                request = TopkRequest(queries, bank, min(b, 7), mask, allowed)
                mine, theirs = backend().masked_topk(request), SPECIFICATION.masked_topk(request)
                assert np.array_equal(mine.indices, theirs.indices)
                assert np.array_equal(mine.distances, theirs.distances)


def test_rows_too_wide_for_a_proven_bound() -> None:
    random = np.random.default_rng(0)
    queries, bank = (random.standard_normal((rows, 1 << 20)).astype(np.float32) for rows in (2, 5))
    request = TopkRequest(queries, bank, 3, None, None)
    mine, theirs = backend().masked_topk(request), SPECIFICATION.masked_topk(request)
    assert np.array_equal(mine.indices, theirs.indices)
    np.testing.assert_allclose(mine.distances, theirs.distances, rtol=1e-6)


def test_the_environment_names_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNEL_ISA", "mmx")
    with pytest.raises(BackendUnavailable, match=r"LPKERNEL_ISA is 'mmx', this machine runs .*baseline"):
        masked_topk(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32), 1, backend="cpp")
    assert ISAS[-1] == "baseline"


def test_runs_on_the_cpu_only() -> None:
    assert backend().unavailable("cuda") == ["runs on the CPU only, not on cuda"]
    assert backend().unavailable("cpu") == []


def test_a_larger_side_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    request = World(3, side=6).request(plan.random(6, 3, 1, [6]), [0], 3)
    assert CppBackend().unsupported(request) == []
    monkeypatch.setattr(cpp, "MOST_SIDE", 5)
    assert CppBackend().unsupported(request) == ["scans grids of up to 5 cells a side, got 6"]


def test_read_only_and_scattered_arrays(tmp_path: Path) -> None:
    world = World(50, side=8)
    made = plan.random(8, 4, scales=[8])
    want = SPECIFICATION.scan(world.request(made, range(3), 3))
    for name, array in (("codes", world.codes), ("full", world.full), ("table", world.table)):
        np.save(tmp_path / f"{name}.npy", array)
    codes, full, table = (np.load(tmp_path / f"{n}.npy", mmap_mode="r") for n in ("codes", "full", "table"))
    doubled = np.repeat(full, 2, axis=3)[..., ::2]
    banks = (
        CodeBank(codes, world.codebook, table),
        CodeBank(codes.astype(np.int32), world.codebook, table),
        LatentBank(lambda side: full, 50),
        LatentBank(lambda side: doubled, 50),
    )
    for bank in banks:
        request = replace(world.request(made, range(3), 3), bank=bank)
        assert np.array_equal(backend().scan(request), want)


def test_layouts_live_no_longer_than_the_bank() -> None:
    runner = backend()
    world = World(40, side=8)
    request = world.request(plan.random(8, 4, scales=[8]), [0], 3, in_codes=True)
    runner.scan(request)
    first = next(iter(runner._layers._kept.values()))[0]
    runner.scan(request)
    assert [entry[0] for entry in runner._layers._kept.values()] == [first]
    del request, world
    gc.collect()
    runner.scan(World(10, side=8).request(plan.random(8, 4, scales=[8]), [0], 3))
    assert first not in [entry[0] for entry in runner._layers._kept.values()]


def test_steps_live_no_longer_than_the_plan() -> None:
    runner = backend()
    world = World(10, side=8)
    made = plan.random(8, 4, scales=[6, 8], overlap="fill")
    made = replace(made, scales=tuple(replace(scale) for scale in made.scales))  # no longer the cached plan's
    request = world.request(made, [0], 3)
    assert np.array_equal(runner.scan(request), runner.scan(request))
    assert len(runner._steps._kept) == 2
    del request, made
    gc.collect()
    runner.scan(world.request(plan.random(8, 3, scales=[8]), [0], 3))
    assert len(runner._steps._kept) == 1


def test_bad_seeds_and_canvases_are_refused() -> None:
    world = World(10, side=8)
    with pytest.raises(InputError, match="seed"):
        backend().scan(world.request(plan.random(8, 4, scales=[8]), [0], 3, seed=-1))
    request = world.request(plan.reference(8, 4), [0], 3, start=world.start(1), in_codes=True)
    assert request.canvas[0] is not None
    request.canvas[0][0, 3, 3] = 20
    with pytest.raises(InputError, match="codes run from"):
        backend().scan(request)


# Values that stand in for one argument of a native call at a time.
JUNK: list[Any] = [
    None, -1, 0, 1, 2**40, 2**64, "x", (), [], 1.5,
    np.zeros((), np.int16), np.zeros(0, np.int64), np.zeros((0, 2), np.int32), np.full((4, 2), -1, np.int32),
    np.full((4, 2), 99, np.int32), np.zeros((4, 3, 3), bool), np.zeros((4, 9, 9), bool), np.zeros((0, 0, 0), bool),
    np.zeros((5, 6, 6), np.int16), np.full((5, 6, 6), 2**15 - 1, np.int16), np.full((5, 6, 6), -1, np.int16),
    np.zeros((5, 6, 6, 2), np.int16), np.full((5, 6, 6, 2), -(2**15), np.int16), np.zeros((5, 6, 6), np.int32),
    np.zeros((5, 5, 5, 2), np.int16), np.zeros((0, 6, 6), np.int16), np.zeros((5, 6, 6, 0), np.int16),
    np.array([0, 7]), np.array([1, 0]), np.array([-1]), np.array([2**33]), np.zeros((3, 3), np.int32),
    np.full((3, 3), -5, np.int32), np.full((3, 3), 2**31 - 1, np.int32), np.zeros((3, 4), np.int32),
    np.zeros((3, 4), np.float32), np.zeros((3, 4), np.int16), np.full((3, 4), -(2**15), np.int16),
    np.full((3, 4), np.nan, np.float32), np.zeros(4, bool), np.zeros((3, 4), bool)[:, ::-1],
]  # fmt: skip


def native_calls(module: ModuleType) -> dict[str, tuple[Any, list[Any]]]:
    """Valid calls: name -> (function, arguments)."""
    codes, table = np.zeros((5, 6, 6), np.int16), np.zeros((3, 3), np.int32)
    latents = np.arange(360, dtype=np.int16).reshape(5, 6, 6, 2)
    everything = np.arange(5)
    made = plan.random(6, 3, 2, scales=[4, 6], overlap="cut")
    resize, carry = made.scales[1].resize, plan.Carry.between(4, 6).index
    assert resize is not None
    rest = (3, 0, 0, 256, 1, "", (64, 0, 0))

    def tables(at: int) -> list[np.ndarray]:
        of = made.scales[at]
        counts, cells = np.array([len(cells) for cells in of.compared], np.int32), np.concatenate(of.compared)
        return [of.positions, counts, cells.astype(np.int32), of.write, of.overlap]

    def scale(at: int, enter: Any, content: np.ndarray, pairs: int = 0) -> list[Any]:
        steps = module.Steps(made.sides[at], *tables(at), enter)
        layer = module.Layer(content, table, everything, "", pairs, False, 1, 1)
        return [steps, layer, content, None, module.Isolation(steps, layer, content, 1, "")]

    def one_scale(*entries: Any) -> np.ndarray:
        return module.scan([tuple(entries)], np.arange(2), *rest)

    def two_scales(*entries: Any) -> np.ndarray:
        first = scale(0, None, np.ascontiguousarray(latents[:, :4, :4]))
        return module.scan([tuple(first), tuple(entries)], np.arange(2), *rest)

    def entered(*enter: Any) -> np.ndarray:
        return two_scales(module.Steps(6, *tables(1), enter), *second[1:])

    def made_from_codes(codes: np.ndarray, book: np.ndarray, axis: Any) -> np.ndarray:
        steps, layer = module.Steps(6, *tables(1), None), module.Layer(codes, book, axis, everything, "", 0)
        return one_scale(steps, layer, codes, None, module.Isolation(steps, layer, codes, 1, ""))

    book, axis = np.arange(12, dtype=np.int16).reshape(4, 3), level_axis(6, 6)
    second = scale(1, (resize.i0, resize.i1, resize.f), latents)
    one = [*scale(1, None, codes)]
    moves, twice = np.array([[0, 0], [-1, 2]]), np.concatenate([everything, everything + len(everything)])
    floats = np.zeros((3, 4), np.float32)
    return {
        "layer of codes": (module.Layer, [codes, table, everything, "", 32, True, 1, 1]),
        "layer of latents": (module.Layer, [latents, table, everything, "", 0, True, 1, 1]),
        "layer of views": (module.Layer, [codes, table, twice, "", 32, True, 1, 1, moves]),
        "layer of views made from codes": (module.Layer, [codes, book, axis, twice, "", 0, moves]),
        "layer made from codes": (module.Layer, [codes, book, axis, everything, "", 0]),
        "scan of levels made from codes": (made_from_codes, [codes, book, axis]),
        "isolation": (module.Isolation, [*one[:3], 1, ""]),
        "one scale": (one_scale, one),
        "one scale of few": (one_scale, scale(1, None, codes, 32)),
        "two scales": (two_scales, second),
        "two scales that carry": (two_scales, scale(1, (carry,), codes)),
        "two scales that carry few": (two_scales, scale(1, (carry,), codes, 32)),
        "steps": (module.Steps, [6, *tables(1), (resize.i0, resize.i1, resize.f)]),
        "resize": (entered, [resize.i0, resize.i1, resize.f]),
        "carry": (entered, [carry]),
        "scan": (module.scan, [[tuple(one)], np.arange(2), *rest]),
        "topk": (module.masked_topk, [floats, floats, 2, None, None, None, 1, "", 1]),
        "weighted topk": (module.masked_topk, [floats, floats, 2, None, None, np.ones(3), 1, "", 1]),
        "topk of integers": (
            module.masked_topk,
            [floats.astype(np.int16)] * 2 + [2, np.ones((3, 4), bool), None, None, 1, "", 1],
        ),
    }


@pytest.mark.parametrize("name", native_calls(_native.cpu()))
def test_sound_native_calls_run(name: str) -> None:
    function, arguments = native_calls(_native.cpu())[name]
    function(*arguments)


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_argument_crashes_the_native_code(data: st.DataObject) -> None:
    """Each call, with one or two arguments replaced by junk, either raises or gives a result."""
    calls = native_calls(_native.cpu())
    function, arguments = calls[data.draw(st.sampled_from(sorted(calls)), "call")]
    arguments = list(arguments)
    for _ in range(data.draw(st.integers(1, 2))):
        arguments[data.draw(st.integers(0, len(arguments) - 1), "at")] = data.draw(st.sampled_from(JUNK), "junk")
    with contextlib.suppress(TypeError, ValueError, RuntimeError, OverflowError, MemoryError):
        function(*arguments)


@pytest.mark.parametrize("isa", ISAS)
def test_levels_made_from_codes_are_those_of_the_bank(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channel counts around the vector widths, sides whose blends end in a half; no level is read from the bank."""
    monkeypatch.setenv("LPKERNEL_ISA", isa)
    for channels in (1, 5, 6, 7, 8, 9, 16, 17):
        world = World(70, side=16, channels=channels, codes=30, spread=600, seed=channels)
        request = world.request(plan.random(16, 6, 6), range(3), 3)
        expected = SPECIFICATION.scan(request)
        cells = request.bank.cells  # type: ignore[union-attr]
        assert np.array_equal(backend("levels made where needed").scan(replace(request, bank=unread(cells))), expected)


def unread(cells: Any) -> LatentBank:
    def level(side: int) -> np.ndarray:
        raise AssertionError(f"level {side} was asked for")

    return LatentBank(level, len(cells[0]), cells)


@pytest.mark.parametrize("way", ["levels made where needed", "levels kept in part"])
@pytest.mark.parametrize("wrong", [-1, 20, 31, 32, 32767])
def test_codes_out_of_range_make_no_level(way: str, wrong: int) -> None:
    """Such codes come from a file that is written to while it is mapped."""
    world = World(70, side=8)
    codes = world.codes.copy()
    codes[69] = wrong
    request = replace(world.request(plan.random(8, 3, 3, [8]), range(3), 3), bank=unread((codes, world.codebook)))
    with pytest.raises(ValueError, match="outside the codebook"):
        backend(way).scan(request)
