"""Checks of untrusted configurations: kinds and sizes of values, before anything is built from them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lpkernel.errors import short
from lpkernel.files import open_regular

MAX_TEXT = 1 << 16  # bytes of a config; real ones have some 3,000
MAX_SIDE = 4096  # pixels of an image
MAX_WIDTH = 8192  # channels
MAX_LEVELS = 8
MAX_BLOCKS = 8  # of a level
MAX_ROWS = 1 << 24  # of a codebook

Check = Callable[[Any], Any]


def read_text(path: Path) -> str:
    """The text of a small file. Raises OSError, or ValueError if it is large or not UTF-8."""
    with open_regular(path) as file:
        data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise ValueError(f"it is longer than {MAX_TEXT} bytes")
    return data.decode()


def parse_json(text: str) -> Any:
    """The value of a text of standard JSON without duplicate keys. Raises ValueError."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"it is longer than {MAX_TEXT} characters")
    try:
        return json.loads(text, object_pairs_hook=without_doubles, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def without_doubles(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The dict of the pairs. Raises ValueError if a key occurs twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("it has a key twice")
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def integer(low: int, high: int) -> Check:
    """A check: an int (no bool) from `low` to `high`."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"is {_shown(value)}, expected an integer from {low} to {high}")
        return value

    return check


def one_of(*values: object) -> Check:
    """A check: one of the values, of the same kind."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(known) and value == known for known in values):
            raise ValueError(f"is {_shown(value)}, expected {' or '.join(map(repr, values))}")
        return value

    return check


def several(item: Check, least: int = 1, most: int = MAX_LEVELS) -> Check:
    """A check: a list of `least` to `most` values that each pass `item`; it returns a tuple."""

    def check(value: Any) -> tuple[Any, ...]:
        if type(value) is not list or not least <= len(value) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise ValueError(f"is {_shown(value)}, expected a list of {count}")
        return tuple(map(item, value))

    return check


def checked(values: Any, checks: Mapping[str, Check]) -> dict[str, Any]:
    """The entries of `values` that have a check, as the check returns them. Raises ValueError at the first failure."""
    if not isinstance(values, dict):
        raise ValueError(f"a table of names is {_shown(values)}")
    found = {}
    for name, check in checks.items():
        if name in values:
            try:
                found[name] = check(values[name])
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error
    return found


def _shown(value: Any) -> str:
    if type(value) is list:
        return f"a list of {len(value)}"
    return short(repr(value)) if isinstance(value, str | float | bool | None) else _shown_size(value)


def _shown_size(value: Any) -> str:
    if type(value) is not int:
        return f"of kind {type(value).__name__}"
    return str(value) if abs(value) < 1 << 63 else "an integer of more than 64 bits"
