"""Reading diffusers model folders: config.json beside safetensors weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lpkernel.autoencoder.config_values import (
    MAX_BLOCKS,
    MAX_ROWS,
    MAX_SIDE,
    MAX_WIDTH,
    Check,
    checked,
    integer,
    one_of,
    parse_json,
    read_text,
    several,
)
from lpkernel.autoencoder.weights import open_weights, read_floats, shapes
from lpkernel.errors import InputError, MissingExtra, one_line, short

UNTOLD_SAMPLE_SIZE = 32  # what diffusers writes when none was set, so it says nothing
USUAL_IMAGE_SIZE = 256


def import_diffusers(purpose: str) -> Any:
    """The diffusers package. Raises MissingExtra."""
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtra("diffusers", "diffusers", purpose) from error
    return diffusers


@contextmanager
def without_notices() -> Iterator[None]:
    """Silences what diffusers logs about training and downloads; real errors are raised anyway."""
    log = logging.getLogger("diffusers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises InputError if it is missing or is not a JSON object."""
    path = folder / "config.json"
    if not path.is_file():
        hint = ""
        if (folder / "model_index.json").is_file():
            hint = "; it is a whole pipeline, give its autoencoder's folder (often vae/ or vqvae/)"
        raise InputError(f"{folder} has no config.json, so it is not a diffusers model folder{hint}")
    try:
        config = parse_json(read_text(path))
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not readable JSON ({one_line(error)})") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds a JSON {type(config).__name__}, expected an object")
    return config


# The parts of a config that shape the network; the others do not concern encoding and decoding, and are left out.
_WIDTHS = several(integer(1, MAX_WIDTH))
_FLAG = one_of(True, False)
_ACTIVATIONS = one_of("silu", "swish", "mish", "gelu", "relu")
_KL: dict[str, Check] = {
    "in_channels": integer(1, MAX_WIDTH),
    "out_channels": integer(1, MAX_WIDTH),
    "block_out_channels": _WIDTHS,
    "down_block_types": several(one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D")),
    "up_block_types": several(one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D")),
    "layers_per_block": integer(1, MAX_BLOCKS),
    "act_fn": _ACTIVATIONS,
    "latent_channels": integer(1, MAX_WIDTH),
    "norm_num_groups": integer(1, MAX_WIDTH),
    "sample_size": integer(1, MAX_SIDE),
    "mid_block_add_attention": _FLAG,
    "use_quant_conv": _FLAG,
    "use_post_quant_conv": _FLAG,
}
_VQ: dict[str, Check] = {
    **{name: check for name, check in _KL.items() if not name.startswith("use_")},
    "num_vq_embeddings": integer(1, MAX_ROWS),
    "vq_embed_dim": lambda value: value if value is None else integer(1, MAX_WIDTH)(value),
    "norm_type": one_of("group", "spatial"),
}
_TINY: dict[str, Check] = {
    "in_channels": integer(1, MAX_WIDTH),
    "out_channels": integer(1, MAX_WIDTH),
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "num_encoder_blocks": several(integer(1, MAX_BLOCKS)),
    "num_decoder_blocks": several(integer(1, MAX_BLOCKS)),
    "act_fn": _ACTIVATIONS,
    "upsample_fn": one_of("nearest"),
    "latent_channels": integer(1, MAX_WIDTH),
    "upsampling_scaling_factor": one_of(2),
}
_CHECKS = {"VQModel": _VQ, "AutoencoderKL": _KL, "AutoencoderTiny": _TINY}
# Each a list with an entry for every level.
_LEVELS = (
    *("block_out_channels", "down_block_types", "up_block_types"),
    *("encoder_block_out_channels", "decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks"),
)
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Names of an attention's parts in older files.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def load_network(folder: Path, class_name: str) -> Any:
    """The diffusers network in `folder`, float32 on the CPU, every weight from its safetensors file.

    Only config.json and that file are read, and no weight before the shapes of all are those of the config.
    Raises InputError.
    """
    network_class = getattr(import_diffusers(f"the {class_name} in {folder}"), class_name)
    failed = f"{folder}: cannot load it as {class_name}"
    try:
        config = checked(read_config(folder), _CHECKS[class_name])
        if len({len(config[name]) for name in _LEVELS if name in config}) > 1:
            raise ValueError("its lists differ in length, expected one entry per level in each")
        with (
            without_notices(),
            torch.device("meta"),
        ):  # shapes only, to compare with the file's before any memory is taken
            network = network_class(**config)
    except InputError:
        raise
    except Exception as error:  # diffusers raises many kinds for settings that do not fit together
        raise InputError(f"{failed} ({one_line(error)})") from error
    if network.config.in_channels != 3 or network.config.out_channels != 3:
        channels = f"{network.config.in_channels} to {network.config.out_channels}"
        raise InputError(f"{folder}: its images have {channels} channels, expected 3 (RGB)")
    path = folder / WEIGHTS
    if not path.is_file():
        sharded = (folder / f"{WEIGHTS}.index.json").is_file()
        raise InputError(f"{failed} ({'its weights are in several files' if sharded else f'there is no {WEIGHTS}'})")
    with open_weights(path) as file:
        found = shapes(file)
        names = {_new_name(name): name for name in found}
        expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
        missing = sorted(expected.keys() - names.keys())
        if missing:
            raise InputError(f"{folder}: {len(missing)} weights are missing, first {', '.join(missing[:3])}")
        for name, shape in expected.items():
            if found[names[name]] != shape:
                raise InputError(f"{failed} ({name} is {found[names[name]]}, the config says {shape})")
        state = read_floats(path, file, (names[name] for name in expected))
    network.load_state_dict({name: state[names[name]] for name in expected}, assign=True)
    return network


def _new_name(name: str) -> str:
    *place, part, last = ["", *name.split(".")]
    return ".".join([*place, _OLD_NAMES.get(part, part) if "attentions" in place else part, last])[1:]


def geometry(folder: Path, network: Any, levels: int, override: str | int | None) -> dict[str, Any]:
    """`name`, `image_size` and `grid` of a network that halves the side `levels` - 1 times.

    The side is `override`, else the config's sample_size, else 256; a sample_size of 32 counts as absent.
    Raises InputError unless it is a positive multiple of the halvings, at most 4096.
    """
    told = network.config.get("sample_size")
    size: object = override
    if size is None:
        size = told if isinstance(told, int) and told != UNTOLD_SAMPLE_SIZE else USUAL_IMAGE_SIZE
    factor = 2 ** (levels - 1)
    pixels = size if isinstance(size, int) else 0
    if isinstance(size, str) and size.isdecimal() and len(size) <= len(str(MAX_SIDE)):
        pixels = int(size)
    if not 0 < pixels <= MAX_SIDE or pixels % factor:
        shown = short(repr(size))
        raise InputError(f"{folder}: image_size {shown} must be a positive multiple of {factor}, at most {MAX_SIDE}")
    return {"name": folder.resolve().name, "image_size": pixels, "grid": pixels // factor}
