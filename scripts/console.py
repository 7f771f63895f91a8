"""How a script begins, and how it ends: with one line where the user can mend what went wrong."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from lpkernel.errors import LpkernelError


def no_options(described: str | None) -> None:
    """For a script without arguments: --help tells what it does, anything else is refused."""
    argparse.ArgumentParser(description=described, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what `main` returns, or with 2 after the message of an LpkernelError."""
    try:
        sys.exit(main())
    except LpkernelError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
