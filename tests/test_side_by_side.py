"""Several images at a time on a CPU: each processed once, with few threads, and the caller's thread count restored."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_interrupt import PATIENCE, process

from lpkernel.autoencoder import load_autoencoder
from lpkernel.autoencoder.side_by_side import poll, side_by_side
from lpkernel.errors import InputError


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _threads_of_a_new_one() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize(
    ("threads", "images", "most", "shares"),
    [
        (3, 5, 9, {1}),
        (3, 2, 9, {1, 2}),
        (3, 7, 2, {1, 2}),
        (4, 9, 2, {2}),
        (3, 1, 9, {3}),
        (1, 4, 9, {1}),
        (3, 0, 9, set()),
    ],
)
def test_threads_are_shared_out(threads: int, images: int, most: int, shares: set[int]) -> None:
    torch.set_num_threads(threads)
    lock, done, now, highest = threading.Lock(), list[int](), 0, 0
    found, where, workers = set(), set(), min(images, threads, most)
    together = threading.Barrier(max(1, workers), timeout=PATIENCE)

    def work(i: int) -> None:
        nonlocal now, highest
        with lock:
            now += 1
            highest = max(highest, now)
        if i < workers:  # so that every worker gets one
            together.wait()
        with lock:
            done.append(i)
            found.add(torch.get_num_threads())
            where.add(threading.get_ident())
            now -= 1

    side_by_side(work, images, most)
    assert sorted(done) == list(range(images)) and found == shares and highest == len(where) == workers
    assert (where == {threading.get_ident()}) == (workers == 1)
    assert torch.get_num_threads() == _threads_of_a_new_one() == threads


def test_an_exception_ends_the_others() -> None:
    torch.set_num_threads(2)
    begun, left = list[int](), list[int]()
    both = threading.Barrier(2, timeout=PATIENCE)

    def work(i: int) -> None:
        begun.append(i)
        both.wait()
        if i == 0:
            raise ValueError("of image 0")
        try:
            while True:
                poll()
                time.sleep(0.001)
        finally:
            left.append(i)

    with pytest.raises(ValueError, match="of image 0"):
        side_by_side(work, 50, 9)
    assert sorted(begun) == [0, 1] and left == [1]
    assert torch.get_num_threads() == _threads_of_a_new_one() == 2
    poll()  # outside a call, nothing happens


def test_images_are_the_same_side_by_side() -> None:
    autoencoder: Any = load_autoencoder(device="cpu", dtype="float32")
    codes = np.random.default_rng(0).integers(0, 1024, (5, 16, 16))
    _, record = autoencoder.decode_recorded(codes[0])
    found = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        images = autoencoder.decode(codes)
        found[threads] = images, autoencoder.encode(images), autoencoder.decode_cells(codes, record, (2, 3, 6, 9))
    for results in found.values():
        for result, want in zip(results, found[1], strict=True):
            np.testing.assert_array_equal(result, want)
    assert found[1][2].shape == (5, 32, 48, 3)


def test_an_error_of_a_network_is_raised() -> None:
    torch.set_num_threads(2)
    autoencoder: Any = load_autoencoder(device="cpu", dtype="float32")
    autoencoder.network.decoder[0].bias[0] = float("nan")
    with pytest.raises(InputError, match="infinite or undefined"):
        autoencoder.decode(np.zeros((4, 16, 16), np.int64))


def without_end() -> None:
    torch.set_num_threads(2)
    autoencoder = load_autoencoder(device="cpu")
    autoencoder.decode(np.zeros((2, 16, 16), np.int64))
    print("begins", flush=True)
    try:
        autoencoder.decode(np.zeros((100_000, 16, 16), np.int64))
    except KeyboardInterrupt:
        left = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
        print("interrupted", torch.get_num_threads(), left, flush=True)


def test_a_long_decode_is_interrupted() -> None:
    """Uninterrupted, it would take an hour."""
    with process(sys.executable, "-c", "import test_side_by_side; test_side_by_side.without_end()") as running:
        assert running.stdout is not None and running.stderr is not None
        alarm = threading.Timer(PATIENCE, running.kill)
        alarm.start()
        assert running.stdout.readline() == "begins\n"
        time.sleep(0.5)
        running.send_signal(signal.SIGINT)
        assert running.stdout.readline() == "interrupted 2 []\n"
        alarm.cancel()
        assert (running.wait(PATIENCE), running.stderr.read()) == (0, "")
