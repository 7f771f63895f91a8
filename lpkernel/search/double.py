"""Searches whose distances float32 cannot hold: of float64 rows, of other metrics, beyond float32's range.

Rows are converted to float32 and the chosen backend finds the nearest k + MARGIN of these; they are measured in
float64, from the rows as given, and ranked by that. What the backend left out is at least as far as the last that it
found, less what the conversion to float32 moved it; a query whose k-th neighbour is not nearer than that is measured
against all rows. So the answer is that of float64 sums whatever the backend, at the cost of its search where rows
differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpkernel.errors import BackendUnavailable, InputError
from lpkernel.search import measured, topk_op
from lpkernel.triton_kernels.configs import MOST_NEIGHBOURS

MARGIN = 16  # rows beyond k that are measured, or fewer by a backend that finds no more than MOST_NEIGHBOURS
NORMAL = 2.0**-126  # the least of float32's normal numbers
BEYOND = 2.0**128 - 2.0**103  # rounds to float32's infinity, as all above do

Rank = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """What is ranked, by rank(queries (q,), rows (q, t)) -> (q, t) float64, ascending, ties by index, NaN last.

    queries (Q, D) and bank (B, D) float64: rows whose squared distance d, times a row's weight, bounds the rank from
    below: rank >= least(query, weight * d) for every lower bound weight * d. Equal ranks are those that `rounded`
    makes equal. mask: (D,) or (Q, D) bool of what d compares; allowed: (B,) bool; weights: (B,) float64.
    """

    queries: Tensor
    bank: Tensor
    rank: Rank
    rounded: Callable[[Tensor], Tensor]
    least: Callable[[Tensor], Tensor] = lambda bound: bound
    mask: Tensor | None = None
    allowed: Tensor | None = None
    weights: Tensor | None = None

    def numbers(self, indices: Tensor) -> Tensor:
        """(Q, k) what `rank` gives for the rows found, tile by tile; +inf where the index is -1."""
        everyone = torch.arange(len(self.queries), device=indices.device)
        step = max(1, measured.TILE // max(1, indices.shape[1] * self.bank.shape[1]))
        starts = range(0, max(1, len(indices)), step)
        near = indices.clamp(min=0)
        found = torch.cat([self.rank(everyone[i : i + step], near[i : i + step]) for i in starts])
        return torch.where(indices < 0, torch.inf, found)


def same(values: Tensor) -> Tensor:
    """What float64 rows are ranked by."""
    return values


def to_float32(values: Tensor) -> Tensor:
    """Numbers that float32 can hold, as float64."""
    return values.float().double()


def to_float32_in_range(values: Tensor) -> Tensor:
    """The same where float32 has its full precision; what underflows or overflows it stays in float64."""
    return torch.where((values.abs() < NORMAL) | (values.abs() >= BEYOND), values, to_float32(values))


def search(problem: Problem, k: int, backend: str, in_numpy: bool) -> tuple[Tensor, Tensor]:
    """(Q, k) ranks float64, as rounded, and indices int64; +inf and -1 where there are too few rows.

    in_numpy: whether the backend gets its rows as NumPy arrays, as the caller gave them: a backend of GPUs takes these,
    but no tensors on the CPU.
    """
    bank, device = problem.bank, problem.bank.device
    allowed = torch.ones(len(bank), dtype=torch.bool, device=device) if problem.allowed is None else problem.allowed
    rows = allowed.nonzero()[:, 0]
    ranks = torch.full((len(problem.queries), k), torch.inf, dtype=torch.float64, device=device)
    indices = torch.full(ranks.shape, -1, dtype=torch.int64, device=device)
    count = min(k, len(rows))
    if not count or not len(problem.queries):
        return ranks, indices
    found = min(len(rows), k + MARGIN)
    try:
        near, bound = _screen(problem, found, backend, in_numpy)
    except BackendUnavailable:
        if not k <= MOST_NEIGHBOURS < found:
            raise
        found = MOST_NEIGHBOURS
        near, bound = _screen(problem, found, backend, in_numpy)
    ranks[:, :count], indices[:, :count] = _nearest(problem, near, count)
    if found < len(rows):
        doubtful = ~(problem.rounded(problem.least(bound)) > ranks[:, count - 1])  # true for NaN, too
        for query in doubtful.nonzero()[:, 0]:
            ranks[query, :count], indices[query, :count] = _of_all(problem, query[None], rows, count)
    return ranks, indices


def _nearest(problem: Problem, near: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` least of each query's own rows, (Q, t) in any order."""
    near = near.sort(dim=1).values
    ranks, order = problem.rounded(problem.numbers(near)).sort(dim=1, stable=True)  # NaN is last
    return ranks[:, :count], near.gather(1, order)[:, :count]


