"""The "cuda" backend: CUDA C++ kernels (csrc/cuda), a whole plan in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel import _native, philox
from lpkernel.backends import cuda_launches, stages
from lpkernel.backends.base import Array, CodeBank, ScanRequest, TopK, TopkRequest
from lpkernel.backends.cuda_launches import Launch, Machine, Work
from lpkernel.backends.device_bank import (
    DeviceStore,
    carve,
    cell_width,
    numbered,
    numbered_device,
    search_bytes,
    start_bytes,
    start_cells,
    upload,
    wrong_device,
)
from lpkernel.backends.pytorch import tensor
from lpkernel.errors import BackendUnavailable
from lpkernel.limits import INT16_CODES

CAPABILITY = 80  # the kernels use what 8.0 has
MOST_SIDE = 4096
_PLAN_TABLES = ("scales", "steps", "cells", "resize", "cuts")
SHARED = 99 << 10  # bytes that a block may have on the smallest of these, where torch does not say


@dataclass
class Tuning:
    """Launch fields that replace the launch table's choice, for tests and measurements; results do not depend on them.

    groups: most groups of blocks at a time. kept: bytes of banks, and of their offsets, that stay on the device for the
    next call. search: a `Search.launch`.
    """

    form: str | None = None
    tile: int | None = None
    group: int | None = None
    threads: int | None = None
    split: int | None = None
    span: int | None = None
    depth: int | None = None
    groups: int | None = None
    kept: int = 1 << 32
    search: tuple[int, int, int, int, int] | None = None

    @property
    def fixed(self) -> dict[str, int | str | None]:
        """The fields of a `Launch`."""
        return {name: getattr(self, name) for name in _LAUNCH_FIELDS}


_LAUNCH_FIELDS = [field.name for field in fields(Launch)]


class Scan(NamedTuple):
    """One stage ready to run: what there is to do, how it is launched, and bytes that it takes beside the bank."""

    work: Work
    launch: Launch
    scratch: int


class Resident(NamedTuple):
    """A launch as the native code takes it, and the blocks of it that the device holds at once."""

    shape: dict[str, Any]
    blocks: int


class Search(NamedTuple):
    """A masked_topk's launch (tile, query warps, bank warps, slabs, stride of the screen), and bytes of scratch."""

    launch: tuple[int, int, int, int, int]
    scratch: int


