"""The cache folder of a build: shards of what is encoded, each whole or absent, and one owner at a time.

The owner holds a lock on the file `lock` in the folder. The system drops it when the process ends, however it ends,
so a folder whose owner is dead is taken over as it is. Only files that bear a shard's name are deleted, and nothing
through a link.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lpkernel import tensor_file
from lpkernel.errors import InputError, short
from lpkernel.files import atomic_path

LOCK = "lock"
_TRIES = 100
_OURS = re.compile(r"[0-9a-f]{64}\.shard|\.[0-9a-f]{64}\.shard\.[0-9a-z_]+\.part")  # the second left by a killed write

Problem = tuple[str, str]  # name of a source, why it cannot be used


@dataclass(frozen=True)
class Example:
    """What is made of a source: codes (M, M) or latents (M, M, L), and its cells' mean colours (M, M, 3) uint8."""

    values: np.ndarray
    colours: np.ndarray


def write_shard(folder: Path, examples: dict[str, Example], skipped: dict[str, Problem]) -> None:
    """Write what is made of some sources, and the problems of others, by key."""
    names = ("values", "colours") if examples else ()
    tensors = {name: np.stack([getattr(one, name) for one in examples.values()]) for name in names}
    text = json.dumps([list(examples), skipped])
    name = hashlib.sha256(text.encode()).hexdigest() + ".shard"
    with atomic_path(folder / name) as partial:
        tensor_file.write(partial, tensors, {"sources": text, "sha256": tensor_file.digest(tensors, text)})


def read_shards(folder: Path) -> dict[str, Example | Problem]:
    """What the whole shards of a folder hold, by key. Damaged ones are skipped."""
    found: dict[str, Example | Problem] = {}
    for path in sorted(folder.glob("*.shard")):
        if not _OURS.fullmatch(path.name):
            continue
        try:
            tensors, metadata = tensor_file.read(path)
            text = metadata["sources"]
            if metadata.get("sha256") == tensor_file.digest(tensors, text):
                keys, skipped = json.loads(text)
                parts = zip(tensors.get("values", ()), tensors.get("colours", ()), strict=True)
                found |= dict(zip(keys, (Example(*part) for part in parts), strict=True))
                found |= {key: (name, reason) for key, (name, reason) in skipped.items()}
        except (InputError, KeyError, ValueError, TypeError, AttributeError, RecursionError):
            continue
    return found


class Busy(InputError):
    """The folder belongs to another build."""


@contextmanager
def owned(folder: Path, other: str = "another build of this bank") -> Iterator[int]:
    """Own the cache folder, made if need be, for as long as the block runs. Yields a descriptor of it.

    Raises Busy, whose line begins with `other`, when another process owns it, InputError when it cannot be made, is a
    link, or holds a `lock` that is not a file of ours.
    """
    try:
        place, held = _lock(folder, other)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    with held:
        try:
            yield place
        finally:
            with suppress(OSError):
                os.unlink(LOCK, dir_fd=place)  # still locked: whoever waits for this file looks for it anew


def _lock(folder: Path, other: str) -> tuple[int, ExitStack]:
    """A descriptor of the folder, and the stack that closes it and its file `lock`, which is locked."""
    if folder.is_symlink():
        raise InputError(f"cache {folder} is a link, expected a folder; remove it")
    for _ in range(_TRIES):
        with ExitStack() as held, suppress(FileNotFoundError):  # its owner has just removed the file or the folder
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:  # what is there is not a folder, or was removed while mkdir looked at it
                if folder.is_file():
                    raise
                continue
            place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            held.callback(os.close, place)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.open(LOCK, flags, 0o666, dir_fd=place)
            held.callback(os.close, lock)
            status = os.fstat(lock)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                raise InputError(f"cache: {folder / LOCK} is not a file of a build; remove it")
            _take(folder, lock, other)
            if os.stat(LOCK, dir_fd=place, follow_symlinks=False).st_ino == status.st_ino:
                os.ftruncate(lock, 0)
                os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
                return place, held.pop_all()
    raise Busy(f"cache {folder}: other builds keep making and removing it; give each a folder of its own")


def _take(folder: Path, lock: int, other: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = " ".join(os.pread(lock, 200, 0).decode("utf-8", "replace").split())
        by = f" ({short(owner)})" if owner else ""
        raise Busy(f"{other} is running{by} in {folder}; wait for it, or end it") from error
    except OSError:
        pass  # a file system without locks: two builds then do the same work twice, or again


def discard_cache(cache: str | Path) -> None:
    """Remove the shards of a cache folder and, if nothing else is in it, the folder; nothing if a build owns it."""
    folder = Path(cache)
    if folder.is_symlink() or not folder.is_dir():
        return
    with suppress(Busy), owned(folder) as place:
        for name in os.listdir(place):
            if _OURS.fullmatch(name):
                with suppress(OSError):
                    os.unlink(name, dir_fd=place)
    with suppress(OSError):
        folder.rmdir()
