"""Every hostile configuration is refused in one line that names what is wrong, before anything is built from it."""

from __future__ import annotations

import pytest
from hostile import configurations, sandbox


@pytest.mark.parametrize("name", [name for name in configurations.CASES if not name.startswith("good")])
def test_hostile_configurations(name: str) -> None:
    outcome = sandbox.outcomes(configurations.__name__)[name]
    assert sandbox.faults(outcome) == []
    if " = " in name:  # a wrong value, not something else that happened to be wrong
        key = name.split(": ")[1].split(" = ")[0]
        assert key in outcome.said or "not readable" in outcome.said or "not usable" in outcome.said


@pytest.mark.parametrize("name", [name for name in configurations.CASES if name.startswith("good")])
def test_what_they_were_made_from_is_taken(name: str) -> None:
    outcome = sandbox.outcomes(configurations.__name__)[name]
    assert (outcome.said, outcome.raised, outcome.signal) == ("", "", 0)
