"""What a decoder does between its convolutions: `fuse` puts it into a network.

On a GPU by triton_kernels/norm.py: GroupNorm and SiLU in one; biases of convolutions without a pass of their own; the
end of a residual block, and of a folded upsampling (`upsampling`), in one. On a CPU SiLU and the end of a residual
block work in place, which saves the memory that would be written for the first time. Under torch.compile, and
where Triton is not installed, torch's own layers run instead.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any, cast

import torch
from torch import Tensor, nn

from lpkernel.autoencoder.layers import GroupNorm, by_torch, silu
from lpkernel.autoencoder.upsampling import FoldedUpsample
from lpkernel.triton_kernels import configs

KINDS = (torch.float32, torch.float16, torch.bfloat16)
MOST_NUMBERS = (1 << 31) - 1  # of an image


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def by_triton(x: Tensor) -> bool:
    """Whether the kernels take a tensor."""
    return x.device.type == "cuda" and x.dtype in KINDS and not torch.compiler.is_compiling() and has_triton()


class NormSiLU(GroupNorm):
    """A GroupNorm; with `silu` it includes the SiLU that follows, in place on a CPU.

    On a GPU by Triton, of channels-last tensors (N, C, H, W) or (N, C, L); others are left to `GroupNorm`, and
    torch.compile fuses both by itself. `before`: a bias (C,) that is still to be added to x. `follows`: the input is
    the unchanged output of a residual block, so the moments that the block found on its way are used.
    """

    silu: bool
    follows: bool

    def forward(self, x: Tensor, in_place: bool = False, before: Tensor | None = None) -> Tensor:
        if not by_triton(x) or x.ndim not in (3, 4) or configs.norm(self.num_channels, self.num_groups) is None:
            found = super().forward(x if before is None else x + before.view(-1, *[1] * (x.ndim - 2)), in_place)
            if not self.silu:
                return found
            return nn.functional.silu(found) if by_torch(found) or found.ndim != 4 else silu(found, found)
        given = self.num_groups, self.weight, self.bias, self.eps, self.silu
        if x.ndim == 3:
            return group_norm(x.unsqueeze(-1), *given, before).squeeze(-1)
        groups, known = getattr(x, "moments", (0, None)) if self.follows else (0, None)
        return group_norm(x, *given, before, known if groups == self.num_groups else None)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    silu: bool = False,
    before: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """GroupNorm of (N, C, H, W) + before, then SiLU if asked for, by Triton: channels-last, of x's dtype.

    weight, bias, before: (C,) or None. known: what `moments` returned for x and as many groups. Groups and channels as
    `configs.norm` takes them. Close to torch's, not the same bits; an image has the same bits in any batch.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    images, channels, pixels = _shape(x)
    tile = _tile(channels, groups)
    slab, slabs = configs.norm_slabs(pixels, tile)
    parts = moments(x, groups) if known is None else known
    y, lines = torch.empty_like(x), torch.empty((images, 2, channels), dtype=torch.float32, device=x.device)
    of_group = {"CHANNELS": channels, "GROUPS": groups, "JP": tile.own, "SP": tile.slabs}
    vectors = (parts if one is None else one for one in (weight, bias, before))
    how = {"num_warps": configs.NORM_WARPS, "num_stages": 1}
    _kernels().affine[(groups, images)](
        *(parts, lines, *vectors, pixels, slab, slabs, eps),
        **of_group,
        AFFINE=weight is not None,
        BEFORE=before is not None,
        **how,
    )
    shape = {"CHANNELS": channels, "CP": tile.columns, "TP": configs.pixel_tile(tile.columns)}
    _kernels().normalise[(slabs, images)](x, y, lines, pixels, slab, **shape, SILU=silu, **how)
    return y


