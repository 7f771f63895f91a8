"""Running a mode batch by batch, and what is written of it: images, source maps, the contact sheet, the record.

Each --where makes a group of n images of its own. Image numbers go on from group to group.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import Clock, Progress, check_folder, file_hash, load_bank, report, write_json
from lpkernel.errors import InputError, printable
from lpkernel.files import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpkernel import Autoencoder, Bank, Synthesis

SYNTHESIS_BATCH = 256  # images made at once: enough to fill the backends, little enough to show progress
DECODE_BATCH = 32  # images made at once when they are decoded, which then takes most of the time
SHEET_IMAGES = 32
PROVENANCE_SOURCES = 8
NEIGHBOURS = 3  # that a mode draws from unless --k says otherwise

Pictures = tuple[str, "NDArray[np.uint8]"]
Section = tuple[str, "NDArray[np.uint8]", "NDArray[np.integer] | None"]


@dataclass
class Session:
    """One run of a command that makes images: its arguments, bank and autoencoder, and what was done so far."""

    args: argparse.Namespace
    bank: Bank
    autoencoder: Autoencoder | None
    groups: list[tuple[str, NDArray[np.int64] | None]]  # --where expressions and the bank images that they allow
    clock: Clock
    files: list[str] = field(default_factory=list)

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
            "copy_limit": args.copy_limit,
        }

    def save_picture(self, name: str, picture: NDArray[np.uint8]) -> None:
        from lpkernel import render

        render.save_png(self.args.out / name, picture)
        self.files.append(name)


def prepare(args: argparse.Namespace, decode: bool = True, sources: int | None = None) -> Session:
    """Load what a run needs. Wrong settings are found before the autoencoder, which may be large, is loaded.

    sources: allow only the first so many bank images. Raises InputError.
    """
    import numpy as np

    from lpkernel import load_autoencoder, plan

    check_folder(args.out)
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
        groups = [(text, _allowed(bank, text, k, first)) for text in args.where]
    autoencoder = None
    if decode:
        with clock.stage("load autoencoder"):
            autoencoder = load_autoencoder(args.autoencoder, args.device, args.dtype)
        bank.check_autoencoder(autoencoder)
    return Session(args, bank, autoencoder, groups, clock)


def _allowed(bank: Bank, expression: str, k: int, first: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """The images of an expression, at least k, among the first ones."""
    import numpy as np

    found = np.flatnonzero(bank.where(expression, at_least=k))
    if first is not None:
        found = np.intersect1d(found, first)
        if len(found) < k:
            raise InputError(
                f"where: {len(found)} of the first {len(first)} images are left by {expression!r}, expected at least "
                f"{k}; raise --sources or lower --k"
            )
    return found


def run(
    session: Session,
    name: str,
    make: Callable[[dict[str, Any]], Synthesis],
    given: Sequence[Pictures] = (),
    baseline: Callable[[int], Section] | None = None,
    provenance: bool = True,
    warnings: Sequence[str] = (),
    told: Sequence[str] = (),
) -> None:
    """Make every group's images, write everything and report; `name`.json is the record.

    make(options) makes one batch, with the options of `Session.options`. given: pictures that the sheet shows before
    the results. baseline(n) makes n pictures that it shows after them. provenance: write the source map, the overlay
    and the provenance sheet of each image. warnings: of the input, and what was done to it (told), said on stderr
    unless quiet, and in the record.
    """
    import numpy as np

    from lpkernel import __version__, render
    from lpkernel.info import why_chosen

    args, bank = session.args, session.bank
    for line in [] if args.quiet else told:
        print(f"lpkernel: the input: {printable(line)}", file=sys.stderr)
    maps: list[NDArray[np.int32]] = []
    sections: list[Section] = []
    settings: dict[str, Any] = {}
    with Progress("generating", args.n * len(session.groups), "image", args.quiet) as progress:
        for number, (title, candidates) in enumerate(session.groups):
            first = args.first_image + number * args.n
            shown = SHEET_IMAGES if len(session.groups) == 1 else render.COLUMNS
            pictures: list[NDArray[np.uint8]] = []
            group: list[NDArray[np.int32]] = []
            batch = DECODE_BATCH if session.autoencoder is not None else SYNTHESIS_BATCH
            # at least one call, so that a wrong n meets the same check as from Python
            for start in range(0, max(args.n, 1), batch):
                with session.clock.stage("synthesis"):
                    made = make(session.options(min(batch, args.n - start), first + start, candidates))
                bank = made.bank
                group.append(made.sources)
                settings = _joined(settings, made.settings)
                if session.autoencoder is not None:
                    with session.clock.stage("decode and write"):
                        images = _write_images(session, made, first + start, provenance)
                    if start < shown:
                        pictures.append(images)
                progress.add(len(made.sources))
            maps += group
            if pictures:
                sections.append((title, np.concatenate(pictures)[:shown], np.concatenate(group)[:shown]))
    sources = np.concatenate(maps)
    args.out.mkdir(parents=True, exist_ok=True)
    with atomic_path(args.out / "sources.npy") as partial:
        _save_array(partial, sources)
    session.files.append("sources.npy")
    if session.autoencoder is not None:
        with session.clock.stage("decode and write"):
            _write_sheet(session, bank, sections, given, baseline)
    grouped = [
        {
            "where": title,
            "allowed": bank.size if allowed is None else len(allowed),
            "first_image": args.first_image + number * args.n,
            "images": args.n,
        }
        for number, (title, allowed) in enumerate(session.groups)
        if title
    ]
    result = {
        "lpkernel": __version__,
        "bank": {
            "path": args.bank,
            "sha256": file_hash(args.bank),
            "images": session.bank.size,
            "made_with": session.bank.autoencoder_name,
        },
        "autoencoder": _autoencoder_facts(session),
        "settings": settings | {"n": args.n, "backend_why": why_chosen(args.backend, args.device)},
        "groups": grouped,
        "images": _images(args.first_image, args.n, session.groups, bank.names, sources),
        "warnings": list(warnings),
        "told": list(told),
        "files": [*session.files, f"{name}.json"],
        "seconds": session.clock.seconds,
    }
    write_json(args.out / f"{name}.json", result)
    for warning in [] if args.quiet else warnings:
        print(f"lpkernel: warning: the input may not suit the bank: {warning}", file=sys.stderr)
    speed = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in session.clock.seconds.items())
    what = "source maps" if session.autoencoder is None else "images and sheet.png"
    report(args, result, [f"{len(sources)} {what} in {args.out} (backend {settings['backend']}; {speed})"])


def _joined(settings: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The settings of all batches: those of the first, and what the copy limit did in each."""
    if not settings:
        return {name: value for name, value in more.items() if name != "seconds"}
    if settings["copy_limit"] is not None:
        settings["copy_limit"]["try_kept"] |= more["copy_limit"]["try_kept"]
        settings["copy_limit"]["still_over"] += more["copy_limit"]["still_over"]
    return settings


