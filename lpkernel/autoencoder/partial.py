"""Decoding a part of an image: variants of one picture differ in a region, and only that region is wanted.

A decoder is split into `Stage`s. Those that look at the whole image (attention), and all before them, are run on
all of it. From there on each stage is run on the window that the next one looks at, found backwards from the wanted
pixels by each stage's reach, so that no edge of a window ever shows. What is left is GroupNorm, whose statistics are
those of the whole image: they are taken from the original's own decode, with the sums of the cells in the window
replaced by the variant's. So the result equals the whole decode, except that statistics in the windowed stages miss
what a variant changes outside the windows. It does not depend on which variants are decoded together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lpkernel.autoencoder.layers import GroupNorm, watched
from lpkernel.autoencoder.moments import Moments, Sums, block_sums, each_channel
from lpkernel.autoencoder.upsampling import FoldedUpsample

if TYPE_CHECKING:
    from lpkernel.autoencoder.protocol import Autoencoder

Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class Stage:
    """A part of a decoder. run: (1, C, h, w) to (1, C', factor h, factor w).

    reach: how far beyond a pixel's own place it looks, in pixels of the result; None: at the whole image.
    """

    run: Callable[[Tensor], Tensor]
    reach: int | None
    factor: int = 1

    def wants(self, box: Box, side: int) -> Box:
        """The part of its input, an image of `side` pixels, that a part of its result depends on."""
        assert self.reach is not None
        top, left, bottom, right = box
        first = [max(0, (edge - self.reach) // self.factor) for edge in (top, left)]
        last = [min(side, -(-(edge + self.reach) // self.factor)) for edge in (bottom, right)]
        return first[0], first[1], last[0], last[1]


def stage(module: nn.Module, factor: int = 1) -> Stage:
    """A stage of a module whose layers are convolutions, one after another, and layers that look at single pixels."""
    return Stage(module, reach(module), factor)


def stages_of(layers: Iterable[nn.Module]) -> list[Stage]:
    """Layers that follow one another; each layer, or sequence of layers, becomes a stage."""
    stages = []
    for layer in layers:
        upsamples = isinstance(layer, nn.Upsample | FoldedUpsample)
        factor = int(layer.scale_factor) if upsamples else 1  # type: ignore[arg-type]
        stages.append(stage(layer, layer.upscale_factor if isinstance(layer, nn.PixelShuffle) else factor))
    return stages


def reach(module: nn.Module) -> int:
    """Pixels beyond its own place that a pixel of the result looks at, if all convolutions follow one another."""
    sizes = [
        (layer.kernel_size[0] - 1, layer.dilation[0]) for layer in module.modules() if isinstance(layer, nn.Conv2d)
    ]
    return sum(size // 2 * dilation for size, dilation in sizes)


class Kept(NamedTuple):
    """Statistics of one layer over one image: mean (G,), and the sums and the squares of each cell, (M, M, G)."""

    mean: Sums
    sums: Sums
    squares: Sums


class Record:
    """A `Watch` that keeps the statistics that every layer computed, by cell of the grid."""

    def __init__(self, grid: int) -> None:
        self.grid = grid
        self.kept: dict[GroupNorm, Kept] = {}

    def seen(self, layer: GroupNorm, mean: Sums, sums: Sums, squares: Sums) -> None:
        if len(sums) % self.grid**2 == 0:
            shape = (self.grid, -1, self.grid, sums.shape[1])
            self.kept[layer] = Kept(mean, sums.reshape(shape).sum(1), squares.reshape(shape).sum(1))

    def moments(self, layer: GroupNorm, pixels: Tensor) -> None:
        return None


class Corrected:
    """A `Watch` that gives each layer the recorded statistics, with the sums of the cells in its window replaced."""

    def __init__(self, record: Record) -> None:
        self.record = record

    def at(self, window: Box, side: int, reach: int) -> None:
        """The pixels that layers see are this window of an image of `side` pixels.

        Those nearer than `reach` to an edge of the window that is not an edge of the image may be wrong.
        """
        self.window, self.side, scale = window, side, side // self.record.grid
        first = [-(-(edge + reach * (edge > 0)) // scale) for edge in window[:2]]
        last = [(edge - reach * (edge < side)) // scale for edge in window[2:]]
        self.cells = (first[0], first[1], last[0], last[1])

    def seen(self, layer: GroupNorm, mean: Sums, sums: Sums, squares: Sums) -> None:
        pass

    def moments(self, layer: GroupNorm, pixels: Tensor) -> Moments:
        mean, sums, squares = self.record.kept[layer]
        top, left, bottom, right = self.cells
        scale, own = self.side // self.record.grid, layer.num_channels // layer.num_groups
        y, x = self.window[:2]
        part = pixels[top * scale - y : bottom * scale - y, left * scale - x : right * scale - x]
        apart = (part - each_channel(mean, own)).flatten(0, 1)
        count = self.side**2 * own
        cells = (slice(top, bottom), slice(left, right))
        before = sums[cells].sum((0, 1)) - mean * (len(apart) * own)
        inside, inside_squares = (
            block_sums(values, part.shape[1], layer.num_groups).sum(0) for values in (apart, apart.square())
        )
        moved = (inside - before) / count
        second = (squares.sum((0, 1)) - squares[cells].sum((0, 1)) + inside_squares) / count
        return mean + moved, np.maximum(second - moved**2, 0)


class Parts:
    """A decoder split into stages, for one image of grid side M at a time."""

    def __init__(self, stages: Sequence[Stage], grid: int) -> None:
        whole = max((i + 1 for i, one in enumerate(stages) if one.reach is None), default=0)
        self.whole, self.rest, self.grid = stages[:whole], stages[whole:], grid

    def record(self, latents: Tensor) -> tuple[Tensor, Record]:
        """Latents (1, L, M, M) -> the whole image, and the statistics of its layers."""
        record, x = Record(self.grid), latents
        with watched(record):
            for one in (*self.whole, *self.rest):
                x = one.run(x)
        return x, record

    def window(self, latents: Tensor, record: Record, cells: Box) -> Tensor:
        """The pixels (1, C, h, w) of a box of cells of the image that a variant's latents (1, L, M, M) decode to."""
        x = latents
        for one in self.whole:
            x = one.run(x)
        sides = [x.shape[-1]]
        for one in self.rest:
            sides.append(sides[-1] * one.factor)
        cell = sides[-1] // self.grid
        top, left, bottom, right = cells
        windows = [(top * cell, left * cell, bottom * cell, right * cell)]
        for one, side in zip(reversed(self.rest), reversed(sides[:-1]), strict=True):
            windows.insert(0, one.wants(windows[0], side))
        watch = Corrected(record)
        x = _cut(x, (0, 0, sides[0], sides[0]), windows[0])
        with watched(watch):
            for i, one in enumerate(self.rest):
                watch.at(windows[i], sides[i], one.reach or 0)
                top, left, bottom, right = (edge * one.factor for edge in windows[i])
                x = _cut(one.run(x), (top, left, bottom, right), windows[i + 1])
        return x


def _cut(x: Tensor, window: Box, part: Box) -> Tensor:
    """The part of an image of which x (1, C, h, w) is a window."""
    top, left = part[0] - window[0], part[1] - window[1]
    cut = x[:, :, top : top + part[2] - part[0], left : left + part[3] - part[1]]
    return cut.contiguous(memory_format=torch.channels_last)


def diffusers_stages(decoder: nn.Module, before: Sequence[nn.Module]) -> list[Stage]:
    """The stages of a diffusers `Decoder` after the modules `before`."""
    given: Any = decoder
    stages = [stage(module) for module in (*before, given.conv_in)]
    stages.append(Stage(given.mid_block, None))
    for block in given.up_blocks:
        upsamplers = block.upsamplers or []
        if type(block).__name__ == "UpDecoderBlock2D":
            stages += [Stage(partial(resnet, temb=None), reach(resnet)) for resnet in block.resnets]
            stages += [stage(upsampler, 2) for upsampler in upsamplers]
        else:
            stages.append(Stage(block, None, 2 ** len(upsamplers)))
    return [*stages, stage(nn.Sequential(given.conv_norm_out, given.conv_act, given.conv_out))]


class Original:
    """A picture, as it was encoded, of which variants are made. It is decoded only once.

    content: (M, M) int64 codes or (M, M, L) float32 latents.
    """

    def __init__(self, content: NDArray[Any]) -> None:
        self.content = content
        self._decoded: tuple[Autoencoder, NDArray[np.uint8], Record | None] | None = None

    def pixels(self, autoencoder: Autoencoder) -> NDArray[np.uint8]:
        """(S, S, 3): its own decode."""
        return self._of(autoencoder)[0]

    def variants(self, autoencoder: Autoencoder, content: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """(N, S, S, 3): what codes or latents (N, M, M ...) decode to where `inside` (S, S), this picture elsewhere.

        The whole image is decoded if the autoencoder cannot decode parts, or if more than half of it is asked for.
        """
        cells = _around(inside, autoencoder.grid)
        decode: Callable[..., NDArray[np.uint8]] | None = getattr(autoencoder, "decode_cells", None)
        if decode is None or 2 * (cells[2] - cells[0]) * (cells[3] - cells[1]) > autoencoder.grid**2:
            return autoencoder.decode(content)
        pixels, record = self._of(autoencoder)
        if record is None:
            return autoencoder.decode(content)
        images = np.repeat(pixels[None], len(content), 0)
        size = autoencoder.image_size // autoencoder.grid
        top, left, bottom, right = (edge * size for edge in cells)
        images[:, top:bottom, left:right] = decode(content, record, cells)
        return images

    def _of(self, autoencoder: Autoencoder) -> tuple[NDArray[np.uint8], Record | None]:
        if self._decoded is None or self._decoded[0] is not autoencoder:
            recorded = getattr(autoencoder, "decode_recorded", None)
            if recorded is None:
                pixels, record = autoencoder.decode(self.content[None])[0], None
            else:
                pixels, record = recorded(self.content)
            self._decoded = autoencoder, pixels, record
        return self._decoded[1:]


def _around(inside: NDArray[np.bool_], grid: int) -> Box:
    """The smallest box of cells around the pixels `inside`."""
    size = len(inside) // grid
    edges = []
    for axis in (1, 0):
        places = np.flatnonzero(inside.any(axis))
        edges.append((places[0] // size, -(-(places[-1] + 1) // size)) if len(places) else (0, 0))
    return int(edges[0][0]), int(edges[1][0]), int(edges[0][1]), int(edges[1][1])
