"""Banks and requests for scan tests, made from small random integers so that ties are common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lpkernel.backends.base import CodeBank, LatentBank, MixedBank, ScanRequest
from lpkernel.levels import resize_level
from lpkernel.plan import Plan
from lpkernel.views import BankViews, of_images, shifts


class World:
    """B code maps of side M, their fixed-point codebook, and the two views that backends get."""

    def __init__(self, size: int, side: int = 16, channels: int = 4, codes: int = 20, spread: int = 100, seed: int = 0):
        random = np.random.default_rng(seed)
        self.codes = random.integers(0, codes, (size, side, side)).astype(np.int16)
        self.codebook = random.integers(-spread, spread + 1, (codes, channels)).astype(np.int16)
        self.full = self.codebook[self.codes]
        wide = self.codebook.astype(np.int64)
        self.table = np.square(wide[:, None] - wide[None]).sum(2).astype(np.int32)
        self.random = random
        self._levels: dict[int, np.ndarray] = {}
        self._views: dict[int, BankViews] = {}

    def level(self, side: int) -> np.ndarray:
        if side not in self._levels:
            self._levels[side] = resize_level(self.full, side)
        return self._levels[side]

    @property
    def latents(self) -> LatentBank:
        return LatentBank(self.level, len(self.codes), (self.codes, self.codebook))

    @property
    def code_bank(self) -> CodeBank:
        return CodeBank(self.codes, self.codebook, self.table)

    def views(self, radius: int) -> BankViews:
        if radius not in self._views:
            self._views[radius] = BankViews(radius, self.codes, self.codebook)
        return self._views[radius]

    def latent_views(self, radius: int) -> BankViews:
        """The same, as for a bank that has no codes."""
        if -radius not in self._views:
            self._views[-radius] = BankViews(radius, self.full)
        return self._views[-radius]

    def shifted(self, radius: int) -> World:
        """A bank that holds all views of this one's images as its own images, made in another way."""
        wide = np.pad(self.codes, [(0, 0), (radius, radius), (radius, radius)], mode="edge")
        side = self.codes.shape[1]
        whole = World(1, side)
        moved = [wide[:, radius + dy :][:, :side, radius + dx :][:, :, :side] for dy, dx in shifts(radius)]
        whole.codes, whole.codebook, whole.table = np.concatenate(moved), self.codebook, self.table
        whole.full = self.codebook[whole.codes]
        return whole

    def start(self, count: int) -> np.ndarray:
        """Random code maps to start from."""
        side = self.codes.shape[1]
        return self.random.integers(0, len(self.codebook), (count, side, side))

    def request(
        self,
        plan: Plan,
        images: Sequence[int],
        k: int,
        seed: int = 0,
        start: np.ndarray | None = None,
        candidates: np.ndarray | None = None,
        in_codes: bool = False,
        hubness: int = 0,
        radius: int = 0,
        of_latents: bool = False,
        either: bool = False,
    ) -> ScanRequest:
        """in_codes: the full side in codes; with several scales (of a plan that carries), the smaller ones in latents.

        radius: of the views that are searched; of_latents: as for a bank that has no codes. either: codes that may also
        be compared as latents.
        """
        canvas: tuple[np.ndarray | None, ...] = (None,) * len(plan.scales)
        if start is not None:
            lower = [resize_level(self.codebook[start], side) for side in plan.sides]
            canvas = (*lower[:-1], start) if in_codes else tuple(lower)
        allowed = np.arange(len(self.codes)) if candidates is None else candidates
        latents, codes = self.latents, self.code_bank
        if radius:
            views = self.latent_views(radius) if of_latents else self.views(radius)
            cells = None if views.codes is None else (views.codes, self.codebook)
            latents = LatentBank(views.level, views.size, cells)
            codes = CodeBank(self.codes if views.codes is None else views.codes, self.codebook, self.table)
            allowed = of_images(allowed, len(self.codes), radius)
        bank: LatentBank | CodeBank | MixedBank = latents
        if either:
            codes = replace(codes, latents=latents)
        if in_codes:
            bank = codes if len(plan.scales) == 1 else MixedBank(latents, codes)
        return ScanRequest(
            plan=plan,
            bank=bank,
            canvas=canvas,
            candidates=allowed,
            images=np.asarray(images, dtype=np.int64),
            k=k,
            seed=seed,
            hubness=hubness,
        )
