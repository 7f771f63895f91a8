"""Several images of a call at a time, each with few of torch's threads: one image alone makes poor use of many."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from itertools import count
from threading import Event, Semaphore

import torch

_ENDED: ContextVar[Event | None] = ContextVar("ended", default=None)  # of the call that a thread works for


class _Ended(Exception):
    """The call that this thread works for has ended."""


def poll() -> None:
    """To be called between layers: stops the work on an image if its call has ended with an exception."""
    ended = _ENDED.get()
    if ended is not None and ended.is_set():
        raise _Ended


def side_by_side(work: Callable[[int], object], images: int, most: int) -> None:
    """work(i) for i in range(images), up to `most` at a time.

    Torch's threads are shared out: as many images at a time as there are threads, or all threads for one image. Several
    images are worked on by threads of this call alone, with empty contexts; a single one by the calling thread. An
    exception, Ctrl+C included, ends the call as soon as the others reach their next `poll`. The number of torch's
    threads, for the caller and for later threads, stays as it is.
    """
    threads = torch.get_num_threads()
    workers = min(images, threads, most)
    if workers < 2:
        for i in range(images):
            work(i)
        return
    numbers, began, ended = count(), Semaphore(0), Event()

    def serve(own: int) -> None:
        torch.get_num_threads()  # a thread's first call sets its number to the one last set anywhere
        torch.set_num_threads(own)
        _ENDED.set(ended)
        began.release()
        try:
            while (i := next(numbers)) < images:
                poll()
                work(i)
        except _Ended:
            pass
        except BaseException:
            ended.set()
            raise

    with ThreadPoolExecutor(workers, "lpkernel-image") as pool:
        try:
            shares = [threads // workers + (i < threads % workers) for i in range(workers)]
            serving = [pool.submit(serve, own) for own in shares]
            for _ in serving:
                began.acquire()
            torch.set_num_threads(threads)  # what later threads start with
            for one in serving:
                one.result()
        except BaseException:
            ended.set()
            torch.set_num_threads(threads)
            raise
