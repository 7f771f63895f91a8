"""The Triton kernels against the specification, on CPU tensors; test_triton.py runs this file in processes of its own.

LPKERNEL_TRITON=interpreter: Triton's interpreter, as TRITON_INTERPRET=1 asks for before triton is imported.
LPKERNEL_TRITON=ptx: compiled for sm_80, the PTX executed by tests/emulation.
Cases are small for the interpreter, which takes 50 ms a step and image; ties are everywhere, since there are few codes.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lpkernel.triton_kernels import configs
from scans import World
from test_masked_topk import (  # noqa: F401  collected here, with the fixtures below
    integers,
    masks,
    oracle,
    test_compiles_without_graph_breaks,
    test_floats_equal_the_specification,
    test_int16_overflow_is_refused,
    test_many_equal_rows_beyond_the_screen,
    test_nan_sorts_last,
    test_near_ties,
    test_non_contiguous_inputs,
    test_opcheck,
    test_split_and_merge_equals_the_whole,
    test_the_callers_kind_comes_back,
    test_what_a_mask_hides_does_not_count,
)
from test_modes_backends import test_every_mode_is_the_same  # noqa: F401
from test_same_bits import _vq
from test_scan import KINDS, make
from test_topk_floats import check as check_floats
from test_topk_floats import (  # noqa: F401
    requests,
    test_empty_slots_come_after_infinity_and_nan,
    test_equal_after_rounding_goes_by_index,
    test_nan_after_infinity_whatever_its_sign,
    test_tensors_that_require_a_gradient,
)

from lpkernel import plan
from lpkernel.autoencoder import fused
from lpkernel.autoencoder.compact import CompactConfig, CompactVQ
from lpkernel.autoencoder.fused import group_norm, moments
from lpkernel.autoencoder.layers import settle
from lpkernel.autoencoder.upsampling import fold, interleaved
from lpkernel.backends import registry
from lpkernel.backends.base import Backend, LatentBank, ScanRequest, TopkRequest
from lpkernel.backends.specification import NumpyBackend
from lpkernel.backends.triton_lang import TritonBackend, Tuning
from lpkernel.search.ops import masked_topk

SPECIFICATION = NumpyBackend()
SMALL = CompactConfig(32, 16, 8, (16, 16), (16, 16, 8), (1, 1), (1, 1, 1))
TRITON = TritonBackend("cpu")
registry.BACKENDS["triton"] = TRITON

PTX = os.environ["LPKERNEL_TRITON"] == "ptx"
if PTX:
    from emulation.triton_driver import install

    install(80)
else:
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function: Any) -> Any:
        """Patch tl once per launch; Triton's interpreter would do so again for each function that a kernel calls."""
        seen = [module for module in function.__globals__.values() if module is tl or module is tl.core]
        return patch(function) if any(tl.core.is_builtin(module.load) for module in seen) else None

    interpreter._patch_lang = patch_once


@pytest.fixture(scope="session")
def backend() -> Backend:
    return TRITON


@pytest.fixture(scope="session")
def fast_backend() -> Backend:
    return TRITON


@dataclass(frozen=True)
class Case:
    """A scan of `images` images of side 6 over a bank of `size`, patches of 3 side by side: 4 steps a scale."""

    size: int
    k: int
    kind: str = "random-replace"
    images: int = 2
    in_codes: bool = False
    slabs: int | None = None
    dot: bool | None = None
    channels: int = 4
    scales: tuple[int, ...] = (6,)
    subset: bool = False
    stride: int = 3
    start: str = "resize"
    mirror: int = 0
    hubness: int = 0


CODES = [
    *(Case(size, k, in_codes=True) for size, k in ((1, 1), (2, 3), (7, 3))),
    *(Case(33, 3, kind, in_codes=True, subset=True) for kind in KINDS),
    Case(250, 10, in_codes=True),
    Case(250, 128, in_codes=True, images=1),
    Case(5000, 10, in_codes=True, slabs=3),
    Case(5000, 10, in_codes=True, slabs=1, images=1),
]
LATENTS = [
    *(Case(size, k) for size, k in ((1, 1), (2, 3), (7, 3))),
    *(Case(33, 3, kind, scales=(4, 6), subset=True) for kind in KINDS),
    Case(64, 10, channels=20, images=1),
    Case(250, 10, slabs=1),
    Case(600, 10, slabs=2, scales=(5, 6), images=1),
    Case(300, 128, images=1, slabs=2),
]
DOT = [
    Case(250, 3, dot=True, images=17, channels=16, slabs=1),
    Case(250, 10, dot=True, channels=16, slabs=2, scales=(5, 6)),
    Case(150, 128, dot=True, channels=4, slabs=1),
    Case(300, 128, dot=True, channels=20, slabs=3, kind="reference"),
]


