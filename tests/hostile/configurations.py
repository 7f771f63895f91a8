"""Hostile configurations and weights: lpkernel's own files, diffusers folders, and input to `convert`."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from hostile.sandbox import Case
from lpkernel.autoencoder import load_autoencoder
from lpkernel.autoencoder.compact import CompactConfig, CompactVQ
from lpkernel.autoencoder.taming import Architecture, _names, convert

diffusers: Any = importlib.import_module("diffusers")

# Texts to replace a value with, in JSON and in yaml.
WRONG = {
    "text": '"x"',
    "true": "true",
    "nothing": "null",
    "negative": "-8",
    "a fraction": "8.5",
    "a float": "8.0",
    "endless": "1e999",
    "2^40": str(2**40),
    "2^70": str(2**70),
    "a number of many digits": "9" * 5000,
    "a list of nothing": "[]",
    "a list of texts": '["a", "b", "c"]',
    "a list of 2^40": f"[{2**40}, {2**40}, {2**40}]",
    "a list of true": "[true, true]",
    "a long list": str([8] * 300),
    "a list of lists": "[" * 200 + "]" * 200,
    "a dict": '{"a": 8}',
    "a long text": '"' + "x" * 20_000 + '"',
}


def wrong_values(key: str, number: int) -> Iterator[tuple[str, str]]:
    """Three wrong values for a key; the keys together get all of them."""
    first = 3 * number % len(WRONG)
    names = list(itertools.islice(itertools.cycle(WRONG), first, first + 3))
    right = {"mid_block_add_attention", "use_quant_conv", "use_post_quant_conv", "double_z"}
    return ((name, WRONG[name]) for name in names if not (key in right and name == "true"))


def zeros(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file of float32 zeros."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    end = 0
    for name, shape in shapes.items():
        size = 4 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return safetensors(json.dumps(header).encode(), bytes(end))


def safetensors(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def shapes_of(make: Callable[..., Any], *arguments: Any, **keywords: Any) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in make(*arguments, **keywords).state_dict().items()}


def with_value(config: Mapping[str, object], key: str, text: str) -> str:
    """The JSON of a config, with one of its values replaced by a text."""
    return json.dumps({**config, key: "HERE"}).replace('"HERE"', text)


# lpkernel's own files

SMALL: dict[str, Any] = {
    "image_size": 32,
    "codebook_size": 16,
    "codebook_width": 4,
    "encoder_widths": [8, 8],
    "decoder_widths": [8, 8, 8],
    "encoder_blocks": [1, 1],
    "decoder_blocks": [1, 1, 1],
}
COMPACT = shapes_of(CompactVQ, CompactConfig.from_json(SMALL))


def own(content: Callable[[], bytes] | bytes) -> Case:
    def make(folder: Path) -> None:
        (folder / "x.safetensors").write_bytes(content if isinstance(content, bytes) else content())

    return Case(make, lambda folder: load_autoencoder(folder / "x.safetensors", "cpu", "float32"))


def own_config(text: str) -> Case:
    return own(lambda: zeros(COMPACT, {"config": text}))


def changed_header(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    """A good file with a changed header."""

    def make() -> bytes:
        whole = zeros(COMPACT, {"config": json.dumps(SMALL)})
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        change(header)
        return safetensors(json.dumps(header).encode(), whole[8 + length :])

    return make


def entry(**values: object) -> Callable[[], bytes]:
    return changed_header(lambda header: header["codebook"].update(values))


NAMES = list(COMPACT)
TEXTS = {
    "no JSON": "{",
    "nothing": "",
    "a number": "3",
    "a list": "[]",
    "a text": '"x"',
    "an unknown key": '{"colour": 3}',
    "a long unknown key": json.dumps({"x" * 20_000: 3}),
    "a key twice": '{"image_size": 32, "image_size": 4096}',
    "deep lists": "[" * 30_000,
    "deep dicts": '{"a":' * 10_000 + "1" + "}" * 10_000,
    "not a number": '{"image_size": NaN}',
    "infinity": '{"image_size": -Infinity}',
    "long": '{"image_size": ' + " " * 100_000 + "32}",
    "other sizes": json.dumps({**SMALL, "codebook_size": 17}),
    "sizes of 16 GB": json.dumps({**SMALL, "decoder_widths": [8192, 8192, 8192], "decoder_blocks": [8, 8, 8]}),
    "a codebook of 256 GB": json.dumps({**SMALL, "codebook_size": 1 << 24, "codebook_width": 4096}),
    "no blocks": json.dumps({**SMALL, "encoder_blocks": [0, 0]}),
    "widths no group divides": json.dumps({**SMALL, "encoder_widths": [12, 8]}),
    "an odd side": json.dumps({**SMALL, "image_size": 33}),
    "a side of a million": json.dumps({**SMALL, "image_size": 1 << 20}),
    "no side": json.dumps({**SMALL, "image_size": 0}),
}
FILES: dict[str, Callable[[], bytes] | bytes] = {
    "empty": b"",
    "7 bytes": bytes(7),
    "a header of 2^63": safetensors(b"{}", length=1 << 63),
    "a header of 1 GB": safetensors(b"{}", length=1 << 30),
    "a header that is there and long": lambda: safetensors(b"{" + b" " * (9 << 20) + b"}"),
    "a header of deep lists": lambda: safetensors(b'{"a":' + b"[" * 1_000_000),
    "a header that is no object": safetensors(b"[]"),
    "a header that is no text": safetensors(b"\xff\xfe{}"),
    "no tensors": safetensors(b"{}"),
    "many names": lambda: safetensors(
        json.dumps({f"n{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(60_000)}).encode()
    ),
    "a long name": changed_header(lambda header: header.update({"x" * 1_000_000: header.pop("codebook")})),
    "an unknown name": changed_header(lambda header: header.update({"other": header.pop("codebook")})),
    "no config": changed_header(lambda header: header.update({"__metadata__": {}})),
    "a config that is no text": changed_header(lambda header: header.update({"__metadata__": {"config": {}}})),
    "metadata in a list": changed_header(lambda header: header.update({"__metadata__": []})),
    "an unknown kind": entry(dtype="F31"),
    "a kind of integers": entry(dtype="I32"),
    "a kind that is no text": entry(dtype=3),
    "a huge shape": entry(shape=[1 << 40, 1 << 40]),
    "a shape that overflows": entry(shape=[1 << 63, 2]),
    "a negative side": entry(shape=[-16, -4]),
    "a shape of fractions": entry(shape=[16.5, 4]),
    "no shape": entry(shape=None),
    "other axes": entry(shape=[4, 16]),
    "one axis": entry(shape=[64]),
    "10,000 axes": entry(shape=[1] * 10_000),
    "bytes beyond the end": entry(data_offsets=[0, 1 << 40]),
    "bytes backwards": entry(data_offsets=[256, 0]),
    "negative bytes": entry(data_offsets=[-256, 0]),
    "bytes of another": entry(data_offsets=[256, 512]),
    "an entry that is a list": changed_header(lambda header: header.update({"codebook": []})),
    "cut short": lambda: zeros(COMPACT, {"config": json.dumps(SMALL)})[:-1],
    "a byte more": lambda: zeros(COMPACT, {"config": json.dumps(SMALL)}) + b"x",
    "a pickle": lambda: pickle.dumps({"a": os.getcwd}),
    "a zip file": b"PK\3\4" + bytes(100),
}


def own_files() -> Iterator[tuple[str, Case]]:
    yield "good: own file", own_config(json.dumps(SMALL))
    for number, key in enumerate(SMALL):
        for name, text in wrong_values(key, number):
            yield f"own config: {key} = {name}", own_config(with_value(SMALL, key, text))
    for name, text in TEXTS.items():
        yield f"own config, {name}", own_config(text)
    for name, content in FILES.items():
        yield f"own file, {name}", own(content)


# diffusers folders

VQ: dict[str, Any] = {
    "_class_name": "VQModel",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 16,
    "mid_block_add_attention": True,
    "num_vq_embeddings": 20,
    "vq_embed_dim": 4,
    "norm_type": "group",
}
KL = {
    **{key: value for key, value in VQ.items() if key not in ("num_vq_embeddings", "vq_embed_dim", "norm_type")},
    "_class_name": "AutoencoderKL",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
TINY: dict[str, Any] = {
    "_class_name": "AutoencoderTiny",
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "latent_channels": 3,
    "upsampling_scaling_factor": 2,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
    return shapes_of(getattr(diffusers, str(made.pop("_class_name"))), **made)


SHAPES = {str(config["_class_name"]): _shapes(config) for config in (VQ, KL, TINY)}


def in_folder(text: str | bytes, class_name: str = "VQModel", after: Callable[[Path], object] | None = None) -> Case:
    """A folder with this config and good weights, changed by `after`."""

    def make(folder: Path) -> None:
        (folder / "m").mkdir()
        (folder / "m" / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
        (folder / "m" / WEIGHTS).write_bytes(zeros(SHAPES[class_name]))
        if after is not None:
            after(folder / "m")

    return Case(make, lambda folder: load_autoencoder(folder / "m", "cpu", "float32"))


CONFIGS: dict[str, str | bytes] = {
    "no JSON": "{",
    "no text": b"\xff\xfe{}",
    "zeros": bytes(1000),
    "a list": "[]",
    "deep": '{"_class_name":' + "[" * 30_000,
    "deep where nobody looks": json.dumps(VQ)[:-1] + ', "x": ' + "[" * 30_000 + "]" * 30_000 + "}",
    "a key twice": json.dumps(VQ)[:-1] + ', "layers_per_block": 32}',
    "not a number where nobody looks": json.dumps(VQ)[:-1] + ', "scaling_factor": NaN}',
    "long": json.dumps(VQ) + " " * 100_000,
    "no class": json.dumps({key: value for key, value in VQ.items() if key != "_class_name"}),
    "a class in a list": json.dumps({**VQ, "_class_name": ["VQModel"]}),
    "a class in a dict": json.dumps({**VQ, "_class_name": {"VQModel": 1}}),
    "a class of a number": json.dumps({**VQ, "_class_name": 3}),
    "a long class": json.dumps({**VQ, "_class_name": "V" * 20_000}),
    "a class by its module": json.dumps({**VQ, "_class_name": "os.system"}),
    "another class": json.dumps({**VQ, "_class_name": "AutoencoderKL"}),
    "lists of other lengths": json.dumps({**VQ, "block_out_channels": [32, 32, 32]}),
    "an unknown block": json.dumps({**VQ, "down_block_types": ["DownEncoderBlock2D", "CrossAttnDownBlock2D"]}),
    "a block of another half": json.dumps({**VQ, "up_block_types": ["DownEncoderBlock2D", "UpDecoderBlock2D"]}),
    "groups that divide no width": json.dumps({**VQ, "norm_num_groups": 31}),
    "no groups": json.dumps({**VQ, "norm_num_groups": 0}),
    "no rows": json.dumps({**VQ, "num_vq_embeddings": 0}),
    "no layers": json.dumps({**VQ, "layers_per_block": 0}),
    "2^40 layers": json.dumps({**VQ, "layers_per_block": 1 << 40}),
    "as large as allowed": json.dumps(
        {
            **VQ,
            "block_out_channels": [8192] * 8,
            "down_block_types": ["AttnDownEncoderBlock2D"] * 8,
            "up_block_types": ["AttnUpDecoderBlock2D"] * 8,
            "layers_per_block": 8,
            "num_vq_embeddings": 1 << 24,
            "vq_embed_dim": 8192,
            "latent_channels": 8192,
        }
    ),
    "many rows": json.dumps({**VQ, "num_vq_embeddings": 1 << 24}),
    "grey": json.dumps({**VQ, "in_channels": 1}),
    "a side no level divides": json.dumps({**VQ, "sample_size": 17}),
    "a side of a million": json.dumps({**VQ, "sample_size": 1 << 20}),
}


def instead(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Replace a file of the folder with something else."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": os.getcwd}))


def only_bin(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    pickled(folder / "diffusion_pytorch_model.bin")


def sharded(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(SHAPES["VQModel"], "../elsewhere.safetensors")}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 8 << 30)


def changed_weights(**changes: tuple[int, ...] | None) -> Callable[[Path], object]:
    """Good weights with some shapes changed or some tensors missing."""
    shapes = {**SHAPES["VQModel"], **{name.replace("__", "."): shape for name, shape in changes.items()}}
    return lambda folder: (folder / WEIGHTS).write_bytes(
        zeros({name: shape for name, shape in shapes.items() if shape is not None})
    )


FOLDERS: dict[str, Callable[[Path], object]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "a config that is a folder": instead("config.json", Path.mkdir),
    "a config that is a pipe": instead("config.json", os.mkfifo),
    "a config that never ends": instead("config.json", lambda path: path.symlink_to("/dev/zero")),
    "a config of 8 GB": instead("config.json", sparse),
    "a config that is a link to itself": instead("config.json", lambda path: path.symlink_to(path)),
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "weights that are a folder": instead(WEIGHTS, Path.mkdir),
    "weights that are a pipe": instead(WEIGHTS, os.mkfifo),
    "weights that never end": instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")),
    "weights of 8 GB of zeros": instead(WEIGHTS, sparse),
    "weights that are a pickle": instead(WEIGHTS, pickled),
    "weights that are a link to text": instead(WEIGHTS, lambda path: path.symlink_to("/etc/passwd")),
    "only a .bin": only_bin,
    "shards elsewhere": sharded,
    "an empty file of weights": instead(WEIGHTS, Path.touch),
    "a weight missing": changed_weights(quant_conv__bias=None),
    "a weight of another shape": changed_weights(quantize__embedding__weight=(21, 4)),
    "a weight without axes": changed_weights(quant_conv__bias=()),
    "a weight of nothing": changed_weights(quant_conv__bias=(0,)),
    "a codebook of one axis": changed_weights(quantize__embedding__weight=(80,)),
}


def folders() -> Iterator[tuple[str, Case]]:
    for config in (VQ, KL, TINY):
        class_name = str(config["_class_name"])
        yield f"good: {class_name}", in_folder(json.dumps(config), class_name)
        for number, key in enumerate(key for key in config if key != "_class_name"):
            for name, text in wrong_values(key, number + len(class_name)):
                yield f"{class_name}: {key} = {name}", in_folder(with_value(config, key, text), class_name)
    for name, content in CONFIGS.items():
        yield f"folder, config with {name}", in_folder(content)
    for name, change in FOLDERS.items():
        yield f"folder, {name}", in_folder(json.dumps(VQ), after=change)


# Input to `convert`

DDCONFIG: dict[str, Any] = {
    "double_z": False,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "num_res_blocks": 1,
    "ch_mult": [1, 2],
    "attn_resolutions": [8],
    "z_channels": 6,
    "resolution": 16,
}
OUTER = {"n_embed": 20, "embed_dim": 4}
ARCHITECTURE = Architecture((32, 64), 1, (False, True), 6, 20, 4, 16)


def taming_shapes() -> dict[str, tuple[int, ...]]:
    made = shapes_of(diffusers.VQModel, **ARCHITECTURE.diffusers_config())
    return {old: made[new] for old, new in _names(ARCHITECTURE)}


TAMING = taming_shapes()


def project(ddconfig: object = DDCONFIG, **params: object) -> str:
    return yaml.safe_dump({"model": {"params": {**OUTER, "ddconfig": ddconfig, **params}}})


def to_convert(text: Callable[[], str] | str | bytes | None, state: Callable[[], Any] | None = None) -> Case:
    """A checkpoint (a good one, or `state`) and a yaml (or none)."""

    def make(folder: Path) -> None:
        torch.save(state() if state else good_state(), folder / "x.pt")
        if text is not None:
            content = text() if callable(text) else text
            (folder / "p.yaml").write_bytes(content.encode() if isinstance(content, str) else content)

    def use(folder: Path) -> Path:
        return convert(folder / "x.pt", folder / "out", None if text is None else folder / "p.yaml")

    return Case(make, use)


def good_state() -> dict[str, Any]:
    """Zeros, each tensor stored as a single number."""
    return {name: torch.zeros(()).expand(shape) for name, shape in TAMING.items()}


def yaml_laughs() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, 12):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines) + "\nmodel: *a11\n"


YAMLS: dict[str, Callable[[], str] | str | bytes] = {
    "nothing": "",
    "no text": b"\xff\xfe",
    "zeros": bytes(100),
    "unclosed": "model: [",
    "a number": "3",
    "a list": "[model]",
    "model of text": "model: x",
    "params of a list": "model: {params: [1]}",
    "ddconfig of text": "model: {params: {ddconfig: x, n_embed: 1, embed_dim: 1}}",
    "ddconfig of nothing": "model: {params: {ddconfig: , n_embed: 1, embed_dim: 1}}",
    "first_stage_config of text": "model: {params: {first_stage_config: x}}",
    "a billion laughs": yaml_laughs,
    "an alias of itself": "model: &a [*a]",
    "an alias where nobody looks": "x: &x 3\ny: *x\n" + project(),
    "a merge": "x: {a: 1}\nmodel:\n  <<: {params: 3}\n",
    "deep lists": lambda: "model: " + "[" * 30_000,
    "deep dicts": lambda: "model: " + "{a: " * 15_000,
    "deep by indents": lambda: "\n".join(" " * depth + "a:" for depth in range(300)),
    "a key twice": project() + "model: {params: 3}\n",
    "a key that is a list": "? [1, 2]\n: 3\n" + project(),
    "a key that is a dict": "? {a: 1}\n: 3\n" + project(),
    "many keys": lambda: "\n".join(f"k{i}: 1" for i in range(7_000)),
    "long": lambda: project() + "#" + "x" * 70_000,
    "many documents": lambda: "---\n3\n" * 5_000,
    "an object": "model: !!python/object/apply:os.system [true]",
    "a name of Python": "model: !!python/name:os.system",
    "a module of Python": "model: !!python/module:os",
    "an unknown tag": "model: !x 3",
    "an int of text": "model: !!int x",
    "an int of nothing": 'model: !!int ""',
    "a bool of text": "model: !!bool x",
    "a float of text": "model: !!float x",
    "a date of text": "model: !!timestamp x",
    "a month of 13": "model: 2001-13-40",
    "binary of text": 'model: !!binary "x\u00e9"',
    "a set of lists": "model: !!set {[1]: }",
    "pairs of text": "model: !!pairs x",
    "a number to base 60": lambda: "model: 1" + ":59" * 20_000,
    "a number of many digits": lambda: "model: " + "9" * 60_000,
    "a word of many letters": lambda: "model: " + "x" * 60_000,
    "many underscores": lambda: "model: 1" + "_" * 60_000 + "x",
    "many dots": lambda: "model: " + "1." * 30_000,
    "quotes": lambda: "model: " + "''" * 30_000,
    "dashes": lambda: "- " * 30_000,
    "anchors": lambda: "\n".join(f"- &a{i} 1" for i in range(5_000)),
    "other blocks": project({**DDCONFIG, "num_res_blocks": 2}),
    "other widths": project({**DDCONFIG, "ch": 64}),
    "as large as allowed": project(
        {**DDCONFIG, "ch": 8192, "ch_mult": [1] * 8, "num_res_blocks": 8, "resolution": 4096, "z_channels": 8192},
        n_embed=1 << 24,
        embed_dim=8192,
    ),
    "too wide by the factors": project({**DDCONFIG, "ch": 8192, "ch_mult": [1, 8192]}),
    "no resolutions": project({key: value for key, value in DDCONFIG.items() if key != "attn_resolutions"}),
}

# Wrong shapes for every weight from which the architecture is inferred, and for one from which it is not.
READ_OFF = (
    *("encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "encoder.down.1.block.0.conv1.weight"),
    *("encoder.conv_out.weight", "decoder.conv_in.weight", "quantize.embedding.weight", "quant_conv.bias"),
)
TENSORS: dict[str, Callable[[], Any]] = {
    "of no axes": lambda: torch.zeros(()),
    "of one axis": lambda: torch.zeros(64),
    "of nothing": lambda: torch.zeros(0, 0, 0, 0),
    "of no rows": lambda: torch.zeros(0, 4),
    "of eight axes": lambda: torch.zeros((1,) * 8),
    "of another size": lambda: torch.zeros(96, 96, 3, 3),
    "of a great width": lambda: torch.zeros(1).expand(1 << 20, 4, 1, 1),
    "of integers": lambda: torch.zeros(64, 64, 3, 3, dtype=torch.int64),
    "of complex numbers": lambda: torch.zeros(64, 64, 3, 3, dtype=torch.complex64),
    "that is a number": lambda: 3,
    "that is missing": lambda: None,
}
STATES: dict[str, Callable[[], Any]] = {
    "nothing": dict,
    "a list": lambda: [torch.zeros(2)],
    "a number": lambda: 3,
    "a tensor": lambda: torch.zeros(3),
    "state_dict of a list": lambda: {"state_dict": [1]},
    "state_dict of nothing": lambda: {"state_dict": {}},
    "keys of numbers": lambda: {1: torch.zeros(2)},
    "a hole in the levels": lambda: {
        name.replace("encoder.down.1", "encoder.down.5"): value for name, value in good_state().items()
    },
    "a level too many": lambda: {**good_state(), "encoder.down.2.block.0.conv1.weight": torch.zeros(64, 64, 3, 3)},
    "64 levels": lambda: {
        **good_state(),
        **{f"encoder.down.{level}.block.0.conv1.weight": torch.zeros(32, 32, 3, 3) for level in range(64)},
    },
    "1000 blocks": lambda: {
        **good_state(),
        **{f"encoder.down.0.block.{block}.conv1.weight": torch.zeros(1) for block in range(1000)},
    },
    "two stages": lambda: {**good_state(), "first_stage_model.quant_conv.bias": torch.zeros(4)},
    "a Gumbel codebook": lambda: {**good_state(), "quantize.embed.weight": torch.zeros(2)},
}


def with_tensor(name: str, value: Callable[[], Any]) -> dict[str, Any]:
    return {key: tensor for key, tensor in {**good_state(), name: value()}.items() if tensor is not None}


def pipe_to_convert(name: str) -> Case:
    """A pipe, which nobody writes to, for the checkpoint or, by its ending, for the yaml beside a good one."""

    def make(folder: Path) -> None:
        torch.save(good_state(), folder / "x.pt")
        os.mkfifo(folder / name)

    def use(folder: Path) -> Path:
        paths = (folder / "x.pt", folder / "out", folder / name)
        return convert(*paths) if name.endswith(".yaml") else convert(folder / name, folder / "out")

    return Case(make, use)


def conversions() -> Iterator[tuple[str, Case]]:
    yield "good: convert with a yaml", to_convert(project())
    yield "good: convert without a yaml", to_convert(None)
    for number, key in enumerate([*OUTER, *DDCONFIG]):
        for name, text in wrong_values(key, number):
            whole = project(**{key: "HERE"}) if key in OUTER else project({**DDCONFIG, key: "HERE"})
            yield f"yaml: {key} = {name}", to_convert(whole.replace("HERE", text))
    for name, told in YAMLS.items():
        yield f"yaml, {name}", to_convert(told)
    for (i, weight), (j, (name, value)) in itertools.product(enumerate(READ_OFF), enumerate(TENSORS.items())):
        if (i + j) % 2 == 0:
            yield f"state: {weight} {name}", to_convert(None, partial(with_tensor, weight, value))
    for name, state in STATES.items():
        yield f"state, {name}", to_convert(None, state)
    for ending in ("ckpt", "safetensors"):
        yield f"state, a pipe: .{ending}", pipe_to_convert(f"pipe.{ending}")
    yield "yaml, a pipe", pipe_to_convert("pipe.yaml")


CASES = {**dict(own_files()), **dict(folders()), **dict(conversions())}
