"""How a decoder runs on a device: whether it is compiled, as a CUDA graph, with copies overlapping the work.

A *step* turns a batch into bytes: codes (n, M, M) or latents (n, M, M, L) -> levels (n, H, W, 3) uint8, and whether all
numbers were finite, all on the device. Batches of a decoder have one size, so there is one shape, and one graph.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpkernel.errors import InputError, unknown_name
from lpkernel.limits import INT16_CODES

Step = Callable[[Tensor], tuple[Tensor, Tensor]]

COMPILE = ("auto", "never", "always")
# Before the Triton kernels, torch.compile took 16 s on an H200 and saved 1.44 ms per image of 256x256 (441 and 1,210
# images a second). With them an H100 makes 1,340.
COMPILED_FROM = 11_000 * 256**2  # pixels


class Choice(NamedTuple):
    """Whether a decoder is compiled, and why."""

    compiled: bool
    reason: str


NOT_ASKED = Choice(False, "not asked for")


def no_compiler(kind: str) -> str:
    """Why torch.compile cannot be tried on a kind of device, cpu or cuda; "" if it can."""
    if kind == "cuda":
        return "" if importlib.util.find_spec("triton") else "torch.compile needs the package triton"
    compiler = os.environ.get("CXX", "g++")
    return "" if shutil.which(compiler) else f"torch.compile needs a C++ compiler, but {compiler} was not found"


def choose(asked: str, device: torch.device, images: int | None, side: int, fused: bool = False) -> Choice:
    """What compile="auto", "never" or "always" comes to.

    images: how many of side x side pixels will be decoded, None if that is not known. fused: whether our Triton kernels
    are in the network. Raises InputError for other words, and for "always" where nothing can be compiled.
    """
    if asked not in COMPILE:
        raise unknown_name("compile", asked, COMPILE)
    reason = no_compiler(device.type)
    if asked == "always":
        if reason:
            raise InputError(f'compile="always": {reason}; install it or use compile="auto"')
        return Choice(True, "asked for")
    if asked == "never":
        return Choice(False, "asked for")
    if device.type != "cuda":
        return Choice(False, "auto: on a CPU it gains nothing")
    if reason:
        return Choice(False, f"auto: {reason}")
    if fused:
        return Choice(False, "auto: the network's Triton kernels are as fast")
    least = -(-COMPILED_FROM // side**2)
    if images is None or images < least:
        known = "an unknown number of" if images is None else f"{images:,}"
        return Choice(False, f"auto: {known} images to decode, compiling pays from {least:,} on")
    return Choice(True, f"auto: {images:,} images to decode, compiling pays from {least:,} on")


def compiled(step: Step) -> Step:
    """`step` compiled by torch.compile at its first call; the user's cache folder keeps the result for later processes.

    The special layers (`layers`, `fused`) are not used then, so the last bits differ and may change with the threads.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder()))
    return torch.compile(step, dynamic=False)