def moments(
    x: Tensor,
    groups: int,
    biases: tuple[Tensor, ...] = (),
    residual: Tensor | None = None,
    phases: Tensor | None = None,
) -> Tensor:
    """Adds up to two biases (C,) and a residual to x (N, C, H, W), channels-last, in place, rounded once.

    Returns what `group_norm` in `groups` groups takes as `known`: (N, slabs, 2, C) float32. phases: of a
    folded upsampling (N, 4 C, H / 2 + 1, W / 2 + 1), channels-last, which x, whatever it holds, is first made of.
    """
    images, channels, pixels = _shape(x)
    tile = _tile(channels, groups)
    slab, slabs = configs.norm_slabs(pixels, tile)
    parts = torch.empty((images, slabs, 2, channels), dtype=torch.float32, device=x.device)
    first, second = (*biases, x, x)[:2]
    added = x if residual is None else residual.contiguous(memory_format=torch.channels_last)
    _kernels().moments[(slabs, images)](
        *(x if phases is None else phases, x, added, first, second, parts, pixels, slab, x.shape[3]),
        CHANNELS=channels,
        CP=tile.columns,
        TP=tile.pixels,
        RESIDUAL=residual is not None,
        BIASES=len(biases),
        PHASES=phases is not None,
        num_warps=configs.NORM_WARPS,
        num_stages=1,
    )
    return parts


def _kernels() -> Any:
    return importlib.import_module("lpkernel.triton_kernels.norm")


def _shape(x: Tensor) -> tuple[int, int, int]:
    """Images, channels, pixels of an image."""
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _tile(channels: int, groups: int) -> configs.Norm:
    tile = configs.norm(channels, groups)
    assert tile is not None
    return tile


def _without_bias(layer: Any, x: Tensor) -> Tensor:
    """The result of a convolution before its bias is added."""
    return cast(Tensor, layer._conv_forward(x, layer.weight, None))


def _ended(h: Tensor, layers: list[nn.Conv2d], residual: Tensor | None, groups: int) -> Tensor:
    """h, fresh from a convolution, with the biases of `layers` and a residual added; it carries its moments along."""
    h = h.contiguous(memory_format=torch.channels_last)
    biases = tuple(layer.bias for layer in layers if layer.bias is not None)
    h.moments = groups, moments(h, groups, biases, residual)  # type: ignore[attr-defined]
    return h


class _Residual(nn.Module):
    """diffusers' ResnetBlock2D without time embedding or resampling, whose norms include their SiLU."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *others: Any, **more: Any) -> Tensor:
        block: Any = self
        if torch.compiler.is_compiling():
            return cast(Tensor, super().forward(input_tensor, temb, *others, **more))
        if not by_triton(input_tensor):
            h = block.conv2(block.norm2(block.conv1(block.norm1(input_tensor)), in_place=True))
            shortcut = block.conv_shortcut
            return cast(Tensor, h.add_(input_tensor if shortcut is None else shortcut(input_tensor)))
        h = _without_bias(block.conv1, block.norm1(input_tensor))
        h = _without_bias(block.conv2, block.norm2(h, before=block.conv1.bias))
        shortcut = block.conv_shortcut
        residual = input_tensor if shortcut is None else _without_bias(shortcut, input_tensor)
        convolutions = [block.conv2] if shortcut is None else [block.conv2, shortcut]
        return _ended(h, convolutions, residual, block.norm2.num_groups)


class _Upsample(FoldedUpsample):
    """A `FoldedUpsample`. `norm_groups`: of the norm that comes next."""

    norm_groups: int

    def forward(self, x: Tensor) -> Tensor:
        height, width, channels = x.shape[2], x.shape[3], self.conv.out_channels
        if not by_triton(x) or 4 * channels * (height + 1) * (width + 1) > MOST_NUMBERS:
            return super().forward(x)
        phases = nn.functional.conv2d(x, self.folded, None, padding=1).contiguous(memory_format=torch.channels_last)
        shape = x.shape[0], channels, 2 * height, 2 * width
        h = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        biases = () if self.conv.bias is None else (self.conv.bias,)
        h.moments = self.norm_groups, moments(h, self.norm_groups, biases, phases=phases)  # type: ignore[attr-defined]
        return h


class _Start(nn.Conv2d):
    """The convolution before the first residual block. `norm_groups`: of the norm that comes next."""

    norm_groups: int

    def forward(self, x: Tensor) -> Tensor:
        if not by_triton(x):
            return super().forward(x)
        return _ended(_without_bias(self, x), [self], None, self.norm_groups)


class _Block(nn.Module):
    """The embedded autoencoder's residual block, whose norm includes its SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        block: Any = self
        if torch.compiler.is_compiling():
            return cast(Tensor, super().forward(x))
        if not by_triton(x):
            return cast(Tensor, block.conv2(block.act2(block.conv1(block.norm(x)))).add_(x))
        h = _without_bias(block.conv2, block.act2(block.conv1(block.norm(x))))
        return _ended(h, [block.conv2], x, block.norm.num_groups)


