"""What a plan over a small bank needs on a device: tables of all distances. See csrc/cuda/walk.cuh."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from lpkernel.backends.base import ScanRequest
from lpkernel.backends.cuda_launches import Walk, Work
from lpkernel.backends.device_bank import DeviceBank, DeviceStore, cell_count, padded, settled
from lpkernel.backends.store import Store

ROW_STEP = 8  # entries of a row come in multiples of this: 32 bytes
WALK_IMAGES, WALK_SIDE, WALK_VALUES = 2048, 64, 512  # allowed images, cells of a side, channels


def table_bytes(sides: tuple[int, ...], allowed: int) -> int:
    """Bytes of tables (cells of all sides, A, pitch) int32 and a row of zeros."""
    return (cell_count(sides) * allowed + 1) * padded(allowed, ROW_STEP) * 4


def begins(request: ScanRequest) -> bool:
    """Whether the content of some cells at the start of a scale must be measured: given, resized, or never written."""
    plan = request.plan
    for start in request.canvas:
        if start is not None:
            return True
    return plan.keeps or (plan.start == "resize" and len(plan.scales) > 1)


def begin_bytes(walk: Walk, side: int, work: Work) -> tuple[int, int, int]:
    """Bytes of the canvases, the distances of the cells they start with, and the cells' sources; 0 without `begins`."""
    cells = walk.rows * side * side if walk.begins else 0
    return cells * 2 * work.width * 2, cells * padded(work.allowed, ROW_STEP) * 4, cells * 4


class WalkStore:
    """Tables of banks, and offsets of plans that carry, kept from recent calls; all read-only."""

    def __init__(self) -> None:
        self._tables: Store[torch.Tensor] = Store()
        self._offsets: Store[torch.Tensor] = Store()
        self.stores = self._tables, self._offsets

    def tables(
        self,
        sides: tuple[int, ...],
        banks: Sequence[DeviceBank],
        budget: int,
        fill: Callable[[torch.Tensor, DeviceBank, int], None],
    ) -> torch.Tensor:
        """Tables of some sides, of one bank or one each; fill(tables, bank, cell) writes a bank's, from `cell` on."""

        def make() -> torch.Tensor:
            allowed = len(banks[0].candidates)
            made = torch.empty(table_bytes(sides, allowed) // 4, dtype=torch.int32, device=banks[0].content.device)
            made[-padded(allowed, ROW_STEP) :] = 0
            first = 0
            for bank in banks:
                fill(made, bank, first)
                first += len(bank.content)
            return settled(made, made.device)

        return self._tables.get(tuple(map(id, banks)), banks, budget, lambda made: made.nbytes, make)

    def offsets(
        self, request: ScanRequest, parts: Sequence[tuple[ScanRequest, DeviceBank]], store: DeviceStore, budget: int
    ) -> torch.Tensor | None:
        """(T, A) int32: `DeviceStore.offsets` of all stages of a request, one after the other."""
        if not request.hubness or len(parts) == 1:
            return store.offsets(*parts[0], budget)
        banks = [bank for _, bank in parts]

        def make() -> torch.Tensor:
            made = torch.cat([part for one in parts if (part := store.offsets(*one, budget)) is not None])
            return settled(made, made.device)

        return self._offsets.get(
            (id(request.plan), *map(id, banks), request.hubness),
            [request.plan, *banks],
            budget,
            lambda offsets: offsets.nbytes,
            make,
        )
