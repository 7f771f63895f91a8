"""Every example of a mode runs on the avatars and writes its picture."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import gallery
import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("name", gallery.EXAMPLES)
def test_example(name: str, tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](tmp_path / "figure.png")
    picture = np.asarray(Image.open(tmp_path / "figure.png"))
    assert picture.shape[1] > 400 and picture.std() > 20


def test_the_gallery_shows_every_example() -> None:
    page = (EXAMPLES.parent / "docs" / "gallery.md").read_text("utf-8")
    figures = EXAMPLES.parent / "docs" / "images" / "gallery"
    assert sorted(path.stem for path in figures.glob("*.png")) == sorted(gallery.EXAMPLES)
    assert all(f"images/gallery/{name}.png" in page for name in gallery.EXAMPLES)
    assert sum(path.stat().st_size for path in figures.glob("*.png")) <= gallery.LARGEST


NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text("utf-8"))
WRONG = ["", "7 8"], ["many", "7 8"]  # a picture must be named; a number need not be given


def told(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [(name, wrong) for name in NAMES for wrong in WRONG[name.startswith("dropin_")]],
)
def test_wrong_arguments_get_the_usage(name: str, wrong: str) -> None:
    found = told(name, *wrong.split())
    usage, error = found.stderr.splitlines()
    assert found.returncode == 2 and usage.startswith(f"usage: {name}.py") and error.startswith(f"{name}.py: error: ")


def test_every_example_is_one_of_these() -> None:
    assert {name for name in NAMES if not name.startswith("dropin_")} == set(gallery.EXAMPLES)
    assert "OUT.png" in told(NAMES[0], "--help").stdout


def test_the_folder_of_the_picture_is_made(tmp_path: Path) -> None:
    assert told("whole", str(tmp_path / "new" / "x.png")).returncode == 0
    assert (tmp_path / "new" / "x.png").is_file()