@functools.cache
def _kind(way: Any, of: Any) -> Any:
    """The class `of` with `way` mixed in. Its layers are pickled as these two, since no module has it by name."""
    return type(of.__name__, (way, of), {"__module__": of.__module__, "__reduce__": _reduced})


def _reduced(layer: nn.Module) -> tuple[Any, ...]:
    return _blank, type(layer).__bases__, layer.__getstate__()


def _blank(way: Any, of: Any) -> Any:
    """A layer of this kind that holds nothing yet, for copies and pickles."""
    kind = _kind(way, of)
    return kind.__new__(kind)


def fuse(network: nn.Module) -> int:
    """Turn the GroupNorms of a network into `NormSiLU`s in place, including the SiLU that follows where that is known.

    Residual blocks and upsampling of known kinds are replaced, too. Call it after `layers.settle`. Returns how many
    norms include their SiLU.
    """
    for module in network.modules():
        given: Any = module
        if type(module) is GroupNorm:
            given.__class__, given.silu, given.follows = NormSiLU, False, False
    joined = sum(_with_silu(module) for module in network.modules())
    for module in network.modules():
        _with_ends(module)
    return joined


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


def _with_ends(module: Any) -> None:
    """Give one module of a known kind its fused end, once its norms are joined."""
    of: Any = type(module)
    kind = of.__name__
    if issubclass(of, (_Residual, _Upsample, _Block)):
        return
    if kind == "ResnetBlock2D":
        plain = module.upsample is None and module.downsample is None and module.output_scale_factor == 1
        if plain and getattr(module.norm2, "silu", False) and _fits(module.norm1) and _fits(module.norm2):
            module.__class__ = _kind(_Residual, of)
    elif kind == "ResBlock":
        if getattr(module.norm, "silu", False) and _fits(module.norm):
            module.__class__ = _kind(_Block, of)
    elif kind in ("Encoder", "Decoder") and hasattr(module, "conv_act"):
        # whose blocks pass on the previous one's output unchanged
        for inner in module.modules():
            if type(inner).__name__ == "ResnetBlock2D" and isinstance(inner.norm1, NormSiLU):
                inner.norm1.follows = True
            if type(inner) is FoldedUpsample and _takes(inner.conv, module.conv_norm_out):
                given: Any = inner
                given.__class__, given.norm_groups = _Upsample, module.conv_norm_out.num_groups
        if not isinstance(module.conv_in, _Start) and _takes(module.conv_in, module.conv_norm_out):
            given = module.conv_in
            given.__class__ = _kind(_Start, cast(Any, type(module.conv_in)))
            given.norm_groups = module.conv_norm_out.num_groups
        if isinstance(module.conv_norm_out, NormSiLU):
            module.conv_norm_out.follows = True


def _fits(norm: Any) -> bool:
    return isinstance(norm, NormSiLU) and configs.norm(norm.num_channels, norm.num_groups) is not None


def _takes(convolution: Any, norm: Any) -> bool:
    """Whether the kernels can end a convolution before a norm like this one."""
    return _fits(norm) and configs.norm(convolution.out_channels, norm.num_groups) is not None
