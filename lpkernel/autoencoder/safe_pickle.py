"""Reading pickles and torch checkpoints without running what is in them.

torch.load and pickle are not used: the containers (zip and legacy) are read here, the pickles in them by
lpkernel.autoencoder.pickle_machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import torch

from lpkernel.autoencoder.pickle_machine import STORAGES, Machine, Name, Refused, Storage, as_count, as_key
from lpkernel.autoencoder.zip_members import Member, members, seek_member
from lpkernel.errors import InputError, one_line, short
from lpkernel.files import open_regular

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a legacy file


def load_arrays(path: Path) -> Any:
    """Nested dicts of NumPy arrays from a pickle file; nothing in it is run.

    Raises InputError if the file is missing, damaged, holds more than plain data, or stands for much more than its
    size.
    """
    with _opened(path, "pickle of arrays") as (file, size):
        return Machine(file, size).load()


def load_checkpoint(path: Path) -> Any:
    """The content of a torch checkpoint (zip or legacy format), tensors on the CPU; nothing in it is run.

    Objects of training frameworks (Lightning, OmegaConf, optimisers) come back as empty placeholders, OrderedDict,
    defaultdict and Counter as dict, parameters as tensors. Raises InputError if the file is missing, damaged, of
    another kind, names anything else, or stands for much more than its size.
    """
    with _opened(path, "torch checkpoint") as (file, size):
        return (_zip_content if file.peek(4)[:4] == b"PK\3\4" else _legacy_content)(file, size)


def load_script_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a TorchScript archive by their dotted names; its code is never read.

    Raises InputError as `load_checkpoint` does.
    """
    with _opened(path, "TorchScript archive") as (file, size):
        if file.peek(4)[:4] != b"PK\3\4":
            raise ValueError("no zip file")
        content = _zip_content(file, size, scripted=True)
        if type(content) is not dict:
            raise ValueError("it holds no module")
        return dict(_tensors(content, ""))


def _tensors(value: Any, prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in nested dicts, with their keys joined by dots."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif type(value) is dict:
        for key, part in value.items():
            yield from _tensors(part, f"{prefix}.{key}" if prefix else str(key))


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[tuple[BufferedReader, int]]:
    if not path.is_file():
        raise InputError(f"{path}: no such {kind.split()[-1]} file")
    try:
        with open_regular(path) as file:
            yield file, os.fstat(file.fileno()).st_size
    except Refused as error:
        raise InputError(f"{path} is refused: {one_line(error)}") from error
    except Exception as error:  # a damaged file can fail in any way
        raise InputError(f"{path} is not a readable {kind} ({one_line(error)})") from error


def _storage_key(key: Any, items: int) -> tuple[torch.dtype, str, int]:
    """dtype, name and length of the storage that a torch pickle refers to."""
    if type(key) is not tuple or len(key) != items or key[0] != "storage" or type(key[1]) is not Name:
        raise Refused("it refers to something that is not a storage")
    kind, name, count = key[1].text.removeprefix("torch."), key[2], as_count(key[4])
    if kind not in STORAGES or type(name) is not str or key[5:] not in ((), (None,)):
        raise Refused("it has a storage of an unknown kind")
    return STORAGES[kind], name, count


def _fill(file: BufferedReader, values: torch.Tensor) -> None:
    """Read the numbers of a storage."""
    if len(values):
        raw = values.view(torch.uint8).numpy()
        if file.readinto(memoryview(raw)) != raw.nbytes:  # type: ignore[arg-type]
            raise ValueError("a storage is cut short")
        if values.dtype == torch.bool:
            raw[:] = raw != 0


def _zip_content(file: BufferedReader, size: int, scripted: bool = False) -> Any:
    found = members(file, size)
    roots = [name.removesuffix("data.pkl") for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise ValueError("a zip file without a data.pkl")
    (root,) = roots
    if not scripted and f"{root}constants.pkl" in found:
        raise ValueError("a TorchScript archive, which is a program; save its state_dict instead")
    storages: dict[str, torch.Tensor] = {}

    def record(name: str) -> Member:
        if root + name not in found:
            raise ValueError(f"its member {name} is missing")
        seek_member(file, size, found[root + name])
        return found[root + name]

    def storage(key: Any) -> Storage:
        dtype, name, count = _storage_key(key, 5)
        if name not in storages:
            if record(f"data/{name}").size != count * dtype.itemsize:
                raise Refused(f"its storage {short(name)} is not as long as it says")
            machine.spend(count * dtype.itemsize)
            storages[name] = torch.empty(count, dtype=dtype)
            _fill(file, storages[name])
        return _known(storages[name], dtype, count)

    if f"{root}byteorder" in found and file.read(record("byteorder").size) != b"little":
        raise ValueError("its numbers are big-endian")
    machine = Machine(BytesIO(file.read(record("data.pkl").size)), size, storage, scripted)
    return machine.load()


def _known(values: torch.Tensor, dtype: torch.dtype, count: int) -> Storage:
    if values.dtype != dtype or len(values) != count:
        raise Refused("it uses a storage as two kinds")
    return Storage(values)


def _legacy_content(file: BufferedReader, size: int) -> Any:
    """The old format: pickles of a magic number, a version, the system, the content and the storages' names; then
    the storages, each after its length (8 bytes)."""
    storages: dict[str, torch.Tensor] = {}

    def storage(key: Any) -> Storage:
        dtype, name, count = _storage_key(key, 6)
        if name not in storages:
            machine.spend(count * dtype.itemsize)
            storages[name] = torch.empty(count, dtype=dtype)  # filled below
        return _known(storages[name], dtype, count)

    machine = Machine(file, size, storage)
    if [machine.load(), machine.load()] != [MAGIC, PROTOCOL]:
        raise ValueError("it does not begin as one")
    machine.load()  # the system that wrote it
    content, names = machine.load(), machine.load()
    if type(names) is not list or set(map(as_key, names)) != storages.keys() or len(names) != len(storages):
        raise Refused("the storages that it lists are not those that it uses")
    for name in names:
        if file.read(8) != len(storages[name]).to_bytes(8, "little"):
            raise Refused(f"its storage {short(name)} is not as long as it says")
        _fill(file, storages[name])
    return content
