"""Running a mode batch by batch, and writing its results: images, source maps, the contact sheet, the record.

Nothing of an image stays in memory once its batch is written; `lpkernel.commands.runs` manages the folder.

Each --where makes a group of n images of its own. Image numbers continue from group to group.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel import _native
from lpkernel.clock import Clock
from lpkernel.commands.common import Progress, check_folder, file_hash, json_text, load_bank, report
from lpkernel.commands.runs import FACTS, SOURCES, Folder, Stream, identity, of_image
from lpkernel.errors import InputError, counted, printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpkernel import Autoencoder, Bank, Synthesis
    from lpkernel.modes.inputs import Input

SYNTHESIS_BATCH = 256  # images made at once: enough to fill the backends, few enough to show progress
DECODE_BATCH = 32  # images made at once when a CPU decodes them, which then takes most of the time
SHEET_IMAGES = 32
LARGE_PICTURE = 6_000_000  # numbers; larger ones are compressed less, in a third of the time
PROVENANCE_SOURCES = 8
SHEET, BASELINE = "sheet.png", "baseline-codes.png"
PROVENANCE = ("map", "overlay", "provenance")  # kinds of pictures
ALL_KINDS = ("image", "whole", *PROVENANCE)  # for commands that start from a picture
TEXT = "lpkernel"  # the text chunk of a picture: JSON of what it was made with
# The settings that reproduce a result; the same for every backend and every window of the seed's series.
TEXT_SETTINGS = (
    *("mode", "kind", "patch", "stride", "scales", "start", "overlap", "mirror", "hubness", "k"),
    *("strength", "donor", "search_radius", "copy_limit", "refine", "match_colours"),
)
NEIGHBOURS = 3  # that a mode draws from unless --k says otherwise

Pictures = tuple[str, "NDArray[np.uint8]"]
Section = tuple[str, "NDArray[np.uint8]", "NDArray[np.integer] | None"]


@dataclass
class Session:
    """One run of a command that makes images: its arguments, bank, autoencoder and folder, and what was done so far."""

    args: argparse.Namespace
    bank: Bank
    autoencoder: Autoencoder | None
    groups: list[tuple[str, NDArray[np.int64] | None]]  # --where expressions and the bank images that they allow
    clock: Clock
    folder: Folder
    bank_hash: str  # SHA-256 of its file
    files: list[str] = field(default_factory=list)
    text: dict[str, Any] = field(default_factory=dict)  # what each picture's text chunk says of the run
    share: bool = False  # whether this run is a share of a larger one, which another process puts together
    shards: Sequence[Path] = ()  # folders of such shares, in order
    tars: Sequence[str] = ()  # files that hold the images
    pictures: dict[int, dict[str, bytes]] = field(default_factory=dict)  # of a batch, to go into a tar file

    def options(self, n: int, first_image: int, candidates: NDArray[np.int64] | None) -> dict[str, Any]:
        """The arguments that every mode takes, for one batch of one group."""
        args = self.args
        chosen = {name: getattr(args, name) for name in ("k", "overlap", "start", "hubness", "mirror")}
        return {
            **{name: value for name, value in chosen.items() if value is not None},
            "n": n,
            "first_image": first_image,
            "candidates": candidates,
            "seed": args.seed,
            "backend": args.backend,
            "device": args.device,
            "search_radius": args.search_radius,
            "copy_limit": args.copy_limit,
        }

    def save_picture(self, name: str, picture: NDArray[np.uint8]) -> None:
        """Save a picture of the whole run, such as its sheet."""
        from lpkernel.pictures import render

        render.save_png(self.args.out / name, picture, {TEXT: json_text(self.text, indent=None)})
        self.files.append(name)

    def save_of_image(self, kind: str, index: int, picture: NDArray[np.uint8], fast: bool = False) -> None:
        """Save a picture of an image, of a kind that `Folder.files_per_image` lists."""
        from lpkernel.pictures import render

        where = self.groups[(index - self.args.first_image) // self.args.n][0]
        said = self.text | {"picture": kind, "image": index} | ({"where": where} if where else {})
        text = {TEXT: json_text(said, indent=None)}
        if self.folder.endings:
            self.pictures.setdefault(index, {})[ending(kind)] = render.png(picture, text, fast)
        else:
            render.save_png(self.args.out / of_image(kind).format(index=index), picture, text, fast)

    def take_pictures(self) -> list[dict[str, bytes]]:
        """The pictures of each image that were saved since the last call, for a tar file."""
        taken = [self.pictures[index] for index in sorted(self.pictures)]
        self.pictures.clear()
        return taken


def ending(kind: str) -> str:
    """The ending of a picture's name in a tar file, after the image's number."""
    return "png" if kind == "image" else f"{kind}.png"


def prepare(
    args: argparse.Namespace,
    name: str,
    kinds: Sequence[str] = ("image",),
    decode: bool = True,
    sources: int | None = None,
    tars: Sequence[str] = (),
    grown: bool = False,
) -> Session | None:
    """Load what a run needs, or report it and return None when --out already holds all of this very run.

    name: the command. kinds: of pictures that each image has. sources: allow only the first so many bank images.
    tars: files that hold the images instead of single ones. grown: whether other processes have completed them
    already; else there is one, which grows.
    Wrong settings are found before the autoencoder, which may be large, is loaded. Raises InputError.
    """
    import numpy as np

    from lpkernel import __version__, load_autoencoder, plan
    from lpkernel.autoencoder.base import choose_device
    from lpkernel.autoencoder.once import Once
    from lpkernel.bank.generation import check_images

    check_folder(args.out)
    check_images(args.n, args.first_image)
    check_images(args.n * len(args.where or [""]), args.first_image)
    clock = Clock()
    with clock.stage("load bank"):
        bank = load_bank(args.bank)
    plan.random(bank.grid, args.patch, args.stride, args.scales or [bank.grid])
    k = NEIGHBOURS if args.k is None else args.k
    if k < 1:
        raise InputError(f"k: got {k}, expected at least 1 neighbour")
    if sources is not None and not 1 <= sources <= bank.size:
        raise InputError(f"--sources is {sources}; expected 1 to {bank.size}, the images of the bank")
    first = None if sources is None else np.arange(sources)
    groups: list[tuple[str, NDArray[np.int64] | None]] = [("", first)]
    if args.where:
        groups = [(text, _allowed(bank, text, first)) for text in args.where]
    digest = file_hash(args.bank)
    folder = Folder(
        args.out,
        name,
        identity(args, name, __version__, digest, bank.autoencoder_fingerprint),
        args.seed,
        args.first_image,
        args.n * len(groups),
        args.n,
        DECODE_BATCH if decode and choose_device(args.device).type == "cpu" else SYNTHESIS_BATCH,
        args.overwrite,
        [SOURCES, FACTS, *([SHEET, BASELINE] if decode else []), *tars],
        [of_image(kind) for kind in kinds] if decode and not tars else [],
        tars[0] if tars and not grown else None,
        [*(ending(kind) for kind in kinds if decode), "json", "npy"] if tars else [],
    )
    if (record := folder.finished()) is not None:
        report(args, record, [f"all of this run is in {args.out} already; --overwrite makes it again"])
        return None
    autoencoder = None
    if decode:
        with clock.stage("load autoencoder"):
            count = args.n * len(groups)
            autoencoder = Once(load_autoencoder(args.autoencoder, args.device, args.dtype, args.compile, count))
        bank.check_autoencoder(autoencoder)
    return Session(args, bank, autoencoder, groups, clock, folder, digest, tars=tars)


def _allowed(bank: Bank, expression: str, first: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The bank images that match an expression, at least one, among those of `first`."""
    import numpy as np

    found = np.flatnonzero(bank.where(expression, at_least=1))
    if first is not None:
        found = np.intersect1d(found, first)
        if not len(found):
            raise InputError(f"where: none of the first {len(first)} images matches {expression!r}; raise --sources")
    return found


