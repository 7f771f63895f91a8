"""diffusers `VQModel` folders: the paper's VQ-GAN and its relatives."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.folder import geometry, load_network
from lpkernel.autoencoder.partial import Stage, diffusers_stages


class VQModelAutoencoder(TorchAutoencoder):
    """A `VQModel`. Codes are the codebook rows nearest the latents after `quant_conv`.

    `image_size` overrides the config's sample_size. Raises InputError, MissingExtra.
    """

    encoder_parts = ("encoder", "quant_conv")
    float16_where_small = True

    def __init__(
        self, folder: Path, device: str = "auto", dtype: str = "auto", image_size: str | int | None = None
    ) -> None:
        network = load_network(folder, "VQModel")
        codebook = network.quantize.embedding.weight
        super().__init__(
            network,
            **geometry(folder, network, len(network.config.block_out_channels), image_size),
            width=codebook.shape[1],
            codebook=codebook,
            device=device,
            dtype=dtype,
        )

    def encode_tensor(self, images: Tensor) -> Tensor:
        return self.network.encode(images).latents

    def decode_tensor(self, latents: Tensor) -> Tensor:
        # VQModel.decode(force_not_quantize=True), without its branch that expects indices instead of vectors.
        spatial = latents if self.network.config.norm_type == "spatial" else None
        return self.network.decoder(self.network.post_quant_conv(latents), spatial)

    def stages(self) -> list[Stage] | None:
        if self.network.config.norm_type == "spatial":
            return None
        return diffusers_stages(self.network.decoder, [self.network.post_quant_conv])
