"""diffusers `AutoencoderKL` and `AutoencoderTiny` folders: continuous latents."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.folder import geometry, load_network


class KLAutoencoder(TorchAutoencoder):
    """An `AutoencoderKL`. Latents are the mode of the posterior, not scaled.

    `image_size` overrides the config's sample_size. Raises InputError, MissingExtra.
    """

    def __init__(
        self, folder: Path, device: str = "auto", dtype: str = "auto", image_size: str | int | None = None
    ) -> None:
        network = load_network(folder, "AutoencoderKL")
        super().__init__(
            network,
            **geometry(folder, network, len(network.config.block_out_channels), image_size),
            width=network.config.latent_channels,
            device=device,
            dtype=dtype,
        )

    def encode_tensor(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latent_dist.mode()

    def decode_tensor(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample


class TinyAutoencoder(TorchAutoencoder):
    """An `AutoencoderTiny`. Latents are the encoder's output, not scaled.

    Its config tells no size: 256 unless `image_size` says otherwise. Raises InputError, MissingExtra.
    """

    def __init__(
        self, folder: Path, device: str = "auto", dtype: str = "auto", image_size: str | int | None = None
    ) -> None:
        network = load_network(folder, "AutoencoderTiny")
        super().__init__(
            network,
            **geometry(folder, network, len(network.config.encoder_block_out_channels), image_size),
            width=network.config.latent_channels,
            device=device,
            dtype=dtype,
        )

    def encode_tensor(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latents

    def decode_tensor(self, latents: Tensor) -> Tensor:
        return self.network.decode(latents).sample
