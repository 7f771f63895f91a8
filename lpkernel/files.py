"""Opening files made by others, and writing so that a reader sees the old content or the new, never half of it."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from lpkernel.errors import InputError

_ENDS = 1 << 16  # bytes at either end of a file that `content_stamp` reads


def open_regular(path: str | Path) -> BufferedReader:
    """A regular file, open for reading. Raises OSError otherwise: a pipe may wait for ever, a device never end."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except ValueError as error:  # a null byte
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return os.fdopen(handle, "rb")


def content_stamp(path: Path) -> str:
    """What changes when a file's content does: its size, modification time, and a hash of its first and last 64 KiB.

    Raises OSError as `open_regular` does.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        ends = os.pread(file.fileno(), _ENDS, 0)
        if status.st_size > _ENDS:
            ends += os.pread(file.fileno(), _ENDS, max(_ENDS, status.st_size - _ENDS))
    return f"{status.st_size} {status.st_mtime_ns} {hashlib.sha256(ends).hexdigest()}"


def check_place(path: Path) -> None:
    """Raise InputError where no file can be written because a folder is missing, or is in its place."""
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"cannot write {path}: " + ("it is a folder" if path.is_dir() else f"no folder {path.parent}"))


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it if the block succeeds and removed if it fails.

    The bytes are on disk before the move. Raises OSError (disk full, no such folder) as the
    system reports it, with the name of the folder that is missing or of `path`; `path` is then untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        # made like any new file, so that the system sets its mode: reading the umask would clear it for all threads
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
    except OSError as error:  # the user knows nothing of the temporary file
        error.filename = str(path if path.parent.is_dir() else path.parent)
        raise
    except ValueError as error:  # a null byte
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(partial), partial):
            error.filename = str(path)  # a failed write does not say where, a failed move names the temporary file, too
            del error.filename2
        with suppress(OSError):
            partial.unlink()
        raise
