"""lpkernel generate: new images, their source maps, a contact sheet and a record of every setting."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import Progress, add_autoencoder, add_output, check_folder, integers, report, write_json
from lpkernel.errors import InputError
from lpkernel.files import atomic_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpkernel import Autoencoder, Bank

EMBEDDED = "default"
SYNTHESIS_BATCH = 256  # images made at once: enough to fill the backends, little enough to show progress
DECODE_BATCH = 32
SHEET_IMAGES = 32
BASELINE_COUNTER = 2**31  # random counters from here on, which no plan reaches


def register(commands: Any) -> None:
    parser = commands.add_parser("generate", help="make new images from a bank")
    parser.add_argument("--bank", default=EMBEDDED, metavar="FILE", help="a bank (default: the embedded avatars)")
    add_autoencoder(parser)
    parser.add_argument("-n", type=int, default=16, help="images to make (default: 16)")
    parser.add_argument("--k", type=int, default=3, help="neighbours to draw from (default: 3)")
    parser.add_argument("--patch", type=int, default=6, help="patch side P in cells (default: 6)")
    parser.add_argument("--stride", type=int, metavar="W", help="cells between patches (default: P/3 rounded)")
    parser.add_argument(
        "--scales", type=integers(), metavar="M1,M2,...", help="grid sides (default for 16: 10,12,13,15,16)"
    )
    parser.add_argument("--overlap", choices=("replace", "fill"), default="replace", help="default: replace")
    parser.add_argument("--sources", type=int, metavar="N", help="use only the first N images of the bank")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--first-image", type=int, default=0, metavar="I", help="number of the first image of the seed's series"
    )
    parser.add_argument("--backend", default="auto", help="auto, numpy, torch, cpp, triton or cuda; see lpkernel info")
    parser.add_argument("--out", type=Path, default=Path("out"), metavar="FOLDER", help="default: out")
    parser.add_argument("--no-decode", action="store_true", help="write the source maps only, no pictures")
    parser.add_argument(
        "--baseline", action="store_true", help="also pictures of cells drawn at random, to compare with"
    )
    add_output(parser)
    parser.set_defaults(run=run)


@dataclass
class Clock:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 4)


def run(args: argparse.Namespace) -> None:
    from lpkernel import Bank, __version__, load_autoencoder, plan

    if args.baseline and args.no_decode:
        raise InputError("--baseline makes pictures, --no-decode makes none; leave one out")
    check_folder(args.out)
    clock = Clock()
    with clock.stage("load bank"):
        bank = Bank.default() if args.bank == EMBEDDED else Bank.load(args.bank)
    count = bank.size if args.sources is None else args.sources
    if not 1 <= count <= bank.size:
        raise InputError(f"--sources is {count}; expected 1 to {bank.size}, the images of the bank")
    # wrong settings are found before the autoencoder, which may be large, is loaded
    steps = plan.random(bank.grid, args.patch, args.stride, args.scales, args.overlap)
    autoencoder = None
    if not args.no_decode:
        with clock.stage("load autoencoder"):
            autoencoder = load_autoencoder(args.autoencoder, args.device, args.dtype)
        bank.check_autoencoder(autoencoder)

    with clock.stage("synthesis"):
        sources, settings = _synthesise(args, bank, steps, count)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / "sources.npy") as partial:
        _save_array(partial, sources)
    files = ["sources.npy"]
    if autoencoder is not None:
        with clock.stage("decode and write"):
            files += _pictures(args, bank, autoencoder, sources, count)
    result = {
        "lpkernel": __version__,
        "bank": {
            "path": args.bank,
            "sha256": _file_hash(args.bank),
            "images": bank.size,
            "made_with": bank.autoencoder_name,
        },
        "autoencoder": None
        if autoencoder is None
        else {
            "source": args.autoencoder,
            "name": autoencoder.name,
            "fingerprint": autoencoder.fingerprint,
            "dtype": args.dtype,
        },
        "settings": settings,
        "images": _images(args.first_image, bank.names, sources),
        "files": [*files, "generate.json"],
        "seconds": clock.seconds,
    }
    write_json(out / "generate.json", result)
    speed = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in clock.seconds.items())
    what = "source maps" if autoencoder is None else "images and sheet.png"
    report(args, result, [f"{args.n} {what} in {out} (backend {settings['backend']}; {speed})"])


def _synthesise(
    args: argparse.Namespace, bank: Bank, steps: Any, count: int
) -> tuple[NDArray[np.int32], dict[str, Any]]:
    """Source maps (n, M, M) and the settings as used."""
    import numpy as np

    from lpkernel import generate
    from lpkernel.info import why_chosen

    candidates = np.arange(count)
    maps: list[NDArray[np.int32]] = []
    settings: dict[str, Any] = {}
    with Progress("generating", args.n, "image", args.quiet) as progress:
        # at least one call, so that a wrong n meets the same check as from Python
        for start in range(0, max(args.n, 1), SYNTHESIS_BATCH):
            made = generate(
                bank,
                n=min(SYNTHESIS_BATCH, args.n - start),
                k=args.k,
                seed=args.seed,
                candidates=candidates,
                first_image=args.first_image + start,
                backend=args.backend,
                device=args.device,
                plan=steps,
            )
            maps.append(made.sources)
            settings = settings or made.settings
            progress.add(len(made.sources))
    settings = {name: value for name, value in settings.items() if name != "seconds"}
    settings |= {"n": args.n, "backend_why": why_chosen(args.backend, args.device)}
    return np.concatenate(maps), settings


def _pictures(
    args: argparse.Namespace, bank: Bank, autoencoder: Autoencoder, sources: NDArray[np.int32], count: int
) -> list[str]:
    """Write each image, the sheet and the baseline; returns the names of the files."""
    import numpy as np

    from lpkernel import render

    names, first = [], []
    with Progress("decoding", len(sources), "image", args.quiet) as progress:
        for start in range(0, len(sources), DECODE_BATCH):
            images = autoencoder.decode(bank.gather(sources[start : start + DECODE_BATCH]))
            if start < SHEET_IMAGES:
                first.append(images)
            for i, image in enumerate(images, args.first_image + start):
                names.append(f"image-{i:06d}.png")
                render.save_png(args.out / names[-1], image)
            progress.add(len(images))
    maps = sources[:SHEET_IMAGES]
    sections: list[tuple[str, NDArray[np.uint8], NDArray[np.integer]]] = [
        ("LatentPatch results, and the source of each piece", np.concatenate(first)[:SHEET_IMAGES], maps)
    ]
    if args.baseline:
        drawn = random_cells(args.seed, args.first_image, len(maps), bank.grid, count)
        images = autoencoder.decode(bank.gather(drawn))
        sections.append(("Baseline: every cell from a random source", images, drawn))
        names.append("baseline-codes.png")
        render.save_png(args.out / names[-1], render.grid(images))
    shown = np.arange(count) if count <= render.SHOWN_SOURCES else render.most_used(maps, render.SHOWN_SOURCES)
    whole = np.broadcast_to(shown[:, None, None], (len(shown), bank.grid, bank.grid))
    names.append("sheet.png")
    render.save_png(args.out / names[-1], render.contact_sheet(autoencoder.decode(bank.gather(whole)), shown, sections))
    return names


def random_cells(seed: int, first_image: int, n: int, grid: int, count: int) -> NDArray[np.int64]:
    """Source maps (n, grid, grid) with each cell drawn uniformly from `count` images: the baseline without a search.

    Image i is the same whatever n and first_image.
    """
    import numpy as np

    from lpkernel import philox

    images = np.arange(first_image, first_image + n)[:, None]
    words = philox.draws(seed, images, BASELINE_COUNTER + np.arange(grid * grid))
    return philox.pick(words, count).reshape(n, grid, grid)


def _images(first_image: int, names: list[str], sources: NDArray[np.int32]) -> list[dict[str, Any]]:
    """Per image: its number and the bank images it is made of, largest share first."""
    import numpy as np

    images = []
    for i, one in enumerate(sources, first_image):
        numbers, cells = np.unique(one, return_counts=True)
        used = [
            {"name": names[numbers[j]], "index": int(numbers[j]), "share": round(int(cells[j]) / one.size, 6)}
            for j in np.lexsort((numbers, -cells))
        ]
        images.append({"index": i, "sources": used})
    return images


def _save_array(path: Path, array: NDArray[np.int32]) -> None:
    import numpy as np

    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def _file_hash(bank: str) -> str:
    from lpkernel.bank import DEFAULT_BANK

    with (DEFAULT_BANK if bank == EMBEDDED else Path(bank)).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
