"""Boolean expressions over a bank's attributes and class labels: `Eyeglasses & Blond_Hair & ~Male`.

    expression := term ("|" term)*        term := factor ("&" factor)*
    factor     := "~" factor | "(" expression ")" | name

A name is a run of letters, digits and _ . + - , or anything between two quotes, single or double ('wavy hair').
Nothing is evaluated as code; length and depth are limited, so no expression can exhaust the interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lpkernel.errors import InputError, short

Mask = NDArray[np.bool_]

MAX_LENGTH = 10_000  # characters
MAX_DEPTH = 100  # nested parentheses
_TOKEN = re.compile(r"""\s*(?:(?P<name>[\w.+-]+)|(?P<quoted>"[^"]*"|'[^']*')|(?P<sign>[|&~()]))""")


def evaluate(expression: str, size: int, lookup: Callable[[str], Mask]) -> Mask:
    """The expression's value: (size,) bool. `lookup` gives a name's mask or raises InputError.

    "~" binds tightest, then "&", then "|". Raises InputError, one line, for anything else.
    """
    if len(expression) > MAX_LENGTH:
        raise InputError(f"where: {len(expression)} characters, expected at most {MAX_LENGTH}")
    return _Parser(expression, size, lookup).run()


class _Parser:
    """Recursive descent; one object per expression."""

    def __init__(self, text: str, size: int, lookup: Callable[[str], Mask]) -> None:
        self.text, self.size, self.lookup = text, size, lookup
        self.tokens = self._tokens()
        self.next = 0
        self.depth = 0

    def run(self) -> Mask:
        value = self._or()
        if self._sign() is not None or self.next < len(self.tokens):
            raise self._wrong("expected &, | or the end")
        return value

    def _tokens(self) -> list[tuple[str, str, int]]:
        """(kind, text, place) of each token."""
        tokens, place, end = [], 0, len(self.text.rstrip())
        while place < end:
            found = _TOKEN.match(self.text, place)
            if found is None:
                place += len(self.text[place:]) - len(self.text[place:].lstrip())
                what = "a quote that is not closed" if self.text[place] in "\"'" else repr(self.text[place])
                raise InputError(
                    f"where: {self._shown()}: {what} at character {place + 1}; names with spaces or signs go in quotes"
                )
            kind = found.lastgroup or ""
            tokens.append((kind, found[kind], found.start(kind)))
            place = found.end()
        return tokens

    def _sign(self) -> str | None:
        kind, text, _ = self.tokens[self.next] if self.next < len(self.tokens) else ("", "", 0)
        return text if kind == "sign" else None

    def _or(self) -> Mask:
        value = self._and()
        while self._sign() == "|":
            self.next += 1
            value = value | self._and()
        return value

    def _and(self) -> Mask:
        value = self._factor()
        while self._sign() == "&":
            self.next += 1
            value = value & self._factor()
        return value

    def _factor(self) -> Mask:
        negated = False
        while self._sign() == "~":
            self.next += 1
            negated = not negated
        if self._sign() == "(":
            value = self._group()
        elif self.next < len(self.tokens) and self._sign() is None:
            kind, text, _ = self.tokens[self.next]
            self.next += 1
            value = self.lookup(text[1:-1] if kind == "quoted" else text)
        else:
            raise self._wrong("expected a name, ~ or (")
        return ~value if negated else value

    def _group(self) -> Mask:
        self.next += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise InputError(f"where: parentheses deeper than {MAX_DEPTH}")
        value = self._or()
        if self._sign() != ")":
            raise self._wrong("expected &, | or )")
        self.next += 1
        self.depth -= 1
        return value

    def _wrong(self, expected: str) -> InputError:
        if self.next < len(self.tokens):
            _, text, place = self.tokens[self.next]
            got = f"{short(text)!r} at character {place + 1}"
        else:
            got = "the end"
        return InputError(f"where: {self._shown()}: {expected}, got {got}")

    def _shown(self) -> str:
        return repr(short(self.text))
