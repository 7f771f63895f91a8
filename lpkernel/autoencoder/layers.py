"""Layers whose results on a CPU do not depend on how many threads there are: `settle` puts them into a network.

torch's own GroupNorm sums the pixels of each thread by themselves, so its last bits change with the threads and with
the batch; for small inputs its Conv2d goes to another, slower routine, so they change with the batch and the size; its
SiLU computes the last few numbers of each thread's share by another exponential; its products of small matrices change
with the threads, too. For inference only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

SHARE = 1 << 15  # numbers that torch gives to one thread at least (its GRAIN_SIZE)
VECTOR = 32  # numbers that its loops take at once, at most: two AVX-512 registers of float32
NUMBERS_AT_ONCE = 1 << 18  # float32 in one turn of a pass over an image: 1 MiB, so that it stays in the cache


Sums = NDArray[np.float64]


class Watch(Protocol):
    """What looks at the statistics of every GroupNorm, or gives them."""

    def seen(self, layer: GroupNorm, mean: Sums, sums: Sums, squares: Sums) -> None:
        """The statistics that a layer computed. mean (G,); of each block of pixels, in raster order, the sums and the
        sums of squares about the mean, (blocks, G)."""

    def moments(self, layer: GroupNorm, pixels: Tensor) -> tuple[Sums, Sums] | None:
        """Mean and variance (G,) that a layer is to use for pixels (h, w, C); None: their own."""


_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """With `watch` at every GroupNorm that this thread runs."""
    token = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(token)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., I) times weight (O, I), plus bias: (..., O). On a CPU float32 by oneDNN, as a 1x1 convolution.

    torch's own product of small matrices has other bits with other numbers of threads.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return nn.functional.linear(x, weight, bias)
    column = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    product = torch.mkldnn_convolution(column, weight[:, :, None, None], bias, (0, 0), (1, 1), (1, 1), 1)
    return product.permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """A Linear by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Convolution(nn.Conv2d):
    """A Conv2d that oneDNN computes whatever the size of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        padding = cast(tuple[int, ...], self.padding)
        return torch.mkldnn_convolution(x, self.weight, self.bias, padding, self.stride, self.dilation, self.groups)


class SiLU(nn.SiLU):
    """A SiLU in which each thread's share is whole vectors, so that all but the very last numbers go one way."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if not x.is_contiguous(memory_format=torch.channels_last) if x.ndim == 4 else not x.is_contiguous():
            x = x.contiguous()
        out = torch.empty_like(x)
        given, result = (_flat(tensor) for tensor in (x, out))
        whole = _whole_vectors(x.numel())
        for part in (slice(whole), slice(whole, None)):
            torch.ops.aten.silu.out(given[part], out=result[part])
        return out


def _flat(x: Tensor) -> Tensor:
    return x.view(-1) if x.is_contiguous() else x.permute(0, 2, 3, 1).view(-1)


def _whole_vectors(count: int) -> int:
    """The most of `count` numbers that torch's threads can share in whole vectors."""
    threads = 0
    while threads != (used := min(torch.get_num_threads(), -(-count // SHARE))):
        threads = used
        count -= count % (threads * VECTOR)
    return count


class GroupNorm(nn.GroupNorm):
    """A GroupNorm that adds up fixed blocks of pixels in a fixed order.

    Mean and variance of each group over all pixels, float64 of float32 sums; the variance about the mean, not by the
    mean of squares, which loses digits. `grid`: a row of pixels is summed in this many blocks.
    """

    grid: int

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        pixels = x.flatten(2).transpose(1, 2)  # (n, pixels, C), which channels-last tensors are already
        width = x.shape[-1]
        block = width // self.grid if width % self.grid == 0 else width
        out = torch.empty(pixels.shape, dtype=torch.float32)
        watch = _WATCH.get()
        for i in range(len(pixels)):
            given = None if watch is None else watch.moments(self, pixels[i].unflatten(0, (-1, width)))
            if given is None:
                variance = self._centre(pixels[i], out[i], block, watch)
            else:
                mean, variance = given
                torch.sub(pixels[i].float(), self.each_channel(mean), out=out[i])
            self._scale(out[i], variance)
        return out.to(x.dtype).transpose(1, 2).unflatten(2, x.shape[2:])

    def _centre(self, pixels: Tensor, out: Tensor, block: int, watch: Watch | None) -> Sums:
        """pixels (p, C) of one image less their groups' means to out (p, C) float32, p a multiple of `block`.

        Returns the groups' variances (G,).
        """
        count = pixels.numel() / self.num_groups
        parts = self._parts(len(pixels), block)
        sums = np.concatenate([self.sums(pixels[part].float(), block) for part in parts])
        mean = sums.sum(0) / count
        centre = self.each_channel(mean)
        apart = [torch.sub(pixels[part].float(), centre, out=out[part]) for part in parts]
        squares = np.concatenate([self.sums(part.square(), block) for part in apart])
        if watch is not None:
            watch.seen(self, mean, sums, squares)
        return squares.sum(0) / count

    def _scale(self, pixels: Tensor, variance: Sums) -> None:
        """Centred pixels (p, C) to normalised ones, in place."""
        scale = self.each_channel(1 / np.sqrt(variance + self.eps))
        if self.affine:
            scale = scale * self.weight.float()
        for part in self._parts(len(pixels), 1):
            rows = pixels[part].mul_(scale)
            if self.affine:
                rows.add_(self.bias.float())

    def _parts(self, pixels: int, block: int) -> list[slice]:
        """Slices of so many pixels, a multiple of `block` each, that a pass over one of them stays in the cache."""
        step = block * max(1, NUMBERS_AT_ONCE // (block * self.num_channels))
        return [slice(start, start + step) for start in range(0, pixels, step)]

    def sums(self, pixels: Tensor, block: int) -> Sums:
        """(p, C) float32 -> the sums of each block over its pixels and the channels of a group: (p / block, G)."""
        sums = pixels.view(-1, block, pixels.shape[1]).sum(1).numpy()
        return sums.reshape(len(sums), self.num_groups, -1).sum(2, dtype=np.float64)

    def each_channel(self, values: Sums) -> Tensor:
        """(G,) -> (C,) float32."""
        return torch.from_numpy(values.repeat(self.num_channels // self.num_groups).astype(np.float32))


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
