"""Every example of a mode runs on the avatars and writes its picture."""

from __future__ import annotations

import runpy
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
