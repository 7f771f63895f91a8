"""The layers of lpkernel.autoencoder.layers: the same bits whichever way they are computed."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lpkernel import _native
from lpkernel.autoencoder import layers, moments
from lpkernel.autoencoder.layers import settle
from lpkernel.autoencoder.moments import group_norm

needs_cpp = pytest.mark.skipif(bool(_native.cpu_reasons()), reason=f"cpp: {_native.cpu_reasons()}")
ISAS = [] if _native.cpu_reasons() else _native.cpu().build_info()["isa"]


def _by_torch(*arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_native, "isa_reasons", lambda isa: ("a test",))
        return group_norm(*arguments)


@needs_cpp
@pytest.mark.parametrize("isa", ["", *ISAS])
@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 40),
    block=st.integers(1, 12),
    groups=st.integers(1, 9),
    own=st.integers(1, 19),
    affine=st.booleans(),
    offset=st.sampled_from([0.0, 50.0, -3e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_compiled_group_norm_has_the_bits_of_torch_s(
    isa: str,
    blocks: int,
    block: int,
    groups: int,
    own: int,
    affine: bool,
    offset: float,
    dtype: torch.dtype,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)

    def floats(*shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal(shape, np.float32))

    pixels = (floats(blocks * block, groups * own) * 3 + offset).to(dtype)
    weight, bias = (floats(groups * own), floats(groups * own)) if affine else (None, None)
    out = [torch.empty_like(pixels) for _ in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LPKERNEL_ISA", isa)
        assert not moments.reasons()
        compiled = group_norm(pixels, out[0], block, groups, weight, bias, 1e-6)
    plain = _by_torch(pixels, out[1], block, groups, weight, bias, 1e-6)
    assert compiled is not None and torch.equal(out[0], out[1])
    for found, want in zip(compiled, plain, strict=True):
        np.testing.assert_array_equal(found, want)
    given_ = random.standard_normal(groups), random.random(groups)
    assert group_norm(pixels, out[2], block, groups, weight, bias, 1e-6, given_) is None
    assert _by_torch(pixels, out[3], block, groups, weight, bias, 1e-6, given_) is None
    assert torch.equal(out[2], out[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_large_image_is_normalised_by_many_threads(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place or not, with the same bits, which are those of torch where LPKERNEL_ISA is not available here."""
    before = torch.get_num_threads()
    pixels = torch.randn(1 << 15, 12, generator=torch.Generator().manual_seed(0)).to(dtype)
    want = torch.empty_like(pixels)
    sums = _by_torch(pixels, want, 8, 2, None, None, 1e-6)
    monkeypatch.setattr(moments, "OF_ONE_THREAD", pixels.numel() - 1)
    try:
        for threads, isa in ((1, ""), (2, ""), (5, ""), (3, "another")):
            torch.set_num_threads(threads)
            monkeypatch.setenv("LPKERNEL_ISA", isa)
            for given_ in (pixels, pixels.clone()):
                out = torch.empty_like(given_) if given_ is pixels else given_
                found = group_norm(given_, out, 8, 2, None, None, 1e-6)
                assert torch.equal(out, want) and found is not None and sums is not None
                assert all(np.array_equal(*pair) for pair in zip(found, sums, strict=True))
    finally:
        torch.set_num_threads(before)
    assert "LPKERNEL_ISA is 'another'" in "".join(moments.reasons()) or not ISAS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_norm_in_place(dtype: torch.dtype) -> None:
    """What may be overwritten is, where it has the layout and kind; the bits are the same."""
    network = nn.Sequential(nn.GroupNorm(2, 6)).to(dtype)
    settle(network, 4)
    x = torch.randn(2, 6, 8, 4).to(dtype)
    with torch.inference_mode():
        for given_ in (x, x.contiguous(memory_format=torch.channels_last)):
            want, kept = network(given_), given_.clone()
            assert torch.equal(given_, kept) and torch.equal(network[0](given_, in_place=True), want)
            in_place = dtype != torch.float16 and given_ is not x
            assert torch.equal(given_, want if in_place else kept)


@needs_cpp
def test_compiled_group_norm_checks_what_it_is_given() -> None:
    pixels, out = np.zeros((6, 4), np.float32), np.zeros((6, 4), np.float32)
    run = _native.cpu().group_norm
    none = (None, None, 1e-6, None, None, "", 1)
    frozen = out.copy()
    frozen.flags.writeable = False
    for arguments in (
        (pixels, out, 4, 2, *none),  # 6 pixels in blocks of 4
        (pixels, out, 0, 2, *none),
        (pixels, out, 2, 3, *none),  # 4 channels in 3 groups
        (pixels, out[:5], 1, 2, *none),
        (pixels, frozen, 1, 2, *none),
        (pixels.astype(np.float64), out, 1, 2, *none),
        (pixels.T, out.T, 1, 2, *none),
        (pixels[:0], out[:0], 1, 2, *none),
        (pixels, out, 1, 2, np.zeros(3, np.float32), *none[1:]),
        (pixels, out, 1, 2, None, None, 1e-6, np.zeros(2), None, "", 1),
        (pixels, out, 1, 2, *none[:-1], 0),  # threads
    ):
        with pytest.raises(
            ValueError, match=r"block|groups|out|not writeable|wrong dtype|contiguous|weight|mean|threads"
        ):
            run(*arguments)


def _convolution(channels: int = 8, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)).requires_grad_(False).to(dtype)
    settle(network, 4)
    return network[0]


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
@pytest.mark.parametrize("dtype", [dtype for dtype in (torch.float32, torch.bfloat16) if layers.by_onednn(dtype)])
def test_weights_kept_in_order_change_no_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = _convolution(dtype=dtype)
    images = [torch.randn(1, 8, side, side).to(dtype) for side in (16, 7, 33)]
    images = [image.contiguous(memory_format=torch.channels_last) for image in images]
    with torch.inference_mode():
        kept = [layer(image) for image in images]
        assert layer._packed is not None
        monkeypatch.setattr(layers, "PACKED_WEIGHTS", 0)
        for image, found in zip(images, kept, strict=True):
            assert torch.equal(layer(image), found)


def test_changed_weights_are_seen() -> None:
    layer, x = _convolution(), torch.randn(1, 8, 6, 6)
    for change in (lambda: layer.weight.mul_(2), lambda: setattr(layer, "weight", nn.Parameter(-layer.weight, False))):
        with torch.no_grad():
            before = layer(x)
            change()
            assert not torch.equal(layer(x), before)
            torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize("how", ["copied", "pickled", "made in inference mode"])
def test_a_network_may_be(how: str) -> None:
    with torch.inference_mode(how == "made in inference mode"):
        layer, x = _convolution(), torch.randn(1, 8, 6, 6)
    with torch.inference_mode():
        want = layer(x)
        other = {"copied": copy.deepcopy, "pickled": lambda it: pickle.loads(pickle.dumps(it))}.get(how, lambda it: it)(
            layer
        )
        assert torch.equal(other(x), want)


@pytest.mark.parametrize("shape", [(1, 16, 8, 8), (2, 3, 5, 7), (1, 32, 65, 33), (4, 31)])
def test_silu_is_torch_s_own(shape: tuple[int, ...]) -> None:
    silu = nn.Sequential(nn.SiLU())
    settle(silu, 2)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for given_ in (x, x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x, x[..., ::2]):
        torch.testing.assert_close(silu(given_), nn.functional.silu(given_), rtol=1e-6, atol=1e-6)
