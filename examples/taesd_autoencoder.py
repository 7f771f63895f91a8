"""A plug-in: the tiny autoencoder of FLUX.2's latent space (taef2, madebyollin/taesd, MIT licence).

    lp.load_autoencoder("examples/taesd_autoencoder.py:load?weights=FOLDER")

FOLDER holds taef2_encoder.pth and taef2_decoder.pth, which are not part of lpkernel. Continuous: an
image of side 128 becomes a 16x16 grid of 32 channels.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lpkernel.autoencoder import TorchAutoencoder
from lpkernel.autoencoder.safe_pickle import load_checkpoint
from lpkernel.errors import InputError

WIDTH = 64  # channels inside
LATENT = 32


def _conv(inputs: int, outputs: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)


class Block(nn.Module):
    """Three convolutions and a skip; next to the latent, a wide 1x1 branch (`pool`) is added first."""

    def __init__(self, pool: bool = False) -> None:
        super().__init__()
        self.conv = nn.Sequential(_conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH), nn.ReLU(), _conv(WIDTH, WIDTH))
        self.pool = None
        if pool:
            wide = 4 * WIDTH
            shrink = nn.Conv2d(wide, WIDTH, 1, bias=False)
            self.pool = nn.Sequential(nn.Conv2d(WIDTH, wide, 1, bias=False), nn.GroupNorm(4, wide), nn.ReLU(), shrink)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is not None:
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """A soft limit of the latents at +-3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class Taef2(nn.Module):
    """Encoder and decoder, for images in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        encoder: list[nn.Module] = [_conv(3, WIDTH), Block()]
        for pool in (False, False, True):
            encoder += [_conv(WIDTH, WIDTH, stride=2, bias=False), Block(pool), Block(pool), Block(pool)]
        self.encoder = nn.Sequential(*encoder, _conv(WIDTH, LATENT))
        decoder: list[nn.Module] = [Clamp(), _conv(LATENT, WIDTH), nn.ReLU()]
        for pool in (True, False, False):
            decoder += [
                Block(pool),
                Block(pool),
                Block(pool),
                nn.Upsample(scale_factor=2),
                _conv(WIDTH, WIDTH, bias=False),
            ]
        self.decoder = nn.Sequential(*decoder, Block(), _conv(WIDTH, 3))


class Taef2Autoencoder(TorchAutoencoder):
    """`Taef2` behind the interface; images arrive in [-1, 1]."""

    def encode_tensor(self, images: Tensor) -> Tensor:
        return self.network.encoder((images + 1) / 2)

    def decode_tensor(self, latents: Tensor) -> Tensor:
        return self.network.decoder(latents) * 2 - 1


def load(weights: str, device: str = "auto", dtype: str = "auto") -> Taef2Autoencoder:
    """The autoencoder with the weights in the folder `weights`. Raises InputError if they are not there."""
    network = Taef2()
    for part in ("encoder", "decoder"):
        path = Path(weights) / f"taef2_{part}.pth"
        try:
            getattr(network, part).load_state_dict(load_checkpoint(path))
        except RuntimeError as error:
            raise InputError(f"{path} does not hold the weights of a taef2 {part}") from error
    return Taef2Autoencoder(network, name="taef2", image_size=128, grid=16, width=LATENT, device=device, dtype=dtype)
