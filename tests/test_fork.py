"""A forked child can compute, whatever its parent computed before: with fork, multiprocessing and a DataLoader."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scans import World

from lpkernel import load_autoencoder, masked_topk, plan
from lpkernel.backends import registry

TESTS = Path(__file__).parent
PATIENCE = 120  # seconds after which a child counts as hung; each takes one or two


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def search(name: str) -> str:
    """Enough work for several threads: a scan in each domain, a search of each type."""
    world = World(300, side=8, channels=4, codes=50)
    made, backend = plan.random(8, 4, scales=[8]), registry.BACKENDS[name]
    scans = [backend.scan(world.request(made, range(20), 5, in_codes=codes)) for codes in (False, True)]
    bank = np.random.default_rng(0).integers(-9, 10, (3000, 40)).astype(np.int16)
    found = [masked_topk(array[:40], array, 5, backend=name) for array in (bank, bank.astype(np.float32))]
    return digest(*scans, *(array for pair in found for array in pair))


def autoencode() -> str:
    autoencoder = load_autoencoder()
    images = np.random.default_rng(0).integers(0, 256, (4, 128, 128, 3), np.uint8)
    codes = autoencoder.encode(images)
    decoded = autoencoder.decode(codes)  # float32 in torch: a pixel may differ by 1 with the number of threads
    return digest(np.asarray(codes), np.array(decoded.shape))


WORK: dict[str, Callable[[], str]] = {
    "numpy": lambda: search("numpy"),
    "torch": lambda: search("torch"),
    "cpp": lambda: search("cpp"),
    "autoencoder": autoencode,
}


class Items(torch.utils.data.Dataset[str]):
    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> str:
        return WORK[self.name]()


def fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(not work())
        finally:
            os._exit(code)
    return child


def in_children(name: str) -> None:
    """The same work here, with two threads, and in children of every kind."""
    torch.set_num_threads(2)
    work = WORK[name]
    want = work()
    children = [fork(lambda: work() == want) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(call, [name] * 4) == [want] * 4
    loader = torch.utils.data.DataLoader(Items(name), batch_size=2, num_workers=2, multiprocessing_context="fork")
    assert [item for batch in loader for item in batch] == [want] * 4
    assert torch.get_num_threads() == 2 and work() == want


def call(name: str) -> str:
    return WORK[name]()


def during_calls(name: str) -> None:
    """Forks while other threads are in the middle of calls, and a child that forks again after calls of its own."""
    torch.set_num_threads(2)
    work = WORK[name]
    want, done = work(), threading.Event()

    def go_on() -> None:
        while not done.is_set():
            assert work() == want

    threads = [threading.Thread(target=go_on) for _ in range(3)]
    for thread in threads:
        thread.start()

    def again() -> bool:
        torch.set_num_threads(2)
        return work() == want and os.waitpid(fork(lambda: work() == want), 0)[1] == 0

    assert [os.waitpid(fork(again), 0)[1] for _ in range(15)] == [0] * 15
    done.set()
    for thread in threads:
        thread.join()


def run(function: Callable[[str], None], name: str) -> None:
    if reasons := [] if name == "autoencoder" else registry.BACKENDS[name].unavailable():
        pytest.skip(f"{name}: {reasons[0]}")
    code = f"import test_fork; test_fork.{function.__name__}({name!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS), *sys.path)))}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        _, said = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        pytest.fail("a child hangs")
    assert process.returncode == 0, said[-4000:]


@pytest.mark.parametrize("name", WORK)
def test_children_compute(name: str) -> None:
    run(in_children, name)


def test_a_fork_in_the_middle_of_calls() -> None:
    """For cpp, which has its own threads: in a child torch's OpenMP has one thread, cpp as many as are asked for."""
    run(during_calls, "cpp")
