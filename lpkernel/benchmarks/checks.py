"""Whether an answer is right. Nothing is timed before it has passed these checks.

Exact answers must equal the truth. Float answers may differ by rounding: distances within a tolerance of the true ones,
and no index whose true distance lies beyond the K-th by more than that, so sets are equal up to near-ties.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel.backends.base import TopK
from lpkernel.errors import LpkernelError

ROWS = 64  # queries of a point compared with the truth, spread evenly; fewer for a large bank,
MOST_DISTANCES = 1 << 24  # for at most so many distances
RTOL_DIRECT = 1e-5  # of the distance: float32 rounding
RTOL_EXPANDED = 2e-5  # of |q|^2 + |b|^2: what |q|^2 + |b|^2 - 2 q.b loses in float32
TILE_BYTES = 32 << 20


class WrongAnswer(LpkernelError):
    """A provider's answer is not the right one; it is not timed."""


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` row numbers of `count`, spread evenly, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def true_distances(queries: NDArray[Any], bank: NDArray[Any]) -> NDArray[np.float64]:
    """Squared L2 (S, B) of (S, D) and (B, D), by expansion in float64: exact for integers whose distance fits int32."""
    own = queries.astype(np.float64)
    norms = np.square(own).sum(axis=1, keepdims=True)
    distances = np.empty((len(own), len(bank)))
    rows = max(1, TILE_BYTES // (8 * own.shape[1]))
    for start in range(0, len(bank), rows):
        tile = bank[start : start + rows].astype(np.float64)
        distances[:, start : start + rows] = norms + np.einsum("bd,bd->b", tile, tile) - 2 * (own @ tile.T)
    return distances


class Truth:
    """The K nearest of some queries of each batch: batches of (N, D), bank (B, D)."""

    def __init__(self, batches: list[NDArray[Any]], bank: NDArray[Any], k: int) -> None:
        self.k, self.bank, self.shape = k, bank, (len(batches[0]), k)
        rows = min(ROWS, MOST_DISTANCES // len(bank))
        self.rows = spread(len(batches[0]), max(1, rows // len(batches)))
        self.queries = [batch[self.rows].astype(np.float64) for batch in batches]
        distances = true_distances(np.concatenate(self.queries), bank)
        self.order = np.argsort(distances, axis=1, kind="stable")[:, :k].reshape(len(batches), -1, k)
        self.nearest = np.take_along_axis(distances, self.order.reshape(-1, k), 1).reshape(self.order.shape)
        self.largest = float(np.einsum("bd,bd->b", bank, bank, dtype=np.float64).max())

    def _check_shape(self, answer: TopK) -> None:
        got = np.shape(answer.distances), np.shape(answer.indices)
        if got != (self.shape, self.shape):
            raise WrongAnswer(f"shapes {got[0]} and {got[1]}, expected {self.shape}")

    def exact(self, answer: TopK, batch: int) -> None:
        """Distances and indices equal, ties by lowest index."""
        self._check_shape(answer)
        for row, order, nearest in zip(self.rows, self.order[batch], self.nearest[batch], strict=True):
            if not (np.array_equal(answer.indices[row], order) and np.array_equal(answer.distances[row], nearest)):
                raise WrongAnswer(f"query {row}: indices {np.asarray(answer.indices[row])}, expected {order}")

    def right(self, answer: TopK, batch: int) -> tuple[int, int]:
        """For how many checked queries the K indices are the true ones, in any order, and how many were checked."""
        self._check_shape(answer)
        found = np.sort(answer.indices[self.rows], axis=1) == np.sort(self.order[batch], axis=1)
        return int(found.all(axis=1).sum()), len(found)

    def close(self, answer: TopK, batch: int, expanded: bool) -> None:
        """Right up to the float32 rounding of a direct sum, or of the expansion if `expanded`."""
        self._check_shape(answer)
        for row, query, nearest in zip(self.rows, self.queries[batch], self.nearest[batch], strict=True):
            indices = np.asarray(answer.indices[row])
            distances = np.asarray(answer.distances[row], np.float64)
            if len(set(indices.tolist())) != self.k or indices.min() < 0 or indices.max() >= len(self.bank):
                raise WrongAnswer(f"query {row}: indices {indices} are not {self.k} different bank rows")
            truth = np.square(self.bank[indices].astype(np.float64) - query).sum(axis=1)
            scale = float(query @ query) + self.largest
            slack = RTOL_DIRECT * truth + (RTOL_EXPANDED if expanded else 1e-12) * scale
            if not (np.abs(distances - truth) <= slack).all():
                raise WrongAnswer(f"query {row}: distances {distances}, expected {truth}")
            if truth.max() > nearest[-1] + 2 * slack.max():
                raise WrongAnswer(f"query {row}: a neighbour at {truth.max():.7g}, the K-th is at {nearest[-1]:.7g}")
            if (np.diff(distances) < 0).any():
                raise WrongAnswer(f"query {row}: distances are not ascending")
