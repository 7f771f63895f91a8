"""The documentation is true: the lines it quotes are in the sources, its links resolve, and its pages are listed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import api_page
import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def texts() -> list[str]:
    """All strings in lpkernel's sources, with a gap in place of what is filled in."""
    found = []
    for path in ROOT.glob("lpkernel/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_lines_of_the_troubleshooting_page_are_printed() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^### `([^`]+)`$", page, re.M)
    printed = texts()
    assert len(quoted) >= 12
    assert [line for line in quoted if not any(line in text for text in printed)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To files that exist, and to headings in them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert heading in [re.sub(r"[^\w -]", "", one).strip().lower().replace(" ", "-") for one in headings], (
                target
            )


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in ROOT.glob("docs/*.md") if page.name != "README.md" and f"({page.name})" not in index
    ] == []


def test_the_page_of_the_library_is_that_of_its_docstrings() -> None:
    assert api_page.PAGE.read_text(encoding="utf-8") == api_page.text(), "python scripts/api_page.py writes it anew"
