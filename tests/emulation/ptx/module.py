"""PTX compiled to a library that runs on the CPU."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from emulation.compile import library

from .translate import Translator

HERE = Path(__file__).resolve().parent
MOST_COUNTERS = 1 << 16  # as in ptx.h
FLAGS = ("-Og", "-w", "-fwrapv", "-fno-strict-aliasing")


class Tensor(Protocol):
    """What a buffer argument must have; torch tensors do."""

    def data_ptr(self) -> int: ...
    def numel(self) -> int: ...

    def element_size(self) -> int: ...
    def size(self) -> Sequence[int]: ...
    def stride(self) -> Sequence[int]: ...


def extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class _Range(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint64), ("high", ctypes.c_uint64))


class Module:
    """The kernels of one or several PTX files, translated to C++ and compiled once (kept in build/emulation).

    With `counts`, executed instructions are counted by opcode. Raises NotImplementedError for PTX that the
    translator does not know, with its line.
    """

    def __init__(self, ptx: str | Sequence[str], counts: bool = False) -> None:
        translator = Translator(counts)
        sources: list[str] = []
        for text in [ptx] if isinstance(ptx, str) else ptx:
            sources += translator.translate(text)
        if len(translator.counted) > MOST_COUNTERS:
            raise NotImplementedError(f"{len(translator.counted)} counters; there are {MOST_COUNTERS}")
        self.kernels = translator.kernels
        files: dict[str, str | Path] = {f"kernel{k}.cpp": text for k, text in enumerate(sources)}
        self.path = library("ptx", files, FLAGS, [HERE], header=HERE / "ptx.h", support=[HERE / "ptx.cpp"])
        self._counted = translator.counted
        self._library = ctypes.CDLL(str(self.path))

    def launch(
        self,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        shared: int,
        args: Sequence[Tensor | tuple[int, int]],
        cooperative: bool = False,
    ) -> None:
        """Runs a kernel; `args` are tensors of host memory, or (value, bytes), in the order of the parameters.

        `shared` is in bytes, beyond what the kernel declares. The tensors are all it may touch. A mistake that the
        runtime finds ends the process, with a message that names the kernel, the line, the block and the thread.
        """
        kernel = self.kernels[name]
        if len(args) != len(kernel.parameters):
            raise ValueError(f"{name} takes {len(kernel.parameters)} parameters, got {len(args)}")
        parameters = bytearray(kernel.parameter_bytes)
        ranges: list[_Range] = []
        for argument, offset in zip(args, kernel.parameters.values(), strict=True):
            if isinstance(argument, tuple):
                value, size = argument
            else:
                value, size = argument.data_ptr(), 8
                ranges.append(_Range(value, value + extent(argument)))
            parameters[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        three = [(ctypes.c_uint32 * 3)(*axes, *[1] * (3 - len(axes))) for axes in (tuple(grid), tuple(block))]
        run = getattr(self._library, f"run_{name}")
        run.restype = None
        run(
            (ctypes.c_char * len(parameters)).from_buffer(parameters),
            ctypes.c_size_t(len(parameters)),
            *three,
            ctypes.c_uint32(shared),
            ctypes.c_int(cooperative),
            (_Range * len(ranges))(*ranges),
            ctypes.c_size_t(len(ranges)),
        )

    def counts(self) -> dict[str, int]:
        """Instructions executed since the library was loaded, of all threads, by opcode; needs counts=True.

        An instruction whose predicate is false is not counted. Exact with one OS thread (SIMT_THREADS=1, the default).
        """
        if not self._counted:
            raise ValueError("the module was made without counts=True")
        function = self._library.ptx_counts
        function.restype = ctypes.POINTER(ctypes.c_uint64)
        counters = function()
        total: Counter[str] = Counter()
        for k, opcodes in enumerate(self._counted):
            for opcode, number in opcodes.items():
                total[opcode] += number * int(counters[k])
        return dict(total)