def _of_all(problem: Problem, query: Tensor, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The same for one query and all rows, some at a time."""
    best_ranks, best = rows.new_empty((1, 0), dtype=torch.float64), rows.new_empty((1, 0))
    for part in rows.split(max(1, measured.TILE // max(1, problem.bank.shape[1]))):
        ranks = torch.cat([best_ranks, problem.rounded(problem.rank(query, part[None]))], 1)
        ranks, order = ranks.sort(dim=1, stable=True)
        best_ranks, best = ranks[:, :count], torch.cat([best, part[None]], 1).gather(1, order)[:, :count]
    return best_ranks[0], best[0]


def _screen(problem: Problem, found: int, backend: str, in_numpy: bool) -> tuple[Tensor, Tensor]:
    """(Q, found) rows, and for each query a lower bound of weight * d of all others.

    With s the power of two that brings the largest value near 1, float32 roundings of (x - c) s are searched.
    The difference of two rows moves by at most the sum of the lengths r by which rounding moved the rows, and by
    float64's rounding of x - c: so sqrt(d) s is at least the root of what was found less these. 1.01 covers the
    rounding of the bound itself.
    """
    queries, bank = problem.queries, problem.bank
    plain = all(bool(((to_float32(part) == part) | part.isnan()).all()) for part in _parts(queries, bank))
    centre = (
        torch.zeros((), dtype=bank.dtype, device=bank.device)
        if plain
        else bank[:: max(1, len(bank) // 64)].mean(0).nan_to_num(0.0, 0.0, 0.0)
    )
    exponent = _exponent(part - centre for part in _parts(queries, bank))
    screened, moved = [], []
    for rows in (queries, bank):
        screened.append(torch.empty_like(rows, dtype=torch.float32, memory_format=torch.contiguous_format))
        lengths = []
        for part, rounded in zip(_parts(rows), _parts(screened[-1]), strict=True):
            scaled = _times_power(part - centre, -exponent)
            rounded.copy_(scaled)
            lost = 0.0 if plain else 2.0**-52 * _times_power(part.abs() + centre.abs(), -exponent).norm(dim=1)
            # Infinities and NaN are in both, and move nothing.
            lengths.append((scaled - rounded.double()).nan_to_num(0.0, torch.inf, -torch.inf).norm(dim=1) + lost)
        moved.append(torch.cat(lengths))
    given = (*screened, problem.mask, problem.allowed, problem.weights)
    q, b, mask, allowed, weights = (array.numpy() if in_numpy and array is not None else array for array in given)
    distances, near = topk_op.run(q, b, found, mask, allowed, backend, weights, weights is not None)
    last = torch.as_tensor(distances)[:, -1].double().clamp(max=2.0**127) * (1 - 2.0**-22)
    last = torch.where(last < 2.0**-100, 0.0, last)  # where float32 loses more than that
    heaviest = 1.0 if problem.weights is None else float(problem.weights.max())
    away = 1.01 * math.sqrt(heaviest) * (moved[0] + moved[1].max())
    bound = (last.sqrt() * (1 - 2.0**-40) - away).clamp(min=0).square() * (1 - (bank.shape[1] + 8) * 2.0**-50)
    return torch.as_tensor(near), _times_power(bound, 2 * exponent)


def _parts(*arrays: Tensor) -> Iterator[Tensor]:
    """Some rows of the arrays at a time, so that what is made of them takes little memory."""
    for rows in arrays:
        yield from rows.split(max(1, measured.TILE // max(1, rows.shape[1])))


def _exponent(parts: Iterable[Tensor]) -> int:
    """The exponent of the power of two just above the largest finite magnitude."""
    largest = max(float(rows.abs().nan_to_num(0.0, 0.0).max()) if rows.numel() else 0.0 for rows in parts)
    return max(-500, min(500, math.frexp(largest)[1])) if largest else 0


def _times_power(values: Tensor, exponent: int) -> Tensor:
    return values * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)


@dataclass(frozen=True)
class Rows:
    """Queries (Q, D) and bank (B, D) float64; mask (Q, D), allowed (B,) bool and columns (D,) float64, or None."""

    queries: Tensor
    bank: Tensor
    mask: Tensor | None
    allowed: Tensor | None
    columns: Tensor | None


def problem(metric: str, rows: Rows, weights: Tensor | None, rounded: Callable[[Tensor], Tensor]) -> Problem:
    """What masked_topk ranks by a metric of `lpkernel.search.ops`, times weights (B,) float64."""
    if metric in ("cosine", "ip") and rows.mask is not None:
        raise InputError(f"patch_mask: got (Q, D), expected (D,) by metric {metric!r}")
    if metric == "ip":
        return _inner(rows, weights, rounded)
    if metric == "cosine":
        queries, bank = _normalised(rows)
        given, columns, factor = rows, None, 0.5
    else:
        given, columns, factor = rows, rows.columns, 1.0
        root = 1.0 if columns is None else columns.sqrt()
        queries, bank = rows.queries * root, rows.bank * root
    measured_queries, measured_bank = (queries, bank) if metric == "cosine" else (given.queries, given.bank)

    def rank(chosen: Tensor, near: Tensor) -> Tensor:
        mask = None if rows.mask is None else rows.mask[chosen][:, None]
        sums = factor * measured.sums(measured_queries[chosen], measured_bank, near, mask, columns)
        return sums if weights is None else sums * weights[near]

    return Problem(queries, bank, rank, rounded, lambda bound: factor * bound, rows.mask, rows.allowed, weights)


def _normalised(rows: Rows) -> tuple[Tensor, Tensor]:
    """Rows of length 1; those of zeros lie apart from all others, at distance 1 by cosine, in two more columns."""
    parts = []
    for side, array in enumerate((rows.queries, rows.bank)):
        scaled = array if rows.columns is None else array * rows.columns.sqrt()
        largest = scaled.abs().amax(1, keepdim=True) if scaled.shape[1] else scaled.new_zeros((len(scaled), 1))
        scaled = torch.where(largest > 0, scaled / largest, 0.0)  # squares neither underflow nor overflow
        zero = scaled.new_zeros((len(scaled), 2))
        zero[largest[:, 0] == 0, side] = 1.0
        parts.append(torch.cat([scaled / scaled.norm(dim=1, keepdim=True).clamp(min=1.0), zero], 1))
    return parts[0], parts[1]


def _inner(rows: Rows, weights: Tensor | None, rounded: Callable[[Tensor], Tensor]) -> Problem:
    """Largest inner products: with M the length of the longest row, |q|^2 + M^2 - 2 q.b is the squared distance of
    (q, 0) and (b, sqrt(M^2 - |b|^2)).
    """
    if weights is not None:
        raise InputError("bank_weights: metric 'ip' takes none; multiply the rows by them")
    factor = 1.0 if rows.columns is None else rows.columns
    queries, bank = rows.queries * factor, rows.bank
    squares, own = bank.square().sum(1), queries.square().sum(1)
    most = squares.max()
    wide_bank = torch.cat([bank, (most - squares).clamp(min=0).sqrt()[:, None]], 1)
    wide_queries = torch.cat([queries, queries.new_zeros((len(queries), 1))], 1)
    lost = (bank.shape[1] + 8) * 2.0**-50 * (own + most)  # of float64 sums

    def rank(chosen: Tensor, near: Tensor) -> Tensor:
        return -(queries[chosen][:, None] * bank[near]).sum(2)

    return Problem(
        wide_queries, wide_bank, rank, rounded, lambda bound: (bound - own - most - lost) / 2, None, rows.allowed
    )
