"""Hostile input of every kind: refused quickly, in one line, and none of it is run."""

from __future__ import annotations

import pytest
from hostile import probes, sandbox


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("raises", "ZeroDivisionError"),
        ("runs a program", "subprocess.Popen"),
        ("runs a shell", "os.system"),
        ("asks a host", "socket.connect"),
        ("writes elsewhere", "elsewhere"),
        ("prints", "hello"),
        ("is killed", "SIGABRT"),
        ("takes long", "seconds"),
        ("takes much", "mebibytes"),
        ("takes all", "MemoryError"),
        ("taken", "was taken"),
    ],
)
def test_the_sandbox_sees(name: str, words: str) -> None:
    assert words in "; ".join(sandbox.faults(sandbox.outcomes(probes.__name__)[name], seconds=0.2, mebibytes=64))


def test_the_sandbox_lets_pass() -> None:
    found = sandbox.outcomes(probes.__name__)
    assert sandbox.faults(found["refused"]) == []
    assert sandbox.faults(found["made before"], refused=False) == []
    assert found.keys() == probes.CASES.keys()
