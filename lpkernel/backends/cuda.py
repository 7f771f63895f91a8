"""The "cuda" backend: CUDA C++ kernels (csrc/cuda), a whole plan in one launch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel import _native, philox
from lpkernel.backends import launch_table, stages
from lpkernel.backends.base import Array, CodeBank, ScanRequest, TopK, TopkRequest
from lpkernel.backends.device_bank import (
    DeviceStore,
    cell_width,
    memory_reasons,
    numbered_device,
    search_bytes,
    start_bytes,
    start_cells,
)
from lpkernel.backends.launch_table import Launch, Machine, Work
from lpkernel.backends.pytorch import tensor

CAPABILITY = 80  # the kernels use what 8.0 has
MOST_SIDE = 4096
SHARED = 99 << 10  # bytes that a block may have on the smallest of these, where torch does not say


@dataclass
class Tuning:
    """Launch fields that replace the launch table's choice, for tests and measurements; results do not depend on them.

    groups: most groups of blocks at a time. kept: bytes of banks, and of their offsets, that stay on the device for the
    next call.
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

    @property
    def fixed(self) -> dict[str, int | str | None]:
        """The fields of a `Launch`."""
        return {field.name: getattr(self, field.name) for field in fields(Launch)}


class CudaBackend:
    """Scans and searches on an NVIDIA GPU.

    native: another build of the extension, which works on tensors of `device_type` "cpu" (the emulation in tests).
    """

    name = "cuda"

    def __init__(self, native: ModuleType | None = None, device_type: str = "cuda") -> None:
        self.tuning = Tuning()
        self._given = native
        self._device_type = device_type
        self._store = DeviceStore()

    def unsupported(self, request: ScanRequest | TopkRequest | None, device: str = "auto") -> list[str]:
        if self._given is None and (reasons := _native.cuda_reasons()):
            return reasons
        if isinstance(request, TopkRequest) and isinstance(request.bank, torch.Tensor):
            device = str(request.bank.device)
        if device != "auto" and torch.device(device).type != self._device_type:
            return [f"runs on {self._device_type} devices only, not on {device}"]
        if self._device_type == "cuda":
            if not torch.cuda.is_available():
                built = "sees no CUDA device" if torch.version.cuda else "was built without CUDA"
                return [f"PyTorch {torch.__version__} {built}"]
            major, minor = torch.cuda.get_device_capability(self._device(device))
            if 10 * major + minor < CAPABILITY:
                name = torch.cuda.get_device_name(self._device(device))
                return [f"needs compute capability 8.0, {name} has {major}.{minor}"]
        if request is None:
            return []
        count = len(request.candidates) if isinstance(request, ScanRequest) else request.k
        if (k := min(request.k, count)) > launch_table.MOST_NEIGHBOURS:
            return [f"finds up to {launch_table.MOST_NEIGHBOURS} neighbours, got k = {k}"]
        if isinstance(request, ScanRequest):
            return stages.reasons(request, lambda stage: self._scan_reasons(stage, device))
        return memory_reasons(search_bytes(request, self._search(request)[1]), self._search_device(request))

    def _scan_reasons(self, request: ScanRequest, device: str) -> list[str]:
        if isinstance(request.bank, CodeBank) and len(request.bank.table) > launch_table.MOST_CODES:
            return [f"compares up to {launch_table.MOST_CODES} codes by table, got {len(request.bank.table)}"]
        width = cell_width(request)
        if request.plan.sides[-1] > MOST_SIDE or request.plan.sides[-1] ** 2 * width * 4 >= 2**31:
            return [f"canvas of side {request.plan.sides[-1]} with {width} channels is too large"]
        if request.plan.cuts and request.plan.patch > launch_table.MOST_CUT:
            return [f"cuts patches of up to {launch_table.MOST_CUT} cells, got {request.plan.patch}"]
        target = self._device(device)
        machine = self._machine(target)
        try:
            launch = launch_table.choose(_work(request), machine, **self.tuning.fixed)
        except ValueError as error:
            return [str(error)]
        scratch = _scratch_bytes(request, launch, machine.multiprocessors)
        return self._store.memory_reasons(request, target, scratch, _code_shift(request))

    def scan(self, request: ScanRequest, device: str = "auto") -> NDArray[np.int32]:
        philox.check_seed(request.seed)
        return stages.run(request, lambda stage: self._scan_stage(stage, self._device(device)))

    def _scan_stage(self, request: ScanRequest, target: torch.device) -> NDArray[np.int32]:
        plan, count, side = request.plan, len(request.images), request.plan.sides[-1]
        if count == 0:
            return np.empty((0, side, side), np.int32)
        native = self._native()
        bank = self._store.bank(request, target, self.tuning.kept, _code_shift(request))
        scales, steps, cells, resize, cuts = self._store.plan(plan, target)
        offsets = self._store.offsets(request, bank, self.tuning.kept)
        start, begin = start_cells(request, bank.width, bank.code_shift)
        machine, work = self._machine(target), _work(request)
        launch = launch_table.choose(work, machine, **self.tuning.fixed)
        shape = asdict(launch) | {"k": work.k, "codes": work.codes, "width": work.width, "cut": work.cut}
        tiles = -(-count // launch.tile)
        resident = native.scan_blocks(shape, target.index or 0) * machine.multiprocessors
        groups = max(1, min(tiles, resident // launch.group, self.tuning.groups or tiles))

        def room(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device=target)

        tensors = {
            "scales": scales,
            "steps": steps,
            "cells": cells,
            "resize": resize,
            "cuts": cuts,
            "bank": bank.content,
            "table": bank.table,
            "candidates": bank.candidates,
            "offsets": room(0, dtype=torch.int32) if offsets is None else offsets,
            "begin": torch.from_numpy(begin).to(target),
            "start": torch.from_numpy(start).to(target),
            "images": torch.from_numpy(request.images.astype(np.uint32).view(np.int32)).to(target),
            "canvas": room(groups * launch.group, 2, launch.tile, side * side * bank.width, dtype=torch.int16),
            "partial": room(groups if launch.group > 1 else 0, 2, launch.tile, work.k, launch.group, dtype=torch.int64),
            "counters": torch.zeros(groups, dtype=torch.int32, device=target),
            "sources": room(count, side, side, dtype=torch.int32),
        }
        numbers = {
            "groups": groups,
            "scales": len(plan.scales),
            "steps": len(steps),
            "cells": len(cells),
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
            "shared": launch_table.shared_bytes(launch, work),
        }
        buffers = {name: _span(tensor) for name, tensor in tensors.items()}
        native.scan(shape, numbers, buffers, target.index or 0, self._stream(target))
        result: NDArray[np.int32] = tensors["sources"].cpu().numpy()
        return result

    def masked_topk(self, request: TopkRequest) -> TopK:
        target = self._search_device(request)
        queries, bank = _on_device(request.queries, target), _on_device(request.bank, target)
        patch_mask, candidate_mask = (
            None if mask is None else _on_device(mask, target) for mask in (request.patch_mask, request.candidate_mask)
        )
        integers, (count, width), k = bank.dtype == torch.int16, queries.shape, request.k
        distances = torch.empty((count, k), dtype=torch.int32 if integers else torch.float32, device=target)
        indices = torch.empty((count, k), dtype=torch.int64, device=target)
        if count:
            launch, scratch_bytes = self._search(request)
            scratch = torch.empty(scratch_bytes // 8, dtype=torch.int64, device=target)
            self._native().masked_topk(
                _span(queries),
                _span(bank),
                _span(patch_mask),
                _own_mask(request),
                _span(candidate_mask),
                *(count, len(bank), width, k, integers),
                *(_span(distances), _span(indices), _span(scratch)),
                *(target.index or 0, self._stream(target), launch),
            )
        if isinstance(request.bank, torch.Tensor):
            return TopK(distances, indices)
        return TopK(distances.cpu().numpy(), indices.cpu().numpy())

    def _search(self, request: TopkRequest) -> tuple[tuple[int, int, int, int], int]:
        """Launch of a masked_topk (tile, query warps, bank warps, slabs), and the bytes of its scratch."""
        count, rows, k, device = len(request.queries), len(request.bank), request.k, self._search_device(request)
        if not count:
            return (1, 1, 1, 1), 0
        native, machine = self._native(), self._machine(device)
        tile = launch_table.choose_topk(count, rows, k, machine.shared)
        integers = request.bank.dtype in (np.int16, torch.int16)
        resident = native.masked_topk_blocks(k, integers, _own_mask(request), (*tile, 1), device.index or 0)
        launch = (*tile, launch_table.choose_slabs(count, rows, tile, resident * machine.multiprocessors))
        return launch, native.masked_topk_scratch(count, rows, k, launch)

    def _search_device(self, request: TopkRequest) -> torch.device:
        given = request.bank
        return given.device if isinstance(given, torch.Tensor) else self._device("auto")

    def _native(self) -> ModuleType:
        return self._given if self._given is not None else _native.cuda()

    def _device(self, device: str) -> torch.device:
        return numbered_device(device, self._device_type)

    def _machine(self, device: torch.device) -> Machine:
        if device.type != "cuda":
            return Machine(4, 160 << 10, CAPABILITY)
        properties = torch.cuda.get_device_properties(device)
        return Machine(
            properties.multi_processor_count,
            getattr(properties, "shared_memory_per_block_optin", SHARED),
            10 * properties.major + properties.minor,
        )

    @staticmethod
    def _stream(device: torch.device) -> int:
        return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _on_device(array: Array, device: torch.device) -> torch.Tensor:
    """The array as a contiguous tensor there; the tensor itself if it is one."""
    return (array if isinstance(array, torch.Tensor) else tensor(array)).to(device).contiguous()


def _span(tensor: torch.Tensor | None) -> tuple[int, int] | None:
    """(address, bytes) of a tensor."""
    return None if tensor is None else (tensor.data_ptr(), tensor.nbytes)


def _own_mask(request: TopkRequest) -> bool:
    """Whether each query has a mask of its own."""
    return request.patch_mask is not None and request.patch_mask.ndim == 2


def _work(request: ScanRequest) -> Work:
    """What the launch table needs to know of a request."""
    compared = request.plan.flat.steps[:, 1]
    return Work(
        images=max(1, len(request.images)),
        allowed=len(request.candidates),
        compared=max(1.0, float(compared.mean())) if len(compared) else 1.0,
        most=max(1, int(compared.max(initial=0))),
        k=min(request.k, len(request.candidates)),
        codes=-(-len(request.bank.table) // 4) * 4 if isinstance(request.bank, CodeBank) else 0,
        width=cell_width(request),
        cut=request.plan.patch if request.plan.cuts else 0,
    )


def _code_shift(request: ScanRequest) -> int:
    """How the kernels want the codes of this bank."""
    few = isinstance(request.bank, CodeBank) and len(request.bank.table) <= launch_table.MOST_ROW_CODES
    return launch_table.CODE_SHIFT if few else 0


def _scratch_bytes(request: ScanRequest, launch: Launch, multiprocessors: int) -> int:
    """What a scan takes beside the bank, at most."""
    side, count = request.plan.sides[-1], len(request.images)
    blocks = min(-(-count // launch.tile) * launch.group, multiprocessors * (2048 // launch.threads))
    canvases = blocks * 2 * launch.tile * side * side * cell_width(request) * 2
    partial = 2 * blocks * launch.tile * request.k * 8
    return canvases + partial + start_bytes(request) + count * side * side * 4
