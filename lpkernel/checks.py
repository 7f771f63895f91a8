"""Type checks of plain arguments, whose ranges are checked where they are known; the range of codes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from lpkernel.arrays import host_array
from lpkernel.errors import InputError, short


def integer(name: str, value: object) -> int:
    """The whole number `value`. Raises InputError for anything else, a bool and 2.0 included."""
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value)
    raise InputError(f"{name}: got {short(repr(value))}, expected a whole number")


def real(name: str, value: object) -> float:
    """The finite number `value`. Raises InputError for anything else."""
    kinds = int | float | np.integer | np.floating
    if isinstance(value, kinds) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise InputError(f"{name}: got {short(repr(value))}, expected a number")


def integers(name: str, values: Any, count: int | None = None) -> tuple[int, ...]:
    """The whole numbers in `values`, a list, an array or a tensor, `count` of them if given.

    Raises InputError for anything else.
    """
    if isinstance(values, Iterable) and not isinstance(values, str | bytes):
        if type(values) not in (list, tuple) and hasattr(values, "ndim"):
            values = np.atleast_1d(host_array(name, values))
        listed = list(values)
        if count is None or len(listed) == count:
            return tuple(integer(name, value) for value in listed)
    what = "whole numbers" if count is None else f"{count} whole numbers"
    raise InputError(f"{name}: got {short(repr(values))}, expected {what}")


def flag(name: str, value: object, expected: str = "True or False") -> bool:
    """The bool `value`, Python's or NumPy's. Raises InputError for anything else, 0 and 1 included."""
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise InputError(f"{name}: got {short(repr(value))}, expected {expected}")


def text(name: str, value: object) -> str:
    """The text `value`, a plain one. Raises InputError for anything else."""
    if type(value) is str:
        return value
    if isinstance(value, str):
        return str(value)
    raise InputError(f"{name}: got {short(repr(value))}, expected a text")


def texts(name: str, values: Any) -> list[str]:
    """The texts in `values`. Raises InputError for anything else, one text included."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes):
        raise InputError(f"{name}: got {short(repr(values))}, expected a list of texts")
    listed = list(values)
    if all(type(value) is str for value in listed):  # a million names take 20 ms
        return listed
    return [text(f"{name}[{i}]", value) for i, value in enumerate(listed)]


def path(name: str, value: Any) -> Path:
    """The path `value`. Raises InputError for anything else, bytes included."""
    try:
        return Path(value)
    except TypeError as error:
        raise InputError(f"{name}: got {short(repr(value))}, expected the path of a file") from error


def check_codes(codes: np.ndarray, rows: int, more: str = "") -> None:
    """Raise InputError, with `more` at its end, unless all codes are within a codebook of so many rows."""
    if codes.size and (codes.min() < 0 or codes.max() >= rows):
        raise InputError(f"codes run from {codes.min()} to {codes.max()}, expected 0 to {rows - 1}{more}")
