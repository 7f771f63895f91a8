"""lpkernel align: photographs framed as a bank's images."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lpkernel.clock import Clock
from lpkernel.commands.common import (
    EMBEDDED,
    Progress,
    add_autoencoder,
    add_output,
    check_folder,
    fractions,
    list_left_out,
    list_skipped,
    load_bank,
    nonempty,
    path_of,
    report,
    whole,
    write_json,
)
from lpkernel.errors import InputError, counted
from lpkernel.files import atomic_path, content_stamp, open_regular

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpkernel import Framing
    from lpkernel.pictures.images import Found

FACTS = "align.json"
_BEGINS = re.compile(rb'\{\s*"lpkernel":\s*"[^"]*",\s*"bank":')
RECORD = "lpkernel align"  # the PNG text chunk that says what a written picture was made from


def register(commands: Any) -> None:
    parser = commands.add_parser("align", help="frame photographs of faces like a bank's images")
    parser.add_argument(
        "folder",
        type=path_of,
        metavar="FOLDER",
        help="a folder of photographs, searched recursively, or one photograph",
    )
    parser.add_argument("out", type=path_of, metavar="OUT", help="where the aligned images go, as PNG")
    parser.add_argument(
        "--bank", type=nonempty, default=EMBEDDED, metavar="FILE", help="a bank (default: the embedded avatars)"
    )
    add_autoencoder(parser)
    parser.add_argument(
        "--eyes",
        type=fractions,
        metavar="LX,LY,RX,RY",
        help="where the eyes go, in fractions of the side (default: as in the bank's images)",
    )
    parser.add_argument("--size", type=whole, metavar="S", help="side in pixels (default: that of the bank's images)")
    parser.add_argument("--faces", default="largest", help="largest: one face per photograph; all: every face")
    parser.add_argument(
        "--strict", action="store_true", help="stop at a photograph that cannot be used instead of skipping it"
    )
    add_output(parser)
    parser.set_defaults(run=run, begins=lambda args: f"aligning {args.folder} into {args.out}")


def run(args: argparse.Namespace) -> None:
    from lpkernel import Framing, __version__, load_autoencoder
    from lpkernel.alignment.regions import known_eyes

    if args.faces not in ("largest", "all"):
        raise InputError(f"--faces: got {args.faces!r}, expected largest or all")
    check_folder(args.out, "OUT")
    _check_facts(args.out / FACTS)
    folder, found = _photographs(args.folder, args.out)
    names = found.names
    target = Target(args.out, _outputs(names))
    clock = Clock()
    with clock.stage("the bank's eyes"):
        bank = load_bank(args.bank)
        measure = args.eyes is None and known_eyes(bank) is None
        autoencoder = load_autoencoder(args.autoencoder, args.device, args.dtype) if measure else None
        framing = Framing.of(bank, autoencoder, args.eyes, args.size)
    images: list[dict[str, Any]] = []
    skipped = list(found.unreadable)
    if args.strict and skipped:
        raise InputError(f"{skipped[0][0]}: {skipped[0][1]}")
    with clock.stage("align"), Progress("aligning", len(names), "photograph", args.quiet) as progress:
        for name in names:
            try:
                images += _one(folder / name, name, target, framing, args.faces == "all")
            except InputError as error:
                if args.strict:
                    raise InputError(f"{name}: {error}") from error
                skipped.append((name, str(error)))
            progress.add(1)
    if not args.quiet:
        list_skipped(skipped)
        list_left_out(found.others)
    if not images:
        raise InputError(f"no face in any of the {len(names)} photographs of {args.folder}; first: {skipped[0][1]}")
    result = {
        "lpkernel": __version__,
        "bank": args.bank,
        "size": framing.size,
        "eyes": list(framing.eyes),
        "eyes_known_from": framing.known_from,
        "faces": args.faces,
        "images": images,
        "skipped": [list(pair) for pair in skipped],
        "left_out": found.others,
        "seconds": clock.seconds,
    }
    write_json(args.out / FACTS, result)
    kept = sum(image["kept"] for image in images)
    made = counted(len(images), "face") + (f" ({kept} of an earlier run)" if kept else "")
    missing = counted(len(skipped), "photograph")
    report(args, result, [f"{made} in {args.out}, {missing} skipped; see {FACTS}"])


def _check_facts(path: Path) -> None:
    """Raise InputError for a file of the user's own in the place of the record."""
    if not os.path.lexists(path):
        return
    with suppress(OSError), open_regular(path) as file:
        if _BEGINS.match(file.read(1000)):  # all of it may be long: it lists every face
            return
    raise InputError(f"{path} exists and was not written by lpkernel align; move it")


