"""The autoencoder that comes with the package, and any other file of its format.

The format: a safetensors file with the state dict of a `CompactVQ` and, in its header, the entry
"config" (JSON of `CompactConfig`). scripts/train_autoencoder.py writes it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.compact import CompactConfig, CompactVQ
from lpkernel.autoencoder.config_values import parse_json
from lpkernel.autoencoder.partial import Stage, stages_of
from lpkernel.autoencoder.weights import open_weights, read_floats, shapes
from lpkernel.errors import InputError

DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "data" / "autoencoder.safetensors"


class CompactAutoencoder(TorchAutoencoder):
    """A `CompactVQ` network."""

    encoder_parts = ("encoder",)
    float16_where_small = True

    def __init__(self, network: CompactVQ, name: str, device: str = "auto", dtype: str = "auto") -> None:
        config = network.config
        super().__init__(
            network,
            name=name,
            image_size=config.image_size,
            grid=config.grid,
            width=config.codebook_width,
            codebook=network.codebook,
            device=device,
            dtype=dtype,
        )

    def encode_tensor(self, images: Tensor) -> Tensor:
        return self.network.encoder(images)

    def decode_tensor(self, latents: Tensor) -> Tensor:
        return self.network.decoder(latents)

    def stages(self) -> list[Stage]:
        return stages_of(
            layer for part in self.network.decoder for layer in (part if isinstance(part, nn.Sequential) else [part])
        )


@lru_cache(maxsize=1)
def embedded() -> CompactAutoencoder:
    """The autoencoder that comes with the package, loaded once."""
    return load_compact(DEFAULT_WEIGHTS, "default")


def load_compact(path: Path, name: str, device: str = "auto", dtype: str = "auto") -> CompactAutoencoder:
    """The autoencoder in a file of this format. Raises InputError if it is missing, damaged or of another kind."""
    if not path.is_file():
        raise InputError(f"{path}: no such autoencoder file")
    with open_weights(path) as file:
        metadata = file.metadata() or {}
        if "config" not in metadata:
            raise InputError(
                f"{path} has no autoencoder config in its header, so it is not an lpkernel autoencoder; "
                "for a diffusers model give its folder"
            )
        try:
            config = CompactConfig.from_json(parse_json(metadata["config"]))
        except ValueError as error:
            raise InputError(f"{path}: its autoencoder config is not usable ({error})") from error
        with torch.device("meta"):  # shapes only, to compare with the file's before any memory is taken
            network = CompactVQ(config)
        expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        found = shapes(file)
        wrong = [key for key in expected if found.get(key) != expected[key]]
        if wrong or len(found) != len(expected):
            which = ", ".join(wrong[:3]) or "tensors that the config does not name"
            raise InputError(f"{path}: weights and config disagree ({len(wrong)} missing or of another shape: {which})")
        network.load_state_dict(read_floats(path, file, expected), assign=True)
    return CompactAutoencoder(network, name, device, dtype)
