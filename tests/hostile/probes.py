"""Cases with known outcomes, with which test_hostile.py checks that the sandbox detects what it should."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from hostile.sandbox import Case
from lpkernel.errors import InputError


def _refuse(_: Path) -> None:
    raise InputError("no")


def _spend(_: Path) -> int:
    return sum(i * i for i in range(8_000_000))


def _hold(_: Path) -> int:
    return len(b"\1" * (128 << 20))


def _nothing(_: Path) -> None:
    pass


CASES = {
    "refused": Case(_nothing, _refuse),
    "taken": Case(_nothing, _nothing),
    "made before": Case(
        lambda folder: (folder / "x").write_text("x"), lambda folder: (folder / "x").read_text() == "x" or 1 / 0
    ),
    "raises": Case(_nothing, lambda _: 1 / 0),
    "runs a program": Case(_nothing, lambda _: subprocess.run(["true"])),
    "runs a shell": Case(_nothing, lambda _: os.system("true")),
    "asks a host": Case(_nothing, lambda _: socket.create_connection(("127.0.0.1", 1), 0.1)),
    "writes elsewhere": Case(_nothing, lambda folder: folder.with_name("elsewhere").write_text("x")),
    "prints": Case(_nothing, lambda _: print("hello")),
    "is killed": Case(_nothing, lambda _: os.abort()),
    "takes long": Case(_nothing, _spend),
    "takes much": Case(_nothing, _hold),
    "takes all": Case(_nothing, lambda _: bytearray(1 << 36)),
}
