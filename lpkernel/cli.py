"""The command line `lpkernel`: argparse here, one module per command in lpkernel/commands.

Exit codes: 0 done, 2 a wrong argument or input (one line on stderr, never a traceback), 130 interrupted.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from lpkernel import _startup
from lpkernel._startup import INTERRUPTED
from lpkernel.commands import align, autoencoder, bank, bench, completion, demo, edit, evaluate, generate, info
from lpkernel.errors import USAGE_ERROR, InputError, LpkernelError, printable

_AFTER = "\0"  # in front of what follows a --, which is never an option; no argument of a process holds it


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, in the same form as all others."""

    _mixing = False

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but arguments without a name may also stand apart, with options between them: where argparse
        would leave some over.
        """
        whole = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        if whole or self._mixing or args is None:
            return super().parse_known_args(args, namespace)
        found, left = super().parse_known_args(args, copy.copy(namespace))
        if not left:
            return found, left
        args = list(args)
        end = args.index("--") if "--" in args else len(args)
        self._mixing = True  # the method below may call this one for its parts, without the --
        try:
            marked = [*args[: end + 1], *(_AFTER + one for one in args[end + 1 :])]
            found, left = self.parse_known_intermixed_args(marked, namespace)
        finally:
            self._mixing = False
        return found, [one.removeprefix(_AFTER) for one in left if one != "--"]

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        return super()._get_value(action, arg_string.removeprefix(_AFTER) if self._mixing else arg_string)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the parsed namespace holds the command's function as `run`."""
    parser = Parser(prog="lpkernel", description="Image generation by copying latent patches of a few examples.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", parser_class=Parser)
    for module in (info, bank, autoencoder, align, generate, edit, evaluate, demo, bench):
        module.register(commands)
    completion.register(commands, parser)
    return parser


# torch asks for large pages for large tensors, which the system would else fill one small page after the other. A 72 M
# VQ-GAN in float32 takes 0.87 of the time.
LARGE_PAGES = ("THP_MEM_ALLOC_ENABLE", "1")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return its exit code; --help raises SystemExit(0)."""
    os.environ.setdefault(*LARGE_PAGES)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names that the terminal's encoding does not have
    try:
        logging.basicConfig(format="lpkernel: %(message)s", level=logging.WARNING)
        parser = build_parser()
        args, unknown = parser.parse_known_args(argv)
        if unknown:
            given = sys.argv[1:] if argv is None else list(argv)
            command = f"{given[0]} " if given and hasattr(args, "run") else ""
            raise InputError(f"unrecognized arguments: {' '.join(unknown)}; see lpkernel {command}--help")
        if args.version:
            from lpkernel import __version__

            print(__version__)
        elif hasattr(args, "run"):
            _begin(args)
            args.run(args)
        else:
            parser.error("no command given")
        sys.stdout.flush()
    except LpkernelError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of stdout, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except MemoryError as error:
        reason = f" ({error})" if str(error) else ""
        return _fail(f"not enough memory for this{reason}; ask for less at once")
    except OSError as error:
        reason = error.strerror or str(error)
        return _fail(f"{error.filename}: {reason}" if error.filename is not None else reason)
    except KeyboardInterrupt:
        print("lpkernel: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _begin(args: argparse.Namespace) -> None:
    """Say what is starting, since the libraries of most commands take seconds to load; then load them."""
    if begins := getattr(args, "begins", None):
        if sys.stderr.isatty() and not getattr(args, "quiet", False):  # as for progress
            print(printable(f"lpkernel: {begins(args)} ..."), file=sys.stderr, flush=True)
        importlib.import_module("lpkernel.search.ops")  # torch, and what needs it
    _startup.imported()


def _fail(message: str) -> int:
    try:
        sys.stdout.flush()
    except OSError:  # its buffer cannot be written, as on a full disk, and must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print("lpkernel: error:", printable(" ".join(message.split())), file=sys.stderr)
    return USAGE_ERROR