class CudaBackend:
    """Scans and searches on an NVIDIA GPU.

    native: another build of the extension, which works on tensors of `device_type` "cpu" (the emulation in tests).
    """

    name = "cuda"
    checks_only = False

    def __init__(self, native: ModuleType | None = None, device_type: str = "cuda") -> None:
        self.tuning = Tuning()
        self._given = native
        self._device_type = device_type
        self._store = DeviceStore()
        self._available = False
        # What depends on shapes alone is asked of the driver once.
        self._resident = lru_cache(1024)(self._find_resident)
        self._search = lru_cache(1024)(self._find_search)

    def unsupported(self, request: ScanRequest | TopkRequest | None, device: str = "auto") -> list[str]:
        if self._given is None and (reasons := _native.cuda_reasons()):
            return reasons
        place = torch.device(self._device_type if device == "auto" else device)
        bank = request.bank if isinstance(request, TopkRequest) else None
        of_tensors = isinstance(bank, torch.Tensor)
        if isinstance(bank, torch.Tensor):
            place = bank.device
        if place.type != self._device_type:
            return [wrong_device(self._device_type, place, of_tensors)]
        if place.type == "cuda" and not self._available:
            if not torch.cuda.is_available():
                built = "sees no CUDA device" if torch.version.cuda else "was built without CUDA"
                return [f"PyTorch {torch.__version__} {built}"]
            self._available = True
        target = numbered(place)
        if (has := _machine(target).capability) < CAPABILITY:
            name = torch.cuda.get_device_name(target)
            return [f"needs compute capability 8.0, {name} has {has // 10}.{has % 10}"]
        if request is None:
            return []
        count = len(request.candidates) if isinstance(request, ScanRequest) else request.k
        if (k := min(request.k, count)) > cuda_launches.MOST_NEIGHBOURS:
            return [f"finds up to {cuda_launches.MOST_NEIGHBOURS} neighbours, got k = {k}"]
        if isinstance(request, ScanRequest):
            return stages.reasons(request, lambda stage: self._scan_reasons(stage, target))
        search = self._search_of(request, target)
        return self._store.memory.reasons(search_bytes(request, search.scratch), target)

    def _scan_reasons(self, request: ScanRequest, target: torch.device) -> list[str]:
        prepared = self._prepare(request, target)
        if isinstance(prepared, list):
            return prepared
        need = self._store.need(request, target, prepared.scratch, _code_shift(request))
        return self._store.memory.reasons(need, target)

    def _prepare(self, request: ScanRequest, target: torch.device) -> Scan | list[str]:
        """A stage with its launch, or the reasons why no kernel takes it."""
        if isinstance(request.bank, CodeBank) and len(request.bank.table) > INT16_CODES:
            return [f"compares up to {INT16_CODES} codes by table, got {len(request.bank.table)}"]
        work = _work(request)
        width = work.width
        if request.plan.sides[-1] > MOST_SIDE or request.plan.sides[-1] ** 2 * width * 4 >= 2**31:
            return [f"canvas of side {request.plan.sides[-1]} with {width} channels is too large"]
        if request.plan.cuts and request.plan.patch > cuda_launches.MOST_CUT:
            return [f"cuts patches of up to {cuda_launches.MOST_CUT} cells, got {request.plan.patch}"]
        try:
            launch = cuda_launches.choose(work, _machine(target), **self.tuning.fixed)
        except ValueError as error:
            return [str(error)]
        return Scan(work, launch, _scratch_bytes(request, work, launch, _machine(target).multiprocessors))

    def scan(self, request: ScanRequest, device: str = "auto") -> NDArray[np.int32]:
        philox.check_seed(request.seed)
        target = numbered_device(device, self._device_type)
        return stages.run(request, lambda stage: self._scan_stage(stage, target))

    def _scan_stage(self, request: ScanRequest, target: torch.device) -> NDArray[np.int32]:
        if not len(request.images):
            return np.empty((0, *2 * request.plan.sides[-1:]), np.int32)
        prepared = self._prepare(request, target)
        if isinstance(prepared, list):
            raise BackendUnavailable(f"backend {self.name} cannot run this: {'; '.join(prepared)}")
        with self._store.memory.on(target, prepared.scratch):
            return self._run(request, target, prepared.work, prepared.launch)

    def _run(self, request: ScanRequest, target: torch.device, work: Work, launch: Launch) -> NDArray[np.int32]:
        plan, count, side = request.plan, len(request.images), request.plan.sides[-1]
        bank = self._store.bank(request, target, self.tuning.kept, _code_shift(request))
        tables = self._store.plan(plan, target)
        offsets = self._store.offsets(request, bank, self.tuning.kept)
        start, begin = start_cells(request, bank.width, bank.code_shift)
        resident = self._resident(launch, work.k, work.codes, work.width, work.cut, target)
        tiles = -(-count // launch.tile)
        groups = max(1, min(tiles, resident.blocks // launch.group, self.tuning.groups or tiles))
        small = begin, start, request.images.astype(np.uint32), np.zeros(groups, np.int32)
        given, given_at = upload(small, target)
        sizes = (
            groups * launch.group * 2 * launch.tile * side * side * bank.width * 2,  # canvases
            groups * 2 * launch.tile * work.k * launch.group * 8 if launch.group > 1 else 0,  # keys of blocks
            count * side * side * 4,  # source maps
        )
        room_at, room_bytes = carve(sizes)
        room = torch.empty(room_bytes, dtype=torch.uint8, device=target)
        buffers = {
            **{name: _span(table) for name, table in zip(_PLAN_TABLES, tables, strict=True)},
            "bank": _span(bank.content),
            "table": _span(bank.table),
            "candidates": _span(bank.candidates),
            "offsets": (0, 0) if offsets is None else _span(offsets),
            **_spans(given, given_at, ("begin", "start", "images", "counters"), [array.nbytes for array in small]),
            **_spans(room, room_at, ("canvas", "partial", "sources"), sizes),
        }
        numbers = {
            "groups": groups,
            "scales": len(plan.scales),
            "steps": len(tables[1]),
            "cells": len(tables[2]),
            "offsets": 0 if offsets is None else offsets.numel(),
            "images": count,
            "side": side,
            "allowed": len(request.candidates),
            "pitch": bank.pitch,
            "rows": len(bank.table),
            "code_shift": bank.code_shift,
            "bank_cells": len(bank.content),
            "start_cells": len(start),
            "seed": request.seed,
            "first_step": plan.first_step,
            "shared": cuda_launches.shared_bytes(launch, work),
        }
        self._native().scan(resident.shape, numbers, buffers, target.index or 0, _stream(target))
        found = room[room_at[2] : room_at[2] + sizes[2]].cpu().numpy()
        result: NDArray[np.int32] = found.view(np.int32).reshape(count, side, side)
        return result

    def masked_topk(self, request: TopkRequest) -> TopK:
        given = request.bank
        target = given.device if isinstance(given, torch.Tensor) else numbered_device("auto", self._device_type)
        search = self._search_of(request, target)
        with self._store.memory.on(target, search_bytes(request, search.scratch)):
            return self._masked_topk(request, target, search)

    def _masked_topk(self, request: TopkRequest, target: torch.device, search: Search) -> TopK:
        queries, bank = _on_device(request.queries, target), _on_device(request.bank, target)
        patch_mask, candidate_mask, weights = (
            None if array is None else _on_device(array, target)
            for array in (request.patch_mask, request.candidate_mask, request.weights)
        )
        integers, (count, width), k = bank.dtype == torch.int16, queries.shape, request.k
        indices = torch.empty((count, k), dtype=torch.int64, device=target)
        distances = torch.empty((count, k), dtype=torch.int32 if integers else torch.float32, device=target)
        if count:
            scratch = torch.empty(search.scratch, dtype=torch.uint8, device=target)
            self._native().masked_topk(
                _span(queries),
                _span(bank),
                None if patch_mask is None else _span(patch_mask),
                _own_mask(request),
                None if candidate_mask is None else _span(candidate_mask),
                None if weights is None else _span(weights),
                *(count, bank.shape[0], width, k, integers),
                *(_span(distances), _span(indices), _span(scratch)),
                *(target.index or 0, _stream(target), search.launch),
            )
        if isinstance(request.bank, torch.Tensor):
            return TopK(distances, indices)
        return TopK(distances.cpu().numpy(), indices.cpu().numpy())

    def _search_of(self, request: TopkRequest, target: torch.device) -> Search:
        """The launch of a search; one without a screen where that takes more memory than there is."""
        integers = request.bank.dtype in (np.int16, torch.int16)
        kind = integers, _own_mask(request), request.weights is not None
        shape = *request.queries.shape, request.bank.shape[0], request.k, *kind
        search = self._search(*shape, target, self.tuning.search)
        if search.launch[-1] and self._store.memory.reasons(search_bytes(request, search.scratch), target):
            return self._search(*shape, target, (*search.launch[:-1], 0))
        return search

    def _find_search(
        self,
        count: int,
        width: int,
        rows: int,
        k: int,
        integers: bool,
        own_mask: bool,
        weighted: bool,
        device: torch.device,
        given: tuple[int, int, int, int, int] | None,
    ) -> Search:
        if not count:
            return Search((1, 1, 1, 1, 0), 0)
        native, machine = self._native(), _machine(device)
        launch = given
        if launch is None:
            tile = cuda_launches.choose_topk(count, rows, k, machine.shared)
            resident = native.masked_topk_blocks(k, integers, own_mask, (*tile, 1, 0), device.index or 0)
            slabs = cuda_launches.choose_slabs(count, rows, tile, resident * machine.multiprocessors)
            launch = (*tile, slabs, cuda_launches.choose_stride(count, rows, k))
        return Search(launch, native.masked_topk_scratch(count, rows, width, k, own_mask, weighted, launch))

    def _find_resident(
        self, launch: Launch, k: int, codes: int, width: int, cut: int, device: torch.device
    ) -> Resident:
        shape = asdict(launch) | {"k": k, "codes": codes, "width": width, "cut": cut}
        blocks = self._native().scan_blocks(shape, device.index or 0) * _machine(device).multiprocessors
        return Resident(shape, blocks)

    def _native(self) -> ModuleType:
        return self._given if self._given is not None else _native.cuda()


@cache
def _machine(device: torch.device) -> Machine:
    """What launches depend on."""
    if device.type != "cuda":
        return Machine(4, 160 << 10, CAPABILITY)
    properties = torch.cuda.get_device_properties(device)
    return Machine(
        properties.multi_processor_count,
        getattr(properties, "shared_memory_per_block_optin", SHARED),
        10 * properties.major + properties.minor,
    )


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _on_device(array: Array, device: torch.device) -> torch.Tensor:
    """The array as a contiguous tensor there; the tensor itself if it is one."""
    return (array if isinstance(array, torch.Tensor) else tensor(array)).to(device).contiguous()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """(address, bytes) of a tensor."""
    return tensor.data_ptr(), tensor.nbytes


def _spans(
    room: torch.Tensor, begin: Sequence[int], names: Sequence[str], sizes: Sequence[int]
) -> dict[str, tuple[int, int]]:
    """(address, bytes) of the named pieces of a buffer."""
    base = room.data_ptr()
    return {name: (base + at, size) for name, at, size in zip(names, begin, sizes, strict=True)}


def _own_mask(request: TopkRequest) -> bool:
    """Whether each query has a mask of its own."""
    return request.patch_mask is not None and request.patch_mask.ndim == 2


def _work(request: ScanRequest) -> Work:
    """What the launch table needs to know of a request."""
    return Work(
        images=max(1, len(request.images)),
        allowed=len(request.candidates),
        compared=max(1.0, request.plan.mean_compared),
        most=max(1, request.plan.most_compared),
        k=min(request.k, len(request.candidates)),
        codes=-(-len(request.bank.table) // 4) * 4 if isinstance(request.bank, CodeBank) else 0,
        width=cell_width(request),
        cut=request.plan.patch if request.plan.cuts else 0,
    )


def _code_shift(request: ScanRequest) -> int:
    """How the kernels want the codes of this bank."""
    few = isinstance(request.bank, CodeBank) and len(request.bank.table) <= cuda_launches.MOST_ROW_CODES
    return cuda_launches.CODE_SHIFT if few else 0


def _scratch_bytes(request: ScanRequest, work: Work, launch: Launch, multiprocessors: int) -> int:
    """What a scan takes beside the bank, at most."""
    side, count = request.plan.sides[-1], len(request.images)
    blocks = min(-(-count // launch.tile) * launch.group, multiprocessors * (2048 // launch.threads))
    canvases = blocks * 2 * launch.tile * side * side * work.width * 2
    partial = 2 * blocks * launch.tile * request.k * 8
    return canvases + partial + start_bytes(request, work.width) + count * side * side * 4
