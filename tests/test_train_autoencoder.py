"""Parts of scripts/train_autoencoder.py: widening a network, the discriminator's share of a gradient, powers."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import train_autoencoder as training

from lpkernel.autoencoder.compact import CompactConfig, CompactVQ, ResBlock

SMALL = CompactConfig(16, 8, 8, (8, 16), (16, 16, 8), (1, 1), (1, 1, 1))
WIDE = CompactConfig(16, 8, 8, (16, 32), (32, 32, 16), (2, 1), (1, 2, 2))  # each channel twice, so norms see the same


def network(config: CompactConfig) -> CompactVQ:
    """A network whose blocks have an effect, as after training."""
    made = CompactVQ(config)
    for layer in made.modules():
        if isinstance(layer, ResBlock):
            torch.nn.init.normal_(layer.conv2.weight, std=0.1)
    made.codebook.normal_()
    return made


def test_a_widened_network_has_the_function_of_its_start() -> None:
    torch.manual_seed(0)
    start, wide = network(SMALL), CompactVQ(WIDE)
    training.widen(wide, start, noise=0)
    images, latents = torch.randn(2, 3, 16, 16), torch.randn(2, 2, 2, 8)
    with torch.inference_mode():
        torch.testing.assert_close(wide.encode(images), start.encode(images), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(wide.decode(latents), start.decode(latents), rtol=1e-4, atol=1e-5)
    assert torch.equal(wide.codebook, start.codebook)


def test_a_longer_codebook_is_left_to_be_found() -> None:
    wide = CompactVQ(replace(WIDE, codebook_size=16))
    training.widen(wide, network(SMALL))
    assert not wide.codebook.any()
    vectors = torch.randn(400, 8)
    book = training.Codebook(wide)
    book.start(vectors)
    assert torch.equal(book.sums, wide.codebook)
    centres = [vectors[wide.nearest(vectors) == code].mean(0) for code in range(16)]
    assert all((centre - row).norm() < 0.5 for centre, row in zip(centres, wide.codebook, strict=True))


def test_a_larger_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"start: its encoder\.1\.weight has no place"):
        training.widen(CompactVQ(SMALL), CompactVQ(WIDE))


def test_noise_parts_the_copies() -> None:
    torch.manual_seed(0)
    wide = CompactVQ(WIDE)
    training.widen(wide, network(SMALL))
    first = wide.encoder[1]
    assert isinstance(first, torch.nn.Conv2d)
    rows = first.weight.flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_discriminator_adds_its_weight_of_the_losss_gradient(weight: float) -> None:
    torch.manual_seed(0)
    adversary = training.Adversary(1e-3)
    source = torch.randn(2, 3, 32, 32, requires_grad=True)
    decoded = source * 1.0
    training.backward(decoded.square().sum(), decoded, adversary, weight)
    assert source.grad is not None
    alone = 2 * source.detach()
    assert float((source.grad - alone).norm() / alone.norm()) == pytest.approx(weight, rel=1e-4)
    assert all(parameter.grad is None for parameter in adversary.network.parameters())


def test_the_discriminator_learns_to_tell_pictures_apart() -> None:
    torch.manual_seed(0)
    adversary = training.Adversary(1e-3)
    real, made = torch.randn(8, 3, 32, 32), torch.zeros(8, 3, 32, 32)
    for _ in range(5):
        adversary.step(real, made, share=1.0)
    with torch.inference_mode():
        assert float(adversary.network(real).mean()) > float(adversary.network(made).mean())


def test_powers_are_those_of_the_bands() -> None:
    waves = torch.stack([torch.cos(2 * torch.pi * cycles * torch.arange(128) / 128) for cycles in (20, 40)])
    low, high = (wave.expand(1, 3, 128, 128) for wave in waves)
    for image, expected in ((low, (1, 0)), (high, (0, 1))):
        found = training.powers(image)
        assert (found / found.sum()).tolist() == pytest.approx(expected, abs=1e-6)


def test_powers_that_differ_cost_by_band() -> None:
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    halved = (images / 2).requires_grad_()
    loss = training.unlike_powers(halved, images, (0.5, 0.25))
    assert float(loss.detach()) == pytest.approx(0.75 * math.log(4) ** 2, rel=1e-4)
    (gradient,) = torch.autograd.grad(loss, halved)
    louder = halved.detach() - 0.1 * gradient
    assert float(training.unlike_powers(louder, images, (0.5, 0.25))) < float(loss.detach())
    assert float(training.unlike_powers(images, images, (0.5, 0.25))) == 0
