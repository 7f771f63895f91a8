"""The safetensors layout, written in a stream and read as a map of the file.

Layout: 8-byte little-endian header length, JSON header (dtype, shape and byte range of each tensor, and
a `__metadata__` of strings), then the bytes. The safetensors package itself copies numpy tensors to the
heap; here an array is a read-only view of the mapped file, so opening costs nothing until data is touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lpkernel.errors import InputError

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
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors package
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
    """Write a safetensors file. Equal input gives equal bytes. Raises OSError as the system reports it."""
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
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            file.write(_bytes(tensors[name]))


def _open(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise InputError(f"{path}: {size} bytes are too few for a safetensors file")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path, an empty map
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}") from error


def _header(path: Path, data: mmap.mmap) -> tuple[dict[str, object], int]:
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, _MAX_HEADER) or data[8:9] != b"{":
        raise InputError(f"{path}: not a safetensors file, or cut short")
    try:
        header = json.loads(data[8 : 8 + length].decode())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged, its header is not valid JSON") from error
    if not isinstance(header, dict):
        raise InputError(f"{path}: damaged, its header is not a JSON object")
    return header, 8 + length


def _is_size(value: object) -> bool:
    return type(value) is int and value >= 0


def _view(path: Path, data: mmap.mmap, start: int, name: str, entry: object) -> tuple[int, int, np.ndarray]:
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
    if count < 1 or end - begin != count * kind.itemsize or start + end > len(data):
        raise bad
    if (start + begin) % kind.itemsize:
        raise bad
    return begin, end, np.frombuffer(data, kind, count, start + begin).reshape(shape)


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Tensors (read-only views of the mapped file) and metadata of a safetensors file.

    Everything the header claims is checked against the file before anything is allocated: types, shapes,
    byte ranges without overlap or hole, alignment. Raises InputError, one line, for any other file.
    """
    data = _open(path)
    header, start = _header(path, data)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: damaged, its metadata is not a table of texts")
    views = {name: _view(path, data, start, name, entry) for name, entry in header.items()}
    covered = 0
    for name, (begin, end, _) in sorted(views.items(), key=lambda item: item[1][0]):
        if begin != covered:
            raise InputError(f"{path}: damaged, tensor {name[:40]!r} overlaps another or leaves a hole")
        covered = end
    if start + covered != len(data):
        raise InputError(f"{path}: {len(data)} bytes, its header describes {start + covered}; copy the file again")
    return {name: view for name, (_, _, view) in views.items()}, metadata
