"""The "numpy" backend: the specification that every other backend must equal, bit for bit.

Written to be read, one image and one step at a time. Distances are exact integers (int64 sums
that fit int32), so no order of summation can change them; ties go to the lowest bank index.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lpkernel import philox
from lpkernel.backends import seams
from lpkernel.backends.base import Array, CodeBank, LatentBank, ScanRequest, TopK, TopkRequest
from lpkernel.plan import Resize, Scale

MOST_REFERENCES = 256  # T of `references`


def resize_canvas(canvas: NDArray[np.int16], resize: Resize) -> NDArray[np.int16]:
    """(n, n, C) int16 -> (m, m, C): four corners times two 8-bit weights, rounded by a shift."""
    values = canvas.astype(np.int32)
    f = resize.f[:, None, None]
    rows = values[resize.i0] * (256 - f) + values[resize.i1] * f
    f = resize.f[None, :, None]
    total = rows[:, resize.i0] * (256 - f) + rows[:, resize.i1] * f
    return np.right_shift(total + 32768, 16).astype(np.int16)


def latent_distances(ours: Array, theirs: Array) -> NDArray[np.int64]:
    """Squared L2 distance of cells (..., n, C) to those of A images (A, n, C)."""
    return np.square(theirs.astype(np.int64) - ours.astype(np.int64)).sum(axis=(-2, -1))


def code_distances(ours: Array, theirs: Array, table: Array) -> NDArray[np.int64]:
    """The same integers for codes (..., n) and (A, n), read from the table of distances between codes."""
    return table[ours, theirs].sum(axis=-1, dtype=np.int64)


def distances(bank: LatentBank | CodeBank, ours: Array, theirs: Array) -> NDArray[np.int64]:
    """Squared distances in either domain."""
    return code_distances(ours, theirs, bank.table) if isinstance(bank, CodeBank) else latent_distances(ours, theirs)


def references(count: int) -> tuple[NDArray[np.int64], int]:
    """T reference images among A allowed ones, by position, and J, the number of neighbours that isolation uses."""
    total = min(count, MOST_REFERENCES)
    return np.arange(total) * count // total, max(1, (5 * total + count // 2) // count)


def isolation(bank: LatentBank | CodeBank, content: Array, cells: Array) -> NDArray[np.int64]:
    """(A,): how far each of A images (A, m * m, ...) is from the others over some cells; cells given twice count twice.

    The mean, rounded down, of its distances to the J nearest of the reference images other than itself; of all others
    where there are fewer; 0 without any.
    """
    chosen, nearest = references(len(content))
    theirs = content[chosen].take(cells, axis=1)
    found = np.zeros(len(content), np.int64)
    for position, image in enumerate(content.take(cells, axis=1)):
        others = np.sort(distances(bank, image, theirs)[chosen != position])[:nearest]
        found[position] = others.sum() // len(others) if len(others) else 0
    return found


def kept_by_cut(errors: NDArray[np.int64], left: int, top: int) -> NDArray[np.bool_]:
    """(P, P): the cells of a patch that stay as they are, by the minimum error boundary (Efros and Freeman 2001).

    errors: (P, P) squared distance between what is there and what would be copied. A boundary runs from top to bottom
    through the first `left` columns and keeps what is left of it; another from left to right through the first `top`
    rows keeps what is above.
    """
    size = len(errors)
    kept = np.arange(size) < _boundary(errors[:, :left])[:, None]
    return kept | (np.arange(size)[:, None] < _boundary(errors[:top].T))


def _boundary(errors: NDArray[np.int64]) -> NDArray[np.int64]:
    """The column, for each row, of the path of least sum from top to bottom that moves by at most one column a row.

    Ties go to the lowest column, from the last row upwards. Zeros if there is no column.
    """
    rows, width = errors.shape
    path = np.zeros(rows, np.int64)
    if width == 0:
        return path
    sums = errors.copy()
    for row in range(1, rows):
        for column in range(width):
            sums[row, column] += sums[row - 1, max(0, column - 1) : column + 2].min()
    path[-1] = sums[-1].argmin()
    for row in range(rows - 2, -1, -1):
        first = max(0, path[row + 1] - 1)
        path[row] = first + sums[row, first : path[row + 1] + 2].argmin()
    return path


class _Layer:
    """A scale and the bank at its side; canvases are (m, m, ...) of the scale's domain, sources (m, m)."""

    def __init__(self, request: ScanRequest, scale: Scale) -> None:
        self.scale, self.allowed = scale, request.candidates
        self.bank = request.bank_at(scale.side)
        self.content = np.asarray(self.bank.codes if isinstance(self.bank, CodeBank) else self.bank.level(scale.side))
        chosen = self.content if len(self.allowed) == len(self.content) else self.content[self.allowed]
        self.cells = chosen.reshape(len(chosen), scale.side**2, *chosen.shape[3:])
        self.offsets = np.zeros((len(scale.positions), len(self.allowed)), np.int64)
        for i, compared in enumerate(scale.compared if request.hubness else ()):
            self.offsets[i] = request.hubness * isolation(self.bank, self.cells, compared) >> 8

    def enter(self, canvas: Array | None, sources: Array, start: Array | None) -> tuple[Array, NDArray[np.int32]]:
        """The canvas and its sources at the beginning of the scale."""
        side = self.scale.side
        unknown = np.full((side, side), -1, np.int32)
        if canvas is None:
            if start is not None:
                return start.copy(), unknown
            return np.zeros(self.content.shape[1:], np.int64 if isinstance(self.bank, CodeBank) else np.int16), unknown
        if self.scale.carry is not None:
            index = self.scale.carry.index
            sources = sources[index[:, None], index]
            y, x = np.indices(sources.shape)
            canvas = self.content[sources, y, x]
            kept = self.scale.kept | (sources < 0)
            sources = np.where(kept, unknown, sources)
        else:
            assert self.scale.resize is not None
            canvas, sources, kept = resize_canvas(canvas, self.scale.resize), unknown, self.scale.kept
        if start is not None:
            canvas[kept] = start[kept]
        return canvas, sources

    def neighbours(self, canvas: Array, i: int, k: int) -> NDArray[np.int64]:
        """The K nearest allowed images, or all of them when nothing is known yet."""
        compared = self.scale.compared[i]
        if not len(compared):
            return self.allowed
        ours = canvas.reshape(self.scale.side**2, *canvas.shape[2:])[compared]
        ranked = distances(self.bank, ours, self.cells[:, compared]) - self.offsets[i]
        return self.allowed[np.argsort(ranked, kind="stable")[:k]]

    def copy(self, canvas: Array, sources: NDArray[np.int32], i: int, source: int) -> None:
        """Step i copies the patch of a bank image, except where the boundary keeps the canvas."""
        (y, x), write, (left, top) = self.scale.positions[i], self.scale.write[i], self.scale.overlap[i]
        window = np.s_[y : y + len(write), x : x + len(write)]
        new = self.content[source][window]
        if left or top:
            one = np.expand_dims(new, 2), np.expand_dims(canvas[window], 2)
            write = write & ~kept_by_cut(distances(self.bank, *one), left, top)
        canvas[window][write] = new[write]
        sources[window][write] = source