def run(
    session: Session,
    make: Callable[[dict[str, Any]], Synthesis],
    given: Sequence[Pictures] = (),
    baseline: Callable[[int], Section] | None = None,
    provenance: bool = True,
    warnings: Sequence[str] = (),
    told: Sequence[str] = (),
) -> None:
    """Make every group's images, write everything and report; NAME.json is the record.

    make(options) makes one batch, with the options of `Session.options`. given: pictures that the sheet shows before
    the results. baseline(n) makes n pictures that it shows after them. provenance: write the source map, the overlay
    and the provenance sheet of each image. warnings: about the input; told: what was done to it. Both go to stderr,
    unless quiet, and into the record.
    """
    args, folder = session.args, session.folder
    for line in [] if args.quiet else told:
        print(f"lpkernel: the input: {printable(line)}", file=sys.stderr)
    # before anything is touched, so that wrong arguments are found here
    with session.clock.stage("synthesis"):
        made = make(session.options(min(folder.batch, args.n), args.first_image, session.groups[0][1]))
    settings = _of_the_run(made.settings, args.n)
    session.text = _text_of_pictures(session, settings)
    warnings = [*warnings, *_few_allowed(session, settings["k"])]
    with folder.alone(), folder.start(made.bank.grid) as stream:
        stream.take(session.shards)
        if stream.done and not session.shards and not args.quiet:
            print(f"lpkernel: resuming after {stream.done} of {folder.count} images", file=sys.stderr)
        with Progress("generating", folder.count, "image", args.quiet, stream.done) as progress:
            for start, count, candidates in _batches(session, stream.done):
                if start:
                    with session.clock.stage("synthesis"):
                        made = make(session.options(count, args.first_image + start, candidates))
                if session.autoencoder is not None:
                    with session.clock.stage("decode and write"):
                        _write_images(session, made, args.first_image + start, provenance)
                stream.append(made.sources, _facts_of_images(session, made, start), session.take_pictures())
                _native.trim()  # else a long run takes up to twice the memory of a batch
                progress.add(count)
        if session.share:
            return
        if session.autoencoder is not None:
            with session.clock.stage("decode and write"):
                _write_sheet(session, made.bank, stream, given, baseline)
        stream.finish()
        result = _record(session, made.bank, settings) | {"warnings": list(warnings), "told": list(told)}
        folder.finish(result)
    for warning in [] if args.quiet else warnings:
        print(printable(f"lpkernel: warning: {warning}"), file=sys.stderr)
    speed = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in session.clock.seconds.items())
    maps_alone = session.autoencoder is None
    what = counted(folder.count, "source map" if maps_alone else "image") + ("" if maps_alone else f" and {SHEET}")
    report(
        args,
        result,
        [f"{what} in {args.out} (seed {args.seed}; backend {settings['backend']}; {speed})"],
    )


