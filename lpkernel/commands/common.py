"""Options, progress and output that the commands share."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lpkernel.alignment import FRAMINGS
from lpkernel.errors import InputError, printable, short
from lpkernel.files import atomic_path, open_regular
from lpkernel.plan import OVERLAPS, STARTS

if TYPE_CHECKING:
    from lpkernel import Bank, CopyLimit

EMBEDDED = "default"
SKIPPED_SHOWN = 20
LEFT_OUT_SHOWN = 8
EVERY = 20.0  # seconds between two lines of progress where there is no terminal
RANDOM_SEED_BITS = 32  # few enough to retype
BEYOND = 1 << 64  # integers of options are below; the largest ranges are those of seeds


def whole(text: str) -> int:
    """Parser of a whole number between -2^64 and 2^64; the range of each is checked where it is known."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {short(text)!r}, expected a whole number") from None
    if abs(value) >= BEYOND:
        raise argparse.ArgumentTypeError(f"got {short(text)!r}, expected a whole number between -2^64 and 2^64")
    return value


def integers(count: int | None = None) -> Callable[[str], tuple[int, ...]]:
    """Parser of comma-separated integers between -2^64 and 2^64, exactly `count` of them if given."""
    what = "integers" if count is None else f"{count} integers"

    def parse(text: str) -> tuple[int, ...]:
        try:
            values = tuple(int(part) for part in text.split(","))
        except ValueError:
            values = ()
        if not values or (count is not None and len(values) != count):
            raise argparse.ArgumentTypeError(f"got {short(text)!r}, expected {what} separated by commas")
        if any(abs(value) >= BEYOND for value in values):
            raise argparse.ArgumentTypeError(
                f"got {short(text)!r}, expected {what} between -2^64 and 2^64, separated by commas"
            )
        return values

    return parse


def nonempty(text: str) -> str:
    """Parser of a text that must not be empty, such as the name of a bank."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty text, expected a name; leave the option out for its default")
    return text


def path_of(text: str) -> Path:
    """Parser of a path; "" would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("got an empty path; give a path, or . for the current folder")
    return Path(text)


