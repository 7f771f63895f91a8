"""Upsampling folded into the convolution after it: the same pictures for less work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_same_bits import MODELS
from torch import nn

from lpkernel.autoencoder import load_autoencoder
from lpkernel.autoencoder.base import own_layers
from lpkernel.autoencoder.layers import settle
from lpkernel.autoencoder.partial import stages_of
from lpkernel.autoencoder.upsampling import FoldedUpsample, fold, folded, interleaved

FOLDED = {"VQModel": 1, "taming": 4, "KL": 1, "Tiny": 1}


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(1, 12)),
    out=st.integers(1, 9),
    biased=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_folded_convolution_is_the_two_layers(
    shape: tuple[int, int, int, int], out: int, biased: bool, seed: int
) -> None:
    """In float64, where sums of weights lose nothing that shows; the result is channels-last."""
    random = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(size, generator=random).double() for size in (shape, (out, shape[1], 3, 3)))
    bias = torch.randn(out, generator=random).double() if biased else None
    larger = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = nn.functional.conv2d(larger, weight, bias, padding=1)
    found = interleaved(nn.functional.conv2d(x, folded(weight), None if bias is None else bias.repeat(4), padding=1))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_whole_weights_are_added_exactly() -> None:
    weight = torch.arange(9.0).view(1, 1, 3, 3)
    assert folded(weight).tolist() == [
        [[[0, 1 + 2], [3 + 6, 4 + 5 + 7 + 8]]],
        [[[0 + 1, 2], [3 + 4 + 6 + 7, 5 + 8]]],
        [[[0 + 3, 1 + 2 + 4 + 5], [6, 7 + 8]]],
        [[[0 + 1 + 3 + 4, 2 + 5], [6 + 7, 8]]],
    ]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_decoder_gives_the_same_pictures(kind: str, dtype: str, tmp_path: Any) -> None:
    torch.manual_seed(0)
    MODELS[kind]().save_pretrained(tmp_path)
    source = f"{tmp_path}?image_size=64"
    replaced: Any = load_autoencoder(source, "cpu", dtype)
    with own_layers():
        plain: Any = load_autoencoder(source, "cpu", "float32")
    assert not [layer for layer in plain.network.modules() if layer.__module__.startswith("lpkernel")]
    assert sum(isinstance(layer, FoldedUpsample) for layer in replaced.network.modules()) == FOLDED[kind]
    assert replaced.fingerprint == plain.fingerprint
    latents = torch.randn(1, plain.width, plain.grid, plain.grid)
    with torch.inference_mode():
        found, exact = replaced.decode_tensor(latents.to(replaced.dtype)).float(), plain.decode_tensor(latents)
        if dtype == "float32":
            torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-4)
        else:  # as near to float32 as torch's own layers
            plain.network.to(replaced.dtype)
            apart = plain.decode_tensor(latents.to(replaced.dtype)).float() - exact
            assert (found - exact).abs().mean() < 1.1 * apart.abs().mean()


def test_a_compiled_decoder_is_one_graph(tmp_path: Any) -> None:
    """With aot_eager, which traces as the real compiler does but writes no code."""
    torch.manual_seed(0)
    MODELS["VQModel"]().save_pretrained(tmp_path)
    ours: Any = load_autoencoder(f"{tmp_path}?image_size=64", "cpu", "float32")
    latents = torch.randn(1, ours.width, ours.grid, ours.grid)
    with torch.inference_mode():
        compiled: Any = torch.compile(ours.decode_tensor, backend="aot_eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(latents), ours.decode_tensor(latents), atol=1e-4, rtol=1e-4)


def test_what_is_no_such_upsampling_stays() -> None:
    def after(layer: nn.Module, *rest: nn.Module) -> nn.Sequential:
        return nn.Sequential(layer, *rest)

    networks = [
        after(nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(4, 4, 3, padding=1)),
        after(nn.Upsample(scale_factor=3), nn.Conv2d(4, 4, 3, padding=1)),
        after(nn.Upsample(size=8), nn.Conv2d(4, 4, 3, padding=1)),
        after(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, stride=2)),
        after(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, groups=2)),
        after(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        after(nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 5, padding=2)),
        after(nn.Upsample(scale_factor=2), nn.SiLU()),
        after(nn.Upsample(scale_factor=2)),
    ]
    assert [fold(network) for network in networks] == [0] * len(networks)
    neighbours = after(nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.SiLU())
    x = torch.randn(2, 4, 5, 3)
    with torch.inference_mode():
        expected = neighbours(x)
        assert fold(neighbours) == 1
        settle(neighbours, 2)
        torch.testing.assert_close(neighbours(x), expected)
    assert [stage.factor for stage in stages_of(neighbours)] == [1, 2, 1, 1]
    assert [stage.reach for stage in stages_of(neighbours)] == [0, 1, 0, 0]
