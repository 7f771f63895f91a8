"""VQ-GAN checkpoints of taming-transformers (and latent diffusion) to diffusers `VQModel` folders.

Source of the architecture: Esser, Rombach, Ommer, "Taming Transformers for High-Resolution Image
Synthesis", CVPR 2021, and its released configs. The first stage may be a file of its own or part of
a transformer's checkpoint (`first_stage_model.*`). taming-transformers need not be installed.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpkernel.autoencoder.config_values import (
    MAX_BLOCKS,
    MAX_LEVELS,
    MAX_ROWS,
    MAX_SIDE,
    MAX_WIDTH,
    Check,
    checked,
    integer,
    one_of,
    read_text,
    several,
    without_doubles,
)
from lpkernel.autoencoder.folder import import_diffusers, without_notices
from lpkernel.autoencoder.safe_pickle import load_checkpoint
from lpkernel.autoencoder.weights import open_weights
from lpkernel.errors import InputError, MissingExtra, one_line

FIRST_STAGE = "first_stage_model."
GROUPS = 32  # of every normalisation in taming
NETWORK = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
USUAL_RESOLUTION = 256
MAX_DEPTH = 32  # of a yaml

_FLAG, _WIDTH = one_of(True, False), integer(0, MAX_WIDTH)
_DDCONFIG: dict[str, Check] = {
    "resolution": integer(1, MAX_SIDE),
    "ch": _WIDTH,
    "ch_mult": several(_WIDTH, 0),
    "num_res_blocks": integer(0, MAX_BLOCKS),
    "attn_resolutions": several(integer(1, MAX_SIDE), 0),
    "z_channels": _WIDTH,
    "double_z": _FLAG,
    "in_channels": _WIDTH,
    "out_ch": _WIDTH,
    "resamp_with_conv": _FLAG,
}
_PARAMS: dict[str, Check] = {"n_embed": integer(0, MAX_ROWS), "embed_dim": _WIDTH}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Architecture:
    """A VQ-GAN: taming's ddconfig, its attention resolutions as levels (0 = full resolution)."""

    widths: tuple[int, ...]  # channels of each level
    blocks: int  # residual blocks a level in the encoder; the decoder has one more
    attention: tuple[bool, ...]  # of each level
    z_channels: int
    rows: int  # V
    width: int  # L
    resolution: int

    def diffusers_config(self) -> dict[str, object]:
        """Arguments of `VQModel`."""
        down = ["AttnDownEncoderBlock2D" if attention else "DownEncoderBlock2D" for attention in self.attention]
        up = ["AttnUpDecoderBlock2D" if attention else "UpDecoderBlock2D" for attention in reversed(self.attention)]
        return {
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
            "block_out_channels": self.widths,
            "layers_per_block": self.blocks,
            "latent_channels": self.z_channels,
            "sample_size": self.resolution,
            "num_vq_embeddings": self.rows,
            "norm_num_groups": GROUPS,
            "vq_embed_dim": self.width,
        }


def convert(checkpoint: Path, out: Path, config: Path | None = None) -> Path:
    """Write the VQ-GAN in `checkpoint` (.ckpt, .pt, .pth or .safetensors) as a `VQModel` folder `out`; returns `out`.

    `config` is the project's yaml (of the VQ-GAN or of a transformer around it). Without it the
    architecture is read off the weights, and the resolution, which they do not show, is taken as 256
    (logged as a warning). Nothing in the checkpoint is run. `out` appears only when complete.
    Raises InputError for a file that is damaged, not a VQ-GAN, or not representable as a `VQModel`,
    and MissingExtra without diffusers (or PyYAML, for a config).
    """
    checkpoint, out = Path(checkpoint), Path(out)
    diffusers = import_diffusers("converting a checkpoint")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists already; remove it or choose another folder")
    if not out.parent.is_dir():
        raise InputError(f"{out.parent}: no such folder to write {out.name} in")
    told = None if config is None else _read_config(Path(config))
    state = _first_stage(checkpoint)
    architecture = told or _infer(state, checkpoint)
    with without_notices(), torch.device("meta"):
        network = diffusers.VQModel(**architecture.diffusers_config())
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    network.load_state_dict(_translate(state, architecture, shapes, checkpoint), assign=True)
    if told is None:
        log.warning("no config given: resolution taken as %d", architecture.resolution)
    with without_notices(), _new_folder(out) as partial:
        network.save_pretrained(partial, safe_serialization=True)
    return out


