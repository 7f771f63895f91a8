"""The errors that lpkernel raises on purpose. The command line prints each as one line, exit code 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

USAGE_ERROR = 2  # the exit code of the command line
NEAREST = 5  # names suggested for an unknown one
SHOWN = 60  # characters of the user's text repeated in a message


class LpkernelError(Exception):
    """Base of the errors below. The message is one line that a terminal can show, whatever names are in it."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class InputError(LpkernelError, ValueError):
    """A wrong argument or file: the message says which, what was given, what was expected, and the fix."""


class BackendUnavailable(LpkernelError, RuntimeError):
    """The named backend cannot do this here; the message lists the reasons and the command that fixes it."""


class MissingExtra(LpkernelError, ImportError):
    """An optional package is not installed; the message names the extra that installs it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'lpkernel[{extra}]'")
        self._given = package, extra, purpose

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str, str]]:  # as workers send it to their caller
        return MissingExtra, self._given


def printable(text: str) -> str:
    """The text with unprintable characters (line breaks, escapes, bytes that are not UTF-8) escaped as in Python."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(error: BaseException, most: int = 160) -> str:
    """The error's message as one line of at most so many characters, or its type where there is none."""
    return printable(" ".join(str(error).split()))[:most] or type(error).__name__


def counted(count: int, noun: str) -> str:
    """A number of things, as in "1 image" and "2 images"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def short(text: str) -> str:
    """The text, cut to what a one-line message can hold."""
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def unknown_name(what: str, name: str, names: Iterable[str]) -> InputError:
    """The error for a name that is not in `names`: it lists the most similar, or else the first ones."""
    by_lower = {known.lower(): known for known in names}
    close = difflib.get_close_matches(name.lower()[:200], by_lower, NEAREST, cutoff=0.5)
    if not by_lower:
        hint = "there are none"
    elif close:
        hint = f"nearest: {', '.join(short(by_lower[match]) for match in close)}"
    else:
        first = [short(known) for known in by_lower.values()][:NEAREST]
        more = f" and {len(by_lower) - len(first)} more" if len(by_lower) > len(first) else ""
        hint = f"expected one of {', '.join(first)}{more}"
    return InputError(f"{what} {short(name)!r} is unknown; {hint}")
