"""Distances of rows that a search has found, measured directly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpkernel.backends.pytorch import tensor

TILE = 1 << 21  # differences that are held at a time, at least one row's


def distances(queries: Any, bank: Any, indices: Any, patch_mask: Any) -> Any:
    """(Q, k) squared L2 distances of each query to its own rows, as masked_topk returns them; -1 is an empty slot.

    Arguments are as masked_topk's, all NumPy arrays or all tensors of one device, and so is the result.
    """
    if isinstance(queries, np.ndarray):
        q, b, i = tensor(queries), tensor(bank), tensor(np.asarray(indices))
        return _distances(q, b, i, None if patch_mask is None else tensor(patch_mask)).numpy()
    return _distances(queries, bank, torch.as_tensor(indices), patch_mask)


def exact(queries: Any, bank: Any, indices: Any, patch_mask: Any, weights: Any) -> Any:
    """(Q, k) float64 sums of each query to its own rows, times (B,) weights; of row 0 where the index is -1."""
    if isinstance(queries, np.ndarray):
        return _exact_arrays(queries, bank, indices, patch_mask, weights)
    total = _exact(queries, bank, indices, patch_mask)
    return total if weights is None else total * weights.double()[indices.clamp(min=0)]


def _exact_arrays(queries: Any, bank: Any, indices: Any, patch_mask: Any, weights: Any) -> Any:
    """The same without torch, whose threads a forked process must not use."""
    total, rows = np.empty(indices.shape), indices.clip(min=0)
    for part in _tiles(len(queries), indices.shape[1] * bank.shape[1]):
        mask = patch_mask[part, None] if patch_mask is not None and patch_mask.ndim == 2 else patch_mask
        with np.errstate(invalid="ignore", over="ignore"):
            difference = queries[part, None].astype(np.float64) - bank[rows[part]]
            total[part] = np.square(difference if mask is None else np.where(mask, difference, 0)).sum(2)
    return total if weights is None else total * weights.astype(np.float64)[rows]


def root(values: Any) -> Any:
    """Square roots, correctly rounded: torch's are not on the CPU."""
    if isinstance(values, Tensor):
        return values.sqrt() if values.is_cuda else torch.from_numpy(np.sqrt(values.numpy()))
    return np.sqrt(values)


def _distances(queries: Tensor, bank: Tensor, indices: Tensor, patch_mask: Tensor | None) -> Tensor:
    total = _exact(queries, bank, indices, patch_mask)
    if not bank.dtype.is_floating_point:
        return torch.where(indices < 0, np.iinfo(np.int32).max, total.to(torch.int32))
    total = total.float()
    total[total.isnan()] = torch.nan
    return torch.where(indices < 0, torch.inf, total)


def _exact(queries: Tensor, bank: Tensor, indices: Tensor, patch_mask: Tensor | None) -> Tensor:
    parts = []
    for part in _tiles(len(queries), indices.shape[1] * bank.shape[1]):
        mask = patch_mask[part, None] if patch_mask is not None and patch_mask.ndim == 2 else patch_mask
        parts.append(sums(queries[part], bank, indices[part].clamp(min=0), mask))
    return torch.cat(parts) if parts else torch.empty(indices.shape, dtype=torch.float64, device=bank.device)


def sums(queries: Tensor, bank: Tensor, indices: Tensor, mask: Tensor | None, columns: Tensor | None = None) -> Tensor:
    """(Q, k) float64: the direct sums over the entries of a mask that broadcasts to (Q, k, D), times (D,) columns."""
    difference = queries[:, None].double() - bank[indices].double()
    if mask is not None:
        difference = torch.where(mask, difference, 0)  # a product would let NaN through
    squares = difference.square_()
    return (squares if columns is None else squares * columns).sum(2)


def _tiles(count: int, values: int) -> list[slice]:
    """Parts of `count` queries, where each query has so many values."""
    step = max(1, TILE // max(1, values))
    return [slice(start, start + step) for start in range(0, count, step)]