class NumpyBackend:
    """The method of docs/method.md, exactly; no attempt at speed."""

    name = "numpy"
    checks_only = False

    def unavailable(self, device: str = "auto") -> list[str]:
        return [] if device in ("auto", "cpu") else [f"runs on the CPU only, not on {device}"]

    def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
        return self.unavailable(request.device)

    def scan(self, request: ScanRequest) -> NDArray[np.int32]:
        side = request.plan.sides[-1]
        sources = np.empty((len(request.images), side, side), np.int32)
        scales = [_Layer(request, scale) for scale in request.plan.scales]
        for row, image in enumerate(request.images):
            sources[row] = self._scan_image(request, scales, row, int(image))
        return seams.refined(request, sources)

    def _scan_image(self, request: ScanRequest, scales: list[_Layer], row: int, image: int) -> NDArray[np.int32]:
        canvas: Array | None = None
        sources = np.empty(0, np.int32)
        step = request.plan.first_step
        for layer, start in zip(scales, request.canvas, strict=True):
            if start is not None:
                start = start[min(row, len(start) - 1)]
            canvas, sources = layer.enter(canvas, sources, start)
            for i in range(len(layer.scale.positions)):
                best = layer.neighbours(canvas, i, request.k)
                source = best[philox.pick(philox.draws(request.seed, image, step), len(best))]
                layer.copy(canvas, sources, i, int(source))
                step += 1
        return sources

    def masked_topk(self, request: TopkRequest) -> TopK:
        """Each query separately, in float64 or int64, then a stable sort of the distances as returned; NaN is last.

        With weights, the float32 rounding of weight times sum (a float64 product) is sorted and returned.
        """
        queries, bank = np.asarray(request.queries), np.asarray(request.bank)
        wide, narrow, empty = (
            (np.int64, np.int32, np.iinfo(np.int32).max) if bank.dtype == np.int16 else (np.float64, np.float32, np.inf)
        )
        allowed = np.arange(len(bank)) if request.candidate_mask is None else np.flatnonzero(request.candidate_mask)
        rows = bank[allowed].astype(wide)
        weights = wide(1) if request.weights is None else np.asarray(request.weights)[allowed]
        count = min(request.k, len(allowed))
        distances = np.full((len(queries), request.k), empty, narrow)
        indices = np.full((len(queries), request.k), -1, np.int64)
        for i, query in enumerate(queries):
            columns: Array | slice = slice(None)
            if request.patch_mask is not None:
                mask = np.asarray(request.patch_mask)
                columns = mask if mask.ndim == 1 else mask[i]
            with np.errstate(over="ignore", invalid="ignore"):
                row = (weights * np.square(rows[:, columns] - query[columns].astype(wide)).sum(axis=1)).astype(narrow)
            if narrow is np.float32:
                row[np.isnan(row)] = np.nan
            order = np.argsort(row, kind="stable")[:count]
            distances[i, :count], indices[i, :count] = row[order], allowed[order]
        return TopK(distances, indices)
