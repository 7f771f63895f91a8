"""The "cuda" backend: CUDA C++ kernels (csrc/cuda), a whole plan in one launch or a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, lru_cache
from itertools import pairwise
from math import isqrt
from operator import attrgetter
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel import _native, philox, refine
from lpkernel.backends import cuda_launches, device_steps, device_walk, refusals, seams, stages
from lpkernel.backends.base import Array, CodeBank, ScanRequest, TopK, TopkRequest
from lpkernel.backends.cuda_launches import Launch, Machine, StepTile, Walk, Work
from lpkernel.backends.device_bank import (
    TABLE_STEP,
    DeviceBank,
    DeviceStore,
    bank_bytes,
    carve,
    cell_count,
    cell_width,
    layout_bytes,
    numbered,
    numbered_device,
    offset_bytes,
    search_bytes,
    start_bytes,
    start_cells,
    upload,
    wrong_device,
)
from lpkernel.backends.pytorch import tensor
from lpkernel.errors import BackendUnavailable
from lpkernel.limits import INT16_CODES, MOST_SIDE

CAPABILITY = 80  # the kernels use what 8.0 has
OVERLAPPING = 90  # from here on a kernel may begin while the one before ends
_PLAN_TABLES = ("scales", "steps", "cells", "resize", "cuts")
SHARED = 99 << 10  # bytes that a block may have on the smallest of these, where torch does not say


@dataclass
class Tuning:
    """Launch fields that replace the launch table's choice, for tests and measurements; results do not depend on them.

    walk: whether images walk through tables of distances. refine: whether seams are refined on the device. steps: the
    tile of a plan that runs step by step, False for none. rows: most images that such plans make at a time. groups:
    most groups of blocks at a time. kept: bytes of banks, and as many of their offsets, that stay on the device for the
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
    walk: bool | None = None
    refine: bool | None = None
    steps: StepTile | Literal[False] | None = None
    rows: int = 1 << 14
    kept: int = 1 << 32
    search: tuple[int, int, int, int, int] | None = None

    @property
    def fixed(self) -> dict[str, int | str | None]:
        """The fields of a `Launch`."""
        return dict(zip(_LAUNCH_FIELDS, _launch_fields(self), strict=True))


_LAUNCH_FIELDS = [field.name for field in fields(Launch)]
_launch_fields = attrgetter(*_LAUNCH_FIELDS)
_NOT_FIXED = (None,) * len(_LAUNCH_FIELDS)


class Scan(NamedTuple):
    """One stage ready to run: its work, how it is launched (whole, step by step by a tile, or through tables), and the
    bytes that it takes besides the bank."""

    work: Work
    launch: Launch | StepTile | Walk
    scratch: int


