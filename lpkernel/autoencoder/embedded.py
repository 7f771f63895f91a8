"""The autoencoder that comes with the package, and any other file of its format.

The format: a safetensors file with the state dict of a `CompactVQ` and, in its header, the entry
"config" (JSON of `CompactConfig`). scripts/train_autoencoder.py writes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.compact import CompactConfig, CompactVQ
from lpkernel.errors import InputError

DEFAULT_WEIGHTS = Path(__file__).resolve().parent.parent / "data" / "autoencoder.safetensors"


class CompactAutoencoder(TorchAutoencoder):
    """A `CompactVQ` network."""

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


def load_compact(path: Path, name: str, device: str = "auto", dtype: str = "auto") -> CompactAutoencoder:
    """The autoencoder in a file of this format. Raises InputError if it is missing, damaged or of another kind."""
    if not path.is_file():
        raise InputError(f"{path}: no such autoencoder file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({_first_line(error)})") from error
    if "config" not in metadata:
        raise InputError(
            f"{path} has no autoencoder config in its header, so it is not an lpkernel autoencoder; "
            "for a diffusers model give its folder"
        )
    try:
        config = CompactConfig.from_json(json.loads(metadata["config"]))
        with torch.device("meta"):  # shapes only: a header may claim any size
            network = CompactVQ(config)
    except (ValueError, TypeError, AttributeError, RuntimeError, ZeroDivisionError, KeyError) as error:
        raise InputError(f"{path}: its autoencoder config is not usable ({_first_line(error)})") from error
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    wrong = [key for key in expected if key not in state or tuple(state[key].shape) != expected[key]]
    if wrong or len(state) != len(expected):
        which = ", ".join(wrong[:3]) or "tensors that the config does not name"
        raise InputError(f"{path}: weights and config disagree ({len(wrong)} missing or of another shape: {which})")
    network.load_state_dict(state, assign=True)
    return CompactAutoencoder(network, name, device, dtype)


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__
