"""Equality by content, for dataclasses that hold arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import numpy as np


def same(one: object, other: object) -> bool:
    """Whether two values are equal, arrays by type, shape and every element."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


class ByContent:
    """A base of dataclasses (with eq=False): two are equal if their compared fields are."""

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or all(
            same(getattr(self, one.name), getattr(other, one.name))
            for one in fields(self)  # type: ignore[arg-type]
            if one.compare
        )

    def __hash__(self) -> int:
        """Hash of the plain values alone, so that it costs nothing."""
        plain = [getattr(self, one.name) for one in fields(self) if one.compare]  # type: ignore[arg-type]
        return hash((type(self).__name__, *(value for value in plain if isinstance(value, int | float | str))))
