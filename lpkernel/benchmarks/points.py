"""What is run: each point of a sweep, with all that take part in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel import philox, presets, synthesis
from lpkernel.backends import registry
from lpkernel.backends.base import Backend, LatentBank, ScanRequest, TopK, TopkRequest
from lpkernel.bank import Bank
from lpkernel.benchmarks import data, measure
from lpkernel.benchmarks.checks import RTOL_EXPANDED, Truth, WrongAnswer, true_distances
from lpkernel.benchmarks.machine import Limits
from lpkernel.benchmarks.peers import Peer, Search, Variants
from lpkernel.benchmarks.torch_float32 import PATHS, Kind, TorchFloat32
from lpkernel.plan import Plan
from lpkernel.search import ops

QUERIES_A_POINT = 64  # calls with few queries take several batches in turn, so that no single query decides
MOST_BATCHES = 8
TOPK_WIDTH = 512
KEPT_BYTES = 4 << 30  # the torch path keeps its patches up to this size
CHECKED_IMAGES = 2


@dataclass(frozen=True)
class Entrant:
    """A backend or a peer that does the work of a point.

    prepare() -> name -> call(batch): the ways to do it; the fastest counts. `check(answer, batch)` raises
    WrongAnswer. If `by_images`, calls take the number of images instead, and long ones are extrapolated from fewer.
    facts: for the record's config, filled in by then. If they say `exact` is False, the check refuses nothing and
    records in them what share of the answers is right.
    """

    name: str
    ours: bool
    prepare: Callable[[], Variants]
    check: Callable[[Any, int], None]
    reason: str = ""  # why it does not take part
    by_images: bool = False
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Point:
    """One point of a sweep: `x`, the numbers that vary; `work`, which time grows with; `bounds`, seconds by name."""

    case: str
    data: str
    x: dict[str, int]
    work: float
    batches: int
    entrants: list[Entrant]
    bounds: dict[str, float]
    config: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"


def batch_count(queries: int) -> int:
    """How many batches of so many queries a point is measured with, so that no single query decides."""
    return min(MOST_BATCHES, max(1, QUERIES_A_POINT // queries))


def backends(names: Sequence[str]) -> list[Backend]:
    return [backend for name, backend in registry.BACKENDS.items() if name in names]


def _reason(backend: Backend, request: ScanRequest | TopkRequest) -> str:
    """Why a backend cannot run this request on the measured device."""
    return "; ".join(backend.unsupported(request))


def _peer_entrant(peer: Peer, search: Search, truth: Truth) -> Entrant:
    facts: dict[str, Any] = {"exact": peer.exact}
    share = Share(facts)

    def check(raw: Any, batch: int) -> None:
        if peer.exact:
            truth.close(peer.answer(raw), batch, expanded=True)
        else:
            share.count(*truth.right(peer.answer(raw), batch))

    reason = peer.missing(search.device)
    return Entrant(peer.name, False, lambda: peer.prepare(search), check, reason, facts=facts)


class Share:
    """How much of what an inexact peer answers is right, kept in its facts."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts, self.right, self.all = facts, 0, 0

    def count(self, right: int, all_: int) -> None:
        self.right += right
        self.all += all_
        self.facts["right"] = self.right / self.all
        self.facts["answers"] = f"{self.right / self.all:.2%} of the answers right"


def placed(array: NDArray[Any], device: str) -> Any:
    """The array where a user of the device has it: a tensor there; on the CPU the array itself."""
    return torch.from_numpy(array).to(device) if measure.on_gpu(device) else array


def on_host(answer: Any) -> TopK:
    """Distances and indices, each (N, K), arrays or tensors of any device, as NumPy arrays."""
    return TopK(*(part.cpu().numpy() if isinstance(part, torch.Tensor) else part for part in answer))


def topk(
    dtype: str,
    n: int,
    b: int,
    k: int,
    ours: Sequence[str],
    others: Sequence[Peer],
    bounds: Limits,
    seed: int,
    device: str = "cpu",
    case: str = "topk",
    width: int = TOPK_WIDTH,
) -> Point:
    """`lpkernel.masked_topk` on normally distributed float32 rows, or on uniform int16 ones, on the device beforehand.

    The peers search int16 rows as float32.
    """
    random = np.random.default_rng((seed, 4))
    batches = batch_count(n)
    shape = (b + n * batches, width)
    if dtype == "int16":
        limit = int(np.sqrt((2**31 - 1) / width) / 2)
        rows: NDArray[Any] = random.integers(-limit, limit + 1, shape, np.int16)
    else:
        rows = random.standard_normal(shape, np.float32)
    bank, queries = rows[:b].copy(), [part.copy() for part in np.split(rows[b:], batches)]
    search = Search(bank.astype(np.float32), [part.astype(np.float32) for part in queries], k, device)
    truth = Truth(search.queries, search.bank, k)
    rows_there, asked = placed(bank, device), [placed(part, device) for part in queries]

    def entrant(backend: Backend) -> Entrant:
        def prepare() -> Variants:
            return {"": lambda batch: ops.masked_topk(asked[batch], rows_there, k, backend=backend.name)}

        def check(answer: Any, batch: int) -> None:
            if dtype == "int16":
                truth.exact(on_host(answer), batch)
            else:
                truth.close(on_host(answer), batch, expanded=False)

        request = TopkRequest(asked[0], rows_there, k, None, None)
        return Entrant(f"lpkernel {backend.name}", True, prepare, check, _reason(backend, request))

    return Point(
        case,
        dtype,
        {"N": n, "B": b, "D": width, "K": k},
        float(n * b * width),
        batches,
        [*map(entrant, backends(ours)), *(_peer_entrant(peer, search, truth) for peer in others)],
        bounds.vectors(n, b, width),
        device=device,
    )


