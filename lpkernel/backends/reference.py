"""The "numpy" backend: the specification that every other backend must equal, bit for bit.

Written to be read, one image and one step at a time. Distances are exact integers (int64 sums
that fit int32), so no order of summation can change them; ties go to the lowest bank index.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lpkernel import philox
from lpkernel.backends.base import Array, CodeBank, LatentBank, ScanRequest, TopK, TopkRequest
from lpkernel.plan import Resize, Scale


def resize_canvas(canvas: NDArray[np.int16], resize: Resize) -> NDArray[np.int16]:
    """(n, n, C) int16 -> (m, m, C): four corners times two 8-bit weights, rounded by a shift."""
    values = canvas.astype(np.int32)
    f = resize.f[:, None, None]
    rows = values[resize.i0] * (256 - f) + values[resize.i1] * f
    f = resize.f[None, :, None]
    total = rows[:, resize.i0] * (256 - f) + rows[:, resize.i1] * f
    return np.right_shift(total + 32768, 16).astype(np.int16)


def latent_distances(window: Array, patches: Array, compare: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Squared L2 distance of patches (A, P, P, C) to a canvas window (P, P, C) over its known cells."""
    difference = patches[:, compare].astype(np.int64) - window[compare].astype(np.int64)
    return np.square(difference).sum(axis=(1, 2))


def code_distances(window: Array, patches: Array, compare: NDArray[np.bool_], table: Array) -> NDArray[np.int64]:
    """The same integers for codes (P, P) and (A, P, P), read from the table of distances between codes."""
    return table[window[compare], patches[:, compare]].sum(axis=1, dtype=np.int64)


class NumpyBackend:
    """DESIGN: the method, exactly; no attempt at speed."""

    name = "numpy"

    def unsupported(self, request: ScanRequest | TopkRequest | None, device: str = "auto") -> list[str]:
        if isinstance(request, TopkRequest):
            device = str(getattr(request.bank, "device", "cpu"))
        return [] if device in ("auto", "cpu") else [f"runs on the CPU only, not on {device}"]

    def scan(self, request: ScanRequest, device: str = "auto") -> NDArray[np.int32]:
        side = request.plan.sides[-1]
        sources = np.empty((len(request.images), side, side), np.int32)
        for row, image in enumerate(request.images):
            sources[row] = self._scan_image(request, row, int(image))
        return sources

    def _scan_image(self, request: ScanRequest, row: int, image: int) -> NDArray[np.int32]:
        canvas: Array | None = None
        step = 0
        for scale, start in zip(request.plan.scales, request.canvas, strict=True):
            if start is not None:
                start = start[min(row, len(start) - 1)]
            canvas = self._enter(canvas, scale, start, request.bank)
            sources = np.full((scale.side, scale.side), -1, np.int32)
            for (y, x), compare, write in zip(scale.positions, scale.compare, scale.write, strict=True):
                best = self._neighbours(request, canvas, scale.side, y, x, compare)
                u = philox.draws(request.seed, image, step)
                source = best[philox.pick(u, len(best))]
                window = np.s_[y : y + len(write), x : x + len(write)]
                canvas[window][write] = self._content(request.bank, scale.side)[source][window][write]
                sources[window][write] = source
                step += 1
        return sources

    @staticmethod
    def _enter(canvas: Array | None, scale: Scale, start: Array | None, bank: LatentBank | CodeBank) -> Array:
        """The canvas at the beginning of a scale."""
        if canvas is None:
            if start is not None:
                return start.copy()
            shape = NumpyBackend._content(bank, scale.side).shape[1:]
            return np.zeros(shape, np.int16 if isinstance(bank, LatentBank) else np.int64)
        assert scale.resize is not None
        canvas = resize_canvas(canvas, scale.resize)
        if start is not None:
            canvas[scale.kept] = start[scale.kept]
        return canvas

    @staticmethod
    def _content(bank: LatentBank | CodeBank, side: int) -> Array:
        return bank.level(side) if isinstance(bank, LatentBank) else bank.codes

    @staticmethod
    def _neighbours(
        request: ScanRequest, canvas: Array, side: int, y: int, x: int, compare: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """The K nearest allowed images, or all of them when nothing is known yet."""
        allowed = request.candidates
        if not compare.any():
            return allowed
        patch = len(compare)
        window = canvas[y : y + patch, x : x + patch]
        patches = NumpyBackend._content(request.bank, side)[allowed, y : y + patch, x : x + patch]
        if isinstance(request.bank, CodeBank):
            distances = code_distances(window, patches, compare, request.bank.table)
        else:
            distances = latent_distances(window, patches, compare)
        return allowed[np.argsort(distances, kind="stable")[: request.k]]

    def masked_topk(self, request: TopkRequest) -> TopK:
        """Each query apart, in float64 or int64, then a stable sort of the distances as returned; NaN is last."""
        queries, bank = np.asarray(request.queries), np.asarray(request.bank)
        wide, narrow, empty = (
            (np.int64, np.int32, np.iinfo(np.int32).max) if bank.dtype == np.int16 else (np.float64, np.float32, np.inf)
        )
        allowed = np.arange(len(bank)) if request.candidate_mask is None else np.flatnonzero(request.candidate_mask)
        rows = bank[allowed].astype(wide)
        count = min(request.k, len(allowed))
        distances = np.full((len(queries), request.k), empty, narrow)
        indices = np.full((len(queries), request.k), -1, np.int64)
        for i, query in enumerate(queries):
            columns: Array | slice = slice(None)
            if request.patch_mask is not None:
                mask = np.asarray(request.patch_mask)
                columns = mask if mask.ndim == 1 else mask[i]
            with np.errstate(over="ignore", invalid="ignore"):
                row = np.square(rows[:, columns] - query[columns].astype(wide)).sum(axis=1).astype(narrow)
            if narrow is np.float32:
                row[np.isnan(row)] = np.nan
            order = np.argsort(row, kind="stable")[:count]
            distances[i, :count], indices[i, :count] = row[order], allowed[order]
        return TopK(distances, indices)
