"""The network of the embedded autoencoder: a small VQ-VAE made to be quick on a CPU.

128x128x3 image -> space-to-depth by 4 -> 32x32 -> stride 2 -> 16x16 grid of `L`-vectors, each
replaced by the nearest of `V` codebook rows; the decoder mirrors it with pixel shuffles. Most
weights sit at 16x16, where a convolution costs least. Trained by scripts/train_autoencoder.py.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from lpkernel.autoencoder.config_values import (
    MAX_BLOCKS,
    MAX_ROWS,
    MAX_SIDE,
    MAX_WIDTH,
    Check,
    checked,
    integer,
    several,
)
from lpkernel.autoencoder.quantise import nearest_rows
from lpkernel.errors import short


@dataclass(frozen=True)
class CompactConfig:
    """Shape of a `CompactVQ`; stored beside its weights."""

    image_size: int = 128
    codebook_size: int = 2048  # V
    codebook_width: int = 32  # L
    encoder_widths: tuple[int, int] = (128, 256)  # channels at 32x32 and 16x16
    decoder_widths: tuple[int, int, int] = (288, 160, 64)  # at 16x16, 32x32 and 64x64
    encoder_blocks: tuple[int, int] = (2, 3)
    decoder_blocks: tuple[int, int, int] = (4, 2, 2)

    @property
    def grid(self) -> int:
        """Side M of the code grid."""
        return self.image_size // 8

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @staticmethod
    def from_json(data: object) -> CompactConfig:
        """The config in a JSON object. Raises ValueError unless a network can be built from it."""
        if not isinstance(data, dict):
            raise ValueError(f"it is of kind {type(data).__name__}, expected an object")
        unknown = data.keys() - _CHECKS.keys()
        if unknown:
            raise ValueError(f"it has an unknown key {short(min(unknown))}")
        return CompactConfig(**checked(data, _CHECKS))


def _eights(most: int) -> Check:
    """A check: a positive multiple of 8."""

    def check(value: object) -> int:
        number: int = integer(8, most)(value)
        if number % 8:
            raise ValueError(f"is {number}, expected a multiple of 8")
        return number

    return check


_WIDTH, _BLOCKS = _eights(MAX_WIDTH), integer(0, MAX_BLOCKS)
_CHECKS: dict[str, Check] = {
    "image_size": _eights(MAX_SIDE),
    "codebook_size": integer(1, MAX_ROWS),
    "codebook_width": integer(1, MAX_WIDTH),
    "encoder_widths": several(_WIDTH, 2, 2),
    "decoder_widths": several(_WIDTH, 3, 3),
    "encoder_blocks": several(_BLOCKS, 2, 2),
    "decoder_blocks": several(_BLOCKS, 3, 3),
}


class ResBlock(nn.Module):
    """x + conv(silu(conv(silu(norm(x))))), channels kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.act1, self.act2 = nn.SiLU(), nn.SiLU()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.act1(self.norm(x)))
        return x + self.conv2(self.act2(h))


def _stage(channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(*(ResBlock(channels) for _ in range(blocks)))


class CompactVQ(nn.Module):
    """Encoder, codebook and decoder. Images are (N, 3, H, W) in [-1, 1]."""

    codebook: Tensor

    def __init__(self, config: CompactConfig) -> None:
        super().__init__()
        self.config = config
        e0, e1 = config.encoder_widths
        d0, d1, d2 = config.decoder_widths
        width = config.codebook_width
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, e0, 3, padding=1),
            _stage(e0, config.encoder_blocks[0]),
            nn.Conv2d(e0, e1, 3, stride=2, padding=1),
            _stage(e1, config.encoder_blocks[1]),
            nn.GroupNorm(8, e1),
            nn.SiLU(),
            nn.Conv2d(e1, width, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(width, d0, 3, padding=1),
            _stage(d0, config.decoder_blocks[0]),
            nn.Conv2d(d0, 4 * d1, 1),
            nn.PixelShuffle(2),
            _stage(d1, config.decoder_blocks[1]),
            nn.Conv2d(d1, 4 * d2, 1),
            nn.PixelShuffle(2),
            _stage(d2, config.decoder_blocks[2]),
            nn.GroupNorm(8, d2),
            nn.SiLU(),
            nn.Conv2d(d2, 12, 3, padding=1),
            nn.PixelShuffle(2),
        )
        self.register_buffer("codebook", torch.zeros(config.codebook_size, width))

    def nearest(self, latents: Tensor) -> Tensor:
        """Codebook row nearest each vector: (..., L) -> (...) int64, in float32."""
        return nearest_rows(latents, self.codebook)

    def encode(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> unquantised latents (N, M, M, L) float32."""
        return self.encoder(images).permute(0, 2, 3, 1).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Codebook vectors (N, M, M, L) -> images (N, 3, H, W)."""
        return self.decoder(latents.permute(0, 3, 1, 2))
