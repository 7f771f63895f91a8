"""Layers whose results on a CPU do not depend on how many threads there are: `settle` puts them into a network.

torch's own GroupNorm sums each thread's pixels separately, so its last bits change with the threads and with the batch;
for small inputs its Conv2d uses another, slower routine, so they change with the batch and the size; its SiLU computes
the last few numbers of each thread's share with another exponential; its products of small matrices change with the
threads, too. For inference only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from lpkernel.autoencoder.moments import Moments, Sums, group_norm
from lpkernel.autoencoder.side_by_side import poll

SHARE = 1 << 15  # the fewest numbers that torch gives to one thread (its GRAIN_SIZE)
VECTOR = 32  # numbers that its loops take at once, at most: two AVX-512 registers of float32
PACKED_WEIGHTS = 1 << 20  # numbers of a layer's weights up to which they are kept in oneDNN's order as well: 4 MiB
PACKED_PIXELS = 1 << 12  # pixels of an image up to which that is worth it


class Watch(Protocol):
    """Observes the statistics of every GroupNorm, or supplies them."""

    def seen(self, layer: GroupNorm, mean: Sums, sums: Sums, squares: Sums) -> None:
        """The statistics that a layer computed: mean (G,) and, for each block of pixels in raster order, the sums and
        the sums of squares about the mean, (blocks, G)."""

    def moments(self, layer: GroupNorm, pixels: Tensor) -> Moments | None:
        """Mean and variance (G,) that a layer is to use for pixels (h, w, C); None: those of the pixels themselves."""


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """With `watch` at every GroupNorm that this thread runs."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


def by_torch(x: Tensor) -> bool:
    """Whether to use torch's own layer: on devices other than a CPU, and under torch.compile."""
    return x.device.type != "cpu" or torch.compiler.is_compiling()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I) times weight (O, I), plus bias: (..., O). On a CPU float32 by oneDNN, as a 1x1 convolution.

    The bits of torch's own product of small matrices depend on the number of threads.
    """
    if by_torch(x) or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return nn.functional.linear(x, weight, bias)
    column = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    product = torch.mkldnn_convolution(column, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return product.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


@cache
def by_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves a dtype on this CPU."""
    if not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bfloat16 is not None and bool(bfloat16()))


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> Tensor:
    """As torch's conv2d. On a CPU by oneDNN, whatever the size of x."""
    if by_torch(x) or not by_onednn(x.dtype):
        return nn.functional.conv2d(x, weight, bias, padding=padding)
    poll()
    return torch.mkldnn_convolution(x, weight, bias, padding, (1, 1), (1, 1), 1)


class Linear(nn.Linear):
    """A Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Convolution(nn.Conv2d):
    """A Conv2d that oneDNN computes whatever the size of its input.

    At every call oneDNN puts the weights into an order of its own, which takes a tenth of the time where an image has
    few pixels: there they are also kept in that order (PACKED_WEIGHTS, PACKED_PIXELS), by an operator that torch has
    for its compiler. Without it the bits are the same.
    """

    _packed: tuple[tuple[int, int], Tensor] | None = None  # which weights, and these in order

    def forward(self, x: Tensor) -> Tensor:
        if by_torch(x) or not by_onednn(x.dtype):
            return super().forward(x)
        poll()
        how = cast(tuple[int, ...], self.padding), self.stride, self.dilation, self.groups
        few = self.weight.numel() <= PACKED_WEIGHTS and x.shape[2] * x.shape[3] <= PACKED_PIXELS
        if not few or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
            return torch.mkldnn_convolution(x, self.weight, self.bias, *how)
        return torch.ops.mkldnn._convolution_pointwise(x, self._in_order(x, *how), self.bias, *how, "none", [], "")

    def _in_order(self, x: Tensor, *how: Any) -> Tensor:
        version = 0 if self.weight.is_inference() else self.weight._version
        which = self.weight.data_ptr(), version
        kept = self._packed
        if kept is None or kept[0] != which:
            kept = which, torch.ops.mkldnn._reorder_convolution_weight(self.weight, *how, x.shape)
            self._packed = kept
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:  # for copies and pickles
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


class SiLU(nn.SiLU):
    """A SiLU in which each thread's share is whole vectors, so all but the very last numbers are computed alike."""

    def forward(self, x: Tensor) -> Tensor:
        if by_torch(x):
            return super().forward(x)
        if not x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else not x.is_contiguous():
            x = x.contiguous()
        return silu(x, torch.empty_like(x))


def silu(x: Tensor, out: Tensor) -> Tensor:
    """SiLU of x, contiguous or channels-last as out is, to out, which may be x; returns out."""
    whole = _whole_vectors(x.numel())
    given, result = (_flat(tensor) for tensor in (x, out))
    for part in (slice(whole), slice(whole, None)) if whole < x.numel() else (slice(None),):
        torch.ops.aten.silu.out(given[part], out=result[part])
    return out


def _flat(x: Tensor) -> Tensor:
    return x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)


def _whole_vectors(count: int) -> int:
    """How many of `count` numbers torch's threads can share in whole vectors, at most."""
    threads = 0
    while threads != (used := min(torch.get_num_threads(), -(-count // SHARE))):
        threads = used
        count -= count % (threads * VECTOR)
    return count


class GroupNorm(nn.GroupNorm):
    """A GroupNorm that adds up fixed blocks of pixels in a fixed order.

    Mean and variance of each group over all pixels, in float64 from float32 sums; the variance is about the mean, not
    from the mean of squares, which loses digits. `grid`: a row of pixels is summed in this many blocks.
    """

    grid: int

    def forward(self, x: Tensor, in_place: bool = False) -> Tensor:
        """in_place: on a CPU, x, if it is channels-last float32 or bfloat16, may become the result."""
        if by_torch(x):
            return super().forward(x)
        pixels = x.flatten(2).transpose(1, 2)  # (n, pixels, C), which channels-last tensors are already
        width, dtype = x.shape[-1], x.dtype if x.dtype == torch.bfloat16 else torch.float32
        in_place = in_place and pixels.dtype == dtype and pixels.is_contiguous()
        out = pixels if in_place else torch.empty(pixels.shape, dtype=dtype)
        for image, result in zip(pixels, out, strict=True):
            self._normalise(image.to(dtype).contiguous(), result, width)
        return out.to(x.dtype).transpose(1, 2).unflatten(2, x.shape[2:])

    def _normalise(self, pixels: Tensor, out: Tensor, width: int) -> None:
        """One image, (p, C) in rows of `width` pixels, to out (p, C) of the same kind: float32 or bfloat16."""
        block = width // self.grid if width % self.grid == 0 else width
        weight, bias = (self.weight.float(), self.bias.float()) if self.affine else (None, None)
        watch = _WATCH.get()
        given = None if watch is None else watch.moments(self, pixels.unflatten(0, (-1, width)))
        found = group_norm(pixels, out, block, self.num_groups, weight, bias, self.eps, given)
        if watch is not None and found is not None:
            watch.seen(self, *found)


def settle(network: nn.Module, grid: int) -> None:
    """Turn the layers of a network into those above, in place; weights and their names stay."""
    onednn = torch.backends.mkldnn.is_available()
    for module in network.modules():
        given: Any = module
        if type(module) is nn.SiLU:
            given.__class__ = SiLU
        if type(module) is nn.Linear:
            given.__class__ = Linear
        if type(module) is nn.GroupNorm:
            given.__class__ = GroupNorm
            given.grid = grid
        plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        if plain and onednn:
            given.__class__ = Convolution
