"""lpkernel generate: new images, at random or guided by a reference, and a record of every setting."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import add_crop, add_synthesis, begins, path_of, whole
from lpkernel.errors import InputError
from lpkernel.presets import DEFAULT_PRESET, PRESETS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpkernel import Synthesis
    from lpkernel.commands.results import Pictures, Section, Session

BASELINE_COUNTER = 2**31  # random counters from here on, which no plan reaches


def register(commands: Any) -> None:
    parser = commands.add_parser("generate", help="make new images from a bank")
    add_synthesis(parser, 16, "those of the preset; the grid alone with --reference")
    parser.add_argument(
        "--preset",
        choices=tuple(PRESETS),
        help=f"values of the options above that are not given (default: {DEFAULT_PRESET})",
    )
    parser.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="let cells and small pieces join a neighbouring piece where seams get cheaper (default: as the preset)",
    )
    parser.add_argument(
        "--match-colours",
        action=argparse.BooleanOptionalAction,
        help="match the colours of pieces where they meet (default: as the preset, if the bank holds colours)",
    )
    parser.add_argument("--sources", type=whole, metavar="N", help="use only the first N images of the bank")
    parser.add_argument(
        "--reference", type=path_of, metavar="IMAGE", help="start from this image instead of nothing; stride 2P/3"
    )
    parser.add_argument(
        "--strength", type=whole, metavar="S", help="raster passes away from the reference (default: 1)"
    )
    add_crop(parser)
    parser.add_argument("--no-decode", action="store_true", help="write the source maps only, no pictures")
    parser.add_argument(
        "--baseline", action="store_true", help="also make pictures of cells drawn at random, for comparison"
    )
    parser.add_argument(
        "--provenance", action="store_true", help="also write each image's source map, overlay and provenance sheet"
    )
    parser.add_argument(
        "--shards",
        choices=("tar",),
        help="write images, facts and source maps into one tar file per process, in WebDataset's format",
    )
    parser.set_defaults(run=run, begins=lambda args: begins("making", args))


def run(args: argparse.Namespace) -> None:
    from lpkernel.commands import ranks

    _check(args)
    ranks.run(args, "generate", _run)


def _run(args: argparse.Namespace, share: bool, shards: Sequence[Path]) -> None:
    """Make the run, or a share of its images; for `shards` see `ranks.run`."""
    from lpkernel.commands import ranks, results
    from lpkernel.commands.results import PROVENANCE

    kinds = ["image", *(PROVENANCE if args.provenance else [])]
    tars = [] if args.shards is None else ranks.tar_files(args.out, shards)
    session = results.prepare(args, "generate", kinds, not args.no_decode, args.sources, tars, bool(shards))
    if session is None:
        return
    session.share, session.shards = share, shards
    make, given, warnings, told = (_at_random(session), [], [], []) if args.reference is None else _guided(session)

    def baseline(n: int) -> Section:
        return _baseline(session, n)

    made_by_chance = baseline if args.baseline else None
    results.run(session, make, given, made_by_chance, args.provenance, warnings, told)


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for options that contradict each other."""
    if args.no_decode and (args.baseline or args.provenance):
        raise InputError("--baseline and --provenance make pictures, --no-decode makes none; leave one out")
    if args.reference is None and (args.strength is not None or args.crop is not None or args.framing != "auto"):
        raise InputError("--strength, --crop and --framing need --reference; give it or leave them out")
    if args.reference is not None and (args.no_decode or args.baseline):
        raise InputError("--no-decode and --baseline do not go with --reference; leave one out")


def _at_random(session: Session) -> Any:
    from lpkernel import generate

    args, bank = session.args, session.bank

    def make(options: dict[str, Any]) -> Synthesis:
        return generate(
            bank,
            patch=args.patch,
            stride=args.stride,
            scales=args.scales,
            preset=args.preset or DEFAULT_PRESET,
            refine=args.refine,
            match_colours=args.match_colours,
            **options,
        )

    return make


def _guided(session: Session) -> tuple[Any, list[Pictures], list[str], list[str]]:
    from lpkernel import reference
    from lpkernel.commands import results
    from lpkernel.modes.inputs import read_input

    args, bank, autoencoder = session.args, session.bank, session.autoencoder
    given = read_input(bank, args.reference, autoencoder, args.crop, framing=args.framing)
    assert given.pixels is not None
    warnings = results.unlike(session, given)

    def make(options: dict[str, Any]) -> Synthesis:
        return reference(
            bank,
            given,
            autoencoder,
            strength=1 if args.strength is None else args.strength,
            preset=args.preset or DEFAULT_PRESET,
            patch=args.patch,
            stride=args.stride,
            scales=args.scales,
            refine=args.refine,
            match_colours=args.match_colours,
            **options,
        )

    return make, [("The reference", given.pixels[None])], warnings, given.said()


def _baseline(session: Session, n: int) -> Section:
    """The first n images again with every cell from a random source; also written as a picture of its own."""
    from lpkernel.commands.results import BASELINE
    from lpkernel.pictures import render

    args, bank, autoencoder = session.args, session.bank, session.autoencoder
    assert autoencoder is not None
    allowed = session.groups[0][1]
    drawn = random_cells(args.seed, args.first_image, n, bank.grid, bank.size if allowed is None else len(allowed))
    sources = drawn if allowed is None else allowed[drawn]
    images = autoencoder.decode(bank.gather(sources))
    session.save_picture(BASELINE, render.grid(images))
    return "Baseline: every cell from a random source", images, sources


def random_cells(seed: int, first_image: int, n: int, grid: int, count: int) -> NDArray[np.int64]:
    """Source maps (n, grid, grid) with each cell drawn uniformly from `count` images: the baseline without a search.

    Image i is the same whatever n and first_image.
    """
    import numpy as np

    from lpkernel import philox

    images = np.arange(first_image, first_image + n)[:, None]
    words = philox.draws(seed, images, BASELINE_COUNTER + np.arange(grid * grid))
    return philox.pick(words, count).reshape(n, grid, grid)
