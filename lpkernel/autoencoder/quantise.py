"""Vector quantisation: latents to the nearest rows of a codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from lpkernel.autoencoder.layers import linear

SCORES_AT_ONCE = 1 << 24  # float32 scores held at a time: 64 MiB


def nearest_rows(latents: Tensor, codebook: Tensor) -> Tensor:
    """Codebook row nearest each vector in squared L2: (..., L), (V, L) -> (...) int64.

    Computed in float32 whatever the dtypes given; ties go to the lowest row.
    """
    flat = latents.reshape(-1, latents.shape[-1]).float()
    book = codebook.float()
    norms = book.square().sum(1)  # |z|^2 is the same for every row, so it is left out
    parts = flat.split(max(1, SCORES_AT_ONCE // len(book)))
    codes = [linear(part, -2 * book, norms).argmin(1) for part in parts]
    return torch.cat(codes).reshape(latents.shape[:-1])