def decoder_of(network: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The decoder of a diffusers `VQModel` as taming's own: arguments of its `Decoder`, and weights by its names.

    The weights are those of "decoder." and "post_quant_conv.". Raises ValueError if taming has no such decoder.
    """
    config = network.config
    widths, ups = tuple(config.block_out_channels), tuple(config.up_block_types)
    if (config.norm_num_groups, config.act_fn, config.norm_type) != (GROUPS, "silu", "group"):
        raise ValueError("its norms or activations are not taming's")
    if len({width % widths[0] for width in widths}) > 1 or not set(ups) <= {"UpDecoderBlock2D", "AttnUpDecoderBlock2D"}:
        raise ValueError("its levels are not taming's")
    attention = tuple(kind.startswith("Attn") for kind in reversed(ups))
    architecture = Architecture(
        widths, config.layers_per_block, attention, config.latent_channels, 0, 0, config.sample_size
    )
    held = network.state_dict()
    wanted = [names for names in _names(architecture) if names[0].startswith(("decoder.", "post_quant_conv."))]
    if lacking := [new for _, new in wanted if new not in held]:
        raise ValueError(f"it lacks {lacking[0]}")
    state = {
        old: held[new][..., None, None] if new.endswith("weight") and held[new].ndim == 2 else held[new]
        for old, new in wanted
    }
    return {
        "ch": widths[0],
        "ch_mult": tuple(width // widths[0] for width in widths),
        "out_ch": 3,
        "in_channels": 3,
        "num_res_blocks": architecture.blocks,
        "attn_resolutions": [architecture.resolution >> level for level, one in enumerate(attention) if one],
        "resolution": architecture.resolution,
        "z_channels": architecture.z_channels,
    }, state


def _first_stage(checkpoint: Path) -> dict[str, Tensor]:
    """The VQ-GAN's tensors under taming's names, without those of anything around it."""
    if checkpoint.suffix == ".safetensors":
        with open_weights(checkpoint) as file:
            data: Any = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    else:
        data = load_checkpoint(checkpoint)
    if isinstance(data, Mapping) and isinstance(data.get("state_dict"), Mapping):
        data = data["state_dict"]
    if not isinstance(data, Mapping):
        raise InputError(f"{checkpoint} holds a {type(data).__name__}, expected a state dict of tensors")
    tensors = {key: value for key, value in data.items() if isinstance(key, str) and isinstance(value, Tensor)}
    inner = {key[len(FIRST_STAGE) :]: value for key, value in tensors.items() if key.startswith(FIRST_STAGE)}
    state = inner or tensors
    if "quantize.embed.weight" in state:
        raise InputError(f"{checkpoint} is a Gumbel VQ-GAN, which has no nearest-row codebook; only VQModel converts")
    return state


def _read_config(path: Path) -> Architecture:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtra("pyyaml", "diffusers", f"the config {path}") from error
    try:
        data = yaml.load(read_text(path), _plain_loader(yaml))  # a subclass of SafeLoader
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such config") from error
    except Exception as error:  # yaml's constructors of values fail in any way
        raise InputError(f"{path} is not readable yaml ({one_line(error)})") from error
    try:
        params = data["model"]["params"]
        if "first_stage_config" in params:
            params = params["first_stage_config"]["params"]
        told = checked(params["ddconfig"], _DDCONFIG) | checked(params, _PARAMS)
        resolution, multiples = told["resolution"], told["ch_mult"]
        architecture = Architecture(
            widths=tuple(told["ch"] * multiple for multiple in multiples),
            blocks=told["num_res_blocks"],
            attention=tuple(resolution >> level in told["attn_resolutions"] for level in range(len(multiples))),
            z_channels=told["z_channels"],
            rows=told["n_embed"],
            width=told["embed_dim"],
            resolution=resolution,
        )
        double_z, channels = told["double_z"], (told["in_channels"], told["out_ch"])
        resamples = told.get("resamp_with_conv", True)
    except KeyError as error:
        raise InputError(
            f"{path}: {error} is missing; expected model.params with ddconfig, n_embed, embed_dim"
        ) from error
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its model.params are not those of a VQ-GAN ({error})") from error
    if double_z:
        raise InputError(f"{path}: double_z is set, so this is a KL autoencoder, not a VQ-GAN")
    if channels != (3, 3):
        raise InputError(f"{path}: images have {channels[0]} to {channels[1]} channels, expected 3 (RGB)")
    if not resamples:
        raise InputError(f"{path}: resamp_with_conv is off, which a diffusers VQModel cannot represent")
    if not multiples or multiples[0] != 1:
        raise _first_width(path)
    _check(architecture, path)
    return architecture


def _plain_loader(yaml: Any) -> Any:
    """A loader of plain yaml: no tags that run anything, no aliases, merges, duplicate keys or deep nesting."""

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        depth = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it uses an alias; write the value out")
            if self.depth == MAX_DEPTH:
                raise ValueError(f"it nests more than {MAX_DEPTH} deep")
            self.depth += 1
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return without_doubles([tuple(self.construct_object(part, True) for part in pair) for pair in node.value])

    return Loader


def _infer(state: dict[str, Tensor], path: Path) -> Architecture:
    """The architecture, inferred from the shapes of the weights."""
    levels = sum(f"encoder.down.{level}.block.0.conv1.weight" in state for level in range(MAX_LEVELS))
    needed = ["encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "encoder.conv_out.weight"]
    needed += ["decoder.conv_in.weight", "quantize.embedding.weight"]
    needed += [f"encoder.down.{level}.block.0.conv1.weight" for level in range(1, levels)]
    _require(needed, state, path)
    shapes = {key: tuple(state[key].shape) for key in needed}
    for key, shape in shapes.items():
        if len(shape) != (2 if key.startswith("quantize") else 4):
            raise InputError(f"{path}: {key} is {shape}, which is not a weight of a VQ-GAN")
    widths = tuple(shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(levels))
    if shapes["encoder.conv_in.weight"][0] != widths[0]:
        raise _first_width(path)
    z_channels = shapes["decoder.conv_in.weight"][1]
    if shapes["encoder.conv_out.weight"][0] == 2 * z_channels:
        raise InputError(f"{path}: its encoder has double_z, so this is a KL autoencoder, not a VQ-GAN")
    architecture = Architecture(
        widths=widths,
        blocks=sum(f"encoder.down.0.block.{block}.conv1.weight" in state for block in range(MAX_BLOCKS)),
        attention=tuple(f"encoder.down.{level}.attn.0.q.weight" in state for level in range(levels)),
        z_channels=z_channels,
        rows=shapes["quantize.embedding.weight"][0],
        width=shapes["quantize.embedding.weight"][1],
        resolution=USUAL_RESOLUTION,
    )
    _check(architecture, path)
    return architecture


def _check(architecture: Architecture, path: Path) -> None:
    if any(not 0 < width <= MAX_WIDTH or width % GROUPS for width in architecture.widths):
        raise InputError(
            f"{path}: level widths {architecture.widths} must be multiples of {GROUPS}, at most {MAX_WIDTH}"
        )
    factor = 2 ** (len(architecture.widths) - 1)
    if architecture.blocks < 1 or architecture.resolution <= 0 or architecture.resolution % factor:
        raise InputError(
            f"{path}: {architecture.blocks} blocks a level at resolution {architecture.resolution}; expected at least "
            f"1, and a multiple of {factor}"
        )
    if min(architecture.z_channels, architecture.rows, architecture.width) < 1:
        raise InputError(f"{path}: z_channels, n_embed and embed_dim must be positive")


def _first_width(path: Path) -> InputError:
    return InputError(f"{path}: ch_mult must start with 1; a diffusers VQModel cannot represent another first width")


def _translate(
    state: dict[str, Tensor], architecture: Architecture, shapes: dict[str, torch.Size], path: Path
) -> dict[str, Tensor]:
    """`state` under diffusers' names, float32; every tensor of the network is used exactly once."""
    names = dict(_names(architecture))
    _require(list(names), state, path)
    unused = [key for key in state if key.startswith(NETWORK) and key not in names]
    if unused:
        raise InputError(
            f"{path} has {len(unused)} weights that the config does not name, first {', '.join(unused[:3])}; "
            "is it the right config?"
        )
    translated = {}
    for old, new in names.items():
        if not state[old].is_floating_point():
            raise InputError(f"{path}: {old} is of kind {state[old].dtype}, expected floats")
        value = state[old]
        squeezed = value.reshape(value.shape[:2]) if value.shape[2:] == (1, 1) and len(shapes[new]) == 2 else value
        if squeezed.shape != shapes[new]:
            raise InputError(f"{path}: {old} is {tuple(value.shape)}, the config says {tuple(shapes[new])}")
        # a copy: tensors of a checkpoint may share memory, those written must not
        translated[new] = squeezed.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return translated


def _require(keys: list[str], state: dict[str, Tensor], path: Path) -> None:
    missing = [key for key in keys if key not in state]
    if missing:
        raise InputError(
            f"{path} is not a VQ-GAN of this architecture: {len(missing)} weights are missing, "
            f"first {', '.join(missing[:3])}"
        )


def _names(architecture: Architecture) -> Iterator[tuple[str, str]]:
    """Every (taming name, diffusers name) of the network's tensors."""
    yield "quantize.embedding.weight", "quantize.embedding.weight"
    for old, new in _modules(architecture):
        yield f"{old}.weight", f"{new}.weight"
        yield f"{old}.bias", f"{new}.bias"


def _modules(architecture: Architecture) -> Iterator[tuple[str, str]]:
    widths, blocks, attention = architecture.widths, architecture.blocks, architecture.attention
    last = len(widths) - 1
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
    for half in ("encoder", "decoder"):
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield from _residual(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", False)
        yield from _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
        yield from _residual(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", False)
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
    for level, width in enumerate(widths):
        above = widths[max(level - 1, 0)]  # the width the encoder comes from
        below = widths[min(level + 1, last)]  # the width the decoder comes from
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        for block in range(blocks + 1):
            first = block == 0
            if block < blocks:
                old, changes = f"encoder.down.{level}", first and above != width
                yield from _residual(f"{old}.block.{block}", f"{down}.resnets.{block}", changes)
                if attention[level]:
                    yield from _attention(f"{old}.attn.{block}", f"{down}.attentions.{block}")
            old, changes = f"decoder.up.{level}", first and below != width
            yield from _residual(f"{old}.block.{block}", f"{up}.resnets.{block}", changes)
            if attention[level]:
                yield from _attention(f"{old}.attn.{block}", f"{up}.attentions.{block}")
        if level < last:
            yield f"encoder.down.{level}.downsample.conv", f"{down}.downsamplers.0.conv"
        if level > 0:
            yield f"decoder.up.{level}.upsample.conv", f"{up}.upsamplers.0.conv"


def _residual(old: str, new: str, width_changes: bool) -> Iterator[tuple[str, str]]:
    for part in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{old}.{part}", f"{new}.{part}"
    if width_changes:
        yield f"{old}.nin_shortcut", f"{new}.conv_shortcut"


def _attention(old: str, new: str) -> Iterator[tuple[str, str]]:
    for ours, theirs in (("norm", "group_norm"), ("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        yield f"{old}.{ours}", f"{new}.{theirs}"


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to it if the block succeeds and removed if it fails."""
    partial = out.parent / f".{out.name}.{secrets.token_hex(8)}.part"
    partial.mkdir()  # like any new folder, so that the system sets its mode, as in `files.atomic_path`
    try:
        yield partial
        partial.replace(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
