"""GroupNorm and SiLU in one: which layers are joined, and that on a CPU no bit changes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lpkernel.triton_kernels import configs
from test_same_bits import MODELS
from torch import nn

from lpkernel.autoencoder import fused
from lpkernel.autoencoder.compact import CompactConfig, CompactVQ
from lpkernel.autoencoder.fused import NormSiLU, by_triton, fuse
from lpkernel.autoencoder.layers import settle
from lpkernel.autoencoder.upsampling import fold


def _networks() -> list[Any]:
    torch.manual_seed(0)
    small = CompactConfig(32, 16, 8, (16, 16), (16, 16, 8), (1, 1), (1, 1, 1))
    return [CompactVQ(small), *(MODELS[name]() for name in ("VQModel", "taming", "KL", "Tiny"))]


@pytest.mark.parametrize("index", range(5))
def test_a_network_gives_the_same_with_its_layers_joined(index: int) -> None:
    """On a CPU, where joined layers work in place, bit for bit; the kernels are tested in triton_checks.py."""
    network = _networks()[index].eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    fold(network)
    settle(network, 4)

    def run() -> torch.Tensor:
        if isinstance(network, CompactVQ):
            result: torch.Tensor = network.decoder(network.encoder(x))
            return result
        found = network.encode(x)
        latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
        decoded = (
            network.decoder(network.post_quant_conv(latents)) if index in (1, 2) else network.decode(latents).sample
        )
        result = decoded
        return result

    names = list(network.state_dict())
    with torch.inference_mode():
        before, given = run(), x.clone()
        joined = fuse(network)
        assert torch.equal(run(), before) and torch.equal(x, given)
    norms = [module for module in network.modules() if isinstance(module, NormSiLU)]
    attention = sum("group_norm" in name for name, _ in network.named_modules())
    assert joined == len(norms) - attention and (joined > 3 or index == 4)
    assert list(network.state_dict()) == names
    kinds = [type(module) for module in network.modules()]
    assert fuse(network) == 0 and [type(module) for module in network.modules()] == kinds


def test_an_activation_of_another_kind_stays() -> None:
    mixed = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.GroupNorm(2, 4), nn.SiLU(), nn.SiLU())
    settle(mixed, 2)
    assert fuse(mixed) == 1
    kinds = [type(layer).__name__ for layer in mixed]
    assert kinds == ["NormSiLU", "ReLU", "NormSiLU", "Identity", "SiLU"]


def test_without_triton_its_kernels_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16)
    for known in (True, False):
        monkeypatch.setattr(fused, "has_triton", lambda known=known: known)
        assert by_triton(on_gpu) is known


@pytest.mark.parametrize(("channels", "groups"), [*configs.NORMS, (32, 32), (96, 3), (4096, 1), (20, 5)])
def test_tiles(channels: int, groups: int) -> None:
    tile = configs.norm(channels, groups)
    assert tile is not None
    assert tile.columns >= channels and tile.own * groups >= channels and tile.slabs * tile.own <= 4096
    assert tile.pixels * tile.columns <= 4096 and configs.pixel_tile(tile.columns) * tile.columns <= 4096
    for pixels in (1, 7, 256, 65_536, 100_000):
        slab, slabs = configs.norm_slabs(pixels, tile)
        assert slab % tile.pixels == 0 and slab % configs.pixel_tile(tile.columns) == 0 and slabs <= tile.slabs
        assert (slabs - 1) * slab < pixels <= slabs * slab


def test_too_many_channels_go_the_old_way() -> None:
    assert configs.norm(8192, 32) is None
