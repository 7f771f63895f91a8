"""The drop-in examples run and give the same results as the formulas that they replace."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("dropin_*.py"))


@pytest.mark.parametrize(
    ("name", "size"), [("dropin_gpnn", 32), ("dropin_psin", 24), ("dropin_patchcore", 300), ("dropin_quantiser", 1)]
)
def test_example(name: str, size: int, capsys: pytest.CaptureFixture[str]) -> None:
    main: Any = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]
    assert main(size) > 0.99
    assert "the same" in capsys.readouterr().out


def test_every_example_is_run_and_documented() -> None:
    page = (ROOT / "docs" / "dropin.md").read_text("utf-8")
    assert EXAMPLES == ["dropin_gpnn", "dropin_patchcore", "dropin_psin", "dropin_quantiser"]
    assert all(f"examples/{name}.py" in page for name in EXAMPLES)
