"""An image's codes and pixels are the same whatever else is in its batch, and whatever the number of threads."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lpkernel as lp
from lpkernel.autoencoder import TorchAutoencoder, load_autoencoder
from lpkernel.autoencoder.base import PIXELS_ON_GPU
from lpkernel.autoencoder.layers import Convolution, GroupNorm, settle
from lpkernel.cli import main

diffusers: Any = importlib.import_module("diffusers")  # its types are partial

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
IMAGES = 32


def _vq(widths: tuple[int, ...], attention: bool, **more: Any) -> Any:
    """A VQModel, optionally with attention next to the latents, as in taming's."""
    down, up = (DOWN,) * len(widths), (UP,) * len(widths)
    if attention:
        down, up = (*down[1:], "AttnDownEncoderBlock2D"), ("AttnUpDecoderBlock2D", *up[1:])
    return diffusers.VQModel(
        block_out_channels=widths,
        down_block_types=down,
        up_block_types=up,
        vq_embed_dim=8,
        latent_channels=8,
        num_vq_embeddings=64,
        **more,
    )


MODELS: dict[str, Callable[[], Any]] = {
    "VQModel": lambda: _vq((32, 64), False, sample_size=24),
    "taming": lambda: _vq((32, 32, 64, 64, 128), True, sample_size=64, layers_per_block=2),
    "KL": lambda: diffusers.AutoencoderKL(
        block_out_channels=(32, 64), down_block_types=(DOWN,) * 2, up_block_types=(UP,) * 2, sample_size=24
    ),
    "Tiny": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
}


@pytest.fixture(scope="module", params=["embedded", *MODELS])
def autoencoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TorchAutoencoder:
    if request.param == "embedded":
        return load_autoencoder(device="cpu", dtype="float32")  # type: ignore[return-value]
    torch.manual_seed(0)
    network = MODELS[request.param]()
    if hasattr(network, "quantize"):
        network.quantize.embedding.weight.data.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("model")
    network.save_pretrained(folder)
    source = f"{folder}?image_size=24" if request.param == "Tiny" else str(folder)
    return load_autoencoder(source, device="cpu", dtype="float32")  # type: ignore[return-value]


