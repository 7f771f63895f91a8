"""Options, progress and output that the commands share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lpkernel.errors import InputError
from lpkernel.files import atomic_path

if TYPE_CHECKING:
    from lpkernel import Bank

EMBEDDED = "default"


def integers(count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """Parser of comma-separated integers, exactly `count` of them if given."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            values = tuple(int(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or (count is not None and len(values) != count):
            what = "integers" if count is None else f"{count} integers"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {what} with commas between")
        return values

    return parse


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def add_autoencoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--autoencoder",
        default="default",
        metavar="SRC",
        help="default (the embedded one), a diffusers folder, or module:callable or file.py:callable of a plug-in",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument("--dtype", default="auto", help="of the autoencoder: auto, float32, bfloat16 or float16")


def load_bank(name: str) -> Bank:
    """The bank in the file `name`, or the embedded one for `EMBEDDED`."""
    from lpkernel import Bank

    return Bank.default() if name == EMBEDDED else Bank.load(name)


class Progress:
    """A bar on stderr, shown only on a terminal and never when quiet. A context manager."""

    def __init__(self, what: str, total: int | None, unit: str, quiet: bool) -> None:
        from tqdm import tqdm

        # disable=None leaves the bar out when stderr is no terminal
        self._bar = tqdm(total=total, desc=what, unit=unit, file=sys.stderr, disable=quiet or None)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        self._bar.update(count)

    def reach(self, done: int, total: int) -> None:
        """Jump to `done` of `total`: the form of `Bank.build`'s callback."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def report(args: argparse.Namespace, result: dict[str, Any], lines: list[str]) -> None:
    """The result on stdout: JSON, or lines for people unless quiet."""
    if args.json:
        print(json.dumps(result, indent=2))
    elif not args.quiet:
        print("\n".join(lines))


def check_folder(path: Path) -> None:
    """Raise InputError unless `path` is a folder to write in, or can be made: asked before long work."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"--out {path}: {there} is a file; give a folder, which is made if it does not exist")
    if not os.access(there, os.W_OK):
        raise InputError(f"--out {path}: no permission to write in {there}; give another folder")


def write_json(path: Path, result: dict[str, Any]) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
