"""Conversion of taming-transformers checkpoints, against taming's own modules on random weights."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import packages
import pytest
import torch
import yaml
from test_same_bits import DOWN, UP, diffusers
from torch import Tensor, nn

from lpkernel.autoencoder import load_autoencoder
from lpkernel.autoencoder.safe_pickle import load_checkpoint
from lpkernel.autoencoder.taming import _new_folder, convert, decoder_of
from lpkernel.benchmarks import decoding
from lpkernel.errors import InputError, MissingExtra

BASE = {"double_z": False, "in_channels": 3, "out_ch": 3, "ch": 32, "dropout": 0.0, "num_res_blocks": 1}
SMALL = BASE | {"ch_mult": [1, 2], "attn_resolutions": [32], "z_channels": 6, "resolution": 64}
# (ddconfig, n_embed, embed_dim)
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "last level": (SMALL, 50, 6),
    "paper's levels": (
        BASE | {"ch_mult": [1, 1, 2, 2, 4], "attn_resolutions": [4], "z_channels": 16, "resolution": 64},
        64,
        16,
    ),
    "two levels, other widths": (
        BASE | {"ch_mult": [1, 3, 2], "attn_resolutions": [16, 32], "z_channels": 8, "resolution": 64},
        40,
        4,
    ),
    "first level, two blocks": (
        BASE | {"ch_mult": [1, 1], "attn_resolutions": [16], "z_channels": 4, "resolution": 16, "num_res_blocks": 2},
        30,
        9,
    ),
    "no levels": (BASE | {"ch_mult": [1, 2, 2], "attn_resolutions": [], "z_channels": 8, "resolution": 40}, 20, 3),
}


@pytest.fixture(scope="module")
def vqgan() -> Iterator[Callable[..., nn.Module]]:
    """taming's VQ-GAN: its encoder, decoder and quantiser, wired as in its VQModel."""
    sys.path.insert(0, str(packages.fetch("taming")))
    from taming.modules.diffusionmodules.model import Decoder, Encoder
    from taming.modules.vqvae.quantize import VectorQuantizer2

    class VQGAN(nn.Module):
        def __init__(self, ddconfig: dict[str, Any], rows: int, width: int) -> None:
            super().__init__()
            z_channels = ddconfig["z_channels"]
            self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
            self.quantize = VectorQuantizer2(rows, width, beta=0.25)
            self.quant_conv = nn.Conv2d(z_channels, width, 1)
            self.post_quant_conv = nn.Conv2d(width, z_channels, 1)
            self.loss = nn.Linear(2, 2)  # stands for the discriminator, to be dropped

        def codes(self, pixels: Tensor) -> Tensor:
            latents = self.quant_conv(self.encoder(pixels))
            codes: Tensor = self.quantize(latents)[2][2]
            return codes.view(len(latents), *latents.shape[2:])

        def pixels(self, codes: Tensor) -> Tensor:
            vectors: Tensor = self.quantize.embedding(codes).permute(0, 3, 1, 2)
            decoded: Tensor = self.decoder(self.post_quant_conv(vectors))
            return decoded

    def make(ddconfig: dict[str, Any], rows: int, width: int) -> nn.Module:
        torch.manual_seed(3)
        model = VQGAN(ddconfig, rows, width).eval().requires_grad_(False)
        for parameter in model.parameters():  # no parameter stays at zero, one or its default
            parameter.add_(0.05 * torch.randn_like(parameter))
        sample = torch.rand(1, 3, ddconfig["resolution"], ddconfig["resolution"]) * 2 - 1
        latents = model.quant_conv(model.encoder(sample))
        rows_like_latents = latents.mean((0, 2, 3)) + latents.std((0, 2, 3)) * torch.randn(rows, width)
        model.quantize.embedding.weight.copy_(rows_like_latents)
        return model

    yield make
    sys.path.remove(str(packages.fetch("taming")))


def write_config(path: Path, ddconfig: dict[str, Any], rows: int, width: int, transformer: bool = False) -> Path:
    params: dict[str, Any] = {"embed_dim": width, "n_embed": rows, "ddconfig": ddconfig}
    if transformer:
        params = {"transformer_config": {}, "first_stage_config": {"target": "x", "params": params}}
    path.write_text(yaml.safe_dump({"model": {"base_learning_rate": 4.5e-6, "target": "x", "params": params}}))
    return path


