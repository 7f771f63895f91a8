"""Every hostile pickle is refused quickly, in one line, with nothing run; damaged ones are refused or loaded."""

from __future__ import annotations

import pytest
from hostile import pickles, sandbox


@pytest.mark.parametrize("name", pickles.CASES)
def test_hostile_pickles(name: str) -> None:
    outcome = sandbox.outcomes(pickles.__name__)[name]
    assert sandbox.faults(outcome, refused=not name.startswith("mutated")) == []
