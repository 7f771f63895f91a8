"""Generation from a bank divided among the processes of torch.distributed, for banks too large for any one of them.

Each process holds some images of one bank, all in one number system (`Bank.subset` of consecutive images), and compares
only those. A step sends K packed keys per image from every process, and the drawn image's patch from its owner; the
source maps are those of the whole bank in one process, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from lpkernel import checks, philox, presets, refine, views
from lpkernel.autoencoder.protocol import Autoencoder
from lpkernel.backends.specification import kept_by_cut, references, resize_canvas
from lpkernel.backends.store import Store
from lpkernel.bank import Bank
from lpkernel.bank.generation import check_distances, check_generation
from lpkernel.checks import check_codes
from lpkernel.errors import InputError
from lpkernel.pictures import seams
from lpkernel.plan import Plan, Scale

AT_ONCE = 4096  # images of the bank compared at once
FAR = torch.iinfo(torch.int64).max
LONGEST_TOLD = 1 << 20  # bytes of what a process tells the others
KEPT = 1 << 30  # bytes of isolations that are kept for the next call
_ISOLATIONS: Store[torch.Tensor] = Store()


@dataclass(frozen=True)
class Made:
    """Images of a divided bank. Every process has all of it.

    sources: (N, M, M) int32, among all images of the bank.
    content: codes (N, M, M) int64 or latents (N, M, M, L) float32.
    part: this process's images.
    shifts: (N, M, M, 2) int8 with a search radius, as of `lpkernel.Synthesis`.
    offsets: (N, 3, M, M) float32 where the preset matches colours: what `decode` adds to those of each cell
    (`lpkernel.pictures.seams`).
    """

    sources: NDArray[np.int32]
    content: NDArray[Any]
    part: Bank
    shifts: NDArray[np.int8] | None = None
    offsets: NDArray[np.float32] | None = None

    def decode(self, autoencoder: Autoencoder) -> NDArray[np.uint8]:
        """(N, H, W, 3) uint8. Raises InputError if the bank was made with another autoencoder."""
        self.part.check_autoencoder(autoencoder)
        images = autoencoder.decode(self.content)
        return images if self.offsets is None else seams.with_offsets(images, self.offsets)


def told(value: Any) -> list[Any]:
    """The value of each process of torch.distributed, of what JSON holds. Called by all.

    Not by `all_gather_object`, which executes what a pickle from the network asks for.
    """
    text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    world = dist.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(text)]))
    longest = max(int(size) for size in sizes)
    if longest > LONGEST_TOLD:
        raise InputError(f"a process of this job sends {longest} bytes, expected at most {LONGEST_TOLD}")
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(world)]
    dist.all_gather(texts, torch.nn.functional.pad(text, (0, longest - len(text)), value=ord(" ")))
    try:
        return [json.loads(bytes(one.numpy())) for one in texts]
    except (ValueError, RecursionError) as error:
        raise InputError("a process of this job sends what is not JSON") from error


class _Wire:
    """The processes; there may be only one."""

    def __init__(self) -> None:
        self.on = dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size() if self.on else 1
        self.rank = dist.get_rank() if self.on else 0
        if self.on and dist.get_backend() == "nccl":
            raise InputError(
                "torch.distributed runs by nccl, which sends nothing from the CPU; call "
                "init_process_group('cpu:gloo,cuda:nccl')"
            )

    def told(self, value: Any) -> list[Any]:
        """The value of each process."""
        return told(value) if self.on else [value]

    def gathered(self, keys: torch.Tensor) -> torch.Tensor:
        """(n, K) int64 of every process, side by side."""
        if not self.on:
            return keys
        found = [torch.empty_like(keys) for _ in range(self.world)]
        dist.all_gather(found, keys)
        return torch.cat(found, dim=1)

    def summed(self, values: NDArray[Any]) -> NDArray[Any]:
        """The sum over processes; each number is 0 in all but its owner."""
        if self.on:
            dist.all_reduce(torch.from_numpy(values))
        return values


class _Part:
    """This process's images, from `first` of `images` on, and their `size` views of the `total` of all images.

    Views are numbered as `lpkernel.views` does: a process's own among its images, and all among all images.
    """

    def __init__(self, bank: Bank, wire: _Wire, radius: int) -> None:
        sizes = wire.told([bank.size, _number_system(bank)])
        if any(system != sizes[0][1] for _, system in sizes):
            raise InputError("the processes hold images of different banks; divide one bank, as with bank.subset")
        self.bank, self.wire = bank, wire
        self.first = sum(size for size, _ in sizes[: wire.rank])
        self.images = sum(size for size, _ in sizes)
        self.radius = views.checked_radius(radius, self.images)
        self.seen = bank.views(self.radius) if self.radius else bank
        self.size, self.total = (count * len(views.shifts(self.radius)) for count in (bank.size, self.images))

    def pieces(self) -> list[slice]:
        """Its views, some at a time."""
        return [slice(i, min(i + AT_ONCE, self.size)) for i in range(0, self.size, AT_ONCE)]

    def numbers(self, some: slice) -> torch.Tensor:
        """(b,) int64: the numbers of some of its views among those of all images."""
        own = torch.arange(some.start, some.stop)
        return own // self.bank.size * self.images + self.first + own % self.bank.size

    def own(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Views of all images by its own numbers, and which of them are its own."""
        shift, image = np.divmod(numbers, self.images)
        image = image - self.first
        return shift * self.bank.size + image, (numbers >= 0) & (image >= 0) & (image < self.bank.size)

    def vectors(self, side: int, some: slice, cells: NDArray[np.int64]) -> torch.Tensor:
        """(b, D) float64: the fixed-point values of some cells of some views."""
        if self.seen.codes is not None and self.bank.fixed_codebook is not None and side == self.bank.grid:
            codes = self.seen.codes[some].reshape(-1, side * side)[:, cells]
            check_codes(codes, len(self.bank.fixed_codebook))
            chosen = self.bank.fixed_codebook[codes]
        else:
            chosen = self.seen.level(side)[some].reshape(-1, side * side, self.bank.channels)[:, cells]
        return torch.from_numpy(chosen.reshape(len(chosen), -1)).double()

    def cells(self, side: int, sources: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int16]:
        """Fixed-point values (n, c, C) of cells `places` (c,) or (n, c) of the views `sources` (n, 1) or (n, c)."""
        sources, places = np.broadcast_arrays(sources, places)
        local, mine = self.own(sources)
        at = local[mine], *np.divmod(places[mine], side)
        if self.seen.codes is not None and side == self.bank.grid:
            codes = np.zeros(sources.shape, np.int32)
            codes[mine] = self.seen.codes[at]
            assert self.bank.fixed_codebook is not None
            if codes.size:
                check_codes(codes, len(self.bank.fixed_codebook))
            return self.bank.fixed_codebook[self.wire.summed(codes)]
        values = np.zeros((*sources.shape, self.bank.channels), np.int32)
        values[mine] = self.seen.level(side)[at]
        return self.wire.summed(values).astype(np.int16)

    def made(self, maps: NDArray[np.int32], match_colours: bool) -> Made:
        """From maps of views: images, shifts, and what the owners have there."""
        sources, moved = views.taken_apart(maps, self.images, self.radius) if self.radius else (maps, None)
        matching = match_colours and all(self.wire.told(self.bank.colours is not None))
        local, mine = self.own(sources.astype(np.int64))
        found = self.bank.gather(np.where(mine, local, 0), moved)
        found[~mine] = 0
        offsets = self.offsets(sources, moved) if matching else None
        return Made(sources, self.wire.summed(found), self.bank, moved, offsets)

    def offsets(self, sources: NDArray[np.int32], moved: NDArray[np.int8] | None) -> NDArray[np.float32]:
        """The offsets of matched colours; the owners have the examples' colours."""
        numbers, labels = np.unique(sources, return_inverse=True)
        local, mine = self.own(numbers.astype(np.int64))
        colours = np.zeros((len(numbers), self.bank.grid, self.bank.grid, 3), np.int32)
        if self.bank.colours is not None and mine.any():
            colours[mine] = self.bank.colours[local[mine]]
        return seams.offsets(labels.reshape(sources.shape), moved, self.wire.summed(colours).astype(np.uint8))


