"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpkernel as lp
from lpkernel.errors import InputError, one_line
from lpkernel.files import atomic_path


def test_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with atomic_path(target) as partial:
        assert partial.parent == tmp_path and partial != target
        partial.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_mode_is_that_of_any_new_file(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "x.txt") as partial:
        partial.write_text("new")
    (tmp_path / "plain.txt").write_text("")
    assert (tmp_path / "x.txt").stat().st_mode == (tmp_path / "plain.txt").stat().st_mode


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), ValueError("bad"), KeyboardInterrupt()]


def write_half(target: Path, error: BaseException) -> None:
    with atomic_path(target) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("error", FAILURES)
def test_a_failure_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(type(error)) as caught:
        write_half(target, error)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]
    if isinstance(caught.value, OSError):
        assert caught.value.filename == str(target)


PLACES: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
    "no folder": (lambda folder: folder / "none" / "x.txt", lambda folder: folder / "none"),
    "a file for a folder": (lambda folder: folder / "file" / "x.txt", lambda folder: folder / "file"),
    "a folder": (lambda folder: folder / "folder", lambda folder: folder / "folder"),
    "a long name": (lambda folder: folder / ("x" * 250), lambda folder: folder / ("x" * 250)),
    "a null byte": (lambda folder: folder / "x\0", lambda folder: folder / "x\0"),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_error_names_what_the_user_gave(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    target, named = PLACES[place]
    with pytest.raises(OSError, match="Err") as caught, atomic_path(target(tmp_path)) as partial:
        partial.write_text("new")
    assert caught.value.filename == str(named(tmp_path)) and ".part" not in str(caught.value)
    assert "None" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("write", [lambda path: index().write(path), lambda path: lp.Bank.default().save(path)])
def test_a_missing_folder_is_named(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with pytest.raises(InputError, match=f"no folder {tmp_path / 'none'}$"):
        write(tmp_path / "none" / "x")
    with pytest.raises(InputError, match="it is a folder"):
        write(tmp_path)


def index() -> lp.IndexFlatL2:
    found = lp.IndexFlatL2(2)
    found.add(np.zeros((3, 2), np.float32))
    return found


@pytest.mark.parametrize("path", [None, 5, b"x", [1]], ids=repr)
@pytest.mark.parametrize(
    "use",
    [lp.Bank.load, lp.Bank.default().save, lp.IndexFlatL2.read, lambda path: index().write(path)],
    ids=["Bank.load", "Bank.save", "IndexFlatL2.read", "IndexFlatL2.write"],
)
def test_what_is_no_path(use: Callable[[Any], object], path: Any) -> None:
    with pytest.raises(InputError, match=r"^path: got .*, expected the path"):
        use(path)


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("a\n  b\x1b")) == "a b\\x1b" and one_line(ValueError("x" * 999), 80) == "x" * 80
    assert one_line(MemoryError()) == "MemoryError"
