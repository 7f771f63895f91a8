"""Ctrl+C: while the command line starts, and in the middle of long native calls; no traceback, soon."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
import torch
from scans import World

from lpkernel import _native, plan
from lpkernel.backends.base import TopkRequest
from lpkernel.backends.cpp import CppBackend, Tuning

TESTS = Path(__file__).parent
PATIENCE = 30  # seconds
needs_cpp = pytest.mark.skipif(bool(_native.cpu_reasons()), reason=f"cpp: {_native.cpu_reasons()}")


def big_search(queries: int, packed: int = 128, own: bool = False) -> Callable[[], object]:
    runner = CppBackend()
    runner.tuning = Tuning(packed=packed)
    bank = np.random.default_rng(0).standard_normal((200_000, 64)).astype(np.float32)
    asked = np.broadcast_to(bank[:1], (queries, 64))
    mask = np.ones((queries, 64), bool) if own else None
    return lambda: runner.masked_topk(TopkRequest(asked, bank, 1, mask, None))


def big_scan(size: int, in_codes: bool = False) -> Callable[[], object]:
    world = World(size, side=8, channels=16, codes=300)
    request = world.request(plan.random(8, 6, 2, scales=[8]), range(4_000_000), 10, in_codes=in_codes)
    return lambda: CppBackend().scan(request)


def big_group() -> Callable[[], object]:
    """Few images from a large bank: the threads share every step."""
    bank = World(20_000, side=8, channels=16, codes=300)
    request = bank.request(plan.random(8, 6, 1, scales=[8]), range(3), 10)
    runner = CppBackend()
    runner.tuning = Tuning(split=0)

    def without_end() -> None:
        while True:
            runner.scan(request)

    return without_end


# Each prepares a call and returns it.
LONG: dict[str, Callable[[], Callable[[], object]]] = {
    "search in place": lambda: big_search(200_000, packed=1 << 40),
    "packed search": lambda: big_search(1_000_000),
    "search with masks": lambda: big_search(200_000, own=True),
    "scan of a small bank": lambda: big_scan(16),
    "scan of latents": lambda: big_scan(5000),
    "scan of codes": lambda: big_scan(5000, in_codes=True),
    "few images": big_group,
}


def begin(threads: int) -> None:
    """Runs in a process of its own: each call in turn prints that it begins and that it was interrupted."""
    torch.set_num_threads(threads)
    for prepare in LONG.values():
        call = prepare()
        print("begins", flush=True)
        try:
            call()
        except KeyboardInterrupt:
            print("interrupted", flush=True)


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), *sys.path)))}
    environment |= {"PYTHONUNBUFFERED": "1"}
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeded
    ) as running:
        try:
            yield running
        finally:
            running.kill()


@needs_cpp
@pytest.mark.parametrize("threads", [1, 2])
def test_a_long_call_is_interrupted(threads: int) -> None:
    """Uninterrupted, each would take minutes."""
    with process(sys.executable, "-c", f"import test_interrupt; test_interrupt.begin({threads})") as running:
        assert running.stdout is not None and running.stderr is not None
        alarm = threading.Timer(PATIENCE * len(LONG), running.kill)
        alarm.start()
        for name in LONG:
            assert running.stdout.readline() == "begins\n", name
            time.sleep(0.3)
            running.send_signal(signal.SIGINT)
            assert running.stdout.readline() == "interrupted\n", name
        alarm.cancel()
        assert (running.wait(PATIENCE), running.stderr.read()) == (0, "")


def first_heard(call: Callable[[], object]) -> float:
    """When a handler of signals that come every 10 ms first runs: 0 at the start of the call, 1 at its end."""
    heard: list[float] = []

    def handler(number: int, frame: FrameType | None) -> None:
        heard.append(time.monotonic())

    before = signal.signal(signal.SIGALRM, handler)
    begun = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        call()
        ended = time.monotonic()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return (heard[0] - begun) / (ended - begun)


@needs_cpp
@pytest.mark.parametrize("domain", ["latents", "codes"])
def test_laying_out_a_bank_hears_signals(domain: str) -> None:
    """If the call did not check for signals, the handler would run only after it."""
    native = _native.cpu()
    shape = (20_000, 16, 16, 16) if domain == "latents" else (300_000, 16, 16)
    content, table = np.zeros(shape, np.int16), np.zeros((1, 1), np.int32)
    allowed = np.arange(len(content))
    assert first_heard(lambda: native.Layer(content, table, allowed, "", 0, False, 1, 1 << 40)) < 0.8


@needs_cpp
def test_a_call_on_another_thread_goes_on() -> None:
    """Python runs signal handlers on its main thread, so a call on another thread completes as if without a signal."""
    world = World(2000, side=8, channels=16, codes=300)
    request = world.request(plan.random(8, 4, 2, scales=[8]), range(3000), 10)
    want, got = CppBackend().scan(request), []
    other = threading.Thread(target=lambda: got.append(CppBackend().scan(request)))

    def both() -> None:
        other.start()
        other.join()

    first_heard(both)
    assert np.array_equal(got[0], want)


# The module just imported when the signal is sent, according to -X importtime.
MOMENTS = [
    *(("module", moment) for moment in ("lpkernel._startup", "numpy", "torch", "lpkernel.commands.bench")),
    *(("script", moment) for moment in ("lpkernel._startup", "torch.version", "lpkernel")),
]


@pytest.mark.parametrize(("kind", "moment"), MOMENTS)
def test_start_up_is_interrupted(kind: str, moment: str) -> None:
    script = shutil.which("lpkernel", path=str(Path(sys.executable).parent))
    if kind == "script" and script is None:
        pytest.skip("lpkernel is not installed as a command")
    command = ["-m", "lpkernel"] if script is None or kind == "module" else [script]
    with process(sys.executable, "-X", "importtime", *command, "info") as running:
        assert running.stderr is not None
        for line in running.stderr:
            if re.search(rf"\|\s+{re.escape(moment)}$", line.rstrip()):
                break
        running.send_signal(signal.SIGINT)
        out, error = running.communicate(timeout=PATIENCE)
    said = [line for line in error.splitlines() if not line.startswith("import time:")]
    assert (said, out, running.returncode) == (["lpkernel: interrupted"], "", 130)


def test_a_program_that_imports_lpkernel_keeps_its_signals() -> None:
    code = "import signal, lpkernel; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", [signal.SIG_IGN, signal.SIG_DFL])
def test_the_command_line_keeps_what_was_asked_of_sigint(kind: signal.Handlers) -> None:
    code = (
        f"import runpy, signal, sys; signal.signal(signal.SIGINT, {int(kind)}); sys.argv = ['-m', '--version'];"
        "sys.orig_argv = ['python', '-m', 'lpkernel'];"
        "import lpkernel.cli; lpkernel.cli.main(['--version']);"
        f"assert signal.getsignal(signal.SIGINT) == {int(kind)}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
