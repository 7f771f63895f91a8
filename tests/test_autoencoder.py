"""The embedded autoencoder, diffusers folders, plug-ins, and what each of them refuses."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import avatars
import numpy as np
import pytest
import torch

from lpkernel.autoencoder import Autoencoder, load_autoencoder
from lpkernel.autoencoder.base import choose_device, choose_dtype, fingerprint
from lpkernel.autoencoder.embedded import DEFAULT_WEIGHTS
from lpkernel.autoencoder.quantise import nearest_rows
from lpkernel.errors import InputError, MissingExtra

diffusers: Any = importlib.import_module("diffusers")  # its types are partial

ROOT = Path(__file__).resolve().parent.parent
PLUGIN = '''
import numpy as np

class Flat:
    """Codes are the mean grey, 4 levels."""

    name, image_size, grid, fingerprint = "flat", 8, 2, "00"
    codebook = np.arange(4, dtype=np.float32)[:, None]

    def __init__(self, shade="0", device="none"):
        self.shade, self.device = shade, device

    def encode(self, images):
        return images.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4, 5)).astype(np.int64) // 64

    def decode(self, codes):
        return np.repeat(np.repeat(codes, 4, 1), 4, 2)[..., None].repeat(3, -1).astype(np.uint8) * 64

class Bare:
    name = "bare"

def explode():
    raise KeyError("boom")

number = 3
'''


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.stack([avatars.draw(index)[0] for index in range(3)])


@pytest.fixture(scope="module")
def embedded() -> Autoencoder:
    return load_autoencoder(device="cpu", dtype="float32")


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "flat.py"
    path.write_text(PLUGIN)
    return path


def small_images(side: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


# Quantisation


def test_nearest_rows_is_the_lowest_of_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    book = random.integers(-4, 5, (40, 3))
    book[20:] = book[:20]  # every row twice: all minima are ties
    latents = random.integers(-4, 5, (5, 6, 7, 3))
    distances = np.square(latents[..., None, :] - book).sum(-1)
    monkeypatch.setattr("lpkernel.autoencoder.quantise.SCORES_AT_ONCE", 40 * 11)
    codes = nearest_rows(torch.from_numpy(latents).bfloat16(), torch.from_numpy(book).float())
    assert codes.dtype == torch.int64
    np.testing.assert_array_equal(codes.numpy(), distances.argmin(-1))


# The embedded autoencoder


def test_embedded_round_trip(embedded: Autoencoder, faces: np.ndarray) -> None:
    codes = embedded.encode(faces)
    assert embedded.codebook is not None
    assert codes.shape == (3, embedded.grid, embedded.grid)
    assert codes.dtype == np.int64
    assert 0 <= codes.min() <= codes.max() < len(embedded.codebook)
    assert len(np.unique(codes)) > 20
    decoded = embedded.decode(codes)
    assert decoded.shape == faces.shape
    assert decoded.dtype == np.uint8
    assert psnr(decoded, faces) > 18
    np.testing.assert_array_equal(embedded.decode(codes.astype(np.int16)), decoded)


def test_fingerprint_ignores_dtype(embedded: Autoencoder, faces: np.ndarray) -> None:
    half = load_autoencoder(DEFAULT_WEIGHTS, device="cpu", dtype="bfloat16")
    assert half.fingerprint == embedded.fingerprint
    assert len(embedded.fingerprint) == 64
    codes = embedded.encode(faces)
    assert psnr(half.decode(codes), embedded.decode(codes)) > 30


def test_whether_a_decoder_stays_small() -> None:
    """What dtype "auto" decides by on a GPU; there is none here, so nothing is float16."""
    network: Any = load_autoencoder(DEFAULT_WEIGHTS, device="cpu", dtype="float32")
    assert network.float16_where_small and network.stays_small()
    last = [part for part in network.network.decoder.modules() if isinstance(part, torch.nn.Conv2d)][-1]
    weight = last.weight.clone()
    last.weight.copy_(weight * 1e5)
    assert not network.stays_small()
    last.weight.copy_(weight * float("nan"))
    assert not network.stays_small()
    assert load_autoencoder(DEFAULT_WEIGHTS, device="cpu").dtype != torch.float16  # type: ignore[attr-defined]


def test_fingerprint_tells_names_shapes_and_values() -> None:
    state = {"a": torch.arange(6.0), "b": torch.zeros(2, 3)}
    same = fingerprint(state)
    assert fingerprint({"b": state["b"].half(), "a": state["a"]}) == same
    for other in (
        {"a": state["a"], "c": state["b"]},
        {"a": state["a"].view(2, 3), "b": state["b"]},
        {"a": state["a"], "b": state["b"] + 1},
    ):
        assert fingerprint(other) != same


def test_wrong_inputs_are_told(embedded: Autoencoder, faces: np.ndarray) -> None:
    codes = embedded.encode(faces)
    rows = len(embedded.codebook) if embedded.codebook is not None else 0
    cases: list[tuple[Callable[[Any], Any], Any, str]] = [
        (embedded.encode, faces[:, :64], r"\(3, 64, 128, 3\) uint8"),
        (embedded.encode, faces.astype(np.float32), "float32"),
        (embedded.encode, faces[0], "expects"),
        (embedded.encode, faces.tolist(), "list"),
        (embedded.decode, codes.astype(np.float32), "integer codes"),
        (embedded.decode, codes[0], "integer codes"),
        (embedded.decode, codes * 0 + rows, f"expected 0 to {rows - 1}"),
        (embedded.decode, codes * 0 - 1, "from -1"),
        (embedded.decode, None, "NoneType"),
    ]
    for call, value, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            call(value)
        assert "\n" not in str(caught.value)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    whole = DEFAULT_WEIGHTS.read_bytes()
    path = tmp_path / "x.safetensors"
    for content in (b"", b"no safetensors at all", whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a readable safetensors file"):
            load_autoencoder(path)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no autoencoder config"),
        ({"config": "{"}, "config is not usable"),
        ({"config": "[]"}, "config is not usable"),
        ({"config": '{"colour": 3}'}, "config is not usable"),
        ({"config": '{"codebook_size": "many"}'}, "config is not usable"),
        ({"config": '{"codebook_size": 1000000000000}'}, "config is not usable"),
        ({"config": '{"codebook_size": 10000000}'}, "weights and config disagree"),
    ],
)
def test_foreign_safetensors_are_told(tmp_path: Path, metadata: dict[str, str], message: str) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, tmp_path / "x.safetensors", metadata)
    with pytest.raises(InputError, match=message) as caught:
        load_autoencoder(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_device_and_dtype_names() -> None:
    cpu = torch.device("cpu")
    assert choose_device("cpu") == cpu
    assert choose_dtype("float16", cpu) == torch.float16
    assert choose_dtype("auto", cpu) in (torch.bfloat16, torch.float32)
    assert choose_dtype("auto", torch.device("meta")) == torch.float32
    with pytest.raises(InputError, match="device 'tpu9'"):
        choose_device("tpu9")
    with pytest.raises(InputError, match="dtype 'int8'"):
        choose_dtype("int8", cpu)


# diffusers folders


def save_vq(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 6,
        "vq_embed_dim": 4,
        "num_vq_embeddings": 50,
        "sample_size": 16,
    }
    network = diffusers.VQModel(**config | changes).eval()
    network.quantize.embedding.weight.data.normal_()
    network.save_pretrained(folder)
    return network


def test_vqmodel_folder(tmp_path: Path) -> None:
    network = save_vq(tmp_path / "vq")
    ae = load_autoencoder(tmp_path / "vq", device="cpu", dtype="float32")
    assert (ae.name, ae.image_size, ae.grid) == ("vq", 16, 8)
    images = small_images(16)
    codes = ae.encode(images)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        latents = network.encode(pixels).latents
        expected = network.quantize(latents)[2][2].view(2, 8, 8)
        decoded = network.decode(latents).sample  # quantises inside
    np.testing.assert_array_equal(codes, expected.numpy())
    levels = (decoded.clamp(-1, 1) * 127.5 + 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(ae.decode(codes) - levels).max() <= 1


def test_vqmodel_that_looks_codes_up_itself(tmp_path: Path) -> None:
    save_vq(tmp_path / "plain")
    save_vq(tmp_path / "lookup", lookup_from_codebook=True)
    plain, lookup = (load_autoencoder(tmp_path / name, device="cpu", dtype="float32") for name in ("plain", "lookup"))
    codes = plain.encode(small_images(16))
    np.testing.assert_array_equal(lookup.decode(codes), plain.decode(codes))


def test_image_size_of_a_folder(tmp_path: Path) -> None:
    save_vq(tmp_path / "vq", sample_size=32)  # a value that carries no information
    assert load_autoencoder(tmp_path / "vq", dtype="float32").image_size == 256
    smaller = load_autoencoder(f"{tmp_path / 'vq'}?image_size=24", dtype="float32")
    assert (smaller.image_size, smaller.grid) == (24, 12)
    for size in ("25", "0", "large"):
        with pytest.raises(InputError, match="positive multiple of 2"):
            load_autoencoder(f"{tmp_path / 'vq'}?image_size={size}")


def test_kl_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = diffusers.AutoencoderKL(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=5,
        sample_size=16,
    ).eval()
    network.save_pretrained(tmp_path)
    ae = load_autoencoder(tmp_path, device="cpu", dtype="float32")
    assert ae.codebook is None
    images = small_images(16)
    latents = ae.encode(images)
    assert latents.shape == (2, 8, 8, 5)
    assert latents.dtype == np.float32
    with torch.inference_mode():
        mode = network.encode(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    np.testing.assert_allclose(latents, mode.permute(0, 2, 3, 1).numpy(), atol=1e-5)
    assert ae.decode(latents).shape == images.shape
    assert ae.decode(latents.astype(np.float16)).dtype == np.uint8
    with pytest.raises(InputError, match="float latents"):
        ae.decode(latents.astype(np.int64))
    with pytest.raises(InputError, match=r"\(N, 8, 8, 5\)"):
        ae.decode(latents[..., :4])
    with pytest.raises(InputError, match="infinite or undefined"):
        ae.decode(latents * np.nan)


def test_tiny_folder(tmp_path: Path) -> None:
    network = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=3,
    )
    network.save_pretrained(tmp_path)
    ae = load_autoencoder(f"{tmp_path}?image_size=16", dtype="float32")
    images = small_images(16)
    latents = ae.encode(images)
    assert latents.shape == (2, 8, 8, 3)
    assert ae.decode(latents).shape == images.shape


def test_wrong_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_autoencoder(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(InputError, match="whole pipeline"):
        load_autoencoder(tmp_path)
    for text, message in (("{", "not readable JSON"), ("[]", "list"), ('{"_class_name": "UNet"}', "is a UNet model")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=message):
            load_autoencoder(tmp_path)


def test_damaged_folders_are_told(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_vq(tmp_path / "vq")
    weights = "diffusion_pytorch_model.safetensors"

    def folder(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "vq", tmp_path / name))

    absent = folder("absent")
    (absent / weights).unlink()
    short = folder("short")
    (short / weights).write_bytes((short / weights).read_bytes()[:5000])
    other = folder("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"latent_channels": 7}))
    for path in (absent, short, other):
        with pytest.raises(InputError, match=r"cannot load it as VQModel|not a readable safetensors") as caught:
            load_autoencoder(path)
        assert "\n" not in str(caught.value)
    partial = folder("partial")
    state = load_file(partial / weights)
    del state["quant_conv.bias"]
    save_file(state, partial / weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"1 weights are missing, first quant_conv\.bias"):
        load_autoencoder(partial)
    save_vq(tmp_path / "grey", in_channels=1, out_channels=1)
    with pytest.raises(InputError, match="expected 3"):
        load_autoencoder(tmp_path / "grey")


def test_older_names_of_attention_are_read(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_vq(tmp_path / "vq")
    weights = tmp_path / "vq" / "diffusion_pytorch_model.safetensors"
    expected = load_autoencoder(tmp_path / "vq", device="cpu").fingerprint
    state = load_file(weights)
    for old, new in {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}.items():
        state = {name.replace(f".{new}.", f".{old}."): value for name, value in state.items()}
    assert any(".query." in name for name in state)
    save_file(state, weights, {"format": "pt"})
    assert load_autoencoder(tmp_path / "vq", device="cpu").fingerprint == expected


def test_nothing_is_read_before_the_shapes_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 KB of JSON that claims 16 GB costs nothing."""
    save_vq(tmp_path / "vq")
    config = json.loads((tmp_path / "vq" / "config.json").read_text())
    claims = {"num_vq_embeddings": 1 << 24, "vq_embed_dim": 256, "latent_channels": 8192}
    (tmp_path / "vq" / "config.json").write_text(json.dumps(config | claims))
    monkeypatch.setattr("lpkernel.autoencoder.folder.read_floats", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(InputError, match=r"cannot load it as VQModel \(.* is \(.*\), the config says"):
        load_autoencoder(tmp_path / "vq", device="cpu")


def test_only_safetensors_are_read(tmp_path: Path) -> None:
    save_vq(tmp_path / "vq")
    weights = tmp_path / "vq" / "diffusion_pytorch_model.safetensors"
    torch.save({}, weights.with_suffix(".bin"))
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00001.safetensors"))
    with pytest.raises(InputError, match=r"there is no diffusion_pytorch_model\.safetensors"):
        load_autoencoder(tmp_path / "vq")
    (tmp_path / "vq" / f"{weights.name}.index.json").write_text("{}")
    with pytest.raises(InputError, match="its weights are in several files"):
        load_autoencoder(tmp_path / "vq")


def test_missing_diffusers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"lpkernel\[diffusers\]"):
        load_autoencoder(tmp_path)


