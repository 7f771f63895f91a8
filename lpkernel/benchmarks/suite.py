"""The sweeps: which points are run, and one record for each measurement."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lpkernel import philox, presets
from lpkernel.autoencoder.base import choose_device
from lpkernel.backends import registry
from lpkernel.bank import Bank
from lpkernel.benchmarks import data, decoding, machine, measure, points
from lpkernel.benchmarks.checks import WrongAnswer
from lpkernel.benchmarks.peers import PEERS, Peer
from lpkernel.benchmarks.points import Entrant, Generation, Point
from lpkernel.benchmarks.resident import ONE_SCALE
from lpkernel.benchmarks.torch_float32 import PATHS
from lpkernel.errors import InputError, LpkernelError

USUAL = ("topk", "step", "generate", "memory", "decode")
CASES = (*USUAL, "sweep")
NS = (1, 4, 16, 64, 256, 1024, 4096)
BS = (16, 256, 1000, 10_000, 30_000, 100_000)
PS = (2, 3, 4, 5, 6, 7, 8)
KS = (1, 3, 10, 32)
MANY = 30_000
SWEPT_BS = (16, 128, 1024, 10_000, 100_000, 1_000_000)  # the short sweep takes every second one
SWEPT_DS = (2, 3, 16, 64, 256, 1024)
SWEPT_NS = (1, 16, 256)  # and as many as take SWEPT_WORK multiply-adds
SWEPT_KS = (1, 10)
SWEPT_WORK = 1 << 28
SWEPT_MOST_N, SWEPT_MOST_VALUES = 250_000, 1 << 27  # queries; values of a bank
SWEPT_BACKENDS, SWEPT_PEERS = ("cpp", "cuda", "triton"), ("matmul", "matmul-tf32", "faiss")
PRESETS_OF_MEMORY = ("paper", "balanced")
ALL_PEERS = (*PEERS, *PATHS, *decoding.PEERS)
GENERATIONS = (
    Generation(16, 16, 6, 2, 3),
    Generation(16, 16, 6, 2, 3, preset="balanced"),
    Generation(16, 16, 4, 1, 3),
    Generation(16, 999, 6, 2, 3),
    Generation(16, 999, 6, 2, 3, preset="balanced"),
    Generation(16, MANY, 6, 2, 10, one_scale=True),
    Generation(16, MANY, 6, 2, 10, preset="balanced"),
    Generation(10_000, MANY, 6, 2, 10, one_scale=True),
    Generation(10_000, MANY, 6, 2, 10, preset="balanced"),
)
GENERATIONS_ON_GPU = (
    *(Generation(n, MANY, 6, 2, 10, one_scale=True) for n in (1, 16, 64, 256, 1024, 4096, 10_000)),
    *(Generation(n, 16, 6, 2, 3) for n in (16, 4096)),
    *(Generation(n, 999, 6, 2, 3) for n in (16, 256, 4096)),
    *(Generation(16, b, 6, 2, 3, preset="balanced") for b in (16, 999)),
    *(Generation(n, MANY, 6, 2, 10, preset="balanced") for n in (16, 10_000)),
)
DECODED, DECODED_ON_GPU = (1, 16), (1, 16, 64, 256)  # images decoded in a call
MADE_AND_DECODED = (16, 256)  # images; on a GPU, and of the whole sweep, also
MOST_DECODED = 10_000
# What the options may ask for: more than any machine that this runs on can hold or wait for.
MOST = {"n": 1 << 20, "b": 1 << 24, "d": 1 << 16, "p": 1 << 12, "k": 1 << 16}
MOST_THREADS, MOST_SECONDS = 1024, 86_400
PEER_IMAGES = 1000  # most images from which peers' large generations on a CPU are extrapolated
LONGEST_SEARCH, LONGEST_GENERATION = 10.0, 60.0  # seconds of a call
FIRST_IMAGES = 16  # run first, to tell how many are affordable
LOOK_IMAGES = 250  # run next, to tell which way is faster


@dataclass(frozen=True)
class Options:
    """What the command line sets. Lists that are None: those of the short sweep, or the full one."""

    cases: tuple[str, ...] = USUAL
    data: tuple[str, ...] = data.DATA
    n: tuple[int, ...] | None = None
    b: tuple[int, ...] | None = None
    p: tuple[int, ...] | None = None
    k: tuple[int, ...] | None = None
    backends: tuple[str, ...] = tuple(registry.BACKENDS)
    peers: tuple[str, ...] = ALL_PEERS
    autoencoder: str = "default"  # of the case decode
    device: str = "cpu"
    full: bool = False
    threads: int = 1
    budget: float = 0.5
    longest: float | None = None
    seed: int = 0
    d: tuple[int, ...] | None = None

    def check(self) -> None:
        for what, given, known in (
            ("case", self.cases, CASES),
            ("--data", self.data, data.DATA),
            ("--backend", self.backends, tuple(registry.BACKENDS)),
            ("--peers", self.peers, ALL_PEERS),
        ):
            for name in given:
                if name not in known:
                    raise InputError(f"{what}: got {name!r}, expected one of {', '.join(known)}")
        for letter, most in MOST.items():
            for value in getattr(self, letter) or ():
                if not 1 <= value <= most:
                    raise InputError(f"--{letter}: got {value}, expected numbers of at least 1 and at most {most}")
        if not 1 <= self.threads <= MOST_THREADS:
            raise InputError(f"--threads: got {self.threads}, expected 1 to {MOST_THREADS}")
        for what, seconds in (("--budget", self.budget), ("--longest", self.longest)):
            if seconds is not None and not 0 < seconds <= MOST_SECONDS:
                raise InputError(f"{what}: got {seconds}, expected more than 0 seconds and at most {MOST_SECONDS}")
        philox.check_seed(self.seed)
        choose_device(self.device)

    @property
    def on_gpu(self) -> bool:
        return measure.on_gpu(self.device)


@dataclass
class Record:
    """One measurement; ready for JSON."""

    case: str
    data: str
    provider: str
    ours: bool
    metric: str  # time, resident (kept after preparing and one call) or peak (more during a call)
    unit: str
    x: dict[str, int]
    p20: float
    p50: float
    p80: float
    config: dict[str, Any]


@dataclass
class Results:
    """records: measurements. absent: providers that could not take part, {provider, reason}. skipped: {case, data, x,
    provider, reason}, too slow to run. refused: the same for wrong answers. bounds: {case, data, x, seconds}."""

    records: list[Record] = field(default_factory=list)
    absent: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    bounds: list[dict[str, Any]] = field(default_factory=list)

    def miss(self, provider: str, reason: str) -> None:
        entry = {"provider": provider, "reason": reason}
        if entry not in self.absent:
            self.absent.append(entry)

    def json(self) -> dict[str, Any]:
        return {**asdict(self), "records": [asdict(record) for record in self.records]}


class Suite:
    """Runs points one after the other. `said(line)` is called with each line of progress."""

    def __init__(self, options: Options, bank: Bank, said: Callable[[str], None] = lambda line: None) -> None:
        options.check()
        self.options, self.said = options, said
        self.maps = data.Maps(bank, options.seed)
        largest = max((p for _, _, p, _ in step_sweep(options, "bank")), default=0)
        if "step" in options.cases and largest > bank.max_patch:
            raise InputError(
                f"--p: got {largest}, but this bank's fixed point is exact up to {bank.max_patch}; give less"
            )
        self.results = Results()
        self.bounds = machine.limits(options.threads, options.device)
        self._speed: dict[tuple[str, str, str], tuple[float, float]] = {}  # (case, data, provider) -> work, seconds
        if reason := machine.threads_missing():
            self.results.miss("threadpoolctl", reason)

    @property
    def search_peers(self) -> list[Peer]:
        return [peer for name, peer in PEERS.items() if name in self.options.peers]

    def run(self) -> Iterator[Point]:
        """Every point of the sweep, once it is measured."""
        points_run = 0
        for make in self._points():
            points_run += 1
            gc.collect()
            with machine.threads(self.options.threads):
                point = make()
            self.said(f"{point.case} {point.data} " + " ".join(f"{name}={value}" for name, value in point.x.items()))
            self._run_point(point)
            yield point
        if not points_run and "memory" not in self.options.cases:
            raise InputError("nothing to measure: every --k is larger than every --b, or --p than the grid; change one")
        if "memory" in self.options.cases and self.options.on_gpu:
            self.results.miss(
                "memory", "measures a process on the CPU; the other cases report the GPU memory that they take"
            )
        elif "memory" in self.options.cases:
            self._memory()

    def _points(self) -> Iterator[Callable[[], Point]]:
        options, others = self.options, self.search_peers
        ours, bounds, seed, device = options.backends, self.bounds, options.seed, options.device
        if "topk" in options.cases:
            for dtype, n, b, k in topk_sweep(options):
                yield partial(points.topk, dtype, n, b, k, ours, others, bounds, seed, device)
        if "sweep" in options.cases:
            swept = tuple(name for name in ours if name in SWEPT_BACKENDS)
            rivals = [PEERS[name] for name in SWEPT_PEERS if name in options.peers]
            for n, b, d, k in swept_points(options):
                yield partial(points.topk, "float32", n, b, k, swept, rivals, bounds, seed, device, "sweep", d)
        if "step" in options.cases:
            for kind in options.data:
                for n, b, p, k in step_sweep(options, kind):
                    yield partial(points.step, self.maps, kind, n, b, p, k, ours, others, bounds, seed, device)
        if "generate" in options.cases:
            for made in generations(options):
                paths = [name for name in PATHS if name in options.peers]
                yield partial(points.generate, self.maps, made, ours, paths, seed, device)
        if "decode" in options.cases:
            yield from self._decodings()

    def _decodings(self) -> Iterator[Callable[[], Point]]:
        options, bank = self.options, self.maps.source
        with machine.threads(options.threads):
            decodings = decoding.Decoding(options.autoencoder, options.device, bank, options.peers, options.seed)
        if decodings.reason:
            self.said(f"{options.autoencoder} decodes a bank of its own random content: {decodings.reason}")
        for n in options.n or (DECODED_ON_GPU if options.on_gpu else DECODED):
            yield partial(decodings.decode, n)
        if (grid := decodings.autoencoder.grid) < decoding.PATCH:
            reason = f"its grid of {grid} is smaller than a patch of {decoding.PATCH}"
            self.results.miss(f"made and decoded by {options.autoencoder}", reason)
            return
        for n in options.n or (*MADE_AND_DECODED, *((MOST_DECODED,) if options.full or options.on_gpu else ())):
            yield partial(decodings.whole, n)

    def _run_point(self, point: Point) -> None:
        self.results.bounds.append({"case": point.case, "data": point.data, "x": point.x, "seconds": point.bounds})
        for entrant in point.entrants:
            place = {"case": point.case, "data": point.data, "x": point.x, "provider": entrant.name}
            if entrant.reason:
                self.results.miss(entrant.name, entrant.reason)
                continue
            longest = self.options.longest or LONGEST_SEARCH
            if not entrant.by_images and (expected := self._expected(point, entrant.name)) > longest:
                reason = f"a call would take about {expected:.0f} s, more than --longest {longest:g} s"
                self.results.skipped.append({**place, "reason": reason})
                continue
            try:
                with machine.threads(self.options.threads):
                    run = self._generation if entrant.by_images else self._search
                    self.results.records += run(point, entrant)
            except WrongAnswer as error:
                self.results.refused.append({**place, "reason": str(error)})
            except LpkernelError as error:
                self.results.miss(entrant.name, str(error))
            except Exception as error:
                if entrant.ours:
                    raise
                # a peer that does not compile or run here is reported; it must not end the run
                self.results.skipped.append({**place, "reason": f"{type(error).__name__}: {error}"[:300]})

    def _expected(self, point: Point, provider: str) -> float:
        """Estimated seconds of a call from an earlier point, if time is proportional to the work; 0 without one."""
        work, seconds = self._speed.get((point.case, point.data, provider), (0.0, 0.0))
        return seconds * point.work / work if work else 0.0

    def _search(self, point: Point, entrant: Entrant) -> list[Record]:
        before = measure.resident(point.device)
        variants = entrant.prepare()
        seconds = {}
        for name, call in variants.items():
            seconds[name], answer = measure.timed(partial(call, 0), point.device)
            entrant.check(answer, 0)
            del answer
            if seconds[name] <= self.options.budget:  # again: the first call may have compiled or filled caches
                seconds[name] = measure.best_of(partial(call, 0), self.options.budget, device=point.device)
        best = min(seconds, key=lambda name: seconds[name])
        call = variants[best]
        variants.clear()
        kept = measure.resident(point.device)
        for batch in range(1, point.batches):
            entrant.check(call(batch), batch)
        peak, first = measure.peak_extra(partial(call, 0), point.device)
        budget = self.options.budget
        times = [first] if first > budget else measure.repeat(call, point.batches, budget, point.device)
        self._speed[point.case, point.data, entrant.name] = (point.work, sorted(times)[len(times) // 2])
        config = {**point.config, **entrant.facts, "runs": len(times), "batches": point.batches, "variant": best}
        grown = None if kept is None or before is None else kept - before
        return self._records(point, entrant, times, grown, peak, config)

    def _generation(self, point: Point, entrant: Entrant) -> list[Record]:
        """A generation of point.x["N"] images, or of fewer, with times scaled up, where that would take too long."""
        n = point.x["N"]
        longest = self.options.longest or LONGEST_GENERATION
        before = measure.resident(point.device)
        variants = entrant.prepare()
        first = min(n, FIRST_IMAGES)
        seconds = {}
        for name, call in variants.items():
            entrant.check(call(1), 0)
            seconds[name], answer = measure.timed(partial(call, first), point.device)
            entrant.check(answer, 0)
            del answer
        most = n if entrant.ours or measure.on_gpu(point.device) else min(n, PEER_IMAGES)
        # if that is short, look again with more images: time grows more slowly than N, and another way may win
        for look in (first, min(most, LOOK_IMAGES)):
            if min(seconds.values()) * look / first <= longest:
                budget, device = self.options.budget, point.device
                seconds = {
                    name: measure.best_of(partial(call, look), budget, device=device) for name, call in variants.items()
                }
                first = look
        made = max(first, min(most, int(first * longest / min(seconds.values()))))
        best = min(seconds, key=lambda name: seconds[name])
        call = variants[best]
        variants.clear()
        kept = measure.resident(point.device)
        peak, long = measure.peak_extra(partial(call, made), point.device)
        budget = self.options.budget
        times = [long] if long > budget else measure.repeat(lambda _: call(made), 1, budget, point.device)
        times = [time * n / made for time in times]
        config = {**point.config, **entrant.facts, "runs": len(times), "variant": best, "images_run": made}
        if made < n:
            config["note"] = f"extrapolated from {made} images"
        grown = None if kept is None or before is None else kept - before
        return self._records(point, entrant, times, grown, peak, config)

    def _records(
        self,
        point: Point,
        entrant: Entrant,
        times: list[float],
        kept: int | None,
        peak: int | None,
        config: dict[str, Any],
    ) -> list[Record]:
        where = (point.case, point.data, entrant.name, entrant.ours)
        records = [Record(*where, "time", "s", point.x, *measure.quantiles(times), config)]
        for metric, value in (("resident", kept), ("peak", peak)):
            if value is not None:
                size = float(max(0, value))
                records.append(Record(*where, metric, "B", point.x, size, size, size, config))
        return records

    def _memory(self) -> None:
        """Resident memory that a bank of 30,000 and generating from it add to a process, and the first image's time.

        At one scale for each backend; by presets of several scales for those that keep no levels of a large bank.
        """
        size = MANY if self.options.b is None else max(self.options.b)
        self.said(f"memory of a bank of {size}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "bank.lpbank")
            bank = self.maps.bank("bank", size)
            bank.save(path)
            for backend in points.backends(self.options.backends):
                if reasons := backend.unavailable():
                    self.results.miss(f"lpkernel {backend.name}", "; ".join(reasons))
                    continue
                for preset in (ONE_SCALE, *(PRESETS_OF_MEMORY if backend.name == "cpp" else ())):
                    scales = 1 if preset == ONE_SCALE else len(presets.find(preset).scales(bank.grid, 6))
                    x = {"N": 16, "B": size, "P": 6, "w": 2, "S": scales, "K": 10}
                    self._memory_of(path, backend.name, preset, x)

    def _memory_of(self, path: Path, backend: str, preset: str, x: dict[str, int]) -> None:
        command = [sys.executable, "-m", "lpkernel.benchmarks.resident", str(path), backend]
        answer = subprocess.run(
            [*command, str(self.options.threads), preset], capture_output=True, text=True, check=False
        )
        if answer.returncode:
            raise LpkernelError(f"the memory of backend {backend} could not be measured: {answer.stderr}")
        data = "bank" if preset == ONE_SCALE else f"bank, {preset}"
        for metric, value in json.loads(answer.stdout).items():
            unit = "s" if metric == "time" else "B"
            place = ("memory", data, f"lpkernel {backend}", True)
            self.results.records.append(Record(*place, metric, unit, x, value, value, value, {}))


def topk_sweep(options: Options) -> list[tuple[str, int, int, int]]:
    """(dtype, N, B, K); ascending work within a dtype."""
    if any(values is not None for values in (options.n, options.b, options.k)):
        ns, bs, ks = options.n or (16,), options.b or (MANY,), options.k or (10,)
        return [(dtype, n, b, k) for dtype in ("float32", "int16") for k in ks for b in bs for n in ns if k <= b]
    sizes = BS[1:] if options.full else (256, 1000, 10_000, MANY)
    ns = NS if options.full else (1, 16, 64, 256, 1024, 4096)
    found = [("float32", 16, b, 10) for b in sizes if b < MANY]
    found += [("float32", n, MANY, 10) for n in ns]
    found += [("float32", 16, b, 10) for b in sizes if b > MANY]
    found += [("int16", n, MANY, 10) for n in (NS if options.full else ns if options.on_gpu else (1, 64, 1024))]
    if options.full:
        found += [("float32", 64, MANY, k) for k in KS if k != 10]
    return found


def swept_points(options: Options) -> list[tuple[int, int, int, int]]:
    """(N, B, D, K) of the sweep over bank sizes and widths; N as given, or a few and as many as SWEPT_WORK allows."""
    bs = options.b or (SWEPT_BS if options.full else SWEPT_BS[::2])
    ds = options.d or (SWEPT_DS if options.full else SWEPT_DS[::3] + SWEPT_DS[2::3])
    found = []
    for b, d, k in itertools.product(bs, sorted(ds), options.k or SWEPT_KS):
        if b * d > SWEPT_MOST_VALUES or k > b:
            continue
        most = max(1, min(SWEPT_MOST_N, SWEPT_WORK // (b * d)))
        few = SWEPT_NS if options.full else SWEPT_NS[:1]
        ns = options.n or sorted({most, *(n for n in few if n < most)})
        found += [(n, b, d, k) for n in ns]
    return found


def step_sweep(options: Options, kind: str) -> list[tuple[int, int, int, int]]:
    """(N, B, P, K)."""
    if any(values is not None for values in (options.n, options.b, options.p, options.k)):
        ns, bs = options.n or (16,), options.b or (MANY,)
        ps, ks = options.p or (6,), options.k or (10,)
        return [(n, b, p, k) for k in ks for p in ps for b in bs for n in ns if k <= b]
    if options.full:
        found = [(n, b, 6, 10) for b in BS for n in NS]
        found += [(n, MANY, p, 10) for p in PS if p != 6 for n in (1, 64, 1024)]
        return found + [(n, MANY, 6, k) for k in KS if k != 10 for n in (1, 64, 1024)]
    found = [(n, MANY, 6, 10) for n in (1, 16, 64, 256, 1024, 4096)]
    if kind == "random":
        return found
    found = [(16, b, 6, 10) for b in BS if b < MANY] + found + [(16, BS[-1], 6, 10)]
    return found + [(64, MANY, p, 10) for p in (3, 8)] + [(64, MANY, 6, k) for k in (1, 32)]


def generations(options: Options) -> list[Generation]:
    """Those of GENERATIONS, or of the N and B given: the paper's five scales and the default, P = 6, w = 2, K = 3."""
    if options.n is None and options.b is None:
        return list(GENERATIONS_ON_GPU if options.on_gpu else GENERATIONS)
    sizes = [(n, b) for b in options.b or (16,) for n in options.n or (16,)]
    return [Generation(n, b, 6, 2, 3, preset=preset) for n, b in sizes for preset in ("paper", "balanced")]