class _SourceCheck:
    """Exact backends: sampled rows against the truth, and whole maps against the first backend that passed."""

    def __init__(self, truth: Truth, step: Plan, seed: int) -> None:
        self.truth, self.step, self.seed = truth, step, seed
        self.first: dict[int, NDArray[np.int32]] = {}

    def __call__(self, sources: NDArray[np.int32], batch: int) -> None:
        truth = self.truth
        (scale,) = self.step.scales
        (y, x), write = scale.positions[0], scale.write[0]
        words = philox.draws(self.seed, truth.rows, 0)
        for row, best, word in zip(truth.rows, truth.order[batch], words, strict=True):
            expected = np.full((scale.side, scale.side), -1)
            expected[y : y + self.step.patch, x : x + self.step.patch][write] = best[philox.pick(word, len(best))]
            if not np.array_equal(sources[row], expected):
                raise WrongAnswer(f"image {row}: copied {np.unique(sources[row])[1:]}, expected {expected.max()}")
        if not np.array_equal(sources, self.first.setdefault(batch, sources)):
            raise WrongAnswer("source maps differ from those of the previous backend")


def step(
    maps: data.Maps,
    kind: str,
    n: int,
    b: int,
    patch: int,
    k: int,
    ours: Sequence[str],
    others: Sequence[Peer],
    bounds: Limits,
    seed: int,
    device: str = "cpu",
) -> Point:
    """The search step of one patch in the code domain: `Backend.scan` of a plan of this one step.

    Ours compares, selects, draws and copies codes; the peers only find the K neighbours, among the same vectors as
    float32. Canvases and the float32 vectors are ready before the clock starts; on a GPU the peers' are already on the
    device, while ours, as `scan` always does, takes the canvases from the host and brings the source maps back.
    """
    bank = maps.bank(kind, b)
    one = data.one_step(bank.grid, patch)
    batches = batch_count(n)
    canvases = np.split(maps.queries(kind, bank, n * batches), batches)
    vectors = data.known_vectors(bank.codes, bank, one)  # type: ignore[arg-type]
    search = Search(vectors, [data.known_vectors(canvas, bank, one) for canvas in canvases], k, device)
    truth = Truth(search.queries, search.bank, k)
    source_check = _SourceCheck(truth, one, seed)
    requests = [
        synthesis.request(bank, one, n, k, seed, canvas=canvas, domain="codes", device=device) for canvas in canvases
    ]

    def entrant(backend: Backend) -> Entrant:
        def prepare() -> Variants:
            return {"": lambda batch: backend.scan(requests[batch])}

        return Entrant(f"lpkernel {backend.name}", True, prepare, source_check, _reason(backend, requests[0]))

    cells = int(one.scales[0].compare.sum())
    width = vectors.shape[1]
    return Point(
        "step",
        kind,
        {"N": n, "B": b, "P": patch, "K": k, "D": width},
        float(n * b * width),
        batches,
        [*map(entrant, backends(ours)), *(_peer_entrant(peer, search, truth) for peer in others)],
        bounds.step(n, b, cells, width),
        {"known_cells": cells, "position": one.scales[0].positions[0].tolist()},
        device,
    )


@dataclass(frozen=True)
class Generation:
    """N images from a bank of B by a preset, at its scales or at the last one only."""

    n: int
    b: int
    patch: int
    stride: int
    k: int
    one_scale: bool = False
    preset: str = "paper"

    def sources(self, bank: Bank, n: int, seed: int, backend: str, device: str) -> NDArray[np.int32]:
        """Source maps of the first n images."""
        return synthesis.generate(
            bank,
            n,
            self.patch,
            self.stride,
            self.k,
            (bank.grid,) if self.one_scale else None,
            seed,
            preset=self.preset,
            backend=backend,
            device=device,
        ).sources

    def plan(self, side: int) -> Plan:
        """The plan of these source maps."""
        scales = (side,) if self.one_scale else None
        return presets.find(self.preset).plan(side, self.patch, self.stride, scales)


