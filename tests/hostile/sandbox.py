"""Runs hostile cases, each in a watched child process, and reports what it said, did and cost.

    PYTHONPATH=tests python -m hostile.sandbox hostile.pickles FOLDER

prints a line of JSON for each entry of the module's `CASES`, a dict of name -> `Case`. The children are forked from
one process that has imported lpkernel and has never computed anything, so each starts clean and in milliseconds.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """make(folder) writes the input into an empty folder; use(folder) hands it to lpkernel, in a child of its own."""

    make: Callable[[Path], object]
    use: Callable[[Path], object]


ROOM = 4 << 30  # bytes that a case may ask for before the system refuses, so that a bomb cannot hurt the machine
AT_ONCE = os.cpu_count() or 1  # cases that run in parallel
PATIENCE = 60  # seconds of wall time after which a case is killed
# What no input may cause; opening files for writing is watched too.
FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "os.startfile",
    "os.kill",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.link",
    "shutil.rmtree",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.sendto",
    "urllib.Request",
    "pty.spawn",
    "webbrowser.open",
)


@dataclass
class Outcome:
    """What became of a case.

    said: the line of an LpkernelError, "" if the input was taken. raised: the traceback of any other exception.
    signal: what killed the child, 0 if it ended by itself. acts: what it did of `FORBIDDEN`, and files it opened for
    writing beyond its folder. printed: what it wrote to stdout and stderr. seconds: of processor time.
    mebibytes: by how much its peak memory grew.
    """

    said: str = ""
    raised: str = ""
    signal: int = 0
    acts: list[str] = field(default_factory=list)
    printed: str = ""
    seconds: float = 0.0
    mebibytes: int = 0


@functools.cache
def outcomes(module: str) -> dict[str, Outcome]:
    """The outcome of every case of a module, all run now."""
    with tempfile.TemporaryDirectory(prefix="lpkernel-hostile-") as folder:
        command = [sys.executable, "-m", __spec__.name, module, folder]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), *sys.path)))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = map(json.loads, done.stdout.splitlines())
    return {row.pop("name"): Outcome(**row) for row in rows}


def faults(outcome: Outcome, refused: bool = True, seconds: float = 2.0, mebibytes: int = 1024) -> list[str]:
    """What is wrong: [] if it was refused quickly in one line (or, unless `refused`, taken) and did nothing else."""
    found = [f"killed by {signal.Signals(outcome.signal).name}"] if outcome.signal else []
    found += [part for part in (outcome.raised, *outcome.acts) if part]
    if outcome.printed:
        found.append(f"printed {outcome.printed!r}")
    if refused and not (outcome.said or outcome.raised or outcome.signal):
        found.append("was taken")
    if "\n" in outcome.said or len(outcome.said) > 600:
        found.append(f"said no line: {outcome.said!r}")
    if outcome.seconds > seconds:
        found.append(f"took {outcome.seconds:.1f} seconds")
    if outcome.mebibytes > mebibytes:
        found.append(f"took {outcome.mebibytes} mebibytes")
    return found


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def _watch(folder: Path, acts: list[str]) -> None:
    """Record forbidden acts from here on."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            acts.append(f"{event} {arguments!r}"[:200])
        elif event == "open":
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(c in (mode or "") for c in "wax+")
            if writes and not str(path).startswith((str(folder), "/dev/null")):
                acts.append(f"open {path!r} for writing"[:200])

    sys.addaudithook(hook)


def _child(case: Case, folder: Path, pipe: int) -> None:
    """Run a case and write its outcome into the pipe; never returns."""
    printed = folder.with_name(folder.name + ".printed")
    out = os.open(printed, os.O_RDWR | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    with open("/proc/self/statm") as statm:
        held = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, held + ROOM))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcome, before, started = Outcome(), _peak(), time.process_time()
    os.chdir(folder)
    _watch(folder, outcome.acts)
    from lpkernel.errors import LpkernelError

    try:
        case.use(folder)
    except LpkernelError as error:
        outcome.said = str(error) or "(an empty message)"
    except BaseException:
        outcome.raised = traceback.format_exc(limit=-6)[-2000:]
    acts = list(outcome.acts)
    sys.stdout.flush()
    sys.stderr.flush()
    outcome.acts = acts
    outcome.seconds, outcome.mebibytes = time.process_time() - started, _peak() - before
    outcome.printed = printed.read_bytes()[:2000].decode("utf-8", "replace")
    os.write(pipe, json.dumps(asdict(outcome)).encode())
    os._exit(0)


class _Maker:
    """A child that writes the inputs of all cases, so that the cost of making them is not counted as the case's."""

    def __init__(self, cases: dict[str, Case]) -> None:
        asked, self._ask = os.pipe()
        self._answer, answered = os.pipe()
        if os.fork() == 0:
            os.close(self._ask)  # otherwise its end would never be read
            try:
                with os.fdopen(asked) as lines:
                    for line in lines:
                        name, folder = json.loads(line)
                        Path(folder).mkdir()
                        cases[name].make(Path(folder))
                        os.write(answered, b".")
                os._exit(0)
            finally:
                traceback.print_exc()
                os._exit(1)
        os.close(asked)
        os.close(answered)

    def make(self, name: str, folder: Path) -> None:
        os.write(self._ask, (json.dumps([name, str(folder)]) + "\n").encode())
        if not os.read(self._answer, 1):
            raise RuntimeError(f"the input of {name} could not be made")


@dataclass
class _Running:
    """The child of a case, and the pipe that brings its outcome."""

    name: str
    child: int
    pipe: int
    deadline: float

    @staticmethod
    def start(name: str, case: Case, folder: Path) -> _Running:
        reads, writes = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reads)
            _child(case, folder, writes)
        os.close(writes)
        return _Running(name, child, reads, time.monotonic() + PATIENCE)

    def ended(self) -> bool:
        if time.monotonic() > self.deadline:
            os.kill(self.child, signal.SIGXCPU)
        return os.waitid(os.P_PID, self.child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def outcome(self) -> Outcome:
        _, status, usage = os.wait4(self.child, 0)
        with os.fdopen(self.pipe, "rb") as pipe:
            text = pipe.read()
        if text and not os.WIFSIGNALED(status):
            return Outcome(**json.loads(text))
        return Outcome(
            signal=os.WTERMSIG(status), seconds=usage.ru_utime + usage.ru_stime, mebibytes=usage.ru_maxrss >> 10
        )


def main(module: str, folder: str) -> None:
    sys.dont_write_bytecode = True
    importlib.import_module("lpkernel")
    cases: dict[str, Case] = importlib.import_module(module).CASES
    gc.collect()
    gc.freeze()  # otherwise each child's first collection would copy all memory shared with its parent
    waiting = [(name, case, Path(folder, str(number))) for number, (name, case) in enumerate(cases.items())][::-1]
    running: list[_Running] = []
    maker = _Maker(cases)
    while waiting or running:
        if waiting and len(running) < AT_ONCE:
            name, case, place = waiting.pop()
            maker.make(name, place)
            running.append(_Running.start(name, case, place))
            continue
        for one in [one for one in running if one.ended()]:
            running.remove(one)
            print(json.dumps({"name": one.name, **asdict(one.outcome())}), flush=True)
        time.sleep(0.001)


if __name__ == "__main__":
    main(*sys.argv[1:])
