"""What backends make from banks and plans and keep for the next call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any, Generic, TypeVar

Kept = TypeVar("Kept")


class Store(Generic[Kept]):
    """Values made from read-only arrays or plans, kept as long as these live and the byte budget allows.

    The least recently used value goes first. Threads may share a store; two that ask for the same value at once may
    both make it.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], tuple[Kept, int, Sequence[weakref.ref[Any]]]] = {}
        self._lock = RLock()  # not held while a value is made

    def find(self, key: tuple[Any, ...]) -> Kept | None:
        """The value of `key` if it is kept. Values without their sources are dropped first, to free their memory."""
        with self._lock:
            self._let_go()
            return self._kept[key][0] if key in self._kept else None

    def clear(self) -> bool:
        """Keeps nothing any more; returns whether it kept anything."""
        with self._lock:
            kept, self._kept = bool(self._kept), {}
        return kept

    def get(
        self,
        key: tuple[Any, ...],
        sources: Sequence[Any],
        budget: int,
        size: Callable[[Kept], int],
        make: Callable[[], Kept],
    ) -> Kept:
        """The value of `key`, made if need be. The key holds the ids of `sources`; the value dies with them."""
        with self._lock:
            if (found := self._used(key)) is not None:
                return found
            self._let_go()
        value = make()
        taken = size(value)
        with self._lock:
            if (found := self._used(key)) is not None:
                return found  # another thread was quicker
            while self._kept and taken + sum(entry[1] for entry in self._kept.values()) > budget:
                del self._kept[next(iter(self._kept))]
            if taken <= budget:
                self._kept[key] = (value, taken, [weakref.ref(source) for source in sources])
        return value

    def _used(self, key: tuple[Any, ...]) -> Kept | None:
        entry = self._kept.get(key)
        if entry is None:
            return None
        for ref in entry[2]:
            if ref() is None:
                return None
        self._kept[key] = self._kept.pop(key)
        return entry[0]

    def _let_go(self) -> None:
        self._kept = {key: entry for key, entry in self._kept.items() if all(ref() is not None for ref in entry[2])}