def check_parity(model: Any, folder: Path, side: int) -> None:
    ae = load_autoencoder(folder, device="cpu", dtype="float32")
    assert ae.image_size == side
    images = np.random.default_rng(5).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    expected = model.codes(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1)
    codes = ae.encode(images)
    assert len(np.unique(codes)) > 3
    np.testing.assert_array_equal(codes, expected.numpy())
    network: Any = ae
    vectors = torch.from_numpy(network.codebook[codes]).permute(0, 3, 1, 2)
    with torch.inference_mode():
        decoded = network.decode_tensor(vectors)
    assert float((decoded - model.pixels(expected)).abs().max()) < 1e-4


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_parity_with_config(vqgan: Callable[..., Any], tmp_path: Path, name: str) -> None:
    model = vqgan(*MODELS[name])
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")
    config = write_config(tmp_path / "project.yaml", *MODELS[name])
    out = convert(tmp_path / "last.ckpt", tmp_path / "vq", config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "project.yaml", "vq"]
    check_parity(model, out, int(MODELS[name][0]["resolution"]))


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_the_way_back_for_the_bench(vqgan: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """A folder's decoder by taming's own module has the very weights of the checkpoint."""
    model = vqgan(*MODELS[name])
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    folder = convert(tmp_path / "weights.pt", tmp_path / "vq", write_config(tmp_path / "project.yaml", *MODELS[name]))
    plain: Any = decoding.Plain(str(folder), "cpu", torch.float32, taming=True)
    for part, name_of in enumerate(("post_quant_conv", "decoder")):
        want = getattr(model, name_of).state_dict()
        found = plain.run[part].state_dict()
        assert list(found) == list(want) and all(torch.equal(found[key], want[key]) for key in want)
    grid = MODELS[name][0]["resolution"] >> (len(MODELS[name][0]["ch_mult"]) - 1)
    codes = torch.randint(MODELS[name][1], (1, grid, grid), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(plain.run(plain.vectors(codes.numpy())), model.pixels(codes), atol=1e-4, rtol=0)


def test_what_taming_has_no_decoder_for() -> None:
    def network(**change: Any) -> Any:
        given = {"block_out_channels": (32, 64), **change}
        return diffusers.VQModel(down_block_types=(DOWN, DOWN), up_block_types=(UP, UP), **given)

    assert decoder_of(network())[0]["ch_mult"] == (1, 2)
    for change, message in (
        ({"norm_num_groups": 8}, "norms or activations"),
        ({"block_out_channels": (64, 96)}, "levels"),
        ({"mid_block_add_attention": False}, "it lacks decoder.mid_block.attentions.0"),
    ):
        with pytest.raises(ValueError, match=message):
            decoder_of(network(**change))


@pytest.mark.data
@pytest.mark.parametrize("name", MODELS)
def test_architecture_is_read_off_the_weights(
    vqgan: Callable[..., Any], tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(vqgan(*MODELS[name]).state_dict(), tmp_path / "weights.pt")
    config = write_config(tmp_path / "project.yaml", *MODELS[name])
    told = convert(tmp_path / "weights.pt", tmp_path / "told", config)
    assert not caplog.records
    inferred = convert(tmp_path / "weights.pt", tmp_path / "inferred")
    assert "resolution taken as 256" in caplog.text
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (told, inferred))
    assert second.pop("sample_size") == 256
    assert first.pop("sample_size") == MODELS[name][0]["resolution"]
    assert first == second
    weights = "diffusion_pytorch_model.safetensors"
    assert (told / weights).read_bytes() == (inferred / weights).read_bytes()


@pytest.mark.data
def test_first_stage_of_a_transformer(vqgan: Callable[..., Any], tmp_path: Path) -> None:
    model = vqgan(SMALL, 50, 6)
    state = {f"first_stage_model.{key}": value for key, value in model.state_dict().items()}
    state |= {"transformer.head.weight": torch.zeros(2), "cond_stage_model.quant_conv.bias": torch.zeros(2)}
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    config = write_config(tmp_path / "project.yaml", SMALL, 50, 6, transformer=True)
    check_parity(model, convert(tmp_path / "last.ckpt", tmp_path / "vq", config), 64)


@pytest.mark.data
def test_lightning_checkpoint(vqgan: Callable[..., Any], tmp_path: Path, lightning: Any) -> None:
    model = vqgan(SMALL, 50, 6)
    callback = lightning.ModelCheckpoint()
    checkpoint = {"state_dict": model.state_dict(), "callbacks": {lightning.ModelCheckpoint: callback}, "epoch": 1}
    torch.save(checkpoint, tmp_path / "last.ckpt")
    lightning.forget()
    data = load_checkpoint(tmp_path / "last.ckpt")
    assert data["epoch"] == 1
    assert not hasattr(next(iter(data["callbacks"].values())), "best")
    config = write_config(tmp_path / "project.yaml", SMALL, 50, 6)
    check_parity(model, convert(tmp_path / "last.ckpt", tmp_path / "vq", config), 64)


@pytest.fixture
def lightning(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for pytorch_lightning.callbacks, which is not installed."""
    import types

    name = "pytorch_lightning.callbacks"
    module = types.ModuleType(name)

    class ModelCheckpoint:
        def __init__(self) -> None:
            self.best = {"score": torch.ones(2)}

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, name, module)
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]

    def forget() -> None:
        monkeypatch.delitem(sys.modules, name)
        monkeypatch.delitem(sys.modules, "pytorch_lightning")

    module.forget = forget  # type: ignore[attr-defined]
    return module


@pytest.mark.data
def test_wrong_weights_are_told(vqgan: Callable[..., Any], tmp_path: Path) -> None:
    state = vqgan(SMALL, 50, 6).state_dict()
    config = write_config(tmp_path / "project.yaml", SMALL, 50, 6)

    def refuse(weights: dict[str, Tensor], message: str, config: Path | None = config) -> None:
        torch.save(weights, tmp_path / "weights.pt")
        with pytest.raises(InputError, match=message) as caught:
            convert(tmp_path / "weights.pt", tmp_path / "vq", config)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "vq").exists()

    lacking = {key: value for key, value in state.items() if not key.startswith("decoder.mid")}
    refuse(lacking, r"26 weights are missing, first decoder\.mid\.block_1\.norm1\.weight")
    refuse(lacking, r"26 weights are missing", None)
    refuse({"fc.weight": torch.zeros(2)}, r"5 weights are missing, first encoder\.conv_in\.weight", None)
    refuse(state | {"encoder.down.2.block.0.conv1.weight": torch.zeros(2)}, "does not name, first encoder.down.2")
    refuse(state | {"quantize.embedding.weight": torch.zeros(49, 6)}, r"is \(49, 6\), the config says \(50, 6\)")
    refuse(state | {"quantize.embed.weight": torch.zeros(2)}, "Gumbel")
    refuse(state | {"encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)}, "ch_mult must start with 1", None)
    refuse(state | {"encoder.conv_out.weight": torch.zeros(12, 64, 3, 3)}, "double_z", None)
    for key in ("weights.pt", "weights.safetensors"):
        (tmp_path / key).write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match="not a readable"):
            convert(tmp_path / key, tmp_path / "vq")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds a list"):
        convert(tmp_path / "list.pt", tmp_path / "vq")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ch_mult": [2, 2]}, "ch_mult must start with 1"),
        ({"ch_mult": []}, "ch_mult must start with 1"),
        ({"ch": 40}, "multiples of 32"),
        ({"double_z": True}, "double_z"),
        ({"in_channels": 1}, "expected 3"),
        ({"resamp_with_conv": False}, "resamp_with_conv"),
        ({"resolution": 33}, "a multiple of 2"),
        ({"num_res_blocks": 0}, "0 blocks a level"),
        ({"z_channels": 0}, "must be positive"),
        ({"attn_resolutions": None}, "not those of a VQ-GAN"),
        ({"ch": "wide"}, "not those of a VQ-GAN"),
        ({"num_res_blocks": 2**40}, "num_res_blocks is 1099511627776, expected an integer"),
        ({"resolution": float("inf")}, "resolution is inf, expected an integer"),
        ({"z_channels": True}, "z_channels is True, expected an integer"),
        ({"ch_mult": [1] * 100}, "ch_mult is a list of 100, expected a list of 0 to 8"),
    ],
)
def test_configs_that_do_not_fit_are_told(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    config = write_config(tmp_path / "project.yaml", SMALL | changes, 50, 6)
    with pytest.raises(InputError, match=message):
        convert(tmp_path / "weights.pt", tmp_path / "vq", config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [", "not readable yaml"),
        ("model: !!python/object/apply:os.system [true]", "not readable yaml"),
        ("data: 1", "'model' is missing"),
        ("3", "not those of a VQ-GAN"),
        ("", "not those of a VQ-GAN"),
        ("model: {params: {embed_dim: 3}}", "'ddconfig' is missing"),
        ("a: &a 1\nb: *a", "uses an alias"),
        ("model: 1\nmodel: 2", "a key twice"),
        ("[" * 1000 + "]" * 1000, "nests more than 32 deep"),
        ("x" * 70_000, "longer than 65536 bytes"),
    ],
)
def test_wrong_yaml_is_told(tmp_path: Path, text: str, message: str) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    (tmp_path / "project.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        convert(tmp_path / "weights.pt", tmp_path / "vq", tmp_path / "project.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.data
def test_tied_weights_are_written_apart(vqgan: Callable[..., Any], tmp_path: Path) -> None:
    state = vqgan(SMALL, 50, 6).state_dict()
    for part in ("q", "k"):
        state[f"encoder.down.1.attn.0.{part}.weight"] = state["encoder.mid.attn_1.v.weight"]
    torch.save(state, tmp_path / "last.ckpt")
    folder = convert(tmp_path / "last.ckpt", tmp_path / "vq")
    assert load_autoencoder(folder, device="cpu").image_size == 256


def test_mode_is_that_of_any_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain").mkdir()
    monkeypatch.delattr("os.umask")  # it is the whole process's, other threads' files included
    with _new_folder(tmp_path / "vq") as partial:
        (partial / "config.json").write_text("{}")
    assert (tmp_path / "vq").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["plain", "vq"]


def test_paths_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        convert(tmp_path / "absent.ckpt", tmp_path / "vq")
    with pytest.raises(InputError, match="no such folder to write vq in"):
        convert(tmp_path / "absent.ckpt", tmp_path / "a" / "vq")
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="exists already"):
        convert(tmp_path / "weights.pt", tmp_path / "weights.pt")
    with pytest.raises(InputError, match="no such config"):
        convert(tmp_path / "weights.pt", tmp_path / "vq", tmp_path / "absent.yaml")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"lpkernel\[diffusers\]"):
        convert(tmp_path / "weights.pt", tmp_path / "vq")
