"""Hostile banks: refused quickly, in one line, or sound enough for every use of a bank."""

from __future__ import annotations

import pytest
from hostile import banks, sandbox


@pytest.mark.parametrize("name", banks.CASES)
def test_banks(name: str) -> None:
    outcome = sandbox.outcomes(banks.__name__)[name]
    assert sandbox.faults(outcome, refused=name in banks.REFUSED) == []


def test_there_are_many() -> None:
    assert len(banks.CASES) >= 200
