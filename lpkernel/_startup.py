"""The first thing that `import lpkernel` does, before the slow imports.

Ctrl+C while the command line is still importing ends it as it does later (see `lpkernel.cli`): with one line and exit
code 130. Until Python has reached this file, Ctrl+C is handled by Python itself.

A standard stream that was closed (`lpkernel ... >&-`) is pointed at the null device, so that a file opened later does
not take its place.

A forked child runs torch with one thread: the OpenMP threads that torch had in its parent do not exist in it, and it
would wait for them for ever. Programs must not call `torch.set_num_threads` in such a child.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def _leave(*_: object) -> NoReturn:
    os.write(2, b"lpkernel: interrupted\n")
    os._exit(INTERRUPTED)  # nothing is open yet, and an exception could be swallowed by some import


def is_command() -> bool:
    """Whether this process is `lpkernel` or `python -m lpkernel`, not a program that imports lpkernel."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    return module == ["lpkernel"] if program == "-m" else os.path.basename(program) in ("lpkernel", "lpkernel.exe")


def _open_streams() -> None:
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def imported() -> None:
    """From here on Ctrl+C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if is_command():
    _open_streams()
    # SIGINT stays as it is where a handler was installed or it is ignored
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_one_thread)
