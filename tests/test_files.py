"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lpkernel.errors import one_line
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


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("a\n  b\x1b")) == "a b\\x1b" and one_line(ValueError("x" * 999), 80) == "x" * 80
    assert one_line(MemoryError()) == "MemoryError"
