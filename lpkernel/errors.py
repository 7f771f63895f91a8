"""The errors that lpkernel raises on purpose. The command line prints each as one line, exit code 2."""

from __future__ import annotations


class LpkernelError(Exception):
    """Base of the errors below."""


class InputError(LpkernelError, ValueError):
    """A wrong argument or file: the message says what, what was got, what was expected, and the fix."""


class BackendUnavailable(LpkernelError, RuntimeError):
    """The named backend cannot do this here; the message lists the reasons and the fixing command."""


class MissingExtra(LpkernelError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'lpkernel[{extra}]'")
