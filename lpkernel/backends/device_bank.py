"""Banks and plans as tensors on a device, kept from call to call: what the GPU backends share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch

from lpkernel.backends.base import Array, CodeBank, Codes, LatentBank, Level, ScanRequest, TopkRequest
from lpkernel.backends.pytorch import TILE_BYTES, hubness_offsets, tensor
from lpkernel.backends.store import Store
from lpkernel.errors import BackendUnavailable, InputError
from lpkernel.plan import Plan

Made = TypeVar("Made")

UPLOAD = 1 << 26  # bytes of a bank on their way to the device at a time
CODE_STEP = 8  # codes of a cell come in multiples of this, so that 16-byte loads may begin at any of them
CHANNEL_STEP = 8  # the same for the channels of a latent
TABLE_STEP = 4  # and for the entries of a table row


@dataclass(frozen=True)
class DeviceBank:
    """The allowed images of a bank on a device, cell by cell: neighbouring images lie beside each other.

    content: latents (cells of all sides one after the other, A, W) int16, C channels padded with zeros to W;
    or codes (M * M, pitch) int16, shifted left by code_shift, A padded with zeros to pitch. table: (V, codes)
    int32, V padded with zeros to codes; empty for latents. candidates: (A,) int32 bank indices. first: where each
    side's cells begin.
    """

    content: torch.Tensor
    table: torch.Tensor
    candidates: torch.Tensor
    first: tuple[int, ...]
    code_shift: int

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (self.content, self.table, self.candidates))

    @property
    def pitch(self) -> int:
        """Images from one cell to the next."""
        return self.content.shape[1]

    @property
    def width(self) -> int:
        """int16 values of a cell."""
        return self.content.shape[2] if self.content.ndim == 3 else 1

    def layer(self, scale: int) -> torch.Tensor:
        """The cells of a scale: (m * m, A, W) latents or (M * M, pitch) codes."""
        return self.content[self.first[scale] : self.first[scale + 1]]


def bank_bytes(request: ScanRequest) -> int:
    """Bytes that `DeviceBank` will take for this request."""
    sides, allowed = request.plan.sides, len(request.candidates)
    if isinstance(request.bank, CodeBank):
        return layout_bytes(sides, allowed, 1, len(request.bank.table))
    return layout_bytes(sides, allowed, cell_width(request), 0)


def layout_bytes(sides: tuple[int, ...], allowed: int, width: int, codes: int) -> int:
    """Bytes of a `DeviceBank` of A images, cells of W values, and a table of V codes; 0 codes for latents."""
    images = padded(allowed, CODE_STEP) if codes else allowed
    return cell_count(sides) * images * width * 2 + codes * padded(codes, TABLE_STEP) * 4 + allowed * 4


@lru_cache(256)
def cell_count(sides: tuple[int, ...]) -> int:
    """Cells of grids of some sides."""
    return sum(side * side for side in sides)


def offset_bytes(request: ScanRequest) -> int:
    """Bytes that `make_offsets` will take for this request, its tiles included."""
    return request.plan.steps * len(request.candidates) * 4 + 4 * TILE_BYTES


def start_bytes(request: ScanRequest, width: int) -> int:
    """Bytes that the cells of `start_cells`, `width` values each, will take for this request."""
    sides = zip(request.canvas, request.plan.sides, strict=True)
    return sum(len(start) * side**2 for start, side in sides if start is not None) * width * 2


def search_bytes(request: TopkRequest, scratch: int, apart: bool = False) -> int:
    """Bytes that a masked_topk takes on the device: copies of arrays not there or not contiguous, results, `scratch`.

    apart: rows of queries and bank may lie apart, as long as the entries of each row are adjacent.
    """
    need = len(request.queries) * request.k * (4 + 8) + scratch
    for array, may_lie_apart in (
        (request.queries, apart),
        (request.bank, apart),
        (request.patch_mask, False),
        (request.candidate_mask, False),
        (request.weights, False),
    ):
        if array is None:
            continue
        there = isinstance(array, torch.Tensor) and (array.is_contiguous() or (may_lie_apart and array.stride(1) == 1))
        need += 0 if there else array.nbytes
    return need


def free_bytes(device: torch.device, enough: int) -> int | None:
    """Bytes that a GPU can still give, or a lower figure that is at least `enough`; None for the CPU: no such limit."""
    if device.type != "cuda":
        return None
    free = int(torch.cuda.mem_get_info(device)[0])
    if free >= enough:  # torch walks all of its statistics for the figures below: only where it matters
        return free
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def wrong_device(wanted: str, place: torch.device, tensors: bool) -> str:
    """Why a backend for `wanted` devices cannot work at `place`, which holds the caller's tensors or was named."""
    fix = f": move the tensors (.to('{wanted}')), or pass NumPy arrays, which are copied over" if tensors else ""
    return f"runs on {wanted} devices only, not on {place}{fix}"


