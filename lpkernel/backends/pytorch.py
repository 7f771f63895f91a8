"""The "torch" backend: the whole batch at once, in plain tensor operations, on the CPU or a GPU.

Squared distances are expanded as |q|^2 + |b|^2 - 2 q.b in float64. For int16 operands whose
distance fits int32 every term is an integer below 2^53, so the result is exact. float32 ops use the
same expansion only to screen, then measure what passed directly (see `_topk_float`).

The order (distance, index) is made total by packing both into one int64 key, since `torch.topk`
promises nothing about ties. The bank is read in tiles, so memory stays bounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpkernel import philox
from lpkernel.backends import seams, stages
from lpkernel.backends import specification as reference
from lpkernel.backends.base import Array, CodeBank, ScanRequest, TopK, TopkRequest
from lpkernel.errors import InputError
from lpkernel.plan import Resize, Scale
from lpkernel.tensor_file import is_mapped
from lpkernel.views import Views

TILE_BYTES = 16 << 20  # of float64 bank rows held at a time
LOW_WORD = (1 << 32) - 1
EMPTY_KEY = torch.iinfo(torch.int64).max
NAN_BITS = 0x7FC00000  # of every NaN distance: above those of +inf
SCREEN_MARGIN = 16  # candidates beyond K that the float screen keeps


def tensor(array: Array) -> Tensor:
    """The array's memory as a tensor; a read-only one (a plan's, a mapped bank's) is only ever read."""
    if any(stride < 0 for stride in array.strides):  # torch has no such tensors
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def pack(distances: Tensor, indices: Tensor) -> Tensor:
    """Keys (distance << 32 | index) int64, ordered by (distance, index); float32 ones, >= 0 or NaN, by their bits."""
    bits = distances
    if distances.dtype == torch.float32:
        bits = torch.where(distances.isnan(), NAN_BITS, distances.view(torch.int32))
    return (bits.to(torch.int64) << 32) | indices


def smallest(keys: Tensor, k: int) -> Tensor:
    """The k smallest of each row, ascending; all of them, sorted, if there are fewer."""
    return torch.topk(keys, min(k, keys.shape[1]), dim=1, largest=False, sorted=True).values


def resize_canvas(canvas: Tensor, resize: Resize) -> Tensor:
    """(N, n, n, C) int16 -> (N, m, m, C), as the specification."""
    i0, i1, f = (tensor(table).to(canvas.device) for table in (resize.i0, resize.i1, resize.f))
    values = canvas.to(torch.int32)
    f_rows, f_columns = f[None, :, None, None], f[None, None, :, None]
    rows = values[:, i0] * (256 - f_rows) + values[:, i1] * f_rows
    total = rows[:, :, i0] * (256 - f_columns) + rows[:, :, i1] * f_columns
    return ((total + 32768) >> 16).to(torch.int16)


class TorchBackend:
    """Vectorised over the images; loops only over the plan's steps and the bank's tiles."""

    name = "torch"
    checks_only = False

    def unavailable(self, device: str = "auto") -> list[str]:
        if device == "auto":
            return []
        kind = torch.device(device).type
        if kind == "mps":
            return ["device mps has no float64, which exactness needs"]
        if kind == "cuda" and not torch.cuda.is_available():
            return ["torch sees no CUDA device"]
        return [] if kind in ("cpu", "cuda") else [f"device {kind} is not supported; use cpu or cuda"]

    def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
        return self.unavailable(request.device) if isinstance(request, ScanRequest) else []

    def scan(self, request: ScanRequest) -> NDArray[np.int32]:
        device = request.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"

        def scan(stage: ScanRequest) -> NDArray[np.int32]:
            return _Scan(stage, torch.device(device)).run().to(torch.int32).cpu().numpy()

        with torch.inference_mode():
            return seams.refined(request, stages.run(request, scan))

    def masked_topk(self, request: TopkRequest) -> TopK:
        queries, bank, patch_mask, candidate_mask, weights = (
            tensor(array) if isinstance(array, np.ndarray) else array
            for array in (request.queries, request.bank, request.patch_mask, request.candidate_mask, request.weights)
        )
        assert queries is not None and bank is not None
        rows = torch.arange(len(bank), device=bank.device) if candidate_mask is None else candidate_mask.nonzero()[:, 0]
        if patch_mask is not None and patch_mask.ndim == 1:
            queries, bank, patch_mask = queries[:, patch_mask], bank[:, patch_mask], None
        with torch.inference_mode():
            if not len(rows) or not len(queries):
                distances, indices = _unpack(_fill(rows.new_empty((len(queries), 0)), request.k), bank.dtype)
            else:
                if bank.dtype == torch.int16:
                    keys = _topk_integer(queries, bank, request.k, patch_mask, rows)
                else:
                    keys = _topk_float(queries, bank, request.k, patch_mask, rows, weights)
                distances, indices = _unpack(keys, bank.dtype)
        if isinstance(request.queries, np.ndarray):
            return TopK(distances.numpy(), indices.numpy())
        return TopK(distances.clone(), indices.clone())  # normal tensors, not inference ones