def _of_the_run(settings: dict[str, Any], n: int) -> dict[str, Any]:
    """The settings of the first batch, without those that concern that batch alone."""
    common = {key: value for key, value in settings.items() if key != "seconds"} | {"n": n}
    if common["copy_limit"] is not None:
        common["copy_limit"] = {key: common["copy_limit"][key] for key in ("share", "area", "tries")}
    return common


def _text_of_pictures(session: Session, settings: dict[str, Any]) -> dict[str, Any]:
    """What every picture's text chunk says."""
    from lpkernel import __version__

    return {
        "lpkernel": __version__,
        "command": session.folder.name,
        "seed": session.args.seed,
        "settings": {key: settings[key] for key in TEXT_SETTINGS if key in settings},
        "bank_sha256": session.bank_hash,
        "autoencoder": None if session.autoencoder is None else session.autoencoder.fingerprint,
    }


def _record(session: Session, bank: Bank, settings: dict[str, Any]) -> dict[str, Any]:
    """NAME.json, except for the warnings. bank: the one that was copied from."""
    from lpkernel import __version__
    from lpkernel.info import why_chosen

    args, folder = session.args, session.folder
    return {
        "lpkernel": __version__,
        "command": folder.name,
        "run": folder.identity,
        "bank": {
            "path": args.bank,
            "sha256": session.bank_hash,
            "images": session.bank.size,
            "made_with": session.bank.autoencoder_name,
        },
        "autoencoder": _autoencoder_facts(session),
        "settings": settings | {"backend_why": why_chosen(args.backend, args.device)},
        "groups": _grouped(session, bank),
        "first_image": args.first_image,
        "count": folder.count,
        "images": FACTS,
        "files": [*session.files, *session.tars, SOURCES, FACTS, f"{folder.name}.json"],
        "files_per_image": folder.files_per_image,
        "seconds": session.clock.seconds,
    }