def _number_system(bank: Bank) -> str:
    sha = hashlib.sha256(repr((bank.grid, bank.width, bank.scale, bank.limit, bank.max_patch)).encode())
    for array in (bank.codebook, bank.fixed_codebook, bank.pca.mean, bank.pca.components):
        sha.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def generate(
    part: Bank,
    n: int = 16,
    patch: int = 6,
    stride: int | None = None,
    k: int = 3,
    scales: Sequence[int] | None = None,
    seed: int = 0,
    first_image: int = 0,
    preset: str = presets.DEFAULT_PRESET,
    search_radius: int = 0,
) -> Made:
    """`lpkernel.generate` from the images that all processes hold together; called by all with the same arguments.

    part: this process's images. The whole bank is those of process 0, then those of process 1, ... Options as there.
    Where torch.distributed is not initialised, the part is the bank. Raises InputError for parts of different banks.
    """
    defaults = presets.find(preset)
    plan = defaults.plan(part.grid, patch, stride, scales)
    check_generation(part, plan, n, k, first_image)
    check_distances(part, plan)
    philox.check_seed(checks.integer("seed", seed))
    held = _Part(part, _Wire(), search_radius)
    walk = _Walk(plan, held, np.arange(first_image, first_image + n), k, seed)
    maps = walk.run(presets.hubness_parts(defaults.hubness))
    return held.made(_refined(maps, held) if defaults.refine else maps, defaults.match_colours)


