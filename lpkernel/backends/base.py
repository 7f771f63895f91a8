"""What a backend is asked to do, and what it must offer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lpkernel.plan import Plan
from lpkernel.views import Views

Array = NDArray[Any]
Codes = NDArray[np.int16] | NDArray[np.int32] | Views
Level = NDArray[np.int16] | Views


@dataclass(frozen=True)
class LatentBank:
    """Latent domain: level(m) -> (B, m, m, C) int16; distances are sums of squared differences.

    cells: codes (B, M, M) int16 and their fixed-point vectors (V, C) int16, from which each level is resized
    (`lpkernel.levels.resize_level`), for backends that make the parts they need; None where there are none.
    Levels and codes of either domain may be `Views`, whose B images are made as they are read.
    """

    level: Callable[[int], Level]
    size: int
    cells: tuple[NDArray[np.int16] | Views, NDArray[np.int16]] | None = None


@dataclass(frozen=True)
class CodeBank:
    """Code domain, for plans of one scale at the full side M.

    codes (B, M, M) int16 or int32 in [0, V); vectors (V, C) int16, the fixed-point codebook; table (V, V)
    int32, the squared distance of each pair of its rows. Distances are sums of table entries, the same
    integers as in the latent domain. latents: the same cells as latents, where a backend may compare whichever is
    quicker; else None.
    """

    codes: Codes
    vectors: NDArray[np.int16]
    table: NDArray[np.int32]
    latents: LatentBank | None = None

    @property
    def size(self) -> int:
        return len(self.codes)


@dataclass(frozen=True)
class MixedBank:
    """Both domains, for plans that carry: latents below the full side M, codes at it."""

    latents: LatentBank
    codes: CodeBank

    @property
    def size(self) -> int:
        return self.latents.size


@dataclass(frozen=True)
class ScanRequest:
    """A whole plan to run for n images.

    canvas: one entry per scale, (n or 1, m, m, C) int16 latents, or (n or 1, M, M) integer codes where the scale is
    compared by codes; None where nothing is needed. The first is what is there before the first step
    (its unknown cells are ignored); later ones supply the cells that their scale keeps.
    candidates: sorted int64 indices of the allowed bank images, at least one.
    images: (n,) int64 global indices of the images made, used as their random counters.
    hubness: r, where r / 256 of an image's isolation is taken off its distances (docs/method.md).
    refine: whether the seams of the finished maps are refined (`lpkernel.refine`).
    device: where to run, as torch names devices; "auto": the backend's own default.
    """

    plan: Plan
    bank: LatentBank | CodeBank | MixedBank
    canvas: tuple[Array | None, ...]
    candidates: NDArray[np.int64]
    images: NDArray[np.int64]
    k: int
    seed: int
    hubness: int = 0
    refine: bool = False
    device: str = "auto"

    def bank_at(self, side: int) -> LatentBank | CodeBank:
        """What a scale of this side compares."""
        if not isinstance(self.bank, MixedBank):
            return self.bank
        return self.bank.codes if side == self.plan.sides[-1] else self.bank.latents

    def part(self, rows: slice | NDArray[np.int64], images: NDArray[np.int64]) -> ScanRequest:
        """The request for some of its images, whose random counters are now `images`."""
        canvas = tuple(start if start is None or len(start) == 1 else start[rows] for start in self.canvas)
        return replace(self, canvas=canvas, images=images)


@dataclass(frozen=True)
class TopkRequest:
    """`lpkernel.masked_topk` after its checks: arrays of one kind (all NumPy, or all torch on one device)."""

    queries: Array  # (Q, D) float32 or int16
    bank: Array  # (B, D), same dtype
    k: int
    patch_mask: Array | None  # (D,) or (Q, D) bool
    candidate_mask: Array | None  # (B,) bool
    weights: Array | None = None  # (B,) float64, finite and above 0; with float32 alone

    @cached_property
    def device(self) -> str:
        """Where to run: where the tensors are; "auto" for NumPy arrays."""
        return "auto" if isinstance(self.bank, np.ndarray) else str(self.bank.device)


class TopK(NamedTuple):
    """Distances (Q, K), ascending, and bank indices (Q, K) int64.

    Distances are squared L2, float32 or int32; with weights, the float32 rounding of weight times that.
    """

    distances: Any
    indices: Any


class Backend(Protocol):
    """One way to compute. Reasons why it cannot are sentences; [] means that it can."""

    name: str

    @property
    def checks_only(self) -> bool:
        """Whether it is for checking only: too slow to use, so it is chosen only by name, never by "auto"."""
        ...

    def unavailable(self, device: str = "auto") -> list[str]:
        """Reasons against any request on a device."""
        ...

    def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
        """Reasons against this request, including those against its device."""
        ...

    def scan(self, request: ScanRequest) -> NDArray[np.int32]:
        """Source map (n, M, M): bank index of each cell, -1 where the starting canvas was kept.

        With its seams refined where the request says so: by `seams.refined`, or in another way that gives the same.
        """
        ...

    def masked_topk(self, request: TopkRequest) -> TopK:
        """Results in the request's kind of array."""
        ...
