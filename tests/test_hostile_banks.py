"""Hostile banks: refused in one line, soon, or sound enough for all that a bank is for."""

from __future__ import annotations

import pytest
from hostile import banks, sandbox


@pytest.mark.parametrize("name", banks.CASES)
def test_banks(name: str) -> None:
    outcome = sandbox.outcomes(banks.__name__)[name]
    assert sandbox.faults(outcome, refused=name in banks.REFUSED) == []


def test_there_are_many() -> None:
    assert len(banks.CASES) >= 200
