"""The "triton" backend: Triton kernels (triton_kernels/) for NVIDIA and AMD GPUs.

A scan is one launch per scale where the bank is small or the images fill the device, else two per step; with
boundaries always two, or three where the step has some. From the second run of a plan on the same bank the launches are
one CUDA graph. Nothing is read back before the source maps of a stage.

With TRITON_INTERPRET=1 in the environment before the first import, Triton's interpreter runs the kernels on the CPU.
This is only for checking: it is thousands of times slower than the other backends, and "auto" never takes it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpkernel import philox
from lpkernel.backends import refusals, seams, stages
from lpkernel.backends.base import CodeBank, ScanRequest, TopK, TopkRequest
from lpkernel.backends.device_bank import (
    DeviceBank,
    DeviceStore,
    cell_width,
    numbered_device,
    search_bytes,
    start_bytes,
    start_cells,
    wrong_device,
)
from lpkernel.backends.pytorch import tensor
from lpkernel.backends.store import Store
from lpkernel.limits import INT16_CODES
from lpkernel.triton_kernels import configs
from lpkernel.triton_kernels.configs import Launch

if TYPE_CHECKING:
    from types import ModuleType


@dataclass
class Tuning:
    """What replaces the table's choice, for tests and measurements; results do not depend on it.

    slabs: parts that the bank is cut into, 1 for one launch per scale. dot: latents by tl.dot or not. images: how many
    one run makes at a time. kept: bytes of banks, and as many of offsets, that stay on the device. runs: bytes
    of buffers of earlier scans that stay there.
    """

    slabs: int | None = None
    dot: bool | None = None
    images: int = 4096
    kept: int = 1 << 32
    runs: int = 1 << 30


class TritonBackend:
    """Scans and searches on a GPU; on CPU tensors (device_type "cpu") where Triton's interpreter is on."""

    name = "triton"

    def __init__(self, device_type: str = "cuda") -> None:
        self.tuning = Tuning()
        self._given = device_type
        self._largest: Store[int] = Store()
        self._runs: Store[_Run] = Store()
        self._store = DeviceStore(self._runs)
        self._lock = threading.Lock()  # runs keep their buffers, and kernels are compiled at their first call

    @property
    def interpreted(self) -> bool:
        """Whether Triton's interpreter runs the kernels."""
        return os.environ.get("TRITON_INTERPRET", "0") == "1"

    @property
    def checks_only(self) -> bool:
        return self.interpreted

    def unavailable(self, device: str = "auto") -> list[str]:
        return self._reasons_at(device, tensors=False)

    def _reasons_at(self, device: str, tensors: bool) -> list[str]:
        """Reasons against a device: the one that holds the caller's tensors, or the one that was named."""
        if not _installed():
            return ["the package triton is not installed: pip install 'lpkernel[triton]'"]
        wanted = self._device_type
        if wanted == "cuda" and not torch.cuda.is_available():
            here = f"PyTorch {torch.__version__} sees no CUDA or ROCm device"
            return [f"{here}; to check the kernels on the CPU, slowly, set TRITON_INTERPRET=1"]
        if device != "auto" and (place := torch.device(device)).type != wanted:
            return [wrong_device(wanted, place, tensors)]
        return []

    def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
        if reasons := self._reasons_at(request.device, isinstance(request, TopkRequest)):
            return reasons
        count = len(request.candidates) if isinstance(request, ScanRequest) else request.k
        if (k := min(request.k, count)) > configs.MOST_NEIGHBOURS:
            return [refusals.too_many_neighbours(k, configs.MOST_NEIGHBOURS)]
        if isinstance(request, ScanRequest):
            return stages.reasons(request, self._scan_reasons)
        target = self._device(request.device)
        slots = configs.search_slots(request.k, request.bank.itemsize == 2)
        slabs = _slabs(len(request.queries), len(request.bank), slots, target)
        keys = len(request.queries) * slabs * slots * 8
        need = search_bytes(request, keys, apart=True)
        return self._store.memory.reasons(need, target, lambda: need)

    def _scan_reasons(self, request: ScanRequest) -> list[str]:
        if isinstance(request.bank, CodeBank) and len(request.bank.table) > INT16_CODES:
            return [refusals.too_many_codes(len(request.bank.table))]
        if request.plan.cuts and request.plan.patch > configs.MOST_CUT:
            return [refusals.too_wide_a_patch(request.plan.patch, configs.MOST_CUT)]
        target = self._device(request.device)
        asked = request, target, self._scratch_bytes(request)
        return self._store.memory.reasons(self._store.need(*asked), target, lambda: self._store.need(*asked))

    def scan(self, request: ScanRequest) -> NDArray[np.int32]:
        philox.check_seed(request.seed)
        target = self._device(request.device)
        with self._lock, _on(target), torch.inference_mode():
            maps = stages.run(request, lambda stage: self._scan_within(stage, target))
        return seams.refined(request, maps)

    def _scan_within(self, request: ScanRequest, target: torch.device) -> NDArray[np.int32]:
        with self._store.memory.on(target, self._scratch_bytes(request)):
            return self._scan_stage(request, target)

    def _scan_stage(self, request: ScanRequest, target: torch.device) -> NDArray[np.int32]:
        count, side = len(request.images), request.plan.sides[-1]
        sources = np.empty((count, side, side), np.int32)
        bank = self._store.bank(request, target, self.tuning.kept)
        offsets = self._store.offsets(request, bank, self.tuning.kept)
        for begin in range(0, count, self.tuning.images):
            part = slice(begin, begin + self.tuning.images)
            sources[part] = self._scan_images(request.part(part, request.images[part]), bank, offsets, target)
        return sources

    def _scan_images(
        self, request: ScanRequest, bank: DeviceBank, offsets: Tensor | None, target: torch.device
    ) -> NDArray[np.int32]:
        start, begin = start_cells(request, bank.width)
        launch = self._launch(request, bank, start, target)
        k, count = min(request.k, len(request.candidates)), len(request.images)
        sources = [request.plan, bank] if offsets is None else [request.plan, bank, offsets]
        run = self._runs.get(
            (*map(id, sources), launch, k, count, begin.tobytes()),
            sources,
            self.tuning.runs,
            lambda run: run.bytes,
            lambda: _Run(request, bank, self._store.plan(request.plan, target), launch, begin, len(start)),
        )
        return run(bank, offsets, request.images, request.seed, start)

    def _launch(self, request: ScanRequest, bank: DeviceBank, start: NDArray[Any], target: torch.device) -> Launch:
        largest = max(self._magnitude(bank), _magnitude(torch.from_numpy(start)))
        if self.tuning.dot is False:
            largest = configs.DOT_LIMIT + 1
        images, allowed = len(request.images), len(request.candidates)
        if self.tuning.dot:
            images, allowed = max(images, configs.DOT_IMAGES), max(allowed, configs.DOT_BANK)
        in_codes = isinstance(request.bank, CodeBank)
        k = min(request.k, len(request.candidates))
        launch = configs.choose(
            _family(), in_codes, images, allowed, k, largest, _multiprocessors(target), request.plan.cuts
        )
        wanted = launch.slabs if self.tuning.slabs is None else self.tuning.slabs
        return replace(launch, slabs=configs.cut(len(request.candidates), launch.tile.bank, wanted, launch.slots))

    def _magnitude(self, bank: DeviceBank) -> int:
        return self._largest.get((id(bank),), [bank], 1 << 10, lambda _: 1, lambda: _magnitude(bank.content))

    def _scratch_bytes(self, request: ScanRequest) -> int:
        """Most bytes that a scan takes besides the bank."""
        images, side = min(len(request.images), self.tuning.images), request.plan.sides[-1]
        width = cell_width(request)
        return images * (side * side * (4 * width + 4) + configs.MERGED[-1] * 8 + 4) + start_bytes(request, width)

    def masked_topk(self, request: TopkRequest) -> TopK:
        given = (request.queries, request.bank, request.patch_mask, request.candidate_mask, request.weights)
        of_numpy = isinstance(request.bank, np.ndarray)
        target = self._device(request.device)
        with _on(target):
            queries, bank, patch_mask, candidate_mask, weights = (
                tensor(array).to(target) if isinstance(array, np.ndarray) else array for array in given
            )
            assert queries is not None and bank is not None
            if self.interpreted:  # it keeps one copy per address, whatever the sizes of the arrays that begin there
                queries = queries.clone()
            with self._lock:  # one thread compiles a kernel
                found = _topk(queries, bank, request.k, patch_mask, candidate_mask, weights)
            return TopK(*(array.cpu().numpy() for array in found)) if of_numpy else found

    @property
    def _device_type(self) -> str:
        return "cpu" if self.interpreted else self._given

    def _device(self, device: str) -> torch.device:
        return numbered_device(device, self._device_type)


