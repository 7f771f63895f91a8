"""Time and memory of the search step of the six projects of docs/dropin.md, before and after: the table there.

    python scripts/dropin_times.py --clones DIR --threads 1      # also --size 64, --only gpnn,psin

DIR holds clones of the projects, named as `git clone` names them. "Before" is a project's own function, imported from
its file; without a clone only "after" is measured, and the row says so. What the files import, but the search does not
use (each case's `stood_in`), is replaced by empty names where it is not installed. What the searches do use: faiss
(faiss-cpu), einops for taming-transformers, and numba and cffi for PSIN.

The images are made here: random colours enlarged four times, and a copy with noise, whose patches of 7 pixels are the
queries. Banks of features and codebooks are random, as many rows and values as the project has for an image of --size.

Every search has a process of its own, with --threads for every library. A search of a few small inputs comes first, so
that nothing is loaded or compiled later. Then memory is by how much resident memory rises at most, above the process
with its inputs, while an index is built and searched; time is the search's alone, the median of several runs where it
takes less than SECONDS. Before any time is shown, indices are compared, and where they differ, distances in float64.
Writes dropin.json in --out and prints the table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import console
import numpy as np
import torch
from dropin_cases import CASES, PROJECTS, Call, Case, Clone, Inputs, Prepared
from numpy.typing import NDArray

from lpkernel.benchmarks import machine, measure
from lpkernel.commands.common import write_json
from lpkernel.errors import InputError, LpkernelError
from lpkernel.info import cpu_model

LEAST, SMALL = 16, 24  # sides: of the smallest image with a cell of a quantiser, and of that searched first
SECONDS, MOST_RUNS = 2.0, 100  # of the repeated runs of a short search
OURS_FARTHER, THEIRS_FARTHER = 1e-6, 1e-2  # at most, relative: ties after float32 rounding; float32 expansions
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Measured:
    """One search in a process of its own."""

    work: str
    processor: float  # seconds of all threads
    wall: float
    extra: int | None  # bytes
    runs: int
    indices: NDArray[np.int64] = field(repr=False)
    stood_in: tuple[str, ...] = ()


def measured(name: str, search: str, side: int, clone: Path | None, threads: int) -> Measured:
    """A case's search: the project's own where its clone is given, else one of ours. Raises LpkernelError."""
    case = CASES[name]
    tree = None if clone is None else Clone(clone, case.stood_in, threads)
    try:
        with torch.no_grad():
            prepared = case.ours[search] if tree is None else case.before(tree)
            with machine.threads(threads):
                prepared(case.inputs(min(side, SMALL)))()
                return _timed(prepared, case.inputs(side), tuple(tree.missing) if tree else ())
    except Exception as error:  # whatever another project's code raises, which may be known in this process only
        raise LpkernelError(f"{type(error).__name__}: {' '.join(str(error).split())}") from None


def _timed(prepared: Prepared, inputs: Inputs, stood_in: tuple[str, ...]) -> Measured:
    taken: list[tuple[float, float]] = []
    kept: list[Any] = []

    def run(search: Call) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        found = search()
        taken.append((time.process_time() - processor, time.perf_counter() - wall))
        return found

    def first() -> None:
        kept.append(prepared(inputs))
        kept.append(run(kept[0]))

    measure.rest()
    extra, _ = measure.peak_extra(first)
    if taken[0][1] < SECONDS:
        taken.clear()
        while len(taken) < MOST_RUNS and sum(wall for _, wall in taken) < SECONDS:
            run(kept[0])
    processor, wall = (statistics.median(column) for column in zip(*taken, strict=True))
    indices = np.asarray(kept[1]).reshape(-1).astype(np.int64)
    return Measured(inputs.work(), processor, wall, extra, len(taken), indices, stood_in)


def apart(name: str, search: str, side: int, clone: Path | None, threads: int) -> Measured:
    """`measured`, in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lpkernel.benchmarks.measure", "torch"])
    try:
        with ProcessPoolExecutor(1, context) as one:
            return one.submit(measured, name, search, side, clone, threads).result()
    except BrokenProcessPool:
        raise LpkernelError("the system ended the process, most likely for want of memory") from None


@dataclass(frozen=True)
class Agreement:
    """How two searches agree: the share of equal indices, and how much farther the others' keys are, in float64."""

    same: float
    ours_farther: float  # at most, relative
    theirs_farther: float
    theirs_farther_mean: float  # of those that differ

    def fault(self, exact: bool) -> bool:
        return self.ours_farther > OURS_FARTHER or (exact and self.theirs_farther > THEIRS_FARTHER)

    def told(self, exact: bool) -> str:
        if self.same == 1:
            return "all the same"
        share = f"{np.floor(1e4 * self.same) / 100:.2f} % the same; the others of theirs are farther"
        if exact:
            return f"{share} by at most {100 * self.theirs_farther:.2g} %"
        return f"{share} by {100 * self.theirs_farther_mean:.1f} % on average"