def _write_images(session: Session, made: Synthesis, first: int, provenance: bool) -> NDArray[np.uint8]:
    """Decode a batch and write its pictures; returns the images."""

    assert session.autoencoder is not None
    images = made.decode(session.autoencoder)
    session.args.out.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        session.save_picture(f"image-{number:06d}.png", image)
    if made.whole is not None:
        for number, picture in enumerate(made.put_back(images), first):
            session.save_picture(f"whole-{number:06d}.png", picture)
    if provenance:
        _write_provenance(session, made, images, first)
    return images


def _write_provenance(session: Session, made: Synthesis, images: NDArray[np.uint8], first: int) -> None:
    """The source map, the map over the image, and the provenance sheet of each image."""
    import numpy as np

    from lpkernel import render

    assert session.autoencoder is not None
    bank = made.bank
    most = [render.most_used(sources, PROVENANCE_SOURCES) for sources in made.sources]
    needed = np.unique(np.concatenate(most))
    decoded = session.autoencoder.decode(bank.whole(needed))
    for number, (image, sources, shown) in enumerate(zip(images, made.sources, most, strict=True), first):
        colours = render.sheet_colours(shown, bank.size)
        session.save_picture(f"map-{number:06d}.png", render.source_map(sources, colours, len(image)))
        session.save_picture(f"overlay-{number:06d}.png", render.overlay(image, sources, colours))
        pictures, names = decoded[np.searchsorted(needed, shown)], [bank.names[i] for i in shown]
        sheet = render.provenance_sheet(image, sources, shown, pictures, names)
        session.save_picture(f"provenance-{number:06d}.png", sheet)


def _write_sheet(
    session: Session,
    bank: Bank,
    sections: list[Section],
    given: Sequence[Pictures],
    baseline: Callable[[int], Section] | None,
) -> None:
    import numpy as np

    from lpkernel import render

    assert session.autoencoder is not None
    alone = "LatentPatch results, and the source of each piece"
    counts = [bank.size if allowed is None else len(allowed) for _, allowed in session.groups]
    sections = [
        (f"{title} ({count} images of the bank)" if title else alone, images, maps)
        for (title, images, maps), count in zip(sections, counts, strict=True)
    ]
    maps = np.concatenate([maps for _, _, maps in sections if maps is not None])
    allowed = [np.arange(bank.size) if group is None else group for _, group in session.groups]
    every = np.unique(np.concatenate(allowed))
    shown = every if len(every) <= render.SHOWN_SOURCES else render.most_used(maps, render.SHOWN_SOURCES)
    sections = [*((title, pictures, None) for title, pictures in given), *sections]
    if baseline is not None:
        sections.append(baseline(len(maps)))
    sheet = render.contact_sheet(session.autoencoder.decode(bank.whole(shown)), shown, sections)
    session.save_picture("sheet.png", sheet)


def _autoencoder_facts(session: Session) -> dict[str, Any] | None:
    used = session.autoencoder
    if used is None:
        return None
    args = session.args
    return {"source": args.autoencoder, "name": used.name, "fingerprint": used.fingerprint, "dtype": args.dtype}


def _images(
    first_image: int, n: int, groups: list[tuple[str, Any]], names: list[str], sources: NDArray[np.int32]
) -> list[dict[str, Any]]:
    """Per image: its number, its group, and the bank images it is made of, largest share first."""
    import numpy as np

    from lpkernel.copies import largest_areas

    images = []
    for row, (one, area) in enumerate(zip(sources, largest_areas(sources), strict=True)):
        numbers, cells = np.unique(one[one >= 0], return_counts=True)
        used = [
            {"name": names[numbers[j]], "index": int(numbers[j]), "share": round(int(cells[j]) / one.size, 6)}
            for j in np.lexsort((numbers, -cells))
        ]
        images.append(
            {
                "index": first_image + row,
                **({"where": groups[row // n][0]} if groups[row // n][0] else {}),
                "kept": round(np.count_nonzero(one < 0) / one.size, 6),
                "largest_copied_area": int(area),
                "sources": used,
            }
        )
    return images


def _save_array(path: Path, array: NDArray[np.int32]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