BEYOND = [
    Case(33, 3, in_codes=True, hubness=256, mirror=2),
    Case(250, 10, "random-cut", channels=20, images=1, stride=2, hubness=64),
    Case(5000, 10, in_codes=True, slabs=3, images=1, hubness=200),
    Case(250, 3, dot=True, images=17, channels=16, slabs=1, hubness=256),
    Case(
        33, 3, "random-cut", in_codes=True, stride=2, scales=(4, 6), start="carry", mirror=1, hubness=200, subset=True
    ),
    Case(250, 10, "random-cut", in_codes=True, stride=2, images=1, slabs=2),
    Case(250, 3, "random-cut", dot=True, images=3, channels=16, slabs=1, stride=2),
    Case(33, 3, "edit-free", in_codes=True, scales=(4, 6), start="carry"),
]


ALL = [*CODES, *LATENTS, *DOT, *BEYOND]
# As PTX, where each case compiles kernels twice: every form of every kernel, not every size; likewise below.
COMPILED = [CODES[-2], *LATENTS[3:5], LATENTS[-2], *DOT[1:3], *BEYOND[3:6], BEYOND[-1]]


def request(case: Case, seed: int = 3) -> ScanRequest:
    world = World(case.size, 6, case.channels, codes=5, seed=case.size)
    made = make(case.kind, 6, 3, case.stride, list(case.scales), start=case.start, mirror=case.mirror)
    start = world.start(case.images) if not case.kind.startswith("random") else None
    allowed = np.arange(0, case.size, 2) if case.subset else None
    return world.request(made, [7, *range(case.images - 1)], case.k, seed, start, allowed, case.in_codes, case.hubness)


def check(wanted: ScanRequest, tuning: Tuning) -> None:
    TRITON.tuning = tuning
    assert np.array_equal(TRITON.scan(wanted), SPECIFICATION.scan(wanted)), tuning


@pytest.mark.parametrize("case", COMPILED if PTX else ALL, ids=str)
def test_scan(case: Case) -> None:
    check(request(case), Tuning(slabs=case.slabs, dot=case.dot))


@pytest.mark.parametrize("in_codes", [False, True])
def test_a_search_radius_equals_a_bank_of_shifted_copies(in_codes: bool) -> None:
    world, allowed = World(5, 6, 4, codes=5), np.array([0, 2, 3])
    made = make("random-cut", 6, 3, 3, [4, 6], start="carry")
    found = world.request(made, [0, 7], 3, 1, None, allowed, in_codes, 64, 1, not in_codes)
    views = world.shifted(1).request(made, [0, 7], 3, 1, None, found.candidates, in_codes, 64)
    TRITON.tuning = Tuning()
    assert np.array_equal(TRITON.scan(found), SPECIFICATION.scan(views))


NORMS = [  # images, channels, groups, height, width
    (7, 64, 4, 3, 2),
    (1, 32, 32, 5, 1),
    (2, 48, 8, 11, 3),
    (1, 512, 32, 4, 3),
    (2, 128, 8, 17, 9),
    (1, 256, 32, 9, 31),
    (2, 256, 2, 6, 31),
]
UPSAMPLED = [(2, 64, 3, 5), (1, 48, 11, 4), (3, 512, 2, 3), (1, 32, 1, 140)]
if PTX:
    NORMS, UPSAMPLED = [NORMS[0], NORMS[2], NORMS[3], NORMS[5]], UPSAMPLED[:2]