def cache_folder() -> Path:
    """Where compiled decoders are kept, unless TORCHINDUCTOR_CACHE_DIR says otherwise."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "lpkernel" / "torch.compile"


def on_device(device: torch.device) -> AbstractContextManager[Any]:
    """Within it a GPU is the current one, on which Triton starts its kernels wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class Graph:
    """A step of one shape as a CUDA graph, which the host launches in one call."""

    def __init__(self, step: Step, given: Tensor) -> None:
        device = given.device
        beside = torch.cuda.Stream(device)
        beside.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(beside):
            step(given)  # loads kernels, and libraries take their workspaces: none of it may be recorded
        torch.cuda.current_stream(device).wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # not the stream that torch keeps for captures, which is on the first device that captured anything
        with torch.cuda.graph(self._graph, stream=beside, capture_error_mode="thread_local"):
            self._found = step(given)

    def __call__(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """The step's result for what the tensor given at construction holds now."""
        self._graph.replay()
        return self._found


class _Slot:
    """The memory of a batch in flight; there are two, so that one can be copied while the other is worked on."""

    def __init__(self, given: Tensor, levels: Tensor, streams: Any, pinned: bool) -> None:
        self.given = torch.empty(given.shape, dtype=given.dtype, pin_memory=pinned)
        self.levels = torch.empty(levels.shape, dtype=levels.dtype, device=levels.device)  # contiguous
        self.finite = torch.empty((), dtype=torch.bool, device=levels.device)
        self.levels_here = torch.empty(levels.shape, dtype=levels.dtype, pin_memory=pinned)
        self.finite_here = torch.empty((), dtype=torch.bool, pin_memory=pinned)
        self.made, self.copied = streams.Event(), streams.Event()
        self.start: int | None = None  # of the batch in flight


class Pipeline:
    """A step over many batches: codes go to the device as int16 where that holds them, and while a batch is worked on,
    the bytes of the one before come to the host on a stream of their own, through pinned memory.

    codes: V; None for latents. graph: makes the step a graph; a step that cannot be one (`why_no_graph`) is launched
    kernel by kernel. Threads may share it; they take turns. To be used in inference mode.
    """

    def __init__(
        self,
        step: Step,
        device: torch.device,
        codes: int | None,
        graph: Callable[[Step, Tensor], Step] | None = None,
    ) -> None:
        self._step, self._device, self._graph = step, device, graph
        self._streams: Any = getattr(torch, device.type)  # torch.cpu has streams and events that do nothing
        self._dtype = torch.float32 if codes is None else torch.int16 if codes <= INT16_CODES else torch.int32
        self._given: Tensor | None = None
        self._slots: list[_Slot] = []
        self._lock = Lock()
        self.why_no_graph = ""

    def run(self, values: NDArray[Any], batch: int, out: NDArray[np.uint8]) -> bool:
        """values (N, M, M) or (N, M, M, L), `batch` at a time, to out (N, H, W, 3); whether all numbers were finite.

        The last batch is filled up with its own last image. batch and the shapes of an image are always the same.
        """
        with self._lock, on_device(self._device):
            try:
                return self._run(values, batch, out)
            except BaseException:
                self._streams.synchronize(self._device)
                for slot in self._slots:  # nothing waits for their batches any more
                    slot.start = None
                raise

    def _run(self, values: NDArray[Any], batch: int, out: NDArray[np.uint8]) -> bool:
        if not len(values):
            return True
        if self._given is None:
            self._prepare((batch, *values.shape[1:]))
        given = self._given
        assert given is not None
        main, finite = self._streams.current_stream(self._device), True
        for number, start in enumerate(range(0, len(values), batch)):
            slot = self._slots[number % len(self._slots)]
            finite &= self._take(slot, out)
            slot.given.numpy()[:] = values[np.minimum(np.arange(start, start + batch), len(values) - 1)]
            given.copy_(slot.given, non_blocking=True)
            levels, all_finite = self._step(given)
            slot.levels.copy_(levels)  # the next batch may overwrite a graph's output
            slot.finite.copy_(all_finite)
            slot.made.record(main)
            slot.made.wait(self._beside)
            with self._streams.stream(self._beside):
                slot.levels_here.copy_(slot.levels, non_blocking=True)
                slot.finite_here.copy_(slot.finite, non_blocking=True)
                slot.copied.record(self._beside)
            slot.start = start
        for slot in self._slots:
            finite &= self._take(slot, out)
        return finite

    def _take(self, slot: _Slot, out: NDArray[np.uint8]) -> bool:
        """Copy the batch in flight in a slot to `out`; returns whether all of it was finite."""
        if slot.start is None:
            return True
        slot.copied.synchronize()
        part = out[slot.start : slot.start + len(slot.levels_here)]
        part[:] = slot.levels_here.numpy()[: len(part)]
        slot.start = None
        return bool(slot.finite_here)

    def _prepare(self, shape: tuple[int, ...]) -> None:
        pinned = self._device.type == "cuda"
        given = torch.zeros(shape, dtype=self._dtype, device=self._device)
        if self._graph is not None:
            try:
                self._step = self._graph(self._step, given)
            except RuntimeError as error:
                self.why_no_graph = str(error).split("\n")[0]
        levels, _ = self._step(given)
        self._slots = [_Slot(given, levels, self._streams, pinned) for _ in range(2)]
        self._beside = torch.cuda.Stream(self._device) if pinned else torch.cpu.Stream()
        self._given = given
