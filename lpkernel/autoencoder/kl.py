"""diffusers `AutoencoderKL` and `AutoencoderTiny` folders: continuous latents."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.folder import geometry, load_network
from lpkernel.autoencoder.partial import Stage, diffusers_stages, stages_of


class _ContinuousFolder(TorchAutoencoder):
    """A diffusers folder of class `diffusers_class`, whose config lists the encoder's levels as `levels_key`."""

    diffusers_class: ClassVar[str]
    levels_key: ClassVar[str]
    encoder_parts = ("encoder", "quant_conv")

    def __init__(
        self, folder: Path, device: str = "auto", dtype: str = "auto", image_size: str | int | None = None
    ) -> None:
        network = load_network(folder, self.diffusers_class)
        super().__init__(
            network,
            **geometry(folder, network, len(network.config[self.levels_key]), image_size),
            width=network.config.latent_channels,
            device=device,
            dtype=dtype,
        )

    def decode_tensor(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample


class KLAutoencoder(_ContinuousFolder):
    """An `AutoencoderKL`. Latents are the mode of the posterior, not scaled.

    `image_size` overrides the config's sample_size. Raises InputError, MissingExtra.
    """

    diffusers_class = "AutoencoderKL"
    levels_key = "block_out_channels"

    def encode_tensor(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latent_dist.mode()

    def stages(self) -> list[Stage]:
        before = self.network.post_quant_conv
        return diffusers_stages(self.network.decoder, [] if before is None else [before])


class TinyAutoencoder(_ContinuousFolder):
    """An `AutoencoderTiny`. Latents are the encoder's output, not scaled.

    Its config has no size: 256 unless `image_size` says otherwise. Raises InputError, MissingExtra.
    """

    diffusers_class = "AutoencoderTiny"
    levels_key = "encoder_block_out_channels"

    def encode_tensor(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latents

    def stages(self) -> list[Stage]:
        clamp, rescale = Stage(lambda x: torch.tanh(x / 3) * 3, 0), Stage(lambda x: x.mul(2).sub(1), 0)
        return [clamp, *stages_of(self.network.decoder.layers), rescale]