class _Scan:
    """One run of a plan for all images of a request.

    A step compares (N, D) vectors of canvas windows with (A, D) of the allowed images by one matrix product
    per tile; unknown cells are zero in the canvas and absent from the norms, so they add nothing.
    Allowed images are in index order, so a tie at the lowest position is a tie at the lowest index.
    """

    def __init__(self, request: ScanRequest, device: torch.device) -> None:
        self.request, self.device = request, device
        self.count = len(request.images)
        self.candidates = torch.from_numpy(request.candidates).to(device)
        steps = request.plan.first_step + np.arange(request.plan.steps)
        words = philox.draws(request.seed, request.images[:, None], steps[None, :])
        self.words = torch.from_numpy(words.astype(np.int64)).to(device)
        self.codebook: Tensor | None = None
        if isinstance(request.bank, CodeBank):
            self.codebook = tensor(request.bank.vectors).to(device, torch.float64)

    def run(self) -> Tensor:
        canvas: Tensor | None = None
        sources = torch.empty(0)
        step = 0
        for scale, start in zip(self.request.plan.scales, self.request.canvas, strict=True):
            bank = self._content(scale.side)
            norms = self._norms(bank)
            canvas = self._enter(canvas, scale, start, bank).contiguous()
            sources = torch.full((self.count, scale.side, scale.side), -1, dtype=torch.int64, device=self.device)
            cells = [array.flatten(1, 2) for array in (canvas, bank, norms)]  # the canvas view shares its memory
            patch = self.request.plan.patch
            for i, ((y, x), write) in enumerate(zip(scale.positions, scale.write, strict=True)):
                compared = torch.from_numpy(scale.compared[i]).to(self.device)
                chosen = self._choose(cells, compared, self.words[:, step])
                window = np.s_[:, y : y + patch, x : x + patch]
                mask = tensor(write).to(self.device)
                copied = bank[window][chosen]
                if scale.overlap[i].any():
                    left, top = scale.overlap[i].tolist()
                    mask = mask & ~kept_by_cut(self._apart(canvas[window], copied), left, top)
                deep = mask.view(mask.shape + (1,) * (copied.ndim - 3))
                canvas[window] = torch.where(deep, copied, canvas[window])
                sources[window] = torch.where(mask, self.candidates[chosen][:, None, None], sources[window])
                step += 1
        return sources

    def _content(self, side: int) -> Tensor:
        """The allowed bank images: (A, m, m, C) int16 latents, or (A, M, M) codes."""
        bank = self.request.bank_at(side)
        cells = bank.codes if isinstance(bank, CodeBank) else bank.level(side)
        every = len(self.candidates) == bank.size
        if isinstance(cells, Views):
            cells, every = cells[self.request.candidates], True
        content = tensor(np.array(cells) if is_mapped(cells) else cells).to(self.device)
        if isinstance(bank, CodeBank) and not 0 <= int(content.min()) <= int(content.max()) < len(bank.table):
            raise InputError(f"codes: outside the codebook of {len(bank.table)}; the bank is damaged or has changed")
        return content if every else content[self.candidates]

    def _vectors(self, cells: Tensor) -> Tensor:
        """Cells of latents or codes as float64 vectors (..., C)."""
        if self.codebook is None:
            return cells.double()
        return torch.nn.functional.embedding(cells.long(), self.codebook)

    def _norms(self, bank: Tensor) -> Tensor:
        """|b|^2 of every cell: (A, m, m) int32."""
        if self.codebook is not None:
            return self.codebook.square().sum(1).to(torch.int32)[bank.long()]
        tiles = bank.split(_tile_rows(bank[0].numel())) if len(bank) else (bank,)
        return torch.cat([tile.to(torch.int32).square_().sum(3, dtype=torch.int32) for tile in tiles])

    def _enter(self, canvas: Tensor | None, scale: Scale, start: Array | None, bank: Tensor) -> Tensor:
        """The canvas (N, m, m, C) or (N, M, M) at the beginning of a scale."""
        begin = None
        if start is not None:
            begin = tensor(start).to(self.device, bank.dtype).expand(self.count, *bank.shape[1:])
        if canvas is None:
            shape = (self.count, *bank.shape[1:])
            return torch.zeros(shape, dtype=bank.dtype, device=self.device) if begin is None else begin.clone()
        assert scale.resize is not None
        canvas = resize_canvas(canvas, scale.resize)
        if begin is not None:
            kept = tensor(scale.kept).to(self.device)
            canvas[:, kept] = begin[:, kept]
        return canvas

    def _choose(self, cells: list[Tensor], compared: Tensor, words: Tensor) -> Tensor:
        """(N,) position, among the allowed images, that each image copies from. cells: of canvas, bank and norms."""
        canvas, bank, norms = cells
        if not len(compared):
            return (words * len(bank)) >> 32
        best = self._nearest(canvas[:, compared], bank, norms, compared, self._offsets(bank, compared))
        return best.gather(1, ((words * best.shape[1]) >> 32)[:, None])[:, 0] & LOW_WORD

    def _nearest(self, canvas: Tensor, bank: Tensor, norms: Tensor, compared: Tensor, offsets: Tensor | None) -> Tensor:
        """(n, K) keys of the nearest allowed images to canvas cells (n, cells, ...), ascending."""
        query = self._vectors(canvas).flatten(1)
        query_norms = query.square().sum(1, keepdim=True)
        best = torch.empty((len(query), 0), dtype=torch.int64, device=self.device)
        tile = _tile_rows(query.shape[1])
        for first in range(0, len(bank), tile):
            part = slice(first, first + tile)
            theirs = self._vectors(bank[part, compared]).flatten(1)
            their_norms = norms[part, compared].sum(1, dtype=torch.int64).double()
            distances = torch.addmm(query_norms + their_norms, query, theirs.T, alpha=-2).to(torch.int64)
            if offsets is not None:
                distances -= offsets[part]
            positions = torch.arange(first, first + len(theirs), device=self.device)
            best = smallest(torch.cat([best, pack(distances, positions)], 1), self.request.k)
        return best

    def _offsets(self, bank: Tensor, compared: Tensor) -> Tensor | None:
        """(A,) int64: what each allowed image's isolation over the compared cells takes off its distances."""
        if not self.request.hubness:
            return None

        def vectors(positions: Tensor) -> Tensor:
            return self._vectors(bank[positions[:, None], compared]).flatten(1)

        return hubness_offsets(len(bank), self.request.hubness, vectors, self.device)

    def _apart(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Squared distances of cells, (N, P, P) int64."""
        difference = self._vectors(ours) - self._vectors(theirs)
        return difference.square().sum(3).to(torch.int64)


def hubness_offsets(count: int, hubness: int, vectors: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """(A,) int64: `hubness` of 256 parts of each allowed image's `specification.isolation`.

    vectors: positions (n,) among the A allowed images -> (n, D) float64, what a step compares of them.
    """
    chosen, nearest = reference.references(count)
    places = torch.from_numpy(chosen).to(device)
    theirs = vectors(places)
    their_norms = theirs.square().sum(1)
    isolation = []
    for positions in torch.arange(count, device=device).split(_tile_rows(max(theirs.shape))):
        ours = vectors(positions)
        distances = torch.addmm(ours.square().sum(1, keepdim=True) + their_norms, ours, theirs.T, alpha=-2)
        distances.masked_fill_(positions[:, None] == places, torch.inf)
        few = smallest(distances, nearest)
        others = few.isfinite().sum(1)
        isolation.append(few.nan_to_num(posinf=0.0).sum(1).to(torch.int64) // others.clamp(min=1))
    return (hubness * torch.cat(isolation)) >> 8


def kept_by_cut(errors: Tensor, left: int, top: int) -> Tensor:
    """(N, P, P) bool: the cells that the boundaries of `reference.kept_by_cut` leave as they are."""
    size = torch.arange(errors.shape[1], device=errors.device)
    kept = size < _boundary(errors[:, :, :left])[:, :, None]
    return kept | (size[:, None] < _boundary(errors[:, :top].transpose(1, 2))[:, None, :])


def _boundary(errors: Tensor) -> Tensor:
    """(N, rows): `reference._boundary` of errors (N, rows, width)."""
    count, rows, width = errors.shape
    path = torch.zeros((count, rows), dtype=torch.int64, device=errors.device)
    if not width:
        return path
    beyond = torch.iinfo(torch.int64).max // 2
    sums = [errors[:, 0]]
    for row in range(1, rows):
        wide = torch.nn.functional.pad(sums[-1], (1, 1), value=beyond)
        sums.append(errors[:, row] + torch.minimum(torch.minimum(wide[:, :-2], wide[:, 1:-1]), wide[:, 2:]))
    column = torch.arange(width, device=errors.device)
    reachable = torch.ones_like(sums[-1], dtype=torch.bool)
    for row in reversed(range(rows)):
        path[:, row] = torch.where(reachable, sums[row], beyond).argmin(1)  # ties: the first
        reachable = (column - path[:, row, None]).abs() <= 1
    return path


def _tile_distances(queries: Tensor, mask: Tensor | None, tile: Tensor) -> Tensor:
    """|q|^2 + |b|^2 - 2 q.b of float64 rows, (Q, D) and (t, D) -> (Q, t), over the entries of a (Q, D) mask."""
    squares = tile.square()
    if mask is None:
        theirs: Tensor = squares.sum(1)
    else:
        queries = queries * mask
        theirs = mask.double() @ squares.T
    return torch.addmm(queries.square().sum(1, keepdim=True) + theirs, queries, tile.T, alpha=-2)


def _fill(keys: Tensor, k: int) -> Tensor:
    """Pad rows of keys to k slots with the empty key."""
    missing = max(0, k - keys.shape[1])
    return torch.cat([keys, keys.new_full((len(keys), missing), EMPTY_KEY)], 1)


def _unpack(keys: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(distances, indices) of sorted keys; empty ones become INT32_MAX or +inf, and -1."""
    empty = keys == EMPTY_KEY
    distances = (keys >> 32).to(torch.int32)  # INT32_MAX where empty
    if dtype == torch.float32:
        distances = torch.where(empty, torch.inf, distances.view(torch.float32))
    return distances, torch.where(empty, -1, keys & LOW_WORD)


def _tile_rows(width: int) -> int:
    """Rows of `width` float64 numbers in a tile."""
    return max(1, TILE_BYTES // 8 // max(1, width))


def _topk_integer(queries: Tensor, bank: Tensor, k: int, mask: Tensor | None, rows: Tensor) -> Tensor:
    wide = queries.double()
    best = torch.empty((len(queries), 0), dtype=torch.int64, device=bank.device)
    for part in rows.split(_tile_rows(bank.shape[1])):
        distances = _tile_distances(wide, mask, bank[part].double()).to(torch.int64)
        best = smallest(torch.cat([best, pack(distances, part)], 1), k)
    return _fill(best, k)


def _topk_float(
    queries: Tensor, bank: Tensor, k: int, mask: Tensor | None, rows: Tensor, weights: Tensor | None
) -> Tensor:
    """Screen with the expansion in float64, then measure directly and order by what is returned.

    With u = 2^-53 and N = |q|^2 + |b|^2: squares and products of float32 values are exact in float64 and never
    leave its range. Three sums of D terms and two additions put the expansion off by less than (2 D + 2) u N.
    The direct sum, at most 2 N, rounds each difference, its square and D - 1 partial sums: less than 2 (D + 2) u N.
    Together (4 D + 6) u N, and 4 u N more where both are multiplied by a weight w, N then being w times the above:
    less than slack = (D + 1) 2^-50 N.

    K + SCREEN_MARGIN images pass. None of the others scored below the last that passed, so none of their direct sums
    is below that score less slack. Rounding to float32 keeps the order but makes ties, among sums that are close,
    underflow or overflow, and ties go by index: the screen is right where that lower bound, rounded, is strictly
    beyond the K-th distance. Otherwise, and where anything is NaN, the query is measured against the whole bank.
    """
    wide = queries.double()
    screened = min(k + SCREEN_MARGIN, len(rows))
    scores = torch.empty((len(queries), 0), dtype=torch.float64, device=bank.device)
    passed = torch.empty((len(queries), 0), dtype=torch.int64, device=bank.device)
    largest = torch.zeros((), dtype=torch.float64, device=bank.device)
    heaviest = 1.0 if weights is None else weights[rows].max()
    for part in rows.split(_tile_rows(bank.shape[1])):
        tile = bank[part].double()
        norms, distances = tile.square().sum(1), _tile_distances(wide, mask, tile)
        if weights is not None:
            norms, distances = norms * weights[part], distances * weights[part]
        largest = torch.maximum(largest, norms.max())  # NaN propagates: every query is then doubtful
        scores = torch.cat([scores, distances], 1)
        passed = torch.cat([passed, part.expand(len(queries), -1)], 1)
        scores, order = torch.topk(scores, min(screened, scores.shape[1]), dim=1, largest=False, sorted=True)
        passed = passed.gather(1, order)
    keys = _fill(_direct_keys(wide, bank, mask, passed, weights), k)[:, :k]
    if screened < len(rows):
        slack = (bank.shape[1] + 1) * 2.0**-50 * (heaviest * wide.square().sum(1) + largest)
        kth = (keys[:, -1] >> 32).to(torch.int32).view(torch.float32)
        doubtful = ~((scores[:, -1] - slack).float() > kth)  # true for NaN, too
        for i in doubtful.nonzero()[:, 0].tolist():
            own = None if mask is None else mask[i : i + 1]
            parts = rows.split(_tile_rows(bank.shape[1]))
            direct = [_direct_keys(wide[i : i + 1], bank, own, part[None], weights) for part in parts]
            keys[i] = smallest(torch.cat(direct, 1), k)[0]
    return keys


def _direct_keys(queries: Tensor, bank: Tensor, mask: Tensor | None, rows: Tensor, weights: Tensor | None) -> Tensor:
    """Sorted keys of the float32 rounding of weight * sum((q - b)^2), for each query's own rows (Q, t)."""
    parts = []
    count = _tile_rows(rows.shape[1] * bank.shape[1])
    for start in range(0, len(queries), count):
        chosen = slice(start, start + count)
        difference = queries[chosen, None] - bank[rows[chosen]].double()
        if mask is not None:
            difference = torch.where(mask[chosen, None], difference, 0)  # a product would let NaN through
        sums = difference.square().sum(2)
        if weights is not None:
            sums *= weights[rows[chosen]]
        parts.append(pack(sums.float(), rows[chosen]))
    keys = torch.cat(parts) if parts else torch.empty(rows.shape, dtype=torch.int64, device=bank.device)
    return keys.sort(dim=1).values
