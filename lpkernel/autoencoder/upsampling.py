"""Nearest upsampling by two and the 3x3 convolution after it, as one convolution of the small image: `fold` puts it in.

A pixel of the large image sees only 2x2 pixels of the small one. Which ones, and how much of each, depends on its
*phase*: its place (a, b) among the four pixels that one small pixel becomes. So the large image is four 2x2
convolutions of the small one whose weights are sums of the 3x3 weights: 16 multiplications for each small pixel and
pair of channels instead of 36, and the upsampled image is never written. The four are computed as one, of 4 C' channels
and a border of one pixel: phase (a, b) of small pixel (i, j) is in block 2 a + b of the channels, at (i + a, j + b).

Only last bits differ from those of the two layers: the sums are rounded once, to the network's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lpkernel.autoencoder.layers import convolution

PHASES = [(0, 0), (0, 1), (1, 0), (1, 1)]


class FoldedUpsample(nn.Module):
    """(N, C, H, W) -> (N, C', 2 H, 2 W). conv: the 3x3 convolution; folded: its phases (4 C', C, 2, 2)."""

    scale_factor = 2  # as nn.Upsample names it

    folded: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.register_buffer("folded", folded(conv.weight), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.conv.bias is None else self.conv.bias.repeat(len(PHASES))
        return interleaved(convolution(x, self.folded, bias, (1, 1)))


def folded(weight: Tensor) -> Tensor:
    """The weights of a 3x3 convolution (C', C, 3, 3) as those of its phases (4 C', C, 2, 2), added in float64."""
    first, middle, last = weight.double().unbind(2)
    by_row = torch.stack([first, middle + last]), torch.stack([first + middle, last])
    phases = []
    for a, b in PHASES:
        first, middle, last = by_row[a].unbind(-1)
        columns = (first, middle + last) if b == 0 else (first + middle, last)
        phases.append(torch.stack(columns, -1).movedim(0, 2))
    return torch.cat(phases).to(weight.dtype)


def interleaved(phases: Tensor) -> Tensor:
    """(N, 4 C', H + 1, W + 1), the phases with their border -> (N, C', 2 H, 2 W), channels-last."""
    images, channels, height, width = phases.shape[0], phases.shape[1] // 4, phases.shape[2] - 1, phases.shape[3] - 1
    shape = images, 2 * height, 2 * width, channels
    out = torch.empty(shape, dtype=phases.dtype, device=phases.device).permute(0, 3, 1, 2)
    for (a, b), phase in zip(PHASES, phases.chunk(4, 1), strict=True):
        out[:, :, a::2, b::2] = phase[:, :, a : a + height, b : b + width]
    return out


def fold(network: nn.Module) -> int:
    """Replace upsampling by two and its 3x3 convolution in a network, in place; returns how many.

    Those of diffusers' Upsample2D, and neighbours in an nn.Sequential. Call it before `layers.settle`.
    """
    count = 0
    for module in list(network.modules()):
        children: list[tuple[str, Any]] = list(module.named_children())
        for i, (name, child) in enumerate(children):
            after = children[i + 1] if isinstance(module, nn.Sequential) and i + 1 < len(children) else None
            if _doubles(child):
                setattr(module, name, FoldedUpsample(child.conv))
            elif after and isinstance(child, nn.Upsample) and _by_two(child) and _fits(after[1]):
                setattr(module, name, FoldedUpsample(after[1]))
                setattr(module, after[0], nn.Identity())
            else:
                continue
            count += 1
    return count


def _doubles(layer: Any) -> bool:
    """Whether a layer is an Upsample2D by two, before a convolution."""
    if type(layer).__name__ != "Upsample2D" or not layer.use_conv or layer.use_conv_transpose:
        return False
    return bool(layer.interpolate and layer.norm is None and layer.name == "conv" and _fits(layer.conv))


def _by_two(layer: nn.Upsample) -> bool:
    return layer.mode == "nearest" and layer.size is None and layer.scale_factor in (2, (2, 2))


def _fits(layer: Any) -> bool:
    """Whether a layer is a 3x3 convolution that keeps the size."""
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or layer.groups != 1:
        return False
    return (layer.kernel_size, layer.padding, layer.stride, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
