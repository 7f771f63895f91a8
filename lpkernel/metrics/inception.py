"""The Inception-v3 of the Fréchet Inception distance, on weights from a file (scripts/packages.py fetches one).

Szegedy et al. 2016 as in TensorFlow's release of 2015, with which Heusel et al. 2017 measured: averages leave the
border out, the last block takes the maximum instead, batch normalisation has no scale.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpkernel.autoencoder.safe_pickle import load_script_weights

SIDE, FEATURES = 299, 2048
EPSILON = 1e-3  # of batch normalisation
PREFIX = "net.layers."

BLOCKS_35 = ("mixed", "mixed_1", "mixed_2")  # on cells of 35 x 35
BLOCKS_17 = ("mixed_4", "mixed_5", "mixed_6", "mixed_7")
BLOCKS_8 = ("mixed_9", "mixed_10")


class InceptionV3(nn.Module):
    """(N, 3, 299, 299) in [-1, 1] -> (N, 2048), the features of the last pooling.

    weights: a TorchScript archive of which only the tensors are read. Raises InputError for any other file,
    KeyError, ValueError or RuntimeError for one of another network.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        tensors = load_script_weights(weights)
        self.convs = nn.ModuleDict()
        for name in (name.removesuffix(".weight") for name in tensors if name.endswith(".weight")):
            kernel, beta, mean, variance = (tensors[f"{name}.{part}"] for part in ("weight", "beta", "mean", "var"))
            scale = (variance + EPSILON).rsqrt()
            height, width = kernel.shape[2:]
            conv = nn.Conv2d(kernel.shape[1], kernel.shape[0], (height, width))
            folded = (kernel * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
            conv.load_state_dict({"weight": folded, "bias": beta - mean * scale})
            self.convs[name.removeprefix(PREFIX).replace(".", "/")] = conv
        self.requires_grad_(False)
        found = self(torch.zeros(1, 3, SIDE, SIDE)).shape[1]
        if found != FEATURES:
            raise RuntimeError(f"it gives {found} features, expected {FEATURES}")

    def forward(self, images: Tensor) -> Tensor:
        x = images.contiguous(memory_format=torch.channels_last)
        x = self._conv(x, "conv", 2, whole=True)
        x = self._conv(x, "conv_1", whole=True)
        x = F.max_pool2d(self._conv(x, "conv_2"), 3, 2)
        x = F.max_pool2d(self._conv(self._conv(x, "conv_3"), "conv_4", whole=True), 3, 2)
        for name in BLOCKS_35:
            x = self._block(x, name, ("conv", "conv_1"), ("conv", "conv_1", "conv_2"))
        x = self._halved(x, "mixed_3", ("conv",), ("tower/conv", "tower/conv_1", "tower/conv_2"))
        for name in BLOCKS_17:
            x = self._block(x, name, ("conv", "conv_1", "conv_2"), ("conv", *(f"conv_{i}" for i in range(1, 5))))
        towers = ("tower/conv", "tower/conv_1"), ("tower_1/conv", "tower_1/conv_1", "tower_1/conv_2", "tower_1/conv_3")
        x = self._halved(x, "mixed_8", *towers)
        for name in BLOCKS_8:
            x = self._wide(x, name)
        return F.avg_pool2d(x, 8).flatten(1)

    def _conv(self, x: Tensor, name: str, stride: int = 1, whole: bool = False) -> Tensor:
        """whole: windows stay within the picture; else it is padded so that its size stays."""
        conv = self.convs[name]
        assert isinstance(conv, nn.Conv2d)
        height, width = conv.weight.shape[2:]
        padding = (0, 0) if whole else (height // 2, width // 2)
        return F.relu(F.conv2d(x, conv.weight, conv.bias, stride, padding), inplace=True)

    def _chain(self, x: Tensor, block: str, names: tuple[str, ...]) -> Tensor:
        for name in names:
            x = self._conv(x, f"{block}/{name}")
        return x

    def _block(self, x: Tensor, block: str, first: tuple[str, ...], second: tuple[str, ...]) -> Tensor:
        pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        parts = [
            self._conv(x, f"{block}/conv"),
            self._chain(x, f"{block}/tower", first),
            self._chain(x, f"{block}/tower_1", second),
            self._conv(pooled, f"{block}/tower_2/conv"),
        ]
        return torch.cat(parts, 1)

    def _halved(self, x: Tensor, block: str, *chains: tuple[str, ...]) -> Tensor:
        parts = []
        for *names, last in chains:
            parts.append(self._conv(self._chain(x, block, tuple(names)), f"{block}/{last}", 2, whole=True))
        return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)

    def _wide(self, x: Tensor, block: str) -> Tensor:
        last = block == BLOCKS_8[-1]
        pooled = F.max_pool2d(x, 3, 1, 1) if last else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        a = self._conv(x, f"{block}/tower_conv")
        b = self._chain(x, block, ("tower_1_conv", "tower_1_conv_1"))
        parts = [self._conv(x, f"{block}/conv")]
        parts += [self._conv(a, f"{block}/tower_mixed_conv{end}") for end in ("", "_1")]
        parts += [self._conv(b, f"{block}/tower_1_mixed_conv{end}") for end in ("", "_1")]
        return torch.cat([*parts, self._conv(pooled, f"{block}/tower_2_conv")], 1)