def _photographs(given: Path, out: Path) -> tuple[Path, Found]:
    """The folder and the files in it, except those in `out`."""
    from lpkernel.pictures.images import Found, find_images

    single = given.is_file()
    folder = given.parent if single else given
    root, target = folder.resolve(), out.resolve()
    if root.is_relative_to(target):
        raise InputError(
            f"OUT {out} holds the photographs of {folder}, which could be overwritten; give another folder"
        )
    found = Found([given.name], [], []) if single else find_images(folder)
    names, others = (
        [name for name in some if not (folder / name).resolve().is_relative_to(target)]
        for some in (found.names, found.others)
    )
    if not names:
        raise InputError(f"no images in {folder} except those in OUT {out}")
    return folder, Found(names, others, found.unreadable)


def _outputs(names: list[str]) -> dict[str, str]:
    """Each photograph's name in OUT without .png: its own without the ending, unless two would then be the same."""
    stems = {name: Path(name).with_suffix("").as_posix() for name in names}
    count, taken = Counter(stems.values()), set()
    for name in names:
        wanted = stems[name] if count[stems[name]] == 1 else name
        while wanted in taken:
            wanted += "_"
        taken.add(wanted)
        stems[name] = wanted
    return stems


def _one(path: Path, name: str, target: Target, framing: Framing, every: bool) -> list[dict[str, Any]]:
    """Align one photograph and write its faces, unless an earlier run did; returns the facts of each."""
    from lpkernel import align
    from lpkernel.pictures.images import load_pixels

    try:
        stamp = content_stamp(path)
    except OSError as error:
        raise InputError(error.strerror or "cannot be read") from error
    origin = {
        "photograph": name,
        "stamp": stamp,
        "size": framing.size,
        "eyes": list(framing.eyes),
        "every": every,
    }
    first = target.record(target.name(name, 1))
    if first is not None and first["origin"] == origin:
        # a name that is not what it would be here could lead to any file
        named = [fact["image"] for fact in first["faces"]] == [
            target.name(name, number) for number in range(1, len(first["faces"]) + 1)
        ]
        records = [target.record(fact["image"]) for fact in first["faces"]] if named else [None]
        if all(record == first for record in records):
            return [{**fact, "kept": True} for fact in first["faces"]]
    aligned = align(load_pixels(path), framing, every)  # whose errors are listed by name
    facts = [
        {"photograph": name, "image": target.name(name, number), **face.facts()}
        for number, face in enumerate(aligned, 1)
    ]
    for fact, face in zip(facts, aligned, strict=True):
        target.write(fact["image"], face.pixels, {"origin": origin, "faces": facts})
    return [{**fact, "kept": False} for fact in facts]


@dataclass(frozen=True)
class Target:
    """The folder OUT. `stems`: see `_outputs`."""

    folder: Path
    stems: dict[str, str]

    def name(self, photograph: str, number: int) -> str:
        """The file of a photograph's face, the first being 1."""
        stem = self.stems[photograph]
        if number > 1:
            stem += f"-{number}"
            while stem in self.stems.values():
                stem += "_"
        return f"{stem}.png"

    def record(self, name: str) -> dict[str, Any] | None:
        """What an existing file was made from; None if there is none. Raises InputError for a file not written here."""
        from lpkernel.pictures.images import opened

        path = self.folder / name
        if not path.exists():
            return None
        try:
            with opened(path) as image:
                record = json.loads(image.info[RECORD])
            faces = record["faces"]
            if record["origin"] and faces and isinstance(faces, list) and all(Path(one["image"]).name for one in faces):
                return dict(record)
        except (InputError, KeyError, TypeError, ValueError, RecursionError):
            pass
        raise InputError(f"{path} exists and was not written by lpkernel align; move it")

    def write(self, name: str, pixels: NDArray[np.uint8], record: dict[str, Any]) -> None:
        self.record(name)  # raises for a file that is not ours, which stays
        path, text = self.folder / name, PngInfo()
        text.add_text(RECORD, json.dumps(record))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            Image.fromarray(pixels).save(partial, format="PNG", pnginfo=text)