class MemoryBudget:
    """What calls may take of each device's memory.

    What a call has taken and given back stays with torch's allocator, so a call that needs no more is let through
    unchecked: neither the driver nor torch's statistics are quick to answer. Should that memory be gone by then, `on`
    turns torch.OutOfMemoryError into a one-line error. forget() gives up what is kept for later calls, if anything is.
    """

    def __init__(self, forget: Callable[[], bool] = lambda: False) -> None:
        self._forget = forget
        self._taken: dict[torch.device, int] = {}

    def reasons(self, need: int, device: torch.device, anew: Callable[[], int] | None = None) -> list[str]:
        """Why `need` bytes do not fit the device; [] if they do.

        With `anew` what is kept goes where memory is short, and anew() bytes are needed then.
        """
        if need <= self._taken.get(device, 0):
            return []
        free = free_bytes(device, need)
        if free is not None and need > free and anew is not None and self._forget():
            need = anew()
            free = free_bytes(device, need)
        if free is None or need <= free:
            return []
        return [f"needs {need / 2**20:.0f} MiB on {device}, where {free / 2**20:.0f} MiB are free"]

    @contextmanager
    def on(self, device: torch.device, need: int) -> Iterator[None]:
        """While a call takes `need` bytes. Raises BackendUnavailable where torch has run out of memory."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._taken.pop(device, None)
            free = torch.cuda.mem_get_info(device)[0] / 2**20
            raise BackendUnavailable(f"{device} ran out of memory: {free:.0f} MiB are free; lower n or k") from error
        self._taken[device] = max(need, self._taken.get(device, 0))


def cell_width(request: ScanRequest) -> int:
    """`DeviceBank.width` of this request's bank."""
    return 1 if isinstance(request.bank, CodeBank) else padded(latent_channels(request), CHANNEL_STEP)


def latent_channels(request: ScanRequest) -> int:
    """C of a latent bank; 1 for a code bank."""
    bank = _bank(request)
    return 1 if isinstance(bank, CodeBank) else bank.level(request.plan.sides[-1]).shape[3]


def _bank(request: ScanRequest) -> LatentBank | CodeBank:
    """The bank that all scales of a request compare; these backends run requests stage by stage."""
    return request.bank_at(request.plan.sides[-1])


def upload_bank(request: ScanRequest, device: torch.device, code_shift: int = 0) -> DeviceBank:
    """Lays the allowed images out on the device. Raises InputError for codes outside the table.

    code_shift: codes are stored multiplied by 2**code_shift, as unsigned 16 bits.
    """
    allowed, bank = request.candidates, _bank(request)
    sides = request.plan.sides
    first = tuple(int(cells) for cells in np.cumsum([0, *(side * side for side in sides)]))
    if isinstance(bank, CodeBank):
        codes = len(bank.table)
        content = torch.zeros((first[-1], padded(len(allowed), CODE_STEP)), dtype=torch.int16, device=device)
        table = torch.zeros((codes, padded(codes, TABLE_STEP)), dtype=torch.int32, device=device)
        table[:, :codes] = torch.from_numpy(np.array(bank.table, np.int32)).to(device)
        _fill(content, bank.codes, allowed, codes, code_shift)
    else:
        width = cell_width(request)
        content = torch.zeros((first[-1], len(allowed), width), dtype=torch.int16, device=device)
        table = torch.zeros((0, 0), dtype=torch.int32, device=device)
        for scale, side in enumerate(sides):
            _fill(content[first[scale] : first[scale + 1]], bank.level(side), allowed, None, 0)
    candidates = torch.from_numpy(allowed.astype(np.int32)).to(device)
    return DeviceBank(content, table, candidates, first, code_shift)


