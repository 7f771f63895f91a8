"""lpkernel edit, inpaint and harmonize: make a part of an image anew."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import add_input, add_keep_outside, add_mask, add_synthesis, begins, integers, nonempty
from lpkernel.errors import InputError, unknown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpkernel import Bank, Synthesis
    from lpkernel.commands.results import Pictures, Session
    from lpkernel.modes.inputs import Input
    from lpkernel.pictures.images import Crop

VARIANTS = 4


def register(commands: Any) -> None:
    edit = commands.add_parser("edit", help="make variants of an image in one region")
    add_input(edit, "the image to edit")
    region = edit.add_mutually_exclusive_group()
    region.add_argument(
        "--region", metavar="NAMES", help="comma-separated: eyes, eyebrows, nose, mouth, hair, left_half, right_half"
    )
    add_mask(region, "change")
    region.add_argument("--box", type=integers(4), metavar="x0,y0,x1,y1", help="the region, in pixels of the image")
    edit.add_argument(
        "--donors",
        type=nonempty,
        metavar="FOLDER_OR_NAMES",
        help="copy only from these: a folder of images, or images of the bank",
    )
    edit.add_argument(
        "--donor",
        choices=("one", "patches"),
        help="one: a single bank image fills the region; patches: many do (default: one for a free --region)",
    )
    edit.add_argument("--mode", default="free", help="free: grown from outside; guided: starts from what is there")
    add_keep_outside(edit)
    add_synthesis(edit, VARIANTS, "the grid alone")
    edit.set_defaults(run=run_edit, begins=lambda args: begins(f"editing {args.image},", args))

    inpaint = commands.add_parser("inpaint", help="fill a hole in an image, in several ways")
    add_input(inpaint, "the damaged image")
    add_mask(inpaint, "missing")
    add_keep_outside(inpaint)
    add_synthesis(inpaint, VARIANTS, "10,12,13,15,16 for a grid of 16")
    inpaint.set_defaults(run=run_inpaint, begins=lambda args: begins(f"filling {args.image},", args))

    harmonize = commands.add_parser("harmonize", help="fit a pasted part to the image around it")
    add_input(harmonize, "the composite image")
    add_mask(harmonize, "pasted")
    add_keep_outside(harmonize)
    add_synthesis(harmonize, VARIANTS, "the grid alone")
    harmonize.set_defaults(run=run_harmonize, begins=lambda args: begins(f"fitting {args.image},", args))


def run_edit(args: argparse.Namespace) -> None:
    from lpkernel import edit
    from lpkernel.commands import results

    session = results.prepare(args, "edit", results.ALL_KINDS)
    if session is None:
        return
    start = _read(session, box=args.box, alpha=args.region is None)
    donors = None if args.donors is None else _donors(session)

    def make(options: dict[str, Any]) -> Synthesis:
        return edit(
            session.bank,
            start,
            region=args.region,
            mode=args.mode,
            donors=donors,
            donor=args.donor,
            **_common(session),
            **options,
        )

    results.run(session, make, _given(start), warnings=_warnings(session, start), told=start.said())


def run_inpaint(args: argparse.Namespace) -> None:
    from lpkernel import inpaint
    from lpkernel.commands import results

    session = results.prepare(args, "inpaint", results.ALL_KINDS)
    if session is None:
        return
    start = _read(session, fill=True)

    def make(options: dict[str, Any]) -> Synthesis:
        return inpaint(session.bank, start, **_common(session), **options)

    warnings = _warnings(session, start, hole=True)
    results.run(session, make, _given(start), warnings=warnings, told=start.said())


def run_harmonize(args: argparse.Namespace) -> None:
    from lpkernel import harmonize
    from lpkernel.commands import results

    session = results.prepare(args, "harmonize", results.ALL_KINDS)
    if session is None:
        return
    start = _read(session)

    def make(options: dict[str, Any]) -> Synthesis:
        return harmonize(session.bank, start, **_common(session), **options)

    results.run(session, make, _given(start), warnings=_warnings(session, start), told=start.said())


def _read(session: Session, box: Crop | None = None, fill: bool = False, alpha: bool = True) -> Input:
    """The image, read and framed once for all batches. Raises InputError."""
    from lpkernel.modes.inputs import read_input

    args = session.args
    with session.clock.stage("read image"):
        return read_input(
            session.bank,
            args.image,
            session.autoencoder,
            args.crop,
            args.mask,
            box,
            fill,
            args.framing,
            args.invert_mask,
            alpha,
        )


def _common(session: Session) -> dict[str, Any]:
    """The arguments that the three modes share."""
    args = session.args
    return {
        "autoencoder": session.autoencoder,
        "patch": args.patch,
        "stride": args.stride,
        "scales": args.scales,
        "keep_outside": args.keep_outside,
    }


def _warnings(session: Session, start: Input, hole: bool = False) -> list[str]:
    """Why the input may not suit the bank, judged without its hole."""
    from lpkernel.commands import results
    from lpkernel.modes import cells

    known = ~cells.near(start.mask, session.bank.grid) if hole and start.mask is not None else None
    return results.unlike(session, start, known)


def _given(start: Input) -> list[Pictures]:
    """The input as it is encoded, and the same with its mask in white."""
    import numpy as np

    assert start.pixels is not None
    pictures = [start.pixels]
    if start.mask is not None:
        pictures.append(np.where(start.mask[..., None], np.uint8(255), start.pixels))
    return [("The input, as it is encoded", np.stack(pictures))]


def _donors(session: Session) -> Bank | None:
    """The bank of a folder of donors; None if donors are images of the bank, which then are the only ones allowed."""
    from lpkernel.modes.inputs import read_input
    from lpkernel.pictures.images import find_images

    args, bank = session.args, session.bank
    folder = Path(args.donors)
    if folder.is_dir():
        if args.where:
            raise InputError(
                "--where chooses among the bank's images, a folder of --donors replaces them; leave one out"
            )
        import numpy as np

        names = find_images(folder).names
        return bank.with_images(
            np.stack([read_input(bank, folder / name, session.autoencoder).canvas for name in names]), names
        )
    chosen = _named(bank, args.donors)
    session.groups = [(title, _both(chosen, allowed)) for title, allowed in session.groups]
    return None


def _named(bank: Bank, text: str) -> NDArray[np.int64]:
    """Bank images by comma-separated names, complete or without folder and ending."""
    import numpy as np

    places: dict[str, list[int]] = {}
    for i, name in enumerate(bank.names):
        for key in {name, Path(name).name, Path(name).stem}:
            places.setdefault(key, []).append(i)
    chosen: list[int] = []
    for name in (part.strip() for part in text.split(",")):
        if name not in places:
            raise unknown_name("--donors: no such folder, and bank image", name, bank.names)
        chosen += places[name]
    return np.unique(chosen)


def _both(chosen: NDArray[np.int64], allowed: NDArray[np.int64] | None) -> NDArray[np.int64]:
    import numpy as np

    return chosen if allowed is None else np.intersect1d(chosen, allowed)
