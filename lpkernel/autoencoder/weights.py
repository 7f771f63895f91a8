"""Weights in safetensors files, whose shapes can be checked before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lpkernel.errors import InputError, one_line, short
from lpkernel.files import open_regular

MAX_HEADER = 8 << 20  # bytes: some 60,000 tensors
FLOATS = ("F64", "F32", "F16", "BF16")


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """The safetensors file at `path`. Raises InputError if it cannot be read."""
    try:
        with open_regular(path) as header:
            length = int.from_bytes(header.read(8), "little")
        if length > MAX_HEADER:
            raise InputError(f"{path} is not a readable safetensors file (its header claims {length} bytes)")
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, MemoryError) as error:
        raise InputError(f"{path} is not a readable safetensors file ({one_line(error)})") from error


def shapes(file: Any) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from the header."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def read_floats(path: Path, file: Any, names: Iterable[str]) -> dict[str, Tensor]:
    """The named tensors, float32. Raises InputError if one does not hold floats."""
    read = {}
    for name in names:
        kind = file.get_slice(name).get_dtype()
        if kind not in FLOATS:
            raise InputError(f"{path}: {short(name)} is of kind {kind}, expected one of {', '.join(FLOATS)}")
        read[name] = file.get_tensor(name).float()
    return read
