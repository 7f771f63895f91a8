"""What a plan over a small bank needs of it on a device: tables of all distances. See csrc/cuda/walk.cuh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from lpkernel.backends.base import ScanRequest
from lpkernel.backends.device_bank import DeviceBank, DeviceStore, padded
from lpkernel.backends.store import Store

ROW_STEP = 8  # entries of a row come in multiples of this: 32 bytes
MOST_IMAGES, MOST_SIDE, MOST_VALUES = 2048, 64, 512  # allowed images, cells of a side, channels


@lru_cache(256)
def table_cells(sides: tuple[int, ...]) -> int:
    return sum(side * side for side in sides)


def table_bytes(sides: tuple[int, ...], allowed: int) -> int:
    """Of (cells of all sides, A, pitch) int32 and a row of zeros."""
    return (table_cells(sides) * allowed + 1) * padded(allowed, ROW_STEP) * 4


def given(request: ScanRequest) -> bool:
    """Whether cells of a starting canvas are given, or none where no step writes."""
    return any(start is not None for start in request.canvas) or request.plan.keeps


def walks_whole(request: ScanRequest) -> bool:
    """Whether a plan that carries needs nothing but tables, so that one launch runs all its stages."""
    return len(request.plan.stages) > 1 and not given(request)


def begins(request: ScanRequest) -> bool:
    """Whether cells of a scale begin as what must be measured: resized or given."""
    return not walks_whole(request) and (len(request.plan.scales) > 1 or given(request))


class WalkStore:
    """Tables of banks, and offsets of plans that carry, of the last calls, all read-only."""

    def __init__(self) -> None:
        self._tables: Store[torch.Tensor] = Store()
        self._offsets: Store[torch.Tensor] = Store()

    def tables(
        self,
        sides: tuple[int, ...],
        banks: Sequence[DeviceBank],
        budget: int,
        fill: Callable[[torch.Tensor, DeviceBank, int], None],
    ) -> torch.Tensor:
        """Tables of some sides, of one bank or of one each; fill(tables, bank, cell) writes a bank's from a cell on."""

        def make() -> torch.Tensor:
            allowed = len(banks[0].candidates)
            made = torch.empty(table_bytes(sides, allowed) // 4, dtype=torch.int32, device=banks[0].content.device)
            made[-padded(allowed, ROW_STEP) :] = 0
            first = 0
            for bank in banks:
                fill(made, bank, first)
                first += len(bank.content)
            return made

        return self._tables.get(tuple(map(id, banks)), banks, budget, lambda made: made.nbytes, make)

    def offsets(
        self, request: ScanRequest, parts: Sequence[tuple[ScanRequest, DeviceBank]], store: DeviceStore, budget: int
    ) -> torch.Tensor | None:
        """(T, A) int32: `DeviceStore.offsets` of all stages of a request, one after the other."""
        if not request.hubness or len(parts) == 1:
            return store.offsets(*parts[0], budget)
        banks = [bank for _, bank in parts]
        return self._offsets.get(
            (id(request.plan), *map(id, banks), request.hubness),
            [request.plan, *banks],
            budget,
            lambda offsets: offsets.nbytes,
            lambda: torch.cat([part for one in parts if (part := store.offsets(*one, budget)) is not None]),
        )