class Resident(NamedTuple):
    """A launch as the native code takes it, and how many of its blocks the device holds at once."""

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
        self._steps, self._walks = device_steps.StepStore(), device_walk.WalkStore()
        self._store = DeviceStore(*self._steps.stores, *self._walks.stores)
        self._available = False
        # The driver is asked only once for what depends on shapes alone.
        self._resident = lru_cache(1024)(self._find_resident)
        self._search = lru_cache(1024)(self._find_search)
        self._walk = lru_cache(1024)(self._find_walk)

    def unavailable(self, device: str = "auto") -> list[str]:
        return self._reasons_at(self._named(device), None)

    def _named(self, device: str) -> torch.device:
        return torch.device(self._device_type if device == "auto" else device)

    def _place(self, request: ScanRequest | TopkRequest) -> torch.device:
        """Where a request is to run; for tensors their own device, since parsing its name takes time."""
        given = request.bank
        return given.device if isinstance(given, torch.Tensor) else self._named(request.device)

    def _reasons_at(self, place: torch.device, given: object) -> list[str]:
        """Reasons against a device: the one that holds the caller's `given` tensors, or the one that was named."""
        if self._given is None and (reasons := _native.cuda_reasons()):
            return reasons
        if place.type != self._device_type:
            return [wrong_device(self._device_type, place, isinstance(given, torch.Tensor))]
        if place.type == "cuda" and not self._available:
            if not torch.cuda.is_available():
                built = "sees no CUDA device" if torch.version.cuda else "was built without CUDA"
                return [f"PyTorch {torch.__version__} {built}"]
            self._available = True
        target = numbered(place)
        if (has := _machine(target).capability) < CAPABILITY:
            name = torch.cuda.get_device_name(target)
            return [f"needs compute capability 8.0, {name} has {has // 10}.{has % 10}"]
        return []

    def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
        place = self._place(request)
        if reasons := self._reasons_at(place, request.bank):
            return reasons
        target = numbered(place)
        count = len(request.candidates) if isinstance(request, ScanRequest) else request.k
        if (k := min(request.k, count)) > cuda_launches.MOST_NEIGHBOURS:
            return [refusals.too_many_neighbours(k, cuda_launches.MOST_NEIGHBOURS)]
        if isinstance(request, ScanRequest):
            return stages.reasons(request, lambda stage: self._scan_reasons(stage, target))
        search = self._search_of(request, target)
        need = search_bytes(request, search.scratch)
        return self._store.memory.reasons(need, target, lambda: need)

    def _scan_reasons(self, request: ScanRequest, target: torch.device) -> list[str]:
        prepared = self._prepare(request, target)
        if isinstance(prepared, list):
            return prepared
        if isinstance(prepared.launch, Walk):
            return []  # `_prepare` has checked that it fits
        asked = request, target, prepared.scratch, _code_shift(request)
        return self._store.memory.reasons(self._store.need(*asked), target, lambda: self._store.need(*asked))

    def _prepare(self, request: ScanRequest, target: torch.device) -> Scan | list[str]:
        """A stage with its launch, or the reasons why no kernel takes it."""
        work = _work(request)
        if reasons := _too_large(request, work.width):
            return reasons
        if (walk := self._walk_of(request, work, target)) is not None:
            scan = Scan(work, *walk)
            if not self._store.memory.reasons(scan.scratch, target):
                return scan
        few = work.images < cuda_launches.STEP_IMAGES and self.tuning.steps is None  # known without a call
        tile = None if few else self._step_tile(request, work, target)
        if tile is not None:
            scan = Scan(work, tile, self._step_scratch(request, work, tile))
            need = self._store.need(request, target, scan.scratch, _code_shift(request))
            if not self._store.memory.reasons(need, target):
                return scan
        return self._prepare_whole(request, work, target)

    def _prepare_whole(self, request: ScanRequest, work: Work, target: torch.device) -> Scan | list[str]:
        """A launch of the whole plan."""
        machine = _machine(target)
        try:
            launch = cuda_launches.choose(work, machine, **self.tuning.fixed)
        except ValueError as error:
            return [str(error)]
        return Scan(work, launch, _scratch_bytes(request, work, launch, machine.multiprocessors))

    def _walk_of(self, request: ScanRequest, work: Work, target: torch.device) -> tuple[Walk, int] | None:
        """How a plan runs through tables of distances, and the bytes that takes, its bank and tables counted even where
        they are kept already, since that is quicker; None for other plans."""
        tuning = self.tuning
        if tuning.walk is False or (
            tuning.walk is None and (tuning.steps is not None or _launch_fields(tuning) != _NOT_FIXED)
        ):
            return None
        begins = device_walk.begins(request)
        walk = self._walk(work, request.plan.sides, begins, target, tuning.walk, tuning.rows)
        if walk is None:
            return None
        given = start_bytes(request, work.width) if begins else 0
        return walk[0], walk[1] + given + (offset_bytes(request) if request.hubness else 0)

    def _find_walk(
        self, work: Work, sides: tuple[int, ...], begins: bool, device: torch.device, wanted: bool | None, most: int
    ) -> tuple[Walk, int] | None:
        tables = device_walk.table_bytes(sides, work.allowed)
        bank = layout_bytes(sides, work.allowed, work.width, work.codes)
        if work.allowed > device_walk.WALK_IMAGES or max(sides) > device_walk.WALK_SIDE:
            return None
        if work.width > device_walk.WALK_VALUES:
            return None
        if not wanted and not cuda_launches.choose_walk(work.images, work.allowed, tables, _machine(device)):
            return None
        row = sum(device_walk.begin_bytes(Walk(1, begins), sides[-1], work))
        walk = Walk(max(1, min(work.images, most, cuda_launches.WALK_ROWS // max(1, row))), begins)
        return walk, bank + tables + walk.rows * row + work.images * sides[-1] ** 2 * 4

    def _step_tile(self, request: ScanRequest, work: Work, target: torch.device) -> StepTile | None:
        """The tile for a plan that is to run step by step, else None."""
        wanted = self.tuning.steps
        if wanted is None:
            wanted = cuda_launches.choose_steps(work, _machine(target))
            if wanted is not None and any(value is not None for value in self.tuning.fixed.values()):
                return None
        if wanted is None or isinstance(wanted, bool):
            return None
        width = device_steps.step_width(device_steps.channels_of(request))
        if self._native().step_choose_bytes(work.most, width, work.cut) > _machine(target).shared:
            return None
        vectors = device_steps.vectors_of(request)
        if vectors is not None and np.abs(vectors.astype(np.int32)).max(initial=0) > device_steps.MOST_SLICED:
            return None
        return wanted

    def _step_scratch(self, request: ScanRequest, work: Work, tile: StepTile) -> int:
        """Bytes that a plan run step by step takes besides the bank, its own copy of the bank included."""
        channels = device_steps.channels_of(request)
        rows, width = _rows(request, self.tuning.rows), device_steps.step_width(channels)
        sizes = self._step_sizes(request, work, tile, rows, width)
        return device_steps.step_bytes(request, channels) + sum(sizes) + 3 * start_bytes(request, width)

    def _step_sizes(
        self, request: ScanRequest, work: Work, tile: StepTile, rows: int, width: int
    ) -> tuple[int, int, int, int, int]:
        """Bytes of canvases, minima, limits, survivors and source maps."""
        side = request.plan.sides[-1]
        groups = self._native().step_groups(tile.images, tile.bank, work.allowed, work.k)
        return (
            rows * 2 * side * side * width * 2,
            rows * groups * 4,
            rows * 4,
            rows * cuda_launches.MOST_LISTED * 8,
            len(request.images) * side * side * 4,
        )

    def scan(self, request: ScanRequest) -> NDArray[np.int32]:
        philox.check_seed(request.seed)
        target = numbered_device(request.device, self._device_type)
        if (found := self._scan_carried(request, target)) is not None:
            return found
        return stages.run(request, lambda stage: self._scan_stage(stage, target))

    def _scan_carried(self, request: ScanRequest, target: torch.device) -> NDArray[np.int32] | None:
        """All stages of a plan that carries, in one launch; None where it needs more than tables."""
        if len(request.plan.stages) == 1 or device_walk.begins(request) or not len(request.images):
            return None
        work = _work(request)
        walk = self._walk_of(request, work, target)
        if walk is None:
            return None
        parts, need = list(stages.requests(request)), walk[1]
        for part in parts:
            width = cell_width(part)
            if _too_large(part, width) or width > device_walk.WALK_VALUES:
                return None
            need += bank_bytes(part)
        if self._store.memory.reasons(need, target):
            return None
        with self._store.memory.on(target, need):
            banks = [self._store.bank(part, target, self.tuning.kept, _code_shift(part)) for part in parts]
            return self._run_walk(request, target, list(zip(parts, banks, strict=True)), work, walk[0])

    def _scan_stage(self, request: ScanRequest, target: torch.device) -> NDArray[np.int32]:
        if not len(request.images):
            return np.empty((0, *2 * request.plan.sides[-1:]), np.int32)
        prepared = self._prepare(request, target)
        if isinstance(prepared, list):
            raise BackendUnavailable(f"backend {self.name} cannot run this: {'; '.join(prepared)}")
        with self._store.memory.on(target, prepared.scratch):
            bank = self._store.bank(request, target, self.tuning.kept, _code_shift(request))
            if isinstance(prepared.launch, Walk):
                return self._run_walk(request, target, [(request, bank)], prepared.work, prepared.launch)
            if isinstance(prepared.launch, Launch):
                return self._run(request, target, bank, prepared.work, prepared.launch)
            found = self._run_steps(request, target, bank, prepared.work, prepared.launch)
            if found is not None:
                return found
            whole = self._prepare_whole(request, prepared.work, target)
            if isinstance(whole, list):
                raise BackendUnavailable(f"backend {self.name} cannot run this: {'; '.join(whole)}")
            assert isinstance(whole.launch, Launch)
            return self._run(request, target, bank, prepared.work, whole.launch)

    def _run_steps(
        self, request: ScanRequest, target: torch.device, bank: DeviceBank, work: Work, tile: StepTile
    ) -> NDArray[np.int32] | None:
        """A plan step by step; None where values are too large for it."""
        plan, kept = request.plan, self.tuning.kept
        count, rows = len(request.images), _rows(request, self.tuning.rows)
        tables, offsets = self._store.plan(plan, target), self._store.offsets(request, bank, kept)
        cells = self._steps.bank(request, bank, kept)
        if cells.magnitude > device_steps.MOST_SLICED:
            return None
        constants = self._steps.constants(request, cells, offsets, kept)
        width = cells.content.shape[2]
        start, begin = start_cells(request, bank.width, 0)
        small = begin, request.images.astype(np.uint32), np.zeros(rows, np.int32), start
        given, given_at = upload(small, target)
        canvases, longest = None, cells.longest
        if len(start):
            started = given[given_at[3] : given_at[3] + start.nbytes].view(torch.int16).view(start.shape)
            canvases = device_steps.starting_cells(cells, started)
            if cells.book is None:
                magnitude, length = device_steps.extent(started)
                if magnitude > device_steps.MOST_SLICED:
                    return None
                longest = max(longest, device_steps.resized_length(length, width))
        slacks = device_steps.slacks(request, width, longest, constants.farthest)
        sizes = self._step_sizes(request, work, tile, rows, width)
        room_at, room_bytes = carve(sizes)
        room = torch.empty(room_bytes, dtype=torch.uint8, device=target)
        plan_numbers, plan_buffers = _of_plan(request, tables, bank, offsets, start)
        buffers = {
            **plan_buffers,
            "bank": _span(cells.content),
            "constants": _span(constants.content),
            "start": (0, 0) if canvases is None else _span(canvases),
            **_spans(given, given_at[:3], ("begin", "images", "counts"), [array.nbytes for array in small[:3]]),
            **_spans(room, room_at, ("canvas", "minima", "limits", "survivors", "sources"), sizes),
            "host_scales": _host_span(plan.flat.scales),
            "host_steps": _host_span(plan.flat.steps),
            "slacks": _host_span(slacks),
        }
        numbers = {
            **plan_numbers,
            "pitch": cells.content.shape[1],
            "bank_cells": len(cells.content),
            "k": work.k,
            "width": width,
            "cut": work.cut,
            "rows": rows,
            "overlaps": _machine(target).capability >= OVERLAPPING,
        }
        self._native().steps((tile.images, tile.bank), numbers, buffers, target.index or 0, _stream(target))
        return self._finished(request, bank, count, room[room_at[4] : room_at[4] + sizes[4]])

    def _run_walk(
        self,
        request: ScanRequest,
        target: torch.device,
        parts: list[tuple[ScanRequest, DeviceBank]],
        work: Work,
        walk: Walk,
    ) -> NDArray[np.int32]:
        """Run a plan through tables of distances: one stage, or all of a plan that carries, each with its bank."""
        plan, kept, count, bank = request.plan, self.tuning.kept, len(request.images), parts[-1][1]
        side = plan.sides[-1]
        tables = self._store.plan(plan, target)
        distances = self._walks.tables(plan.sides, [part[1] for part in parts], kept, self._fill_tables)
        offsets = self._walks.offsets(request, parts, self._store, kept)
        start, begin = start_cells(request, bank.width, bank.code_shift)
        small = begin, start, request.images.astype(np.uint32)
        given, given_at = upload(small, target)
        sizes = *device_walk.begin_bytes(walk, side, work), count * side * side * 4
        room_at, room_bytes = carve(sizes)
        room = torch.empty(room_bytes, dtype=torch.uint8, device=target)
        plan_numbers, plan_buffers = _of_plan(request, tables, bank, offsets, start)
        numbers = {
            **plan_numbers,
            **_of_bank(bank),
            "k": work.k,
            "cut": work.cut,
            "batch": walk.rows,
            "begins": walk.begins,
            "carries": len(parts) > 1,
            "table_cells": cell_count(plan.sides),
        }
        buffers = {
            **plan_buffers,
            "bank": _span(bank.content),
            "table": _span(bank.table),
            "tables": _span(distances),
            "host_scales": _host_span(plan.flat.scales),
            "host_begin": _host_span(begin),
            **_spans(given, given_at, ("begin", "start", "images"), [array.nbytes for array in small]),
            **_spans(room, room_at, ("canvas", "measured", "state", "sources"), sizes),
        }
        self._native().walk(numbers, buffers, target.index or 0, _stream(target))
        return self._finished(request, bank, count, room[room_at[3] : room_at[3] + sizes[3]])

    def _fill_tables(self, tables: torch.Tensor, bank: DeviceBank, first_cell: int) -> None:
        """Write the distances of a bank's images into the tables, from `first_cell` on."""
        device = tables.device
        sides = [isqrt(end - begin) for begin, end in pairwise(bank.first)]
        scales = np.zeros((len(sides), 5), np.int32)
        scales[:, 0] = sides
        on_device = torch.from_numpy(scales).to(device)
        numbers = {
            **_of_bank(bank),
            "k": 1,
            "cut": 0,
            "scales": len(sides),
            "side": sides[-1],
            "first_cell": first_cell,
        }
        buffers = {
            "host_scales": _host_span(scales),
            "scales": _span(on_device),
            "bank": _span(bank.content),
            "table": _span(bank.table),
            "tables": _span(tables),
        }
        self._native().walk_tables(numbers, buffers, device.index or 0, _stream(device))

    def _run(
        self, request: ScanRequest, target: torch.device, bank: DeviceBank, work: Work, launch: Launch
    ) -> NDArray[np.int32]:
        plan, count, side = request.plan, len(request.images), request.plan.sides[-1]
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
        plan_numbers, plan_buffers = _of_plan(request, tables, bank, offsets, start)
        buffers = {
            **plan_buffers,
            "bank": _span(bank.content),
            "table": _span(bank.table),
            **_spans(given, given_at, ("begin", "start", "images", "counters"), [array.nbytes for array in small]),
            **_spans(room, room_at, ("canvas", "partial", "sources"), sizes),
        }
        numbers = {
            **plan_numbers,
            "groups": groups,
            "pitch": bank.pitch,
            "rows": len(bank.table),
            "code_shift": bank.code_shift,
            "bank_cells": len(bank.content),
            "shared": cuda_launches.shared_bytes(launch, work),
        }
        self._native().scan(resident.shape, numbers, buffers, target.index or 0, _stream(target))
        return self._finished(request, bank, count, room[room_at[2] : room_at[2] + sizes[2]])

    def _finished(self, request: ScanRequest, bank: DeviceBank, count: int, found: torch.Tensor) -> NDArray[np.int32]:
        """Source maps on the host, from those on the device; with their seams refined where that is asked for."""
        side = request.plan.sides[-1]
        here = request.refine and self._refines(count, side, found.device)
        if here:
            self._refine(bank, found, count, side)
        maps: NDArray[np.int32] = found.cpu().numpy().view(np.int32).reshape(count, side, side)
        return maps if here or not request.refine else seams.refined(request, maps)

    def _refines(self, count: int, side: int, device: torch.device) -> bool:
        """Whether the seams of so many maps are refined on the device."""
        wanted = self.tuning.refine
        if not (count >= cuda_launches.REFINE_IMAGES if wanted is None else wanted) or side > cuda_launches.REFINE_SIDE:
            return False
        return cuda_launches.refine_bytes(side, refine.limits(side)[0]) <= _machine(device).shared

    def _refine(self, bank: DeviceBank, maps: torch.Tensor, count: int, side: int) -> None:
        """Refine the seams of maps on the device, in place."""
        part, most = refine.limits(side)
        numbers = {
            **_of_bank(bank),
            "images": count,
            "side": side,
            "rounds": refine.ROUNDS,
            "sweeps": refine.SWEEPS,
            "part": part,
            "most": most,
            "shared": cuda_launches.refine_bytes(side, part),
        }
        buffers = {
            "bank": _span(bank.layer(len(bank.first) - 2)),
            "table": _span(bank.table),
            "candidates": _span(bank.candidates),
            "maps": _span(maps),
        }
        self._native().refine(numbers, buffers, maps.device.index or 0, _stream(maps.device))

    def masked_topk(self, request: TopkRequest) -> TopK:
        target = numbered(self._place(request))
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
        """The launch of a search; without a screen where a screen needs more memory than there is."""
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
    """The properties of a device that launches depend on."""
    if device.type != "cuda":
        return Machine(4, 160 << 10, CAPABILITY)
    properties = torch.cuda.get_device_properties(device)
    return Machine(
        properties.multi_processor_count,
        getattr(properties, "shared_memory_per_block_optin", SHARED),
        10 * properties.major + properties.minor,
        properties.total_memory,
    )


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _on_device(array: Array, device: torch.device) -> torch.Tensor:
    """The array as a contiguous tensor there; itself if it already is one."""
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


def _rows(request: ScanRequest, most: int) -> int:
    """Images that a plan run step by step makes at a time: canvases of up to 8 GB."""
    canvas = request.plan.sides[-1] ** 2 * device_steps.step_width(device_steps.channels_of(request)) * 4
    return max(1, min(len(request.images), most, (1 << 33) // canvas))


def _host_span(array: NDArray[Any]) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes


def _of_plan(
    request: ScanRequest, tables: Sequence[torch.Tensor], bank: DeviceBank, offsets: torch.Tensor | None, start: Array
) -> tuple[dict[str, int], dict[str, tuple[int, int]]]:
    """A request as every engine takes it: numbers, and buffers."""
    plan = request.plan
    numbers = {
        "scales": len(plan.scales),
        "steps": len(tables[1]),
        "cells": len(tables[2]),
        "offsets": 0 if offsets is None else offsets.numel(),
        "images": len(request.images),
        "side": plan.sides[-1],
        "allowed": len(request.candidates),
        "start_cells": len(start),
        "seed": request.seed,
        "first_step": plan.first_step,
    }
    buffers = {name: _span(table) for name, table in zip(_PLAN_TABLES, tables, strict=True)}
    buffers["candidates"] = _span(bank.candidates)
    buffers["offsets"] = (0, 0) if offsets is None else _span(offsets)
    return numbers, buffers


def _of_bank(bank: DeviceBank) -> dict[str, int]:
    """A bank as plans through tables take it."""
    return {
        "allowed": len(bank.candidates),
        "pitch": bank.pitch,
        "bank_cells": len(bank.content),
        "rows": len(bank.table),
        "codes": bank.table.shape[1],
        "width": bank.width,
        "code_shift": bank.code_shift,
    }


def _own_mask(request: TopkRequest) -> bool:
    """Whether each query has a mask of its own."""
    return request.patch_mask is not None and request.patch_mask.ndim == 2


def _too_large(request: ScanRequest, width: int) -> list[str]:
    """Why no kernel takes a stage whose cells have `width` values; [] if one does."""
    if isinstance(request.bank, CodeBank) and len(request.bank.table) > INT16_CODES:
        return [refusals.too_many_codes(len(request.bank.table))]
    if request.plan.sides[-1] > MOST_SIDE or request.plan.sides[-1] ** 2 * width * 4 >= 2**31:
        return [f"canvas of side {request.plan.sides[-1]} with {width} channels is too large"]
    if request.plan.cuts and request.plan.patch > cuda_launches.MOST_CUT:
        return [refusals.too_wide_a_patch(request.plan.patch, cuda_launches.MOST_CUT)]
    return []


def _work(request: ScanRequest) -> Work:
    """What the launch table needs to know of a request."""
    return Work(
        images=max(1, len(request.images)),
        allowed=len(request.candidates),
        compared=max(1.0, request.plan.mean_compared),
        most=max(1, request.plan.most_compared),
        k=min(request.k, len(request.candidates)),
        codes=-(-len(request.bank.table) // TABLE_STEP) * TABLE_STEP if isinstance(request.bank, CodeBank) else 0,
        width=cell_width(request),
        cut=request.plan.patch if request.plan.cuts else 0,
    )


def _code_shift(request: ScanRequest) -> int:
    """The shift with which the kernels want this bank's codes."""
    few = isinstance(request.bank, CodeBank) and len(request.bank.table) <= cuda_launches.MOST_ROW_CODES
    return cuda_launches.CODE_SHIFT if few else 0


def _scratch_bytes(request: ScanRequest, work: Work, launch: Launch, multiprocessors: int) -> int:
    """Most bytes that a scan takes besides the bank."""
    side, count = request.plan.sides[-1], len(request.images)
    blocks = min(-(-count // launch.tile) * launch.group, multiprocessors * (2048 // launch.threads))
    canvases = blocks * 2 * launch.tile * side * side * work.width * 2
    partial = 2 * blocks * launch.tile * request.k * 8
    return canvases + partial + start_bytes(request, work.width) + count * side * side * 4