@pytest.mark.parametrize(("shape", "silu"), [(shape, number % 2 == 0) for number, shape in enumerate(NORMS)], ids=str)
def test_group_norm(shape: tuple[int, ...], silu: bool) -> None:
    """Against float64, on values far from 0; and each image alone, bit for bit."""
    images, channels, groups, height, width = shape
    random = torch.Generator().manual_seed(0)
    x = torch.randn((images, channels, height, width), generator=random) * 3 + 40
    weight, bias = (torch.randn(channels, generator=random) for _ in range(2))
    for w, b in ((weight, bias), (None, None)):
        exact = [None if one is None else one.double() for one in (w, b)]
        expected = torch.nn.functional.group_norm(x.double(), groups, exact[0], exact[1], 1e-6)
        expected = torch.nn.functional.silu(expected) if silu else expected
        found = group_norm(x, groups, w, b, 1e-6, silu)
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), expected, atol=3e-5, rtol=1e-5)
        assert torch.equal(group_norm(x[-1:].clone(), groups, w, b, 1e-6, silu), found[-1:])
    if silu:
        return
    before = torch.randn(channels, generator=random) * 9
    expected = torch.nn.functional.group_norm((x + before[:, None, None]).double(), groups, eps=1e-6)
    found = group_norm(x, groups, None, None, 1e-6, before=before)
    torch.testing.assert_close(found.double(), expected, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("biases", [0, 1, 2])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "none"])
@pytest.mark.parametrize(
    ("shape", "dtype"), [((3, 64, 4, 9, 15), torch.float16), ((2, 48, 8, 5, 31), torch.float32)], ids=str
)
def test_sums_and_their_moments(shape: tuple[int, ...], with_residual: bool, biases: int, dtype: torch.dtype) -> None:
    """Sums are rounded once, and the moments are those of the rounded sums: a norm given them has the same bits."""
    images, channels, groups, height, width = shape
    random = torch.Generator().manual_seed(2)

    def numbers(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=random).to(dtype)

    x, residual = (
        (numbers(images, channels, height, width) + 7).contiguous(memory_format=torch.channels_last) for _ in range(2)
    )
    vectors = [numbers(channels) for _ in range(biases)]
    added = sum((vector.float() for vector in vectors), torch.zeros(channels))
    expected = x.float() + added[:, None, None] + (residual.float() if with_residual else 0)
    alone, found = x[-1:].clone(memory_format=torch.channels_last), x.clone(memory_format=torch.channels_last)
    parts = moments(found, groups, tuple(vectors), residual if with_residual else None)
    torch.testing.assert_close(found, expected.to(dtype), atol=0, rtol=0 if dtype == torch.float16 else 1e-6)
    assert torch.equal(moments(alone, groups, tuple(vectors), residual[-1:] if with_residual else None), parts[-1:])
    assert torch.equal(alone, found[-1:])
    normed = group_norm(found, groups, None, None, 1e-6, known=parts)
    assert torch.equal(normed, group_norm(found, groups, None, None, 1e-6))


@pytest.mark.parametrize("biases", [0, 1])
@pytest.mark.parametrize("shape", UPSAMPLED, ids=str)
def test_the_end_of_a_folded_upsampling(shape: tuple[int, ...], biases: int) -> None:
    """The phases in their places, and the moments of the result: a norm given them has the same bits."""
    images, channels, height, width = shape
    random = torch.Generator().manual_seed(3)
    phases = torch.randn((images, 4 * channels, height + 1, width + 1), generator=random).half()
    phases = phases.contiguous(memory_format=torch.channels_last)
    vectors = tuple(torch.randn(channels, generator=random).half() for _ in range(biases))
    expected = interleaved(phases)
    for vector in vectors:
        expected = (expected.float() + vector.float().view(-1, 1, 1)).half()
    found = torch.full_like(expected, torch.nan)
    parts = moments(found, 4, vectors, phases=phases)
    assert torch.equal(found, expected)
    alone = torch.empty_like(found[-1:])
    assert torch.equal(moments(alone, 4, vectors, phases=phases[-1:].clone()), parts[-1:])
    assert torch.equal(alone, found[-1:])
    assert torch.equal(group_norm(found, 4, None, None, 1e-6, known=parts), group_norm(found, 4, None, None, 1e-6))


