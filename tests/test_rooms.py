"""The rooms of the house: which may import which. Late imports and imports for types count like the rest."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lpkernel"

# Floors from the ground up: a module imports from its own room and from the floors below. Rooms on one floor do not
# import each other, except on the ground floor, where they are single files. docs/architecture.md has the picture.
GROUND = (
    "_native _startup arrays checks clock content errors files levels limits philox tensor_file triton_kernels views"
)
FLOORS = [
    GROUND.split(),
    ["autoencoder", "pictures", "plan"],
    ["presets", "refine"],
    ["backends"],
    ["bank", "copies", "info", "search"],
    ["distributed", "synthesis"],
    ["alignment"],
    ["metrics", "modes"],
    ["benchmarks", "demo"],
    ["commands"],
    ["cli"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
FRONT_DOOR = ["__init__", "__main__"]  # lpkernel/__init__.py names what is public, and imports it on demand


def modules() -> dict[str, Path]:
    """Every module below lpkernel by its name there: `bank.file`; a package is `bank`."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return {name: path for name, path in found.items() if name not in FRONT_DOOR}


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """The modules below lpkernel that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("lpkernel."):
                yield _module(name.removeprefix("lpkernel."))


def _module(name: str) -> str:
    """The module of a dotted name; for a public name of the package, the module that defines it."""
    import lpkernel

    homes = lpkernel._HOMES | dict.fromkeys(("info", "__version__"), "info")
    if name.split(".")[0] == "triton_kernels":
        return "triton_kernels"
    while name not in MODULES:
        if "." not in name:
            return homes.get(name, "errors")
        name = name.rpartition(".")[0]
    return name


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    above = [
        other
        for other in imports(MODULES[name])
        if room(other) != room(name) and FLOOR[room(other)] >= max(1, FLOOR[room(name)])
    ]
    assert not above, f"lpkernel.{name}, floor {FLOOR[room(name)]}, imports from above or beside it: {above}"


def test_no_circles() -> None:
    """Within a room too. A package's __init__ that re-exports names counts as the modules that they come from."""
    edges = {name: {other for other in imports(path) if other != name} for name, path in MODULES.items()}
    state: dict[str, bool] = {}  # False: on the way, True: done
    for start in edges:
        circle = _circle(start, edges, state, [])
        assert not circle, " -> ".join(circle)


def _circle(name: str, edges: dict[str, set[str]], state: dict[str, bool], way: list[str]) -> list[str]:
    if name in state:
        return [] if state[name] else [*way[way.index(name) :], name]
    state[name] = False
    for other in sorted(edges.get(name, ())):
        if circle := _circle(other, edges, state, [*way, name]):
            return circle
    state[name] = True
    return []


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in MODULES} <= set(FLOOR)


def test_pybind11_stays_in_one_room() -> None:
    csrc = ROOT / "csrc"
    users = {path.relative_to(csrc).parts[0] for path in csrc.rglob("*.*") if "pybind11" in path.read_text()}
    assert users == {"bind"}


def test_the_page_shows_the_floors() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", page, re.M)
    assert {int(number): sorted(re.findall(r"`(\w+)`", rooms)) for number, rooms in rows} == {
        number: sorted(rooms) for number, rooms in enumerate(FLOORS)
    }
