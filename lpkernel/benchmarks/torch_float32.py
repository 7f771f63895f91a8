"""Generation as a user of torch would write it: float32 matrix products and topk, all images at once.

The plan's steps, the bank's fixed-point values as float32, no tie rule, no exactness, torch's own random numbers. On a
GPU also in TF32, and with the search of a step compiled by torch.compile. A peer to measure against, not a backend: its
images depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lpkernel.bank import Bank
from lpkernel.benchmarks import machine
from lpkernel.benchmarks.peers import missing, ranked
from lpkernel.plan import Plan

BLOCK_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # of distances at a time
# step (over all scales), queries (N, D), bank image chosen by each (N,)
Observer = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class Kind:
    """A way to run the path."""

    name: str
    tf32: bool = False
    compiled: bool = False

    def missing(self, device: str) -> str:
        """Why it cannot run on a device; "" if it can."""
        return missing(device, self.tf32, self.compiled)


FLOAT32 = Kind("torch-float32")
PATHS = {
    "torch-float32": FLOAT32,
    "torch-tf32": Kind("torch-float32 in TF32, not exact", tf32=True),
    "torch-compiled": Kind("torch-float32 by torch.compile", compiled=True),
}


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    return torch.compile(ranked, dynamic=True)


@dataclass(frozen=True)
class _Step:
    window: tuple[slice, slice]
    known: Tensor  # (D / C,) positions within the patch
    vectors: Tensor | None  # (B, D) float32 if kept
    norms: Tensor | None  # (B,)


class TorchFloat32:
    """`keep_patches` copies each step's bank vectors beforehand: steps x B x D x 4 bytes for less work per step."""

    def __init__(
        self, bank: Bank, plan: Plan, k: int, keep_patches: bool, device: str = "cpu", kind: Kind = FLOAT32
    ) -> None:
        self.plan, self.k, self.size = plan, min(k, bank.size), bank.size
        self.device, self.exact = device, not kind.tf32
        self.ranked = _compiled() if kind.compiled else ranked
        self.rows = max(1, BLOCK_BYTES[torch.device(device).type] // (4 * self.size))
        self.levels = [torch.from_numpy(bank.level(side).astype(np.float32)).to(device) for side in plan.sides]
        self.steps: list[list[_Step]] = []
        for level, scale in zip(self.levels, plan.scales, strict=True):
            if not scale.write.all():
                raise ValueError("this path writes whole patches; give it a plan of plan.random(overlap='replace')")
            steps = []
            for (y, x), compare in zip(scale.positions.tolist(), scale.compare, strict=True):
                window = (slice(y, y + plan.patch), slice(x, x + plan.patch))
                known = torch.from_numpy(np.flatnonzero(compare)).to(device)
                vectors = self._vectors(level, window, known) if keep_patches and len(known) else None
                steps.append(_Step(window, known, vectors, None if vectors is None else vectors.square().sum(1)))
            self.steps.append(steps)

    @staticmethod
    def kept_bytes(bank: Bank, plan: Plan) -> int:
        """Bytes that `keep_patches` takes."""
        cells = sum(int(scale.compare.sum()) for scale in plan.scales)
        return cells * bank.channels * 4 * bank.size

    @staticmethod
    def _vectors(level: Tensor, window: tuple[slice, slice], known: Tensor) -> Tensor:
        return level[:, window[0], window[1]].flatten(1, 2)[:, known].flatten(1)

    @torch.inference_mode()
    def run(self, n: int, seed: int = 0, observe: Observer | None = None) -> Tensor:
        """Source maps (n, M, M) int64, on the CPU."""
        with machine.tf32(not self.exact):
            return self._run(n, seed, observe).cpu()

    def _run(self, n: int, seed: int, observe: Observer | None) -> Tensor:
        device = self.device
        random = torch.Generator(device).manual_seed(seed)
        canvas = sources = torch.empty(0)
        count = 0
        for level, steps in zip(self.levels, self.steps, strict=True):
            side, channels = level.shape[1], level.shape[3]
            if count == 0:
                canvas = torch.zeros(n, side, side, channels, device=device)
            else:
                canvas = torch.nn.functional.interpolate(
                    canvas.permute(0, 3, 1, 2), size=(side, side), mode="bilinear", align_corners=False
                ).permute(0, 2, 3, 1)
                canvas = canvas.contiguous()
            sources = torch.zeros(n, side, side, dtype=torch.int64, device=device)
            for step in steps:
                rows, columns = step.window
                if len(step.known):
                    query = self._vectors(canvas, step.window, step.known)
                    chosen = self._choose(level, step, query, random)
                    if observe is not None:
                        observe(count, query, chosen)
                else:
                    chosen = torch.randint(self.size, (n,), generator=random, device=device)
                canvas[:, rows, columns] = level[chosen, rows, columns]
                sources[:, rows, columns] = chosen[:, None, None]
                count += 1
        return sources

    def _choose(self, level: Tensor, step: _Step, query: Tensor, random: torch.Generator) -> Tensor:
        vectors, norms = step.vectors, step.norms
        if vectors is None or norms is None:
            vectors = self._vectors(level, step.window, step.known)
            norms = vectors.square().sum(1)
        drawn = torch.randint(self.k, (len(query), 1), generator=random, device=self.device)
        nearest = [self.ranked(part, norms, vectors, self.k)[1] for part in query.split(self.rows)]
        return torch.cat(nearest).gather(1, drawn)[:, 0]
