"""Reading diffusers model folders: config.json beside safetensors weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lpkernel.errors import InputError, MissingExtra

UNTOLD_SAMPLE_SIZE = 32  # what diffusers writes when nobody set it, so it tells nothing
USUAL_IMAGE_SIZE = 256


def import_diffusers(purpose: str) -> Any:
    """The diffusers package. Raises MissingExtra."""
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtra("diffusers", "diffusers", purpose) from error
    return diffusers


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises InputError if it is missing or is not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        hint = ""
        if (folder / "model_index.json").is_file():
            hint = "; it is a whole pipeline, give its autoencoder's folder (often vae/ or vqvae/)"
        raise InputError(f"{folder} has no config.json, so it is not a diffusers model folder{hint}")
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a JSON {type(config).__name__}, expected an object")
    return config


def load_network(folder: Path, class_name: str) -> Any:
    """The diffusers network in `folder`, float32 on the CPU, every weight from the file. Raises InputError."""
    network_class = getattr(import_diffusers(f"the {class_name} in {folder}"), class_name)
    try:
        network, info = network_class.from_pretrained(
            folder,
            torch_dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises many kinds for damaged folders
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: diffusers cannot load it as {class_name} ({reason})") from error
    missing = sorted(info["missing_keys"])
    if missing:  # diffusers leaves these at random values
        raise InputError(f"{folder}: {len(missing)} weights are missing, first {', '.join(missing[:3])}")
    if network.config.in_channels != 3 or network.config.out_channels != 3:
        channels = f"{network.config.in_channels} to {network.config.out_channels}"
        raise InputError(f"{folder}: its images have {channels} channels, expected 3 (RGB)")
    return network


def geometry(folder: Path, network: Any, levels: int, override: str | int | None) -> dict[str, Any]:
    """`name`, `image_size` and `grid` of a network that halves the side `levels` - 1 times.

    The side is `override`, else the config's sample_size, else 256; a sample_size of 32 counts as absent.
    Raises InputError unless it is a positive multiple of the halvings.
    """
    told = network.config.get("sample_size")
    size: object = override
    if size is None:
        size = told if isinstance(told, int) and told != UNTOLD_SAMPLE_SIZE else USUAL_IMAGE_SIZE
    factor = 2 ** (levels - 1)
    pixels = int(size) if isinstance(size, int) or (isinstance(size, str) and size.isdecimal()) else 0
    if pixels <= 0 or pixels % factor:
        raise InputError(f"{folder}: image_size {size!r} must be a positive multiple of {factor}")
    return {"name": folder.resolve().name, "image_size": pixels, "grid": pixels // factor}