def make_offsets(request: ScanRequest, bank: DeviceBank) -> torch.Tensor:
    """(T, A) int32: what each allowed image's isolation takes off its distances at a step; from the device's cells."""
    device, of = bank.content.device, _bank(request)
    codebook = tensor(of.vectors).to(device, torch.float64) if isinstance(of, CodeBank) else None
    offsets = torch.empty((request.plan.steps, len(bank.candidates)), dtype=torch.int32, device=device)
    step = 0
    for number, scale in enumerate(request.plan.scales):
        for compared in scale.compared:
            vectors = partial(_vectors, bank, codebook, bank.layer(number), torch.from_numpy(compared).to(device))
            offsets[step] = hubness_offsets(len(bank.candidates), request.hubness, vectors, device)
            step += 1
    return offsets


def _vectors(
    bank: DeviceBank, codebook: torch.Tensor | None, layer: torch.Tensor, cells: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """(n, D) float64: some cells of the images at some positions."""
    chosen = layer[cells[:, None], positions]
    if codebook is None:
        return chosen.double().transpose(0, 1).flatten(1)
    return codebook[(chosen.to(torch.int32) & 0xFFFF) >> bank.code_shift].transpose(0, 1).flatten(1)


def _fill(layer: torch.Tensor, content: Codes | Level, allowed: Array, codes: int | None, shift: int) -> None:
    """Copies the allowed images of content (B, m, m[, C]) to a layer, a bounded piece at a time."""
    piece = max(1, UPLOAD // max(1, content[:1].nbytes))
    for begin in range(0, len(allowed), piece):
        part = np.array(content[allowed[begin : begin + piece]])
        if codes is not None and not 0 <= part.min() <= part.max() < codes:
            raise InputError(f"codes run from {part.min()} to {part.max()}, the table has {codes}")
        if codes is not None:
            part = part.astype(np.int32) << shift
        images = torch.from_numpy(part.astype(np.int16, copy=False)).to(layer.device)
        images = images.reshape(len(part), layer.shape[0], -1).transpose(0, 1)
        if layer.ndim == 3:
            layer[:, begin : begin + len(part), : images.shape[2]] = images
        else:
            layer[:, begin : begin + len(part)] = images[:, :, 0]


def carve(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where pieces of these sizes begin in one buffer, at multiples of 256, and the buffer's size."""
    begin, total = [], 0
    for size in sizes:
        begin.append(total)
        total += padded(size, 256)
    return begin, total


def upload(arrays: Sequence[Array], device: torch.device) -> tuple[torch.Tensor, list[int]]:
    """Copies small arrays to the device at once, from pinned memory: a buffer (bytes), and where each begins in it."""
    begin, total = carve([array.nbytes for array in arrays])
    host = torch.empty(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
    room = host.numpy()
    for array, at in zip(arrays, begin, strict=True):
        room[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
    return host.to(device, non_blocking=True), begin


def settled(made: Made, device: torch.device) -> Made:
    """What was made on a device, once it is there: it may be kept, and other threads have streams of their own."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return made


def numbered_device(name: str, kind: str) -> torch.device:
    """The device of this name, with its number; "auto": the current one of `kind`."""
    return numbered(torch.device(kind if name == "auto" else name))


def numbered(device: torch.device) -> torch.device:
    """The device with its number; that of the current device where it has none."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def start_cells(request: ScanRequest, width: int, code_shift: int = 0) -> tuple[Array, Array]:
    """Starting canvases of all scales: cells (., width) int16 laid out as the bank's, and (S, 2) int32: the first
    cell and the number of canvases (0, 1 or n) of each.

    Raises InputError for codes outside the table.
    """
    begin = np.zeros((len(request.plan.scales), 2), np.int32)
    parts: list[Array] = []
    used, bank = 0, _bank(request)
    for scale, start in enumerate(request.canvas):
        if start is None or not len(start):
            continue
        if isinstance(bank, CodeBank):
            codes = len(bank.table)
            if start.size and not 0 <= start.min() <= start.max() < codes:
                raise InputError(f"canvas: codes run from {start.min()} to {start.max()}, expected 0 to {codes - 1}")
            start = start.astype(np.int64) << code_shift
        cells = start.reshape(len(start) * request.plan.sides[scale] ** 2, -1)
        padded = np.zeros((len(cells), width), np.int16)
        padded[:, : cells.shape[1]] = cells
        begin[scale] = used, len(start)
        used += len(cells)
        parts.append(padded)
    return (np.concatenate(parts) if parts else np.zeros((0, width), np.int16)), begin


class DeviceStore:
    """Device banks, their offsets and flat plans kept from recent calls, all read-only; and the memory budget.

    others: stores of what a backend makes from these banks.
    """

    def __init__(self, *others: Store[Any]) -> None:
        self.memory = MemoryBudget(self.forget)
        self._others = others
        self._banks: Store[DeviceBank] = Store()
        self._offsets: Store[torch.Tensor] = Store()
        self._plans: Store[tuple[torch.Tensor, ...]] = Store()

    def forget(self) -> bool:
        """Keeps no banks any more, nor what was made from them; returns whether it kept any."""
        stores: tuple[Store[Any], ...] = self._banks, self._offsets, *self._others
        return sum(store.clear() for store in stores) > 0

    def held(self, request: ScanRequest, device: torch.device, code_shift: int = 0) -> DeviceBank | None:
        """The bank, if it is there."""
        return self._banks.find((*_bank_key(request, device)[0], code_shift))

    def need(self, request: ScanRequest, device: torch.device, scratch: int, code_shift: int = 0) -> int:
        """Bytes that a scan takes: bank and offsets, unless they are there already, and `scratch`."""
        bank = self.held(request, device, code_shift)
        need = scratch + (0 if bank is not None else bank_bytes(request))
        if request.hubness and (bank is None or self._offsets.find(_offsets_key(request, bank)) is None):
            need += offset_bytes(request)
        return need

    def bank(self, request: ScanRequest, device: torch.device, budget: int, code_shift: int = 0) -> DeviceBank:
        key, arrays = _bank_key(request, device)
        return self._banks.get(
            (*key, code_shift),
            arrays,
            budget,
            lambda bank: bank.bytes,
            lambda: settled(upload_bank(request, device, code_shift), device),
        )

    def offsets(self, request: ScanRequest, bank: DeviceBank, budget: int) -> torch.Tensor | None:
        """`make_offsets` of a request with hubness, else None."""
        if not request.hubness:
            return None
        return self._offsets.get(
            _offsets_key(request, bank),
            [request.plan, bank],
            budget,
            lambda offsets: offsets.nbytes,
            lambda: settled(make_offsets(request, bank), bank.content.device),
        )

    def plan(self, plan: Plan, device: torch.device) -> tuple[torch.Tensor, ...]:
        """`plan.flat` on the device: scales, steps, cells, resize, cuts."""
        return self._plans.get(
            (id(plan), device),
            [plan],
            1 << 26,
            lambda tables: sum(table.nbytes for table in tables),
            lambda: settled(tuple(torch.from_numpy(np.array(table)).to(device) for table in plan.flat), device),
        )


def _bank_key(request: ScanRequest, device: torch.device) -> tuple[tuple[Any, ...], list[Any]]:
    bank = _bank(request)
    arrays: list[Any]
    if isinstance(bank, LatentBank):
        arrays = [bank.level(side) for side in request.plan.sides]
    else:
        arrays = [bank.codes, bank.table]
    allowed = None if len(request.candidates) == bank.size else request.candidates.tobytes()
    return (*map(id, arrays), allowed, device), arrays


def _offsets_key(request: ScanRequest, bank: DeviceBank) -> tuple[Any, ...]:
    return id(request.plan), id(bank), request.hubness


def padded(count: int, step: int) -> int:
    """The least multiple of `step` that is not below `count`."""
    return -(-count // step) * step
