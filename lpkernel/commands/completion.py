"""lpkernel completion: the script with which a shell completes this command line by the TAB key."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from lpkernel.commands.common import path_of

SHELLS = {
    "bash": "lpkernel completion bash > ~/.local/share/bash-completion/completions/lpkernel",
    "zsh": "lpkernel completion zsh > FOLDER/_lpkernel, with a FOLDER in $fpath",
    "fish": "lpkernel completion fish > ~/.config/fish/completions/lpkernel.fish",
}


def register(commands: Any, whole: argparse.ArgumentParser) -> None:
    """whole: the parser of all commands."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes lpkernel's arguments in a shell",
        description="Print a script that completes lpkernel's arguments. Where it goes: " + "; ".join(SHELLS.values()),
    )
    parser.add_argument("shell", choices=tuple(SHELLS), help="the shell")
    parser.set_defaults(run=partial(run, whole))


def run(whole: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    import shtab

    _mark_files(whole, shtab)
    print(shtab.complete(whole, args.shell))


def _mark_files(parser: argparse.ArgumentParser, shtab: Any) -> None:
    """Mark the arguments of the parser and its subparsers that are files or folders."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _mark_files(below, shtab)
        elif action.type is path_of or action.metavar == "FILE":
            only_folders = action.metavar in ("FOLDER", "OUT")
            action.complete = shtab.DIRECTORY if only_folders else shtab.FILE  # type: ignore[attr-defined]
