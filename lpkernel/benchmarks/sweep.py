"""`masked_topk` beside faiss and torch over sizes of bank, widths and k, on the CPU; what is lost is listed.

    python -m lpkernel.benchmarks.sweep [--quick] [--threads N]

Rows are normally distributed float32. The queries of a point are as many as make WORK multiply-adds, within 1 to
MOST_QUERIES, and one alone. Every provider is called in turn, ROUNDS times, and the least time counts. The answers'
distances are compared before: faiss and torch expand the square, so theirs only have to be near.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel.benchmarks import machine, measure
from lpkernel.search.ops import masked_topk

BANKS = (16, 128, 1024, 10_000, 100_000, 1_000_000)
WIDTHS = (2, 3, 16, 64, 256, 1024)
NEIGHBOURS = (1, 10)
WORK = 1 << 28
MOST_QUERIES = 250_000
MOST_VALUES = 1 << 27  # of a bank
ROUNDS = 3
MATRIX = 1 << 26  # entries of the matrix that torch may have at a time

Floats = NDArray[np.float32]
Search = Callable[[Floats, Floats, int], Floats]


@dataclass(frozen=True, order=True)
class Point:
    """Q queries of D values among B rows, k neighbours."""

    queries: int
    rows: int
    width: int
    k: int


def points(quick: bool) -> Iterator[Point]:
    """All of them, or the corners."""
    banks, widths = (BANKS[1::3], WIDTHS[::3]) if quick else (BANKS, WIDTHS)
    for rows, width, k in itertools.product(banks, widths, NEIGHBOURS):
        if rows * width > MOST_VALUES:
            continue
        many = max(1, min(MOST_QUERIES, WORK // (rows * width)))
        for queries in sorted({1, many}):
            yield Point(queries, rows, width, k)


def ours(queries: Floats, bank: Floats, k: int) -> Floats:
    """lpkernel's C++."""
    distances: Floats = masked_topk(queries, bank, k, backend="cpp").distances
    return distances


def by_torch(queries: Floats, bank: Floats, k: int) -> Floats:
    """A product and torch.topk, so many queries at a time that the matrix keeps to MATRIX entries."""
    q, b = torch.from_numpy(queries), torch.from_numpy(bank)
    norms = b.square().sum(1)
    found = []
    for part in q.split(max(1, MATRIX // len(b))):
        scores = torch.addmm(norms, part, b.T, alpha=-2)
        best = scores.min(1, keepdim=True).values if k == 1 else scores.topk(k, 1, largest=False).values
        found.append(best + part.square().sum(1, keepdim=True))
    return torch.cat(found).numpy()


def providers() -> dict[str, Search]:
    """Ours first; faiss where it is installed."""
    found: dict[str, Search] = {"lpkernel cpp": ours, "torch": by_torch}
    try:
        import faiss
    except ImportError:
        return found

    def by_faiss(queries: Floats, bank: Floats, k: int) -> Floats:
        distances: Floats = faiss.knn(queries, bank, k)[0]
        return distances

    return {**found, "faiss": by_faiss}


def times(point: Point, searches: dict[str, Search], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds of each provider. Raises ValueError where answers differ."""
    random = np.random.default_rng(0)
    queries, bank = (random.standard_normal((count, point.width), np.float32) for count in (point.queries, point.rows))
    answers = {name: search(queries, bank, point.k) for name, search in searches.items()}
    want = answers["lpkernel cpp"]
    room = 1e-5 * float(
        np.square(bank, dtype=np.float64).sum(1).max() + np.square(queries, dtype=np.float64).sum(1).max()
    )
    for name, got in answers.items():
        if not np.allclose(got, want, rtol=1e-4, atol=room):
            raise ValueError(f"{name} at {point}: other distances, by up to {np.abs(got - want).max():.3g}")
    best = dict.fromkeys(searches, math.inf)
    for _ in range(rounds):
        for name, search in searches.items():
            best[name] = min(best[name], measure.timed(lambda: search(queries, bank, point.k))[0])  # noqa: B023
    return best


def report(chosen: Iterator[Point], searches: dict[str, Search], rounds: int = ROUNDS) -> Iterator[str]:
    """Lines of a table, then the points that are lost, worst first, and the geometric mean."""
    yield "| Q | B | D | k | " + " | ".join(f"{name}, ms" for name in searches) + " | best other / ours |"
    yield "|---" * (5 + len(searches)) + "|"
    ratios: dict[Point, float] = {}
    for point in chosen:
        seconds = times(point, searches, rounds)
        own = seconds["lpkernel cpp"]
        ratios[point] = min(time for name, time in seconds.items() if name != "lpkernel cpp") / own
        cells = [f"{point.queries:,}", f"{point.rows:,}", f"{point.width:,}", str(point.k)]
        cells += [f"{1e3 * seconds[name]:.3g}" for name in searches] + [f"{ratios[point]:.2f}"]
        yield f"| {' | '.join(cells)} |"
    lost = sorted((ratio, at) for at, ratio in ratios.items() if ratio < 1)
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    yield f"\ngeometric mean {mean:.2f}; lost {len(lost)} of {len(ratios)}:"
    for ratio, at in lost:
        yield f"  {ratio:.2f} at Q = {at.queries:,}, B = {at.rows:,}, D = {at.width:,}, k = {at.k}"


def main() -> None:
    """The command at the top of this file."""
    parser = argparse.ArgumentParser(description="masked_topk beside faiss and torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="few of the points")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every library")
    options = parser.parse_args()
    searches = providers()
    with machine.threads(options.threads):
        print(f"{options.threads} threads; {', '.join(searches)}")
        for line in report(points(options.quick), searches):
            print(line, flush=True)


if __name__ == "__main__":
    main()