# Sources and plug-ins


def test_plugin_file(plugin: Path) -> None:
    ae: Any = load_autoencoder(f"{plugin}:Flat?shade=deep", device="cpu")
    assert (ae.shade, ae.device) == ("deep", "cpu")
    np.testing.assert_array_equal(ae.encode(ae.decode(np.array([[[0, 1], [2, 3]]]))), [[[0, 1], [2, 3]]])


def test_plugin_module(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(plugin.parent)
    assert load_autoencoder("flat:Flat").name == "flat"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("flat.py:Absent", "has no callable Absent"),
        ("flat.py:number", "has no callable number"),
        ("flat.py:Bare", "image_size|fingerprint"),
        ("flat.py:explode", "failed with KeyError"),
        ("flat.py:Flat?colour=red", "unexpected keyword argument 'colour'"),
        ("flat.py:Flat?shade", "is not key=value"),
        ("absent.py:load", "no such plug-in file"),
        ("broken.py:load", "importing it failed with SyntaxError"),
        ("needy.py:load", "importing it failed with ModuleNotFoundError"),
    ],
)
def test_plugin_mistakes_are_told(plugin: Path, source: str, message: str) -> None:
    (plugin.parent / "broken.py").write_text("def load(:\n")
    (plugin.parent / "needy.py").write_text("import a_module_that_is_not_there\n")
    with pytest.raises(InputError, match=message) as caught:
        load_autoencoder(f"{plugin.parent}/{source}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attribute", ["name", "fingerprint", "image_size", "grid", "codebook", "encode", "decode"])
