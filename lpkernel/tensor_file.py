"""The safetensors layout, written in a stream; read into memory, or mapped from the file.

Layout: 8-byte little-endian header length, JSON header (dtype, shape and byte range of each tensor, and
a `__metadata__` of strings), then the bytes. What is read into memory can no longer change. A large tensor
may be mapped instead, a read-only view of the file that costs nothing until it is touched. Later changes to the file
show in it, and `check_mapped` must be called first, since touching a part that was cut off kills the process.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np

from lpkernel.errors import InputError
from lpkernel.files import open_regular

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "U8": np.dtype("u1"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGN = 64  # the data section starts at a multiple of this
_MAX_HEADER = 1 << 24  # bytes: half a million names; JSON can take thirty times its length in memory
_MAX_BRACKETS = 1 << 19  # each may make a list, which takes longer and more memory than any name
MAPPED_FROM = 32 << 20  # files of up to this many bytes are not mapped
_MAX_AXES = 8


def _bytes(tensor: np.ndarray) -> memoryview:
    return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data


def digest(tensors: Mapping[str, np.ndarray], *texts: str) -> str:
    """SHA-256 (hex) of the texts and of the tensors' names and bytes, in name order."""
    sha = hashlib.sha256()
    for text in (*texts, *sorted(tensors)):
        sha.update(f"{len(text)}:{text}".encode())
    for name in sorted(tensors):
        sha.update(_bytes(tensors[name]))
    return sha.hexdigest()


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; equal input gives equal bytes.

    Raises InputError when names and metadata take more than 16 MiB, OSError as the system reports it.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    # widest elements first keeps every tensor aligned without holes, which the format forbids
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    offset = 0
    for name in order:
        tensor = tensors[name]
        end = offset + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGN)
    if len(text) > _MAX_HEADER:
        raise InputError(f"names and labels take {len(text)} bytes, expected at most {_MAX_HEADER}; shorten them")
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(_bytes(tensors[name]))


def json_object(text: bytes) -> dict[str, Any] | None:
    """The JSON object that UTF-8 text holds; None for any other text, and for one with too many lists."""
    try:
        value = json.loads(text.decode()) if text.count(b"[") + text.count(b"{") <= _MAX_BRACKETS else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _header(path: Path, file: BufferedReader, size: int) -> tuple[dict[str, object], int]:
    if size < 8:
        raise InputError(f"{path}: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    text = file.read(length) if length <= min(size - 8, _MAX_HEADER) else b""
    if len(text) < length or not text.startswith(b"{"):
        raise InputError(f"{path}: not a safetensors file, or cut short")
    header = json_object(text)
    if header is None:
        raise InputError(f"{path}: damaged, its header is not a JSON object")
    return header, 8 + length


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the data section, and what it is."""

    begin: int
    end: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def _place(path: Path, size: int, start: int, name: str, entry: object) -> _Place:
    bad = InputError(f"{path}: damaged, tensor {name[:40]!r} is not described correctly in the header")
    if not isinstance(entry, dict):
        raise bad
    dtype = entry.get("dtype")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if (
        not isinstance(dtype, str)
        or dtype not in DTYPES
        or not isinstance(shape, list)
        or not isinstance(offsets, list)
    ):
        raise bad
    if not 1 <= len(shape) <= _MAX_AXES or len(offsets) != 2 or not all(map(_is_size, [*shape, *offsets])):
        raise bad
    begin, end = offsets
    kind = DTYPES[dtype]
    count = math.prod(shape)
    if count < 1 or end - begin != count * kind.itemsize or start + end > size:
        raise bad
    if (start + begin) % kind.itemsize:
        raise bad
    return _Place(begin, end, kind, tuple(shape))


def _content(path: Path, file: BufferedReader, offset: int, place: _Place) -> np.ndarray:
    array = np.empty(place.shape, place.dtype)
    file.seek(offset)
    if file.readinto(_bytes(array)) < array.nbytes:
        raise InputError(f"{path}: cut short while it was read; copy the file again")
    array.flags.writeable = False
    return array


def read(path: Path, mapped: Collection[str] = ()) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors (read-only) and metadata of a safetensors file; those named in `mapped` are mapped if the file is large.

    Everything the header claims is checked against the file before anything is allocated: types, shapes,
    byte ranges without overlap or hole, alignment. Raises InputError, one line, for any other file.
    """
    try:
        with open_regular(path) as file:
            return _read(path, file, mapped)
    except MemoryError as error:
        raise InputError(f"{path}: too large for the available memory") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _read(path: Path, file: BufferedReader, mapped: Collection[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    size = os.fstat(file.fileno()).st_size
    header, start = _header(path, file, size)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: damaged, its metadata is not a table of texts")
    places = {name: _place(path, size, start, name, entry) for name, entry in header.items()}
    covered = 0
    for name, place in sorted(places.items(), key=lambda item: item[1].begin):
        if place.begin != covered:
            raise InputError(f"{path}: damaged, tensor {name[:40]!r} overlaps another or leaves a hole")
        covered = place.end
    if start + covered != size:
        raise InputError(f"{path}: {size} bytes, its header describes {start + covered}; copy the file again")
    data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size > MAPPED_FROM and mapped else None
    tensors = {}
    for name, place in places.items():
        offset = start + place.begin
        if data is not None and name in mapped:
            flat = np.frombuffer(data, place.dtype, math.prod(place.shape), offset)
            tensors[name] = flat.reshape(place.shape)
        else:
            tensors[name] = _content(path, file, offset, place)
    return tensors, metadata


def _map_of(array: np.ndarray) -> mmap.mmap | None:
    """The map that an array is a view of."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    owner = owner.obj if isinstance(owner, memoryview) else owner
    return owner if isinstance(owner, mmap.mmap) else None


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array is a view of a mapped file, whose content may change."""
    return _map_of(array) is not None


def check_mapped(*arrays: np.ndarray | None) -> None:
    """Raise InputError if an array is a view of a mapped file that has been cut short since."""
    for array in arrays:
        owner = None if array is None else _map_of(array)
        if owner is not None and owner.size() < len(owner):  # the size of the file, and of the map
            left = f"{owner.size()} of {len(owner)} bytes are left"
            raise InputError(f"the file was cut short while it was open: {left}; copy or build it again, then load it")
