"""GroupNorm of one image on a CPU: by the compiled code (csrc/cpu), or the same bits by torch and NumPy.

Every sum is taken in one fixed order, so neither threads nor instruction sets change it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpkernel import _native

NUMBERS_AT_ONCE = 1 << 18  # float32 in one turn of torch's pass over an image: 1 MiB, so that it stays in the cache
OF_ONE_THREAD = 1 << 19  # numbers of an image, up to which the compiled code uses one thread

Sums = NDArray[np.float64]
Moments = tuple[Sums, Sums]


def reasons() -> tuple[str, ...]:
    """Why torch and NumPy do the work; () if the compiled code does."""
    return _native.isa_reasons(_native.isa())


def group_norm(
    pixels: Tensor,
    out: Tensor,
    block: int,
    groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    moments: Moments | None = None,
) -> tuple[Sums, Sums, Sums] | None:
    """pixels (p, C) of an image, normalised, to out (p, C), both float32 or both bfloat16; weight, bias: (C,) float32.

    All contiguous; out may be pixels. bfloat16 is computed in float32 and rounded once.

    moments: mean and variance of each group, (G,), to be used instead of the image's own. Without it, returns the mean
    (G,) and, for each block of pixels, the sums and the sums of squares about the mean, (p / block, G), as `block_sums`
    does; mean and variance add these up one after the other. The result is (value - mean) * scale + bias, each
    step rounded to float32; the scale is 1 / sqrt(variance + eps), rounded, times the weight.
    """
    isa = _native.isa()
    if not _native.isa_reasons(isa):
        threads = 1 if pixels.numel() <= OF_ONE_THREAD else torch.get_num_threads()
        given = [None if values is None else _array(values.detach()) for values in (pixels, out, weight, bias)]
        found: tuple[Sums, Sums, Sums] | None
        how = *(moments or (None, None)), isa, threads
        found = _native.cpu().group_norm(*given[:2], block, groups, *given[2:], eps, *how)
        return found
    if pixels.dtype == torch.bfloat16:
        result = torch.empty(pixels.shape, dtype=torch.float32)
        found = group_norm(pixels.float(), result, block, groups, weight, bias, eps, moments)
        out.copy_(result)
        return found
    own = pixels.shape[1] // groups
    found = None
    if moments is None:
        sums = block_sums(pixels, block, groups)
        mean = sums.cumsum(0)[-1] / (len(pixels) * own)
        squares = block_sums(pixels, block, groups, each_channel(mean, own))
        moments, found = (mean, squares.cumsum(0)[-1] / (len(pixels) * own)), (mean, sums, squares)
    centre, scale = each_channel(moments[0], own), each_channel(1 / np.sqrt(moments[1] + eps), own)
    if weight is not None:
        scale *= weight
    shift = torch.zeros_like(scale) if bias is None else bias
    for part, result in zip(_parts(pixels, 1), _parts(out, 1), strict=True):
        torch.sub(part, centre, out=result).mul_(scale).add_(shift)
    return found


def _array(values: Tensor) -> NDArray[Any]:
    """Bits as uint16, where NumPy lacks the kind."""
    return values.view(torch.int16).numpy().view(np.uint16) if values.dtype == torch.bfloat16 else values.numpy()


def each_channel(values: Sums, own: int) -> Tensor:
    """(G,) -> (G * own,) float32."""
    return torch.from_numpy(values.repeat(own).astype(np.float32))


def block_sums(pixels: Tensor, block: int, groups: int, centre: Tensor | None = None) -> Sums:
    """(p, C) float32, contiguous -> the sums of each block of pixels over the channels of a group: (p / block, G).

    Each channel is summed in float32, pixel after pixel; then, in float64, the channels of a group go to four sums in
    turn, which are added up as (0 + 1) + (2 + 3). With a centre (C), the squared differences from it are summed.
    """
    sums = []
    for part in _parts(pixels, block):
        values = part if centre is None else (part - centre).square_()
        blocks = values.view(-1, block, values.shape[1])
        columns = blocks[:, 0].clone()
        for pixel in range(1, block):
            columns += blocks[:, pixel]
        sums.append(columns.numpy())
    each = np.concatenate(sums).reshape(len(pixels) // block, groups, -1)
    four = np.zeros((4, *each.shape[:2]))
    for channel in range(each.shape[2]):
        four[channel % 4] += each[:, :, channel]
    total: Sums = (four[0] + four[1]) + (four[2] + four[3])
    return total


def _parts(pixels: Tensor, block: int) -> tuple[Tensor, ...]:
    """Parts of the pixels, each a multiple of `block`, small enough that a pass over one stays in the cache."""
    return pixels.split(block * max(1, NUMBERS_AT_ONCE // (block * pixels.shape[1])))