def test_protocol_is_checked(plugin: Path, attribute: str) -> None:
    plugin.write_text(PLUGIN + f"\nclass Wrong(Flat):\n    {attribute} = 0.5\n")
    with pytest.raises(InputError, match=f"whose {attribute} is 0.5"):
        load_autoencoder(f"{plugin}:Wrong")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("faces", 'no such autoencoder; expected "default"'),
        ("no/such/folder", "no such file or folder; expected"),
        ("no/such.safetensors", "no such autoencoder file"),
        ("a_module_that_is_not_there:load", "there is no module a_module_that_is_not_there"),
        ("default?image_size=64", "takes no arguments"),
    ],
)
def test_unknown_sources_are_told(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_autoencoder(source)


def test_checkpoints_are_sent_to_the_converter(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").write_bytes(b"x")
    with pytest.raises(InputError, match="lpkernel autoencoder convert"):
        load_autoencoder(tmp_path / "last.ckpt")
    (tmp_path / "notes.txt").write_bytes(b"x")
    with pytest.raises(InputError, match="is not an autoencoder"):
        load_autoencoder(tmp_path / "notes.txt")


def test_taesd_example(tmp_path: Path, faces: np.ndarray) -> None:
    source = f"{ROOT / 'examples' / 'taesd_autoencoder.py'}:load?weights={tmp_path}"
    with pytest.raises(InputError, match=r"taef2_encoder\.pth: no such"):
        load_autoencoder(source)
    with pytest.raises(InputError, match="missing a required argument: 'weights'"):
        load_autoencoder(source.partition("?")[0])
    import lpkernel_plugin_taesd_autoencoder as example  # type: ignore[import-not-found]  # loaded from its file above

    torch.manual_seed(0)
    network = example.Taef2()
    for part in ("encoder", "decoder"):
        torch.save(getattr(network, part).half().state_dict(), tmp_path / f"taef2_{part}.pth")
    ae = load_autoencoder(source, device="cpu", dtype="float32")
    latents = ae.encode(faces[:1])
    assert latents.shape == (1, 16, 16, 32)
    assert ae.decode(latents).shape == (1, 128, 128, 3)