@pytest.mark.parametrize("kind", ["diffusers", "embedded"])
def test_a_decoder_by_the_kernels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pixels are those of torch's layers, and moments that a block has already computed are reused."""
    torch.manual_seed(0)
    widths = {"norm_num_groups": 4, "layers_per_block": 1, "sample_size": 8}
    made: Any = _vq((16, 32), True, **widths).decoder if kind == "diffusers" else CompactVQ(SMALL).decoder
    network = made.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    for parameter in network.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    fold(network)
    settle(network, 4)
    x = torch.randn(2, 8, 4, 4)
    looked, inner = list[bool](), fused.moments

    def look(given: torch.Tensor, groups: int, biases: Any = None, *more: Any, **named: Any) -> torch.Tensor:
        looked.append(biases is None)
        return inner(given, groups, biases or (), *more, **named)

    with torch.inference_mode():
        expected = network(x)
        fused.fuse(network)
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
        monkeypatch.setattr(fused, "moments", look)
        monkeypatch.setattr(fused, "by_triton", lambda given: True)
        torch.testing.assert_close(network(x), expected, atol=1e-4, rtol=1e-4)
    # each norm computes its own, except after a residual block, an upsampling or the first convolution; in the embedded
    # one all compute theirs
    assert (sum(looked), len(looked)) == ((11, 19) if kind == "diffusers" else (4, 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_group_norm_of_half_numbers(dtype: torch.dtype) -> None:
    """Rounded once: within just over half a unit in the last place of torch's float32 result for the same numbers.

    Triton's interpreter truncates bfloat16 instead of rounding it: within a whole unit.
    """
    random = torch.Generator().manual_seed(1)
    x, weight, bias = (torch.randn(shape, generator=random).to(dtype) for shape in ((2, 64, 6, 5), (64,), (64,)))
    exact = torch.nn.functional.silu(torch.nn.functional.group_norm(x.float(), 32, weight.float(), bias.float(), 1e-6))
    found = group_norm(x, 32, weight, bias, 1e-6, True)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=2.0**-6)
    cut_off = dtype == torch.bfloat16 and TRITON.interpreted
    assert ((found.float() - exact).abs() <= (1.01 if cut_off else 0.51) * unit).all()


def test_buffers_serve_the_next_scan() -> None:
    """Another seed and other images in the same buffers, then fewer images than a run makes."""
    case = Case(33, 3, "edit-free", images=3)
    for seed in (2**64 - 1, 2**32):
        check(request(case, seed), Tuning(images=2))


def test_a_bank_is_let_go_with_its_arrays() -> None:
    """What is kept for running a plan again does not keep the bank alive, which may fill the device."""
    backend = TritonBackend("cpu")
    made = plan.random(4, 2, scales=[4])
    banks = []
    for size in (5, 6):
        backend.scan(World(size, 4).request(made, [0], 1, in_codes=True))
        banks += [weakref.ref(kept[0]) for kept in backend._store._banks._kept.values()]
    assert [bank() is None for bank in banks] == [True, False]


@pytest.mark.parametrize("dot", [False, True])
def test_values_at_the_limit(dot: bool) -> None:
    """|value| = 1023 in 16 channels: the largest sum allowed for 16 products of float16."""
    world = World(20, 6, 16, codes=2)
    world.codebook = np.array([[-1023] * 16, [1023] * 16], np.int16)
    world.full = world.codebook[world.codes]
    start = 1 - world.codes[:1].astype(np.int64)
    check(world.request(plan.reference(6, 4, 2), [0], 5, start=start), Tuning(dot=dot))


def test_larger_values_are_never_multiplied_in_float16() -> None:
    full = np.random.default_rng(0).integers(-9000, 9001, (20, 6, 6, 2)).astype(np.int16)
    made = World(20, 6, 2).request(plan.random(6, 2, 2, scales=[6]), [0], 3)
    wanted = replace(made, bank=LatentBank(lambda side: full, 20))
    check(wanted, Tuning(dot=True))
    assert not configs.choose("cuda", False, 64, 5000, 3, configs.DOT_LIMIT + 1, 132).dot


def test_boundaries_of_a_wide_patch() -> None:
    world = World(3, 10, 2, codes=3)
    for in_codes in (False, True):
        wide = world.request(plan.random(10, 9, 1, [10], overlap="cut"), [3], 2, in_codes=in_codes)
        check(wide, Tuning())
    wider = World(1, 18).request(plan.random(18, 17, 1, [18], overlap="cut"), [0], 1)
    assert TRITON.unsupported(replace(wider, device="cpu")) == ["cuts patches of up to 16 cells, got 17"]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_plan(data: st.DataObject) -> None:
    side = data.draw(st.integers(3, 5), "side")
    patch = data.draw(st.integers(2, 3), "patch")
    scales = sorted({*data.draw(st.sets(st.integers(patch, side), max_size=1), "scales"), side})
    kind, size = data.draw(st.sampled_from(KINDS), "kind"), data.draw(st.integers(1, 40), "B")
    world = World(size, side, 2, data.draw(st.integers(1, 4), "V"), seed=side)
    allowed = np.flatnonzero(np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size), "allowed")))
    options: dict[str, Any] = {"start": data.draw(st.sampled_from(plan.STARTS), "start")}
    options["mirror"] = data.draw(st.sampled_from([0, 2]), "mirror")
    if data.draw(st.booleans(), "cut"):
        options["overlap"] = "cut"
    wanted = world.request(
        make(kind, side, patch, data.draw(st.integers(2, patch), "stride"), scales, **options),
        data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=2), "images"),
        data.draw(st.integers(1, 4), "K"),
        data.draw(st.integers(0, 2**64 - 1), "seed"),
        world.start(1) if not kind.startswith("random") else None,
        allowed if len(allowed) else None,
        in_codes=len(scales) == 1 or options["start"] == "carry",
        hubness=data.draw(st.sampled_from([0, 100]), "hubness"),
    )
    check(wanted, Tuning())