def fractions(text: str) -> tuple[float, ...]:
    """Parser of comma-separated numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {short(text)!r}, expected numbers separated by commas") from None


def seed(text: str) -> int:
    """A whole number, or one drawn now for "random"; `generate` says which numbers it takes."""
    if text == "random":
        return secrets.randbits(RANDOM_SEED_BITS)
    try:
        return whole(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error} or random") from None


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress and no summary")


def add_autoencoder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--autoencoder",
        type=nonempty,
        default="default",
        metavar="SRC",
        help="default (the embedded one), a diffusers folder, or module:callable or file.py:callable of a plug-in",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    parser.add_argument(
        "--dtype", default="auto", help="precision of the autoencoder: auto, float32, bfloat16 or float16"
    )


def add_compile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--compile",
        choices=("auto", "never", "always"),
        default="auto",
        help="compile the decoder with torch.compile; auto: on a GPU, for enough images that it pays (default: auto)",
    )


def add_synthesis(parser: argparse.ArgumentParser, n: int, scales: str) -> None:
    """Add the options of every command that makes images. scales: what their default is, in words."""
    parser.add_argument(
        "--bank", type=nonempty, default=EMBEDDED, metavar="FILE", help="a bank (default: the embedded avatars)"
    )
    add_autoencoder(parser)
    add_compile(parser)
    parser.add_argument("-n", type=whole, default=n, help=f"images to make, for each --where (default: {n})")
    parser.add_argument(
        "--k", type=whole, help="neighbours to draw from (default: 3; 12 where one donor gives a region)"
    )
    parser.add_argument("--patch", type=whole, default=6, help="patch side P in cells (default: 6)")
    parser.add_argument("--stride", type=whole, metavar="W", help="cells from patch to patch (default: P/3, rounded)")
    parser.add_argument("--scales", type=integers(), metavar="M1,M2,...", help=f"grid sides (default: {scales})")
    parser.add_argument("--overlap", choices=OVERLAPS, help="cut: a minimum error boundary between patches")
    parser.add_argument("--start", choices=STARTS, help="what a scale starts from: the canvas or its sources")
    parser.add_argument(
        "--hubness", type=float, metavar="R", help="0 to 1: how far images nearest to many others are held back"
    )
    parser.add_argument(
        "--mirror",
        type=whole,
        metavar="W",
        help="0 to 8: weight of the cells that mirror a patch, where they are known",
    )
    parser.add_argument(
        "--where",
        action="append",
        metavar="EXPR",
        help="use only bank images with these attributes or labels, such as 'Eyeglasses & ~Male'; repeat for more rows",
    )
    parser.add_argument(
        "--search-radius",
        type=whole,
        default=0,
        metavar="R",
        help="0 to 4: patches may come from up to R cells away from their place in the bank images (default: 0)",
    )
    parser.add_argument(
        "--copy-limit",
        type=copy_limit,
        metavar="LIMIT",
        help="redraw images that copy more than this from one source: share=0.5, area=60 (connected cells), tries=8",
    )
    add_seed(parser)
    parser.add_argument(
        "--first-image", type=whole, default=0, metavar="I", help="number of the first image of the seed's series"
    )
    parser.add_argument("--backend", default="auto", help="auto, numpy, torch, cpp, triton or cuda; see lpkernel info")
    parser.add_argument("--out", type=path_of, default=Path("out"), metavar="FOLDER", help="default: out")
    add_overwrite(parser, "remove the files of an earlier run from --out, only those its record lists")
    add_output(parser)


def begins(doing: str, args: argparse.Namespace) -> str:
    """The first line that a command that makes images prints."""
    count = args.n * len(args.where or [""])
    images = f"{count} image{'s' * (count != 1)}"
    source = "the embedded avatars" if args.bank == EMBEDDED else args.bank
    return f"{doing} {images} from {source} with seed {args.seed}, into {args.out}"


def add_seed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=seed, default=0, metavar="S", help="a whole number, or random (default: 0)")


def add_overwrite(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--overwrite", action="store_true", help=what)


def add_input(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the image that a command starts from, and how it is framed."""
    parser.add_argument("image", type=path_of, metavar="IMAGE", help=what)
    add_crop(parser)


def add_crop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--crop",
        type=integers(4),
        metavar="x0,y0,x1,y1",
        help="crop the image to these pixels first (default: the bank's crop, if it is for images of this size)",
    )
    parser.add_argument(
        "--framing",
        choices=FRAMINGS,
        default="auto",
        help="as-is: the centre square; crop: cut like the bank's images; align: turned and scaled by its eyes like "
        "the bank's faces; auto: whichever it needs, and says so",
    )


def add_mask(parser: Any, what: str) -> None:
    """Add a mask; `what`: what its white part marks."""
    parser.add_argument(
        "--mask",
        type=path_of,
        metavar="FILE",
        help=f"a black and white picture of the image's size, white = {what} (default: the image's own transparency)",
    )


