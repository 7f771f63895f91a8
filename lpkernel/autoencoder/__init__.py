"""Autoencoders: images to codes or latents and back. `load_autoencoder` is the way in."""

from __future__ import annotations

from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.load import load_autoencoder
from lpkernel.autoencoder.protocol import Autoencoder

__all__ = ["Autoencoder", "TorchAutoencoder", "load_autoencoder"]