class _GenerationCheck:
    """Checks ours against the specification's first images, and the float path's neighbours against the true ones."""

    def __init__(self, bank: Bank, generation: Generation, seed: int) -> None:
        self.bank, self.generation, self.seed = bank, generation, seed

    @cached_property
    def expected(self) -> NDArray[np.int32]:
        return self.generation.sources(self.bank, min(self.generation.n, CHECKED_IMAGES), self.seed, "numpy", "cpu")

    def ours(self, sources: NDArray[np.int32], batch: int) -> None:
        count = min(len(sources), len(self.expected))
        if not np.array_equal(sources[:count], self.expected[:count]):
            raise WrongAnswer("source maps differ from the specification's")

    def neighbours(self, path: TorchFloat32, share: Share) -> None:
        """Check that each choice of a small run is among the K nearest, up to float32 rounding; for TF32 count them."""
        plan = self.generation.plan(self.bank.grid)
        steps = [(scale, i) for scale in plan.scales for i in range(len(scale.positions))]

        def observe(count: int, query: torch.Tensor, chosen: torch.Tensor) -> None:
            scale, i = steps[count]
            (y, x), compare = scale.positions[i], scale.compare[i]
            level = self.bank.level(scale.side)
            theirs = level[:, y : y + plan.patch, x : x + plan.patch][:, compare].reshape(len(level), -1)
            query, chosen = query.cpu(), chosen.cpu()
            truth = true_distances(query.numpy(), theirs)
            kth = np.partition(truth, path.k - 1, axis=1)[:, path.k - 1]
            taken = np.take_along_axis(truth, chosen.numpy()[:, None], 1)[:, 0]
            largest = float(np.einsum("bd,bd->b", theirs, theirs, dtype=np.float64).max())
            wrong = taken > kth + RTOL_EXPANDED * (query.double().square().sum(1).numpy() + largest)
            if not path.exact:
                share.count(int((~wrong).sum()), len(wrong))
            elif wrong.any():
                raise WrongAnswer(f"step {count}: chose an image that is not among the {path.k} nearest")

        path.run(min(self.generation.n, CHECKED_IMAGES), self.seed, observe)


def generate(
    maps: data.Maps, made: Generation, ours: Sequence[str], others: Sequence[str], seed: int, device: str = "cpu"
) -> Point:
    """Whole generations without decoding: `lpkernel.generate` beside float32 torch paths, on real code maps.

    others: names in `torch_float32.PATHS`. All source maps end up on the host.
    """
    bank = maps.bank("bank", made.b)
    plan = made.plan(bank.grid)
    pull = presets.find(made.preset).hubness
    request = synthesis.request(bank, plan, made.n, made.k, seed, hubness=pull, device=device)
    for side in plan.sides if isinstance(request.bank, LatentBank) else plan.sides[:-1]:
        bank.level(side)
    check = _GenerationCheck(bank, made, seed)

    def entrant(backend: Backend) -> Entrant:
        def prepare() -> Variants:
            # the "batch" of a generation is the number of images
            return {"": lambda n: made.sources(bank, n, seed, backend.name, device)}

        reason = _reason(backend, request)
        return Entrant(f"lpkernel {backend.name}", True, prepare, check.ours, reason, by_images=True)

    def torch_path(kind: Kind, facts: dict[str, Any]) -> Variants:
        keep = {"patches sliced in the loop": False}
        if TorchFloat32.kept_bytes(bank, plan) <= KEPT_BYTES:
            keep["patches copied beforehand"] = True
        paths = {name: TorchFloat32(bank, plan, made.k, kept, device, kind) for name, kept in keep.items()}
        share = Share(facts)
        for path in paths.values():
            check.neighbours(path, share)
        return {name: _runner(path) for name, path in paths.items()}

    def _runner(path: TorchFloat32) -> Callable[[int], Any]:
        return lambda n: path.run(n, seed)

    def in_range(sources: Any, batch: int) -> None:
        if sources.min() < 0 or sources.max() >= bank.size:
            raise WrongAnswer("source maps name images outside the bank")

    entrants = [entrant(backend) for backend in backends(ours)]
    for name in others if made.preset == "paper" else ():  # the peers lack the other options
        kind = PATHS[name]
        facts: dict[str, Any] = {"exact": not kind.tf32}
        prepare = partial(torch_path, kind, facts)
        reason = kind.missing(device)
        entrants.append(Entrant(kind.name, False, prepare, in_range, reason, True, facts))
    x = {"N": made.n, "B": made.b, "P": made.patch, "w": made.stride, "S": len(plan.sides), "K": made.k}
    return Point(
        "generate",
        "bank" if made.preset == "paper" else f"bank, {made.preset}",
        x,
        float(made.n * made.b),
        1,
        entrants,
        {},
        {"steps": plan.steps},
        device,
    )