def _batches(session: Session, done: int) -> Iterator[tuple[int, int, NDArray[np.int64] | None]]:
    """For each batch after the first `done` images: its first image, counted from the run's first, the number of
    images, and the allowed bank images."""
    n, batch = session.args.n, session.folder.batch
    for number, (_, candidates) in enumerate(session.groups):
        for start in range(0, n, batch):
            if number * n + start >= done:
                yield number * n + start, min(batch, n - start), candidates


def unlike(session: Session, start: Input, known: NDArray[np.bool_] | None = None) -> list[str]:
    """Why an input may not suit the bank, one line each. known: (M, M), the cells to look at."""
    from lpkernel.modes import likeness

    assert session.autoencoder is not None
    reasons = likeness.warnings(session.bank, start, session.autoencoder, known)
    return [f"the input may not suit the bank: {reason}" for reason in reasons]


def _few_allowed(session: Session, k: int) -> list[str]:
    """One line for each group that allows fewer bank images than K."""
    lines = []
    for title, allowed in session.groups:
        count = session.bank.size if allowed is None else len(allowed)
        if count < k:
            of = f" by {title!r}" if title else ""
            lines.append(f"k is {k}, but the bank images allowed{of} are only {count}: drawing from all of them")
    return lines


def _grouped(session: Session, bank: Bank) -> list[dict[str, Any]]:
    n = session.args.n
    return [
        {
            "where": title,
            "allowed": bank.size if allowed is None else len(allowed),
            "first_image": session.args.first_image + number * n,
            "images": n,
        }
        for number, (title, allowed) in enumerate(session.groups)
        if title
    ]


def _write_images(session: Session, made: Synthesis, first: int, provenance: bool) -> None:
    """Decode a batch and write its pictures."""
    assert session.autoencoder is not None
    images = made.decode(session.autoencoder)
    for index, image in enumerate(images, first):
        session.save_of_image("image", index, image)
    if made.whole is not None:
        for index, picture in enumerate(made.put_back(images), first):
            session.save_of_image("whole", index, picture, picture.size > LARGE_PICTURE)
    if provenance:
        _write_provenance(session, made, images, first)


def _write_provenance(session: Session, made: Synthesis, images: NDArray[np.uint8], first: int) -> None:
    """The source map, the map over the image, and the provenance sheet of each image."""
    import numpy as np

    from lpkernel.pictures import render

    assert session.autoencoder is not None
    bank, colours = made.bank, render.source_colours(made.bank.size)
    most = [render.most_used(sources, PROVENANCE_SOURCES) for sources in made.sources]
    needed = np.unique(np.concatenate(most))
    decoded = session.autoencoder.decode(bank.whole(needed))

    def write(row: int) -> None:
        image, sources, shown, index = images[row], made.sources[row], most[row], first + row
        pictures, names = decoded[np.searchsorted(needed, shown)], [bank.names[i] for i in shown]
        session.save_of_image("map", index, render.source_map(sources, colours, len(image)), fast=True)
        session.save_of_image("overlay", index, render.overlay(image, sources, colours), fast=True)
        shifts = None if made.shifts is None else made.shifts[row]
        sheet = render.provenance_sheet(image, sources, shown, pictures, names, shifts)
        session.save_of_image("provenance", index, sheet, fast=True)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # compressing and writing release the GIL
        list(pool.map(write, range(len(images))))


