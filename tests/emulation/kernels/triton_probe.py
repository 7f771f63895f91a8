"""Small Triton kernels that test the execution of Triton's PTX."""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_minima(numbers, minima, columns, BLOCK: tl.constexpr, EXTRA: tl.constexpr):
    """minima[row] = (value << 32 | column) of the smallest number of a row, the first of equals; numbers >= 0.

    EXTRA columns behind the row are read too: a planted mistake.
    """
    row = tl.program_id(0)
    best = tl.full((BLOCK,), 0x7FFFFFFFFFFFFFFF, tl.int64)
    for begin in range(0, columns + EXTRA, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        inside = column < columns + EXTRA
        value = tl.load(numbers + row * columns + column, mask=inside, other=0x7FFFFFFF).to(tl.int64)
        key = tl.where(inside, (value << 32) | column.to(tl.int64), 0x7FFFFFFFFFFFFFFF)
        best = tl.minimum(best, key)
    tl.store(minima + row, tl.min(best, axis=0))


@triton.jit
def product(a, b, c, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, STEP: tl.constexpr):
    """c (M, N) = a (M, K) @ b (K, N), of one block; int8 with int32 sums, or floating point with float32 sums."""
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    total = tl.zeros((M, N), c.dtype.element_ty)
    for begin in range(0, K, STEP):
        depth = begin + tl.arange(0, STEP)
        left = tl.load(a + rows[:, None] * K + depth[None, :])
        right = tl.load(b + depth[:, None] * N + columns[None, :])
        total = tl.dot(left, right, total, out_dtype=c.dtype.element_ty)
    tl.store(c + rows[:, None] * N + columns[None, :], total)


@triton.jit
def histogram_and_ranks(values, counts, ranks, BLOCK: tl.constexpr):
    """counts[v] += 1 atomically for each value; ranks = how many before it are odd."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + at)
    tl.atomic_add(counts + value, 1)
    odd = (value % 2).to(tl.int32)
    tl.store(ranks + at, tl.cumsum(odd, axis=0) - odd)