def agreement(case: Case, side: int, ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> Agreement:
    rows = (ours != theirs).nonzero()[0]
    if not len(rows):
        return Agreement(1.0, 0.0, 0.0, 0.0)
    inputs, tiny = case.inputs(side), np.finfo(np.float64).tiny
    near, far = (case.score(inputs, rows, picks[rows]) + tiny for picks in (ours, theirs))
    more = far / near - 1
    return Agreement(
        1 - len(rows) / len(ours),
        max(0.0, float((near / far).max()) - 1),
        max(0.0, float(more.max())),
        float(more.mean()),
    )


@dataclass(frozen=True)
class Row:
    """A line of the table. found: None where nothing was run; not shown, but for its work, where answers are wrong."""

    case: str
    search: str
    ours: bool
    found: Measured | None
    note: str
    agreement: Agreement | None = None
    wrong: bool = False

    def times(self) -> dict[str, Any]:
        """What is measured, for the record."""
        if self.found is None or self.wrong:
            return {}
        found = self.found
        times = {"processor_seconds": found.processor, "wall_seconds": found.wall, "runs": found.runs}
        return {**times, "extra_bytes": found.extra, "stood_in": found.stood_in}

    def record(self) -> dict[str, Any]:
        place = {"case": self.case, "project": CASES[self.case].project, "search": self.search, "ours": self.ours}
        checked = None if self.agreement is None else asdict(self.agreement)
        work = {"work": self.found.work if self.found else None, "note": self.note, "wrong": self.wrong}
        return {**place, **work, "agreement": checked, **self.times()}

    def cells(self) -> list[str]:
        measured = self.times()
        seconds = (f"{measured[key]:.3g}" if measured else "" for key in ("processor_seconds", "wall_seconds"))
        extra = measured.get("extra_bytes")
        memory = "" if extra is None else f"{extra / 2**20:,.1f}" if extra < 10 << 20 else f"{extra / 2**20:,.0f}"
        return [
            CASES[self.case].project,
            self.search,
            self.found.work if self.found else "",
            *seconds,
            memory,
            self.note,
        ]


HEADER = ["project", "search", "queries x rows x values", "processor seconds", "seconds", "MB more", "answers"]


def table(rows: list[Row]) -> str:
    lines = [HEADER, ["---"] * len(HEADER), *(row.cells() for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rows_of(name: str, side: int, clones: Path | None, threads: int) -> list[Row]:
    """A case's lines: the project's own search on the largest image that fits, ours on that one and on the whole."""
    case = CASES[name]
    fits, before, why = case.most(side), None, "no --clones"
    if clones is not None:
        try:
            before = apart(name, case.theirs, fits, _folder(clones, case.project), threads)
        except LpkernelError as error:
            why = str(error)
    found: list[tuple[str, int, Measured, Agreement | None]] = []
    sides = [side] if before is None else sorted({fits, side})
    for each in sides:
        for search in case.ours:
            one = apart(name, search, each, None, threads)
            checked = agreement(case, each, one.indices, before.indices) if before and each == fits else None
            found.append((search, each, one, checked))
    wrong = any(checked is not None and checked.fault(case.exact) for *_, checked in found)
    note = "" if fits == side else f"an image of {fits} x {fits}, since more does not fit into memory"
    rows = [Row(name, case.theirs, False, before, note if before else f"not measured: {why}", wrong=wrong)]
    for search, each, one, checked in found:
        told = "not compared" if checked is None else checked.told(case.exact)
        note = f"{told}; an image of {each} x {each}" if len(sides) > 1 else told
        rows.append(Row(name, search, True, one, f"WRONG, not shown: {note}" if wrong else note, checked, wrong))
    return rows


def _folder(clones: Path, project: str) -> Path:
    if not (clones / project).is_dir():
        raise InputError(f"no folder {project} in --clones")
    return clones / project


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clones", type=Path, help=f"with folders {', '.join(PROJECTS)}")
    parser.add_argument("--size", type=int, default=256, help="side of the image (default: %(default)s)")
    parser.add_argument("--only", default=",".join(CASES), help="cases, comma-separated (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("out/dropin"), help="default: %(default)s")
    args = parser.parse_args()
    names = args.only.split(",")
    for name in names:
        if name not in CASES:
            raise InputError(f"--only: got {name!r}, expected some of {', '.join(CASES)}")
    if args.size < LEAST:
        raise InputError(f"--size: got {args.size}, expected at least {LEAST}")
    if args.threads < 1:
        raise InputError(f"--threads: got {args.threads}, expected at least 1")
    if args.clones is not None and not args.clones.is_dir():
        raise InputError(f"--clones: {args.clones} is no folder; git clone the projects into it, or leave it out")
    os.environ.update(dict.fromkeys(THREADS, str(args.threads)))
    commits = {one: machine.commit(args.clones / one) if args.clones else None for one in PROJECTS}
    facts = {"cpu": cpu_model(), "threads": args.threads, "size": args.size, "commit": machine.commit()}
    rows: list[Row] = []
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += rows_of(name, args.size, args.clones, args.threads)
        record = {**facts, "versions": machine.versions(), "clones": commits, "rows": [row.record() for row in rows]}
        write_json(args.out / "dropin.json", record)
    print(table(rows))
    found = ", ".join(f"{project} {commit[:7]}" for project, commit in commits.items() if commit)
    print(f"\n{facts['cpu']}, threads: {args.threads}; clones: {found or 'none'}")
    for row in rows:
        if row.found and row.found.stood_in:
            print(f"{row.case}: not installed and stood in for: {', '.join(row.found.stood_in)}")
    return int(any(row.wrong for row in rows))


if __name__ == "__main__":
    console.run(main)
