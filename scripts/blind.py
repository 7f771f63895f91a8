"""A look at results without knowing how they were made: numbered sheets, and what observers saw in them by setting.

    python scripts/blind.py make --bank faces.lpbank --preset paper --preset balanced --preset balanced,mirror=0
    python scripts/blind.py count out/blind first-observer.jsonl second-observer.jsonl

`make` shuffles n images of each preset and seed over sheets of sixteen, sheet-00.png and so on, and keeps in key.json
which is which. An observer writes a line for each picture, {"n": 17, "faults": ["eyes"]}, with an empty list where
nothing is wrong and fault names of any kind, and should not have seen the key. `count` prints, for each observer, how
many pictures of each preset had each fault, and how many had none. Results may resemble the people in a bank's
pictures: look at the sheets, do not publish them.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import console
import numpy as np
from PIL import Image, ImageDraw

from lpkernel import generate, load_autoencoder
from lpkernel.commands.common import EMBEDDED, check_folder, load_bank, write_json
from lpkernel.commands.evaluate import preset
from lpkernel.errors import InputError
from lpkernel.pictures import render

COLUMNS, ROWS = 4, 4
SIDE, MARGIN, LINE = 256, 4, 20  # pixels: of a picture, around it, and of its number above


def make(args: argparse.Namespace) -> int:
    check_folder(args.out)
    if args.out.exists() and any(args.out.iterdir()):
        raise InputError(f"--out {args.out}: holds files already; give a new folder")
    bank, autoencoder = load_bank(args.bank), load_autoencoder(args.autoencoder)
    args.out.mkdir(parents=True, exist_ok=True)
    made, pictures = [], []
    for name, options in args.preset:
        for seed in args.seeds:
            images = generate(bank, args.n, seed=seed, **options).decode(autoencoder)
            made += [{"preset": name, "seed": seed, "image": number} for number in range(args.n)]
            pictures += list(images)
    order = np.random.default_rng(args.shuffle).permutation(len(made))
    together = ROWS * COLUMNS
    for sheet in range(0, len(order), together):
        numbers = range(sheet, min(sheet + together, len(order)))
        page = _sheet({number: pictures[order[number]] for number in numbers})
        render.save_png(args.out / f"sheet-{sheet // together:02d}.png", page)
    write_json(args.out / "key.json", {"pictures": [made[i] for i in order], "shuffle": args.shuffle})
    print(f"{len(order)} pictures of {len(args.preset) * len(args.seeds)} series in {args.out}; key.json tells which")
    return 0


def _sheet(pictures: dict[int, render.Pixels]) -> render.Pixels:
    width, height = SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + LINE
    sheet = Image.new("RGB", (COLUMNS * width, ROWS * height), render.WHITE)
    draw = ImageDraw.Draw(sheet)
    for place, (number, pixels) in enumerate(pictures.items()):
        left, top = place % COLUMNS * width + MARGIN, place // COLUMNS * height + MARGIN
        draw.text((left, top), f"#{number}", fill="black")
        picture = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        sheet.paste(picture, (left, top + LINE))
    return np.asarray(sheet)


def count(args: argparse.Namespace) -> int:
    try:
        key = json.loads((args.folder / "key.json").read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{args.folder}: expected what `make` wrote, with its key.json") from error
    series = list(dict.fromkeys(one["preset"] for one in key))
    for notes in args.notes:
        found: dict[str, Counter[str]] = {name: Counter() for name in series}
        for number, faults in _read(notes, len(key)).items():
            found[key[number]["preset"]].update(faults or ["nothing"])
        kinds = sorted({fault for of_one in found.values() for fault in of_one} - {"nothing"})
        sizes = Counter(one["preset"] for one in key)
        print(f"{notes}: {', '.join(f'{sizes[name]} of {name}' for name in series)}")
        for kind in [*kinds, "nothing"]:
            print(f"  {kind:<12}" + "".join(f"{found[name][kind]:>8}" for name in series))
    return 0


def _read(path: Path, size: int) -> dict[int, list[str]]:
    """The faults of each picture. Raises InputError for notes that do not have each once."""
    found: dict[int, list[str]] = {}
    for place, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        number, faults = _noted(row)
        if not 0 <= number < size:
            raise InputError(f'{path}, line {place}: expected {{"n": 0 to {size - 1}, "faults": ["eyes", ...]}}')
        if number in found:
            raise InputError(f"{path}, line {place}: picture {number} a second time, expected each once")
        found[number] = sorted(set(faults))
    if len(found) < size:
        missing = next(number for number in range(size) if number not in found)
        raise InputError(f"{path}: expected a line for each of {size} pictures, got none for {missing}")
    return found


def _noted(row: Any) -> tuple[int, list[str]]:
    """A picture's number and faults; -1 for what is no note."""
    if not isinstance(row, dict) or type(row.get("n")) is not int or not isinstance(row.get("faults"), list):
        return -1, []
    return (row["n"], row["faults"]) if all(isinstance(fault, str) for fault in row["faults"]) else (-1, [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    maker = commands.add_parser("make", help="write shuffled sheets and their key")
    maker.add_argument("--bank", default=EMBEDDED, metavar="FILE")
    maker.add_argument("--autoencoder", default=EMBEDDED, metavar="SRC", help="the bank's")
    maker.add_argument("--preset", action="append", type=preset, required=True, metavar="NAME[,OPTION=X]")
    maker.add_argument("-n", type=int, default=64, help="images of each preset and seed (default: 64)")
    maker.add_argument("--seeds", type=int, nargs="+", default=[5, 11])
    maker.add_argument("--shuffle", type=int, default=0, metavar="SEED", help="of the order of pictures")
    maker.add_argument("--out", type=Path, default=Path("out/blind"), metavar="FOLDER")
    maker.set_defaults(run=make)
    counter = commands.add_parser("count", help="what observers saw, by preset")
    counter.add_argument("folder", type=Path)
    counter.add_argument("notes", type=Path, nargs="+")
    counter.set_defaults(run=count)
    args = parser.parse_args()
    done: int = args.run(args)
    return done


if __name__ == "__main__":
    console.run(main)
