"""The commands in the documentation can be parsed; the README's short examples are run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lpkernel.cli import build_parser, main

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.S | re.M)


def commands() -> Iterator[tuple[str, str]]:
    """Page and command line of every lpkernel call in a shell block or in the text, without pipes."""
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for line in re.findall(r"`lpkernel ([a-z][^`]* --[^`]*)`", text):
            yield page.name, line.replace("\n", " ")
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                called = re.search(r"(?:^|-m )lpkernel (?=[a-z-])(.*)", line)
                if called:
                    yield page.name, re.split(r"\s[|>]", called[1])[0]


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_a_command_of_a_page_is_one(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    build_parser().parse_args(["4" if word == "N" else word for word in words if word != "..."])  # any number


def test_there_are_commands() -> None:
    found = [page for page, _ in commands()]
    assert found.count("README.md") >= 15 and len(found) >= 40


@pytest.mark.parametrize("line", ["generate", "info", "generate --where 'Eyeglasses & ~Hat' --where Long_Hair -n 2"])
def test_the_short_ones_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(line)) == 0


def test_the_library_as_the_readme_shows_it() -> None:
    random = np.random.default_rng(0)
    names = {
        "queries": random.normal(size=(5, 32)).astype(np.float32),
        "bank_vectors": random.normal(size=(50, 32)).astype(np.float32),
        "known": random.random(32) < 0.5,
    }
    (shown,) = blocks(ROOT / "README.md", "python")
    exec(compile(shown, "README.md", "exec"), names)  # its own page
    assert names["images"].shape == (16, 128, 128, 3) and names["distances"].shape == (5, 10)
