"""The "cpp" backend: compiled C++ kernels (csrc/cpu), a whole plan in one call.

Uses as many threads as torch does (`torch.set_num_threads`), and the best instruction set of the
machine unless the environment variable LPKERNEL_ISA names one: avx512, avx2 or baseline. Neither
changes a bit of the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel import _native, philox, views
from lpkernel.backends import refusals, seams
from lpkernel.backends.base import Array, CodeBank, LatentBank, ScanRequest, TopK, TopkRequest
from lpkernel.backends.store import Store
from lpkernel.errors import InputError
from lpkernel.levels import level_axis
from lpkernel.limits import INT16_CODES, MOST_SIDE
from lpkernel.plan import Scale
from lpkernel.views import Views

# Times of masked_topk with rows in place / packed, k = 10, two threads: 10,000 rows of 64: 0.9 with 8 queries, 1.3 with
# 16, 1.9 with 32; 10,000 of 256: 0.4, 0.8, 1.1; 100,000 of 64: 0.6, 0.9, 1.4; 100,000 of 16: 1.0 with 4, 1.7 with 8. k
# = 1, rows of 1,024: 16 rows 0.3 with 16 queries, 0.5 with 64; 128 rows 0.8 with 16, 1.1 with 32; 1,024 rows 0.8, 1.0.
# Of int16: 10,000 rows of 64: 0.7 with 8 queries, 0.9 with 16, 1.2 with 32; 30,000 of 512: 0.4 with 16, 0.7 with 32,
# 0.8 with 64, 1.1 with 128.
LARGE = 1 << 22  # bytes of a bank above which packing it is bound by memory
NARROW = 32  # values of a row below which comparing it where it lies leaves lanes empty
NARROWER = 8  # and below which packing it takes no longer than comparing it once
WIDE = 256  # and from which packing it takes as long as many comparisons
FEW_ROWS = 24  # of a bank of wide rows, which take long to pack for one neighbour


@dataclass
class Tuning:
    """Thresholds of the native code; results do not depend on them.

    group: images that walk through a plan together.
    split: compared values of a step from which few images share it among the threads.
    few: images made, below which codes are never compared as latents: laying these out takes longer than they save.
    seeded: bank images from which a search starts from the limit that recent neighbours give.
    pairs: bank images up to which all distances between them are tabulated.
    screened: images of codes from which bounds come before exact sums.
    coarse: images of latents from which a few channels are compared before all.
    kept: bytes of bank layouts that are kept for the next call; 1 GiB is two million images of 256 codes.
    levels: bytes of all levels of a plan, beyond which those of a bank of codes are not kept but made where needed, and
        its codes are not compared as latents.
    some: largest size, in bytes, at which the channels of such a level that are compared first are kept; four times
        that where there is one for each shift of views.
    packed: queries from which masked_topk packs the bank; twice as many above 4 MiB; a quarter for rows of less than 32
        values, one for less than 8; for one neighbour in rows of 256 values or more twice as many, in up to 24 of them
        four times as many; of int16 twice as many in rows of 32 values or more.
    """

    group: int = 64
    split: int = 1 << 17
    few: int = 4
    seeded: int = 512
    pairs: int = 32
    screened: int = 2048
    coarse: int = 256
    kept: int = 1 << 30
    levels: int = 1 << 25
    some: int = 1 << 25
    packed: int = 16


class Chosen(NamedTuple):
    """The allowed images of an array or, with a radius, their views."""

    candidates: Array
    radius: int

    @property
    def shifts(self) -> Array | None:
        return views.shifts(self.radius) if self.radius else None


class CppBackend:
    """Scans and searches on the CPU."""

    name = "cpp"
    checks_only = False

    def __init__(self) -> None:
        self.tuning = Tuning()
        self._layers: Store[Any] = Store()
        self._isolations: Store[Any] = Store()
        self._steps: Store[Any] = Store()

    def unavailable(self, device: str = "auto") -> list[str]:
        if device not in ("auto", "cpu"):
            return [f"runs on the CPU only, not on {device}"]
        return list(_native.isa_reasons(_native.isa()))

    def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
        if reasons := self.unavailable(request.device):
            return reasons
        if isinstance(request, ScanRequest):
            if (side := request.plan.sides[-1]) > MOST_SIDE:
                return [f"scans grids of up to {MOST_SIDE} cells a side, got {side}"]
            bank = request.bank_at(side)
            if isinstance(bank, CodeBank) and len(bank.table) > INT16_CODES:
                return [refusals.too_many_codes(len(bank.table))]
        return []

    def scan(self, request: ScanRequest) -> NDArray[np.int32]:
        try:
            return seams.refined(request, self._scan(request))
        except ValueError as error:
            if str(error).startswith("codes: "):  # codes of a mapped file, which are checked as they are read
                raise InputError(str(error)) from error
            raise

    def _scan(self, request: ScanRequest) -> NDArray[np.int32]:
        isa, tuning = _native.isa(), self.tuning
        philox.check_seed(request.seed)
        scales = []
        banks = self._banks(request)
        kept = _level_bytes(banks) <= tuning.levels
        for scale, start in zip(request.plan.scales, request.canvas, strict=True):
            bank = banks[scale.side]
            steps = self._native_steps(scale)
            made_from: tuple[Array, ...]  # content and, unless it is a level, the table or vectors for its codes
            if isinstance(bank, CodeBank):
                codes, radius = _images(bank.codes)
                made_from, chosen = (codes, _dense(bank.table)), Chosen(request.candidates, radius)
                layer = self._layer(steps, *made_from, chosen, isa)
            elif bank.cells is not None and (isinstance(bank.cells[0], Views) or not kept):
                codes, radius = _images(bank.cells[0])
                made_from, chosen = (codes, bank.cells[1]), Chosen(request.candidates, radius)
                layer = self._derived(scale.side, *made_from, chosen, isa)
            else:
                level, radius = _images(bank.level(scale.side))
                made_from, chosen = (level,), Chosen(request.candidates, radius)
                layer = self._layer(steps, level, None, chosen, isa)
            isolation = None
            if request.hubness:
                isolation = self._isolation(scale, steps, layer, made_from, chosen, isa)
            asked = request.bank_at(scale.side)
            if start is not None and isinstance(asked, CodeBank) and isinstance(bank, LatentBank):
                start = asked.vectors[start]
            first = None if start is None else _start(start, len(bank.table) if isinstance(bank, CodeBank) else None)
            scales.append((steps, layer, made_from[0], first, isolation))
        return _native.cpu().scan(
            scales,
            request.images,
            min(request.k, request.bank.size),
            request.seed,
            request.plan.first_step,
            request.hubness,
            torch.get_num_threads(),
            isa,
            (tuning.group, tuning.split, tuning.seeded),
        )

    def _banks(self, request: ScanRequest) -> dict[int, CodeBank | LatentBank]:
        """What is compared at each side: codes as latents where these are allowed, worth laying out, and kept."""
        asked = {side: request.bank_at(side) for side in request.plan.sides}
        if len(request.images) < self.tuning.few or len(request.candidates) <= self.tuning.pairs:
            return asked
        latents = {side: _as_latents(bank) for side, bank in asked.items()}
        return latents if _level_bytes(latents) <= self.tuning.levels else asked

    def _layer(self, steps: Any, content: Array, table: Array | None, chosen: Chosen, isa: str) -> Any:
        """The bank laid out for search, kept as long as its arrays live. Banks are read-only."""
        entries, tuning = np.zeros((1, 1), np.int32) if table is None else table, self.tuning
        summed = len(chosen.candidates) > tuning.pairs or not steps.by_cells  # what the steps need from a small bank
        ways = (isa, tuning.pairs, summed, tuning.screened, tuning.coarse)
        arrays = (content,) if table is None else (content, table)
        return self._layers.get(
            (*_key(arrays, chosen), *ways),
            arrays,
            tuning.kept,
            lambda layer: layer.bytes,
            lambda: _native.cpu().Layer(content, entries, chosen.candidates, *ways, chosen.shifts),
        )

    def _derived(self, side: int, codes: Array, codebook: Array, chosen: Chosen, isa: str) -> Any:
        """A level of a bank of codes, laid out without making the whole level."""
        ways = (isa, self.tuning.some * (4 if chosen.radius else 1))
        axis = level_axis(codes.shape[1], side)
        return self._layers.get(
            (*_key((codes, codebook), chosen), side, *ways),
            (codes, codebook),
            self.tuning.kept,
            lambda layer: layer.bytes,
            lambda: _native.cpu().Layer(codes, codebook, axis, chosen.candidates, *ways, chosen.shifts),
        )

    def _isolation(
        self, scale: Scale, steps: Any, layer: Any, made_from: tuple[Array, ...], chosen: Chosen, isa: str
    ) -> Any:
        """How far the allowed images are from each other at the steps of a scale, kept as long as all of these live."""
        return self._isolations.get(
            (id(scale), *_key(made_from, chosen)),
            (scale, *made_from),
            self.tuning.kept,
            lambda isolation: isolation.bytes,
            lambda: _native.cpu().Isolation(steps, layer, made_from[0], torch.get_num_threads(), isa),
        )

    def _native_steps(self, scale: Scale) -> Any:
        """The steps of a scale, kept as long as it lives, whatever they take. Plans are read-only."""
        return self._steps.get((id(scale),), (scale,), 0, lambda _: 0, lambda: _steps(scale))

    def plain_topk(self, queries: Array, bank: Array, k: int, by_auto: bool) -> tuple[Array, Array, bool] | None:
        """(distances, indices, whether any distance is out of float32's range) of float32 rows without masks or
        weights, with as little around it as possible; None where `masked_topk` has to look closer.
        """
        if _native.cpu_reasons():
            return None
        found: tuple[Array, Array, bool] | None = _native.cpu().plain_topk(
            queries, bank, k, torch.get_num_threads(), self._packed_from(bank, k), by_auto
        )
        return found

    def _packed_from(self, bank: Array, k: int) -> int:
        width, packed = bank.shape[1] if bank.ndim == 2 else 0, self.tuning.packed
        if width < NARROW:
            return packed // 4 if width >= NARROWER else 1
        if bank.itemsize == 2:
            packed *= 2
        if k == 1 and width >= WIDE:
            return (2 if bank.shape[0] > FEW_ROWS else 4) * packed
        return packed if bank.nbytes <= LARGE else 2 * packed

    def masked_topk(self, request: TopkRequest) -> TopK:
        arrays = (request.queries, request.bank, request.patch_mask, request.candidate_mask, request.weights)
        queries, bank, patch_mask, candidate_mask, weights = (
            None if array is None else np.require(array, requirements=["C", "A"]) for array in arrays
        )
        threads, isa = torch.get_num_threads(), _native.isa()
        packed = self._packed_from(request.bank, request.k)
        return TopK(
            *_native.cpu().masked_topk(
                queries, bank, request.k, patch_mask, candidate_mask, weights, threads, isa, packed
            )
        )


def _steps(scale: Scale) -> Any:
    enter: tuple[Array, ...] | None = None
    if scale.resize is not None:
        enter = scale.resize.i0, scale.resize.i1, scale.resize.f
    elif scale.carry is not None:
        enter = (scale.carry.index,)
    counts = np.array([len(cells) for cells in scale.compared], np.int32)
    compared = np.concatenate([*scale.compared, np.empty(0, np.int64)]).astype(np.int32)
    return _native.cpu().Steps(scale.side, scale.positions, counts, compared, scale.write, scale.overlap, enter)


def _key(arrays: tuple[Array, ...], chosen: Chosen) -> tuple[Any, ...]:
    """The key of something made from the allowed images of these arrays."""
    every = len(chosen.candidates) == len(arrays[0]) * (1 if chosen.shifts is None else len(chosen.shifts))
    return *map(id, arrays), chosen.radius, None if every else chosen.candidates.tobytes()


def _as_latents(bank: CodeBank | LatentBank) -> CodeBank | LatentBank:
    if isinstance(bank, LatentBank) or isinstance(bank.codes, Views):
        return bank
    return bank if bank.latents is None or bank.latents.cells is None else bank.latents


def _level_bytes(banks: dict[int, CodeBank | LatentBank]) -> int:
    """Bytes of all levels that are compared as latents and could be made from codes."""
    return sum(
        bank.size * side * side * bank.cells[1].shape[1] * bank.cells[1].itemsize
        for side, bank in banks.items()
        if isinstance(bank, LatentBank) and bank.cells
    )


def _images(content: Array | Views) -> tuple[Array, int]:
    """The images that the native code reads, and the radius of the views that it makes of them itself.

    Views of a smaller side are fractions of a cell apart; without codes to make them from, they are laid out as images.
    """
    if not isinstance(content, Views):
        return _dense(content), 0
    if content.side == content.full and content.vectors is None:
        return _dense(content.cells), content.radius
    return content.whole, 0


def _dense(array: Array) -> Array:
    """int16 codes and latents, int32 tables; contiguous. The same object where it already is."""
    wanted = np.int32 if array.ndim == 2 else np.int16
    if array.dtype == wanted and array.flags.c_contiguous and array.flags.aligned:
        return array  # not ascontiguousarray, which makes a new object of a memory map
    return np.ascontiguousarray(array, wanted)


def _start(start: Array, codes: int | None) -> Array:
    """Starting cells as int16; codes must be below `codes`, which is checked before they are narrowed."""
    if codes is not None and start.size and not 0 <= start.min() <= start.max() < codes:
        raise InputError(f"canvas: codes run from {start.min()} to {start.max()}, expected 0 to {codes - 1}")
    return np.ascontiguousarray(start, np.int16)