class _Run:
    """Buffers and launches of a plan for so many images: plain launches the first time, a CUDA graph from the second.

    Capturing costs more than one run, and kernels must be compiled and loaded before it. Bank and offsets are not held
    here: the store drops a run together with them, so a graph's addresses are never stale.
    """

    def __init__(
        self,
        request: ScanRequest,
        bank: DeviceBank,
        plan: tuple[Tensor, ...],
        launch: Launch,
        begin: NDArray[np.int32],
        start_rows: int,
    ) -> None:
        self.launch, self.plan = launch, plan
        self.count, self.k = len(request.images), min(request.k, len(request.candidates))
        self.sides, self.begin = request.plan.sides, begin
        self.scales, self.steps = request.plan.flat.scales.tolist(), request.plan.flat.steps.tolist()
        self.cuts, self.patch = request.plan.flat.cuts.tolist() if request.plan.cuts else [], request.plan.patch
        self.counter, self.walks = request.plan.first_step, launch.slabs == 1 and not self.cuts
        most, device = self.sides[-1] ** 2, bank.content.device

        def room(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        self.images, self.seed = room(self.count), room(2)
        self.start = room(start_rows, bank.width, dtype=torch.int16)
        self.canvas = [room(self.count * most * bank.width, dtype=torch.int16) for _ in self.sides[:2]]
        self.sources = room(self.count, self.sides[-1], self.sides[-1])
        self.keys = room(self.count, 0 if self.walks else launch.slabs, launch.slots, dtype=torch.int64)
        self.chosen, self.nothing = room(self.count), room(0, 0)
        self.kept = torch.zeros((len(self.sides), most), dtype=torch.uint8)
        for row, scale in zip(self.kept, request.plan.scales, strict=True):
            row[: scale.side**2] = tensor(scale.kept).flatten()
        self.kept = self.kept.to(device)
        self._ran = False
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def bytes(self) -> int:
        buffers = (self.images, self.start, *self.canvas, self.sources, self.keys, self.chosen, self.kept)
        return sum(buffer.nbytes for buffer in buffers)

    def __call__(
        self,
        bank: DeviceBank,
        offsets: Tensor | None,
        images: NDArray[np.int64],
        seed: int,
        start: NDArray[np.int16],
    ) -> NDArray[np.int32]:
        """Source maps (N, M, M) of these images."""
        self.images.copy_(torch.from_numpy(images.astype(np.uint32).view(np.int32)))
        words = np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32)
        self.seed.copy_(torch.from_numpy(words.view(np.int32)))
        self.start.copy_(torch.from_numpy(start))
        if self._graph is None and self._ran and self.images.device.type == "cuda":
            graph = torch.cuda.CUDAGraph()
            # Without a stream of this device, torch would take that of the first device it ever captured on.
            stream = torch.cuda.Stream(self.images.device)
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._start(bank, offsets)
            self._graph = graph
        if self._graph is not None:
            self._graph.replay()
        else:
            self._start(bank, offsets)
        self._ran = True
        result: NDArray[np.int32] = self.sources.cpu().numpy()
        return result

    def _start(self, bank: DeviceBank, offsets: Tensor | None) -> None:
        """Starts every kernel of the plan."""
        offsets = self.nothing if offsets is None else offsets
        kernels, width = _kernels("scan"), bank.width
        deep = {"W": width, "WP": configs.power(width)}
        images, most = self.count, self.sides[-1]
        for scale, (side, first, count, _, _) in enumerate(self.scales):
            canvas, old = self.canvas[scale % 2], self.canvas[(scale - 1) % 2] if scale else self.canvas[0]
            kernels.enter[(images, -(-side * side // configs.ENTER_CELLS))](
                *(old, canvas, self.sources, self.start, self.kept[scale], self.plan[3]),
                *(scale, side, self.sides[scale - 1] if scale else side, most * most, most),
                *map(int, self.begin[scale]),
                **deep,
                TC=configs.ENTER_CELLS,
                FIRST=scale == 0,
                **_options(1),
            )
            if self.walks:
                self._walk(kernels, bank, offsets, canvas, scale, first, count, deep)
                continue
            for step in range(first, first + count):
                if self.steps[step][1]:
                    self._search(kernels, bank, offsets, canvas, scale, step)
                cuts = bool(self.cuts) and any(self.cuts[step][1:])
                self._finish(kernels, bank, canvas, scale, step, deep, not cuts)
                if cuts:
                    self._stitch(kernels, bank, canvas, scale, step, deep)

    def _walk(
        self,
        kernels: ModuleType,
        bank: DeviceBank,
        offsets: Tensor,
        canvas: Tensor,
        scale: int,
        first: int,
        count: int,
        deep: dict[str, int],
    ) -> None:
        tile = self.launch.tile
        kernels.walk[(-(-self.count // tile.images),)](
            *(bank.layer(scale), bank.table, bank.candidates, canvas, self.sources),
            *(self.plan[1], self.plan[2], offsets, self.images, self.seed, first, count, self.counter, self.count),
            *(len(bank.candidates), _pitch(bank), _row(bank.table), self.sides[scale] ** 2, self.sides[-1] ** 2),
            *(_row(offsets), self.k),
            **deep,
            **self._shape,
            TC=tile.cells,
            **_options(tile.warps, tile.stages),
        )

    def _search(
        self, kernels: ModuleType, bank: DeviceBank, offsets: Tensor, canvas: Tensor, scale: int, step: int
    ) -> None:
        tile, allowed = self.launch.tile, len(bank.candidates)
        kernels.search[(-(-self.count // tile.images), self.launch.slabs)](
            *(bank.layer(scale), bank.table, canvas, self.plan[1], self.plan[2], offsets, self.keys),
            *(step, self.count, allowed, _pitch(bank), _row(bank.table), self.sides[scale] ** 2),
            *(_row(offsets), self.launch.slab(allowed), self.launch.slabs),
            W=bank.width,
            **self._shape,
            **_options(tile.warps, tile.stages),
        )

    def _finish(
        self,
        kernels: ModuleType,
        bank: DeviceBank,
        canvas: Tensor,
        scale: int,
        step: int,
        deep: dict[str, int],
        copies: bool,
    ) -> None:
        merged = configs.merged_for(self.launch.slabs * self.launch.slots)
        kernels.finish[(self.count,)](
            *(bank.layer(scale), bank.candidates, canvas, self.sources, self.plan[1], self.plan[2], self.images),
            *(self.seed, self.keys, self.chosen, step, self.counter, len(bank.candidates), _pitch(bank)),
            *(self.sides[scale] ** 2, self.sides[-1] ** 2, self.k, self.launch.slabs, int(copies)),
            **deep,
            KP=self.launch.slots,
            SLOTS=merged,
            TC=configs.FINISH_CELLS,
            **_options(configs.finish_warps(merged)),
        )

    def _stitch(
        self, kernels: ModuleType, bank: DeviceBank, canvas: Tensor, scale: int, step: int, deep: dict[str, int]
    ) -> None:
        room = next(side for side in configs.CUT if side >= self.patch)
        kernels.stitch[(self.count,)](
            *(bank.layer(scale), bank.table, bank.candidates, canvas, self.sources, self.plan[1], self.plan[2]),
            *(self.chosen, step, self.sides[scale], self.patch, *self.cuts[step], _pitch(bank), _row(bank.table)),
            *(self.sides[scale] ** 2, self.sides[-1] ** 2),
            **deep,
            PP=room,
            TC=configs.FINISH_CELLS,
            **_options(configs.CUT[room]),
        )

    @property
    def _shape(self) -> dict[str, int | bool]:
        tile = self.launch.tile
        shape = {"TN": tile.images, "TB": tile.bank, "KP": self.launch.slots}
        return {**shape, "DOT": self.launch.dot, "UNROLL": tile.unroll}


def _topk(
    queries: Tensor,
    bank: Tensor,
    k: int,
    patch_mask: Tensor | None,
    candidate_mask: Tensor | None,
    weights: Tensor | None,
) -> TopK:
    """masked_topk on tensors of one device."""
    kernels, device = _kernels("topk"), bank.device
    integer = bank.dtype == torch.int16
    queries, bank = (array if array.stride(1) == 1 else array.contiguous() for array in (queries, bank))
    none = torch.empty(0, dtype=torch.uint8, device=device)
    mask = none if patch_mask is None else patch_mask.contiguous().view(torch.uint8)
    allowed = none if candidate_mask is None else candidate_mask.contiguous().view(torch.uint8)
    row_weights = none.double() if weights is None else weights.contiguous()
    least_and_largest = none.double() if weights is None else torch.stack(torch.aminmax(weights))
    count, rows, width = len(queries), len(bank), bank.shape[1]
    distances = torch.empty((count, k), dtype=torch.int32 if integer else torch.float32, device=device)
    indices = torch.empty((count, k), dtype=torch.int64, device=device)
    if not count:
        return TopK(distances, indices)
    slots = configs.search_slots(k, integer)
    tile = configs.TOPK[_family(), slots]
    tiles = -(-count // tile.queries)
    slabs = _slabs(count, rows, slots, device)
    slab = configs.slab(rows, tile.rows, slabs)
    keys = torch.empty((count, slabs, slots), dtype=torch.int64, device=device)
    strides = (queries.stride(0), bank.stride(0), mask.stride(0) if mask.ndim == 2 else 0)
    # Flags of the queries that are run again, in float64; integer ones never are.
    flags = torch.empty(0 if integer else count, dtype=torch.uint8, device=device)
    merged = configs.merged_for(slabs * slots)
    for redo in (False,) if integer else (False, True):
        kind = {"INTEGER": integer, "MASKED": patch_mask is not None, "WEIGHTED": weights is not None, "REDO": redo}
        shape = {"KP": slots, **kind}
        kernels.search[(tiles, slabs)](
            *(queries, bank, mask, allowed, row_weights, keys, flags, count, rows, width, *strides, slab, slabs),
            **shape,
            TQ=tile.queries,
            TB=tile.rows,
            TD=tile.columns,
            CANDIDATES=candidate_mask is not None,
            **_options(tile.warps, tile.stages),
        )
        kernels.merge[(count,)](
            *(queries, bank, mask, row_weights, least_and_largest, keys, flags, distances, indices, width, *strides),
            *(slabs, k),
            **shape,
            SLOTS=merged,
            TD=configs.MERGE_COLUMNS,
            **_options(configs.finish_warps(merged)),
        )
    return TopK(distances, indices)


def _slabs(count: int, rows: int, slots: int, device: torch.device) -> int:
    """Parts that a search of `count` queries cuts the bank into."""
    tile = configs.TOPK[_family(), slots]
    tiles = max(1, -(-count // tile.queries))
    return configs.cut(rows, tile.rows, -(-configs.PROGRAMS * _multiprocessors(device) // tiles), slots)


@cache
def _installed() -> bool:
    """Looked up once: searching the import paths takes longer than a small search."""
    return importlib.util.find_spec("triton") is not None


def _kernels(name: str) -> Any:
    """A module of kernels; triton is imported here, at the first use."""
    return importlib.import_module(f"lpkernel.triton_kernels.{name}")


def _options(warps: int, stages: int = 1) -> dict[str, Any]:
    """No fused multiply-adds: they would make float distances depend on the compiler's choices."""
    return {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}


def _family() -> str:
    return "hip" if torch.version.hip else "cuda"


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _magnitude(content: Tensor) -> int:
    """Largest absolute value."""
    if not content.numel():
        return 0
    least, most = torch.aminmax(content)
    return max(-int(least), int(most))


def _pitch(bank: DeviceBank) -> int:
    """The pitch as the kernels take it: in units of 8 images for codes."""
    return bank.pitch // 8 if bank.width == 1 else bank.pitch


def _row(table: Tensor) -> int:
    return table.shape[1]


@contextlib.contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Make the device current: Triton launches on the current device and its current stream."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield
