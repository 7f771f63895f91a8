"""LPIPS (Zhang et al., CVPR 2018) with AlexNet, on weights from a file (scripts/packages.py fetches one)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpkernel.autoencoder.safe_pickle import load_arrays

# (kernel, stride, padding, max-pool before) of AlexNet's five convolutions
LAYERS = ((11, 4, 2, False), (5, 1, 2, True), (3, 1, 1, True), (3, 1, 1, False), (3, 1, 1, False))


class LPIPS(nn.Module):
    """Perceptual distance of two image batches (N, 3, H, W) in [-1, 1] -> (N,)."""

    shift: Tensor
    scale: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        arrays = load_arrays(weights)
        self.convs = nn.ModuleList()
        self.weights = []
        for i, (kernel, stride, padding, _) in enumerate(LAYERS):
            layer = arrays["AlexNet_0"][f"Conv_{i}"]
            weight = torch.from_numpy(np.array(layer["kernel"])).permute(3, 2, 0, 1)
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, stride, padding)
            conv.weight.data = weight.contiguous(memory_format=torch.channels_last)
            conv.bias.data = torch.from_numpy(np.array(layer["bias"]))  # type: ignore[union-attr]
            self.convs.append(conv)
            linear = torch.from_numpy(np.array(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]))
            self.weights.append(linear.reshape(1, -1, 1, 1))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        x = (images - self.shift) / self.scale
        out = []
        for conv, (*_, pool) in zip(self.convs, LAYERS, strict=True):
            x = F.relu(conv(F.max_pool2d(x, 3, 2) if pool else x))
            out.append(x.float() / (x.float().square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.features(a), self.features(b), self.weights, strict=True)
        return torch.stack([((x - y).square() * w).sum(1).mean((1, 2)) for x, y, w in pairs]).sum(0)
