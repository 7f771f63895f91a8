"""GroupNorm and SiLU in one by triton_kernels/norm.py, in networks on a GPU: `fuse` puts it into a network."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from lpkernel.autoencoder.layers import GroupNorm
from lpkernel.triton_kernels import configs

KINDS = (torch.float32, torch.float16, torch.bfloat16)


class NormSiLU(GroupNorm):
    """A GroupNorm of channels-last tensors on a GPU by Triton; with `silu` what follows it is done as well.

    Tensors of other kinds and places go the way of `GroupNorm`, and torch.compile fuses both by itself.
    """

    silu: bool

    def forward(self, x: Tensor) -> Tensor:
        tile = None if torch.compiler.is_compiling() else configs.norm(self.num_channels, self.num_groups)
        if x.device.type != "cuda" or x.ndim != 4 or x.dtype not in KINDS or tile is None:
            found = super().forward(x)
            return nn.functional.silu(found) if self.silu else found
        return group_norm(x, self.num_groups, self.weight, self.bias, self.eps, self.silu)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, silu: bool = False
) -> Tensor:
    """GroupNorm of (N, C, H, W), then SiLU if asked for, by Triton: channels-last, of x's dtype.

    weight, bias: (C,) or None. Groups and channels as `configs.norm` takes them. Near torch's, not the same bits; an
    image has the same bits in any batch.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, pixels = len(x), x.shape[1], x.shape[2] * x.shape[3]
    tile = configs.norm(channels, groups)
    assert tile is not None
    slab, slabs = configs.norm_slabs(pixels, tile.pixels)
    y = torch.empty_like(x)
    parts = torch.empty((images, slabs, groups, 2), dtype=torch.float32, device=x.device)
    kernels: Any = importlib.import_module("lpkernel.triton_kernels.norm")
    shape = {"CHANNELS": channels, "GROUPS": groups, "TP": tile.pixels, "GP": tile.groups, "JP": tile.own}
    kernels.moments[(images, slabs)](x, parts, pixels, slab, **shape, num_warps=configs.NORM_WARPS, num_stages=1)
    given = (x, x) if weight is None or bias is None else (weight, bias)
    kernels.normalise[(images, -(-pixels // tile.pixels))](
        *(x, y, *given, parts, pixels, slab, slabs, eps),
        **shape,
        SP=configs.NORM_SLABS,
        AFFINE=weight is not None,
        SILU=silu,
        num_warps=configs.NORM_WARPS,
        num_stages=1,
    )
    return y


def fuse(network: nn.Module) -> int:
    """Turn the GroupNorms of a network into `NormSiLU`s in place, with the SiLU that follows where it can be told.

    After `layers.settle`. Returns how many have their SiLU in them; 0, and nothing changes, without Triton.
    """
    if importlib.util.find_spec("triton") is None:
        return 0
    for module in network.modules():
        given: Any = module
        if type(module) is GroupNorm:
            given.__class__, given.silu = NormSiLU, False
    return sum(_with_silu(module) for module in network.modules())


def _with_silu(module: Any) -> int:
    """Join the norms and activations of one module of a known kind."""
    kind = type(module).__name__
    pairs: list[tuple[str, str]] = []
    if kind == "ResnetBlock2D" and module.time_emb_proj is None and isinstance(module.nonlinearity, nn.SiLU):
        for norm in (module.norm1, module.norm2):
            norm.silu = isinstance(norm, NormSiLU)
        if module.norm1.silu and module.norm2.silu:
            module.nonlinearity = nn.Identity()
            return 2
        module.norm1.silu = module.norm2.silu = False
        return 0
    if kind in ("Encoder", "Decoder") and hasattr(module, "conv_act"):
        pairs = [("conv_norm_out", "conv_act")]
    elif kind == "ResBlock":
        pairs = [("norm", "act1")]
    elif isinstance(module, nn.Sequential):
        pairs = [(str(i), str(i + 1)) for i in range(len(module) - 1)]
    joined = 0
    for norm, activation in pairs:
        if isinstance(getattr(module, norm), NormSiLU) and isinstance(getattr(module, activation), nn.SiLU):
            getattr(module, norm).silu = True
            setattr(module, activation, nn.Identity())
            joined += 1
    return joined