def _refined(maps: NDArray[np.int32], held: _Part) -> NDArray[np.int32]:
    """Maps with their seams refined; all processes take part in gathering the cells."""
    side = held.bank.grid

    def read(numbers: NDArray[np.int32]) -> NDArray[np.int16]:
        found = held.cells(side, numbers[:, None].astype(np.int64), np.arange(side * side))
        return found.reshape(len(numbers), side, side, -1)

    return refine.gathered(maps, read)


class _Walk:
    def __init__(self, plan: Plan, part: _Part, images: NDArray[np.int64], k: int, seed: int) -> None:
        self.plan, self.part, self.images = plan, part, images
        self.k, self.seed = min(k, part.total), seed

    def run(self, hubness: int) -> NDArray[np.int32]:
        n, step = len(self.images), self.plan.first_step
        for scale in self.plan.scales:
            side = scale.side
            if scale.enter is None:
                canvas = np.zeros((n, side * side, self.part.bank.channels), np.int16)
                sources = np.full((n, side * side), -1, np.int64)
            elif scale.carry is not None:
                index, before = scale.carry.index, scale.carry.source
                sources = sources.reshape(n, before, before)[:, index[:, None], index].reshape(n, -1)
                canvas = self.part.cells(side, sources, np.arange(side * side))
            else:
                assert scale.resize is not None
                grid = canvas.reshape(n, scale.resize.source, scale.resize.source, -1)
                canvas = np.stack([resize_canvas(one, scale.resize) for one in grid]).reshape(n, side * side, -1)
                sources = np.full((n, side * side), -1, np.int64)
            offsets = self._isolation(scale) * hubness >> 8 if hubness else None
            for i in range(len(scale.positions)):
                chosen = self._chosen(scale, i, canvas, step + i, None if offsets is None else offsets[i])
                self._copy(scale, i, canvas, sources, chosen)
            step += len(scale.positions)
        return sources.reshape(n, side, side).astype(np.int32)

    def _chosen(
        self, scale: Scale, i: int, canvas: NDArray[np.int16], step: int, offsets: torch.Tensor | None
    ) -> NDArray[np.int64]:
        """The view (n,) that each image copies at a step. offsets: (B,) of this process's views."""
        cells, n = scale.compared[i], len(canvas)
        words = philox.draws(self.seed, self.images, step)
        if not len(cells):
            return np.asarray(philox.pick(words, self.part.total), np.int64)
        ours = torch.from_numpy(canvas[:, cells].reshape(n, -1)).double()
        best = torch.full((n, self.k), FAR)
        for some in self.part.pieces():
            ranked = _distances(ours, self.part.vectors(scale.side, some, cells))
            if offsets is not None:
                ranked = ranked - offsets[some]
            keys = (ranked << 32) | self.part.numbers(some)
            best = torch.cat([best, keys], dim=1).topk(self.k, dim=1, largest=False).values
        every = self.part.wire.gathered(best).sort(dim=1).values[:, : self.k]
        drawn = torch.from_numpy(np.asarray(philox.pick(words, self.k), np.int64))
        return (every.gather(1, drawn[:, None])[:, 0] & 0xFFFFFFFF).numpy()

    def _isolation(self, scale: Scale) -> torch.Tensor:
        """(steps, B) int64: `specification.isolation` of this process's views; kept as long as bank and plan live."""
        chosen, _ = references(self.part.total)
        isolated = self.part.cells(scale.side, chosen[:, None], np.arange(scale.side**2))  # all processes take part

        def make() -> torch.Tensor:
            found = torch.zeros((len(scale.positions), self.part.size), dtype=torch.int64)
            for row, cells in zip(found, scale.compared, strict=True):
                if len(cells):
                    theirs = torch.from_numpy(isolated[:, cells].reshape(len(isolated), -1)).double()
                    for some in self.part.pieces():
                        vectors = self.part.vectors(scale.side, some, cells)
                        row[some] = self._isolation_of(vectors, theirs, self.part.numbers(some))
            return found

        key = (id(self.part.bank), id(scale), self.part.first, self.part.total, self.part.radius)
        return _ISOLATIONS.get(key, (self.part.bank, scale), KEPT, lambda kept: kept.nbytes, make)

    def _isolation_of(self, vectors: torch.Tensor, theirs: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        chosen, nearest = references(self.part.total)
        own = numbers[:, None] == torch.from_numpy(chosen)
        least = _distances(vectors, theirs).masked_fill(own, FAR).topk(min(nearest, len(chosen)), largest=False).values
        counted = least < FAR
        return least.masked_fill(~counted, 0).sum(dim=1) // counted.sum(dim=1).clamp(min=1)

    def _copy(
        self, scale: Scale, i: int, canvas: NDArray[np.int16], sources: NDArray[np.int64], chosen: NDArray[np.int64]
    ) -> None:
        (y, x), write, (left, top) = scale.positions[i], scale.write[i], scale.overlap[i]
        patch = len(write)
        places = ((y + np.arange(patch))[:, None] * scale.side + x + np.arange(patch)).reshape(-1)
        new = self.part.cells(scale.side, chosen[:, None], places)
        for row in range(len(canvas)):
            mask = write.reshape(-1)
            if left or top:
                errors = np.square(new[row].astype(np.int64) - canvas[row, places]).sum(1).reshape(patch, patch)
                mask = mask & ~kept_by_cut(errors, int(left), int(top)).reshape(-1)
            canvas[row, places[mask]] = new[row][mask]
            sources[row, places[mask]] = chosen[row]


def _distances(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """(n, b) int64 squared distances of integers in float64, whose products and sums are exact."""
    apart = ours.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * (ours @ theirs.T)
    return apart.to(torch.int64)