def add_keep_outside(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--invert-mask", action="store_true", help="swap black and white in the mask")
    parser.add_argument(
        "--keep-outside",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep the image's own pixels outside the region, with a feathered edge (default: yes)",
    )


def copy_limit(text: str) -> CopyLimit:
    """share=0.5,area=60,tries=8, each at most once, as a `CopyLimit`."""
    from lpkernel import CopyLimit

    kinds: dict[str, Callable[[str], int | float]] = {"share": float, "area": whole, "tries": whole}
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            if name in values:
                raise ValueError
            values[name] = kinds[name](value)
        except (KeyError, ValueError, argparse.ArgumentTypeError):
            expected = "expected for example share=0.5,area=60,tries=8"
            raise argparse.ArgumentTypeError(f"got {short(text)!r}, {expected}") from None
    try:
        return CopyLimit(**values)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def load_bank(name: str) -> Bank:
    """The bank in the file `name`, or the embedded one for `EMBEDDED`."""
    from lpkernel.bank import as_bank

    return as_bank(name)


def bank_path(name: str) -> Path:
    """The path of a bank, or of the embedded one for `EMBEDDED`."""
    from lpkernel.bank import DEFAULT_BANK

    return DEFAULT_BANK if name == EMBEDDED else Path(name)


def file_hash(bank: str) -> str:
    """SHA-256 (hex) of a bank's file."""
    with open_regular(bank_path(bank)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Progress:
    """Progress of long work, on stderr unless quiet: a bar on a terminal, else a line every `EVERY` seconds.

    A context manager.
    """

    def __init__(self, what: str, total: int | None, unit: str, quiet: bool, done: int = 0) -> None:
        from tqdm import tqdm

        self._what, self._unit = what, unit
        # disable=None leaves the bar out when stderr is not a terminal
        self._bar = tqdm(total=total, initial=done, desc=what, unit=unit, file=sys.stderr, disable=quiet or None)
        self._lines = not quiet and not sys.stderr.isatty()
        self._done = self._began_with = done
        self._total, self._began = total, time.monotonic()
        self._said = self._began

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        self._bar.update(count)
        self._done += count
        now = time.monotonic()
        if self._lines and now - self._said >= EVERY:
            self._said = now
            print(self._line(now), file=sys.stderr, flush=True)

    def reach(self, done: int, total: int) -> None:
        """Jump to `done` of `total`; has the signature of `Bank.build`'s callback."""
        self._bar.total = self._total = total
        self.add(done - self._done)

    def _line(self, now: float) -> str:
        speed = (self._done - self._began_with) / max(1e-9, now - self._began)
        so_far = f"lpkernel: {self._what}: {self._done}"
        if self._total is None:
            return f"{so_far} {self._unit}s, {speed:.1f} a second"
        left = (self._total - self._done) / speed if speed else 0.0
        return f"{so_far} of {self._total} {self._unit}s, {speed:.1f} a second, {left / 60:.0f} min left"


def report(args: argparse.Namespace, result: dict[str, Any], lines: list[str]) -> None:
    """The result on stdout: JSON, or lines for people unless quiet."""
    if args.json:
        print(json_text(result))
    elif not args.quiet:
        print("\n".join(map(printable, lines)))


def list_skipped(skipped: list[tuple[str, str]]) -> None:
    """Names and reasons of files that could not be used, a line each on stderr."""
    for name, reason in skipped[:SKIPPED_SHOWN]:
        print(printable(f"lpkernel: skipped {name}: {reason}"), file=sys.stderr)
    if len(skipped) > SKIPPED_SHOWN:
        print(f"lpkernel: skipped {len(skipped) - SKIPPED_SHOWN} more; --json lists all", file=sys.stderr)


def list_left_out(names: list[str]) -> None:
    """How many files of a folder are not pictures, judged by their ending, and which, in a line on stderr."""
    if names:
        more = f" and {len(names) - LEFT_OUT_SHOWN} more" if len(names) > LEFT_OUT_SHOWN else ""
        count = f"{len(names)} file{'s' * (len(names) != 1)} of other kinds left out"
        print(printable(f"lpkernel: {count}: {', '.join(names[:LEFT_OUT_SHOWN])}{more}"), file=sys.stderr)


def check_folder(path: Path, argument: str = "--out") -> None:
    """Raise InputError, naming the argument, unless `path` is a folder to write in, or can be made; checked before
    long work."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{argument} {path}: {there} is a file; give a folder, which is made if it does not exist")
    if not os.access(there, os.W_OK):
        raise InputError(f"{argument} {path}: no permission to write in {there}; give another folder")


def write_json(path: Path, result: dict[str, Any]) -> None:
    with atomic_path(path) as partial:
        partial.write_text(json_text(result) + "\n", encoding="utf-8")


def json_text(value: Any, indent: int | None = 2) -> str:
    """JSON that every reader takes: bytes of names that are not UTF-8, which JSON cannot hold, as in `printable`."""
    text = json.dumps(value, indent=indent)
    return json.dumps(_without_surrogates(value), indent=indent) if "\\ud" in text else text


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(one) for key, one in value.items()}
    return [_without_surrogates(one) for one in value] if isinstance(value, list | tuple) else value