def _pictures(side: int, count: int = IMAGES) -> np.ndarray:
    """Smooth pictures, whose codes are not all decided by noise."""
    small = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return small.repeat(side // 8, 1).repeat(side // 8, 2)


def test_batches_have_the_same_bits(autoencoder: TorchAutoencoder) -> None:
    images = _pictures(autoencoder.image_size)
    codes = autoencoder.encode(images)
    pixels = autoencoder.decode(codes)
    assert len(np.unique(codes)) > 3
    for batch in (1, 3, 7):
        starts = range(0, 7, batch)
        parts = [slice(start, min(start + batch, 7)) for start in starts]
        np.testing.assert_array_equal(np.concatenate([autoencoder.encode(images[part]) for part in parts]), codes[:7])
        np.testing.assert_array_equal(np.concatenate([autoencoder.decode(codes[part]) for part in parts]), pixels[:7])


def test_threads_have_the_same_bits(autoencoder: TorchAutoencoder) -> None:
    """The bits of the floats before they are rounded."""
    images = _pictures(autoencoder.image_size, 1)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                latents = autoencoder.encode_tensor(pixels)
                found[threads] = latents, autoencoder.decode_tensor(latents), autoencoder.encode(images)
    finally:
        torch.set_num_threads(before)
    for latents, decoded, codes in found.values():
        assert torch.equal(latents, found[1][0]) and torch.equal(decoded, found[1][1])
        np.testing.assert_array_equal(codes, found[1][2])


def test_a_batch_of_one_size_is_filled_up(autoencoder: TorchAutoencoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices other than a CPU work this way."""
    images = _pictures(autoencoder.image_size, 5)
    codes = autoencoder.encode(images)
    pixels, seen, inner = autoencoder.decode(codes), list[int](), autoencoder.decode_tensor

    def counted(latents: torch.Tensor) -> torch.Tensor:
        seen.append(len(latents))
        return inner(latents)

    monkeypatch.setattr(autoencoder, "batch", 4)
    monkeypatch.setattr(autoencoder, "decode_tensor", counted)
    decoded = autoencoder.decode(codes)
    assert seen == [4, 4]
    assert decoded.shape == pixels.shape and np.abs(decoded.astype(int) - pixels).max() <= 1
    assert autoencoder.decode(codes[:0]).shape == (0, *pixels.shape[1:])
    assert PIXELS_ON_GPU // 256**2 == 16


def test_the_batch_of_a_build_does_not_change_the_bank(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "in").mkdir()
    for number, picture in enumerate(_pictures(128, 8)):
        Image.fromarray(picture).save(tmp_path / "in" / f"{number}.png")
    banks = set()
    for batch in ("1", "3", "7", "32"):
        out = tmp_path / batch
        main(["bank", "build", str(tmp_path / "in"), "--batch", batch, "-o", str(out), "--quiet"])
        banks.add(out.read_bytes())
    assert len(banks) == 1


@pytest.mark.parametrize("shape", [(2, 32, 12, 12), (1, 48, 7, 5), (1, 64, 64, 64), (3, 32, 40), (1, 512, 16, 16)])
@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_is_torch_s_own(shape: tuple[int, ...], affine: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    norm = nn.GroupNorm(16, shape[1], eps=1e-6, affine=affine).requires_grad_(False)
    if affine:
        norm.weight.data.normal_(generator=generator)
        norm.bias.data.normal_(generator=generator)
    x = torch.randn(shape, generator=generator) * 3 + 50  # far from 0, where a mean of squares would lose digits
    exact = norm.double()(x.double())
    norm.float()
    settle(norm, 8)
    assert type(norm) is GroupNorm
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        norm.to(dtype)
        given = x.to(dtype)
        with torch.inference_mode():
            found = norm(given)
        assert found.dtype == dtype and found.shape == x.shape
        if dtype == torch.float32:
            torch.testing.assert_close(found.double(), exact, atol=near, rtol=near)
        else:
            own = nn.functional.group_norm(given.float(), 16, norm.weight.float() if affine else None, eps=1e-6)
            own = own + (norm.bias.float().view(-1, *[1] * (x.ndim - 2)) if affine else 0)
            torch.testing.assert_close(found.float(), own, atol=near, rtol=near)


def test_only_plain_layers_are_settled() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding="same"), nn.Conv2d(4, 4, 3, padding_mode="reflect"), nn.Conv2d(4, 4, 1)
    )
    x = torch.randn(1, 4, 6, 6)
    kinds = [type(layer) for layer in network]
    with torch.inference_mode():
        before = network(x)
        settle(network, 2)
        torch.testing.assert_close(network(x), before)
    assert [type(layer) for layer in network] == [*kinds[:2], Convolution]


def test_encoders_are_float32_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpkernel.autoencoder.base._fast_bfloat16", lambda device: True)
    images = _pictures(128, 2)
    mixed: Any = load_autoencoder(device="cpu")
    plain: Any = load_autoencoder(device="cpu", dtype="float32")
    half: Any = load_autoencoder(device="cpu", dtype="bfloat16")
    assert (mixed.encoder_dtype, mixed.dtype) == (torch.float32, torch.bfloat16)
    assert (half.encoder_dtype, half.dtype) == (torch.bfloat16, torch.bfloat16)
    codes = mixed.encode(images)
    np.testing.assert_array_equal(codes, plain.encode(images))
    np.testing.assert_array_equal(mixed.decode(codes), half.decode(codes))
    assert (half.encode(images) != codes).any()
    made = lp.Bank.build(images, mixed)
    assert made.codes is not None and np.array_equal(made.codes, codes)