SEARCHES = [
    ("float32", "none", (1, 1, 1, 1)),
    ("int16", "own", (3, 5, 7, 5)),
    ("float32", "shared", (4, 257, 16, 10)),
    ("int16", "none", (9, 65, 9, 3)),
    ("float32", "own", (9, 64, 8, 4)),
    ("int16", "shared", (2, 300, 33, 128)),
    ("float32", "own", (2, 1000, 5, 128)),
    ("float32", "none", (1, 31, 576, 3)),
    ("int16", "own", (3, 12, 0, 4)),
]
WEIGHTED = [(spread, k, kind) for spread, k in ((1, 10), (30, 3)) for kind in ("none", "own")]
if PTX:
    SEARCHES, WEIGHTED = [*SEARCHES[:3], *SEARCHES[5:]], WEIGHTED[1:3]


@pytest.mark.parametrize(("dtype", "mask_kind", "shape"), SEARCHES)
def test_topk(dtype: str, mask_kind: str, shape: tuple[int, int, int, int]) -> None:
    q, b, d, k = shape
    queries, bank = integers(dtype, q, b, d)
    mask = masks(mask_kind, q, d)
    for allowed in (None, np.random.default_rng(2).random(b) < 0.5):
        got = masked_topk(queries, bank, k, mask, allowed, "triton")
        for mine, theirs in zip(got, oracle(queries, bank, k, mask, allowed), strict=True):
            assert np.array_equal(mine, theirs)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(q=st.integers(0, 3), b=st.integers(1, 70), d=st.integers(0, 9), own=st.booleans(), data=st.data())
def test_topk_of_any_shape(q: int, b: int, d: int, own: bool, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, min(b, 4)))
    queries, bank = integers("float32", q, b, d, spread=1)
    mask = masks("own" if own else "none", q, d)
    allowed = np.random.default_rng(b).random(b) < data.draw(st.sampled_from([0, 0.1, 1]))
    got = masked_topk(queries, bank, k, mask, allowed, "triton")
    for mine, theirs in zip(got, oracle(queries, bank, k, mask, allowed), strict=True):
        assert np.array_equal(mine, theirs)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(wanted=requests(most=100))
def test_topk_of_special_values(wanted: TopkRequest) -> None:
    check_floats(TRITON, wanted)


@pytest.mark.parametrize(("spread", "k", "kind"), WEIGHTED)
def test_topk_with_weights(spread: float, k: int, kind: str) -> None:
    """Rows that occur twice with other weights; with weights of 1e-30 to 1e30, sums are redone in float64."""
    random = np.random.default_rng(k)
    bank = random.standard_normal((140, 20)).astype(np.float32)
    bank[70:] = bank[:70]
    queries = bank[:4] + np.float32(0.1) * random.standard_normal((4, 20)).astype(np.float32)
    weights = 10 ** random.uniform(-spread, spread, 140)
    check_floats(TRITON, TopkRequest(queries, bank, k, masks(kind, 4, 20), random.random(140) < 0.7, weights))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(wanted=requests(most=100), data=st.data())
def test_topk_with_weights_of_special_values(wanted: TopkRequest, data: st.DataObject) -> None:
    few = data.draw(st.sampled_from([[1e-300, 1e-40, 1e-3, 1, 1, 3, 1e20, 3e38, 1e300], [1.0, 2.0, 4.0], [1.0]]))
    weights = np.random.default_rng(len(wanted.bank)).choice(np.array(few), len(wanted.bank))
    check_floats(TRITON, replace(wanted, weights=weights))
