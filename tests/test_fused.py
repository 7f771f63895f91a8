"""GroupNorm and SiLU in one kernel: which layers are joined, and that only the last bits change."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from emulation.needs import need_triton
from lpkernel.triton_kernels import configs
from test_same_bits import MODELS
from torch import nn

from lpkernel.autoencoder.compact import CompactConfig, CompactVQ
from lpkernel.autoencoder.fused import NormSiLU, fuse
from lpkernel.autoencoder.layers import settle

pytestmark = pytest.mark.usefixtures("_triton")


@pytest.fixture
def _triton() -> None:
    need_triton()


def _networks() -> list[Any]:
    torch.manual_seed(0)
    small = CompactConfig(32, 16, 8, (16, 16), (16, 16, 8), (1, 1), (1, 1, 1))
    return [CompactVQ(small), *(MODELS[name]() for name in ("VQModel", "taming", "KL", "Tiny"))]


@pytest.mark.parametrize("index", range(5))
def test_a_network_gives_the_same_with_its_layers_joined(index: int) -> None:
    """On a CPU, where a joined layer runs as before; the kernel itself is tested in triton_checks.py."""
    network = _networks()[index].eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
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
        before = run()
        joined = fuse(network)
        torch.testing.assert_close(run(), before, atol=1e-3, rtol=1e-3)
    norms = [module for module in network.modules() if isinstance(module, NormSiLU)]
    attention = sum("group_norm" in name for name, _ in network.named_modules())
    assert joined == len(norms) - attention and (joined > 3 or index == 4)
    assert list(network.state_dict()) == names
    assert fuse(network) == 0


def test_an_activation_of_another_kind_stays() -> None:
    mixed = nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU(), nn.GroupNorm(2, 4), nn.SiLU(), nn.SiLU())
    settle(mixed, 2)
    assert fuse(mixed) == 1
    kinds = [type(layer).__name__ for layer in mixed]
    assert kinds == ["NormSiLU", "ReLU", "NormSiLU", "Identity", "SiLU"]


def test_without_triton_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    network = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())
    settle(network, 2)
    assert fuse(network) == 0 and not isinstance(network[0], NormSiLU)


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