def _write_sheet(
    session: Session,
    bank: Bank,
    stream: Stream,
    given: Sequence[Pictures],
    baseline: Callable[[int], Section] | None,
) -> None:
    """Write the contact sheet of the first images of each group, read back from what was written."""
    import numpy as np

    from lpkernel.pictures import render
    from lpkernel.pictures.images import load_pixels

    args, groups = session.args, session.groups
    shown = min(args.n, SHEET_IMAGES if len(groups) == 1 else render.COLUMNS)
    sections: list[Section] = []
    for number, (title, allowed) in enumerate(groups):
        count = bank.size if allowed is None else len(allowed)
        text = f"{title} ({count} images of the bank)" if title else "LatentPatch results, and the source of each piece"
        if shown < args.n:
            text += f": first {shown} of {args.n} shown"
        start = number * args.n
        images = np.stack([load_pixels(_picture(session, stream, start + i)) for i in range(shown)])
        sections.append((text, images, stream.maps(slice(start, start + shown))))
    maps = np.concatenate([maps for _, _, maps in sections if maps is not None])
    every = np.unique(np.concatenate([np.arange(bank.size) if group is None else group for _, group in groups]))
    sources = every if len(every) <= render.SHOWN_SOURCES else render.most_used(maps, render.SHOWN_SOURCES)
    sections = [*((title, pictures, None) for title, pictures in given), *sections]
    if baseline is not None:
        sections.append(baseline(len(maps)))
    assert session.autoencoder is not None
    pictures = session.autoencoder.decode(bank.whole(sources))
    session.save_picture(SHEET, render.contact_sheet(pictures, sources, sections))


def _picture(session: Session, stream: Stream, number: int) -> Path | bytes:
    """The picture of image `number`, counted from the run's first, or the path of its file."""
    if session.folder.endings:
        return stream.picture(number)
    return session.args.out / of_image("image").format(index=session.args.first_image + number)


def _autoencoder_facts(session: Session) -> dict[str, Any] | None:
    used = session.autoencoder
    if used is None:
        return None
    args = session.args
    return {"source": args.autoencoder, "name": used.name, "fingerprint": used.fingerprint, "dtype": args.dtype}


def _facts_of_images(session: Session, made: Synthesis, start: int) -> list[dict[str, Any]]:
    """Per image: its number, its group, and the bank images it is made of, largest share first."""
    import numpy as np

    names, limited = made.bank.names, made.settings["copy_limit"] or {"try_kept": {}, "still_over": []}
    title, facts = session.groups[start // session.args.n][0], list[dict[str, Any]]()
    for index, (one, area) in enumerate(
        zip(made.sources, made.largest_copies(), strict=True), session.args.first_image + start
    ):
        numbers, cells = np.unique(one[one >= 0], return_counts=True)
        fact: dict[str, Any] = {
            "index": index,
            **({"where": title} if title else {}),
            "kept": round(np.count_nonzero(one < 0) / one.size, 6),
            "largest_copied_area": int(area),
        }
        if str(index) in limited["try_kept"]:
            fact["copy_limit_try"] = limited["try_kept"][str(index)]
        if index in limited["still_over"]:
            fact["over_copy_limit"] = True
        fact["sources"] = [
            {"name": names[numbers[j]], "index": int(numbers[j]), "share": round(int(cells[j]) / one.size, 6)}
            for j in np.lexsort((numbers, -cells))
        ]
        if made.shifts is not None:
            fact["shift_y"], fact["shift_x"] = np.moveaxis(made.shifts[len(facts)], -1, 0).tolist()
        facts.append(fact)
    return facts
