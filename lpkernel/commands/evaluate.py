"""lpkernel evaluate: metrics of sets of pictures against real ones, as a table, JSON and one HTML page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import (
    EMBEDDED,
    Progress,
    add_autoencoder,
    add_output,
    check_folder,
    file_hash,
    integers,
    load_bank,
    nonempty,
    path_of,
    report,
    whole,
    write_json,
)
from lpkernel.errors import InputError, short
from lpkernel.files import atomic_path
from lpkernel.presets import PRESETS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lpkernel.metrics.compare import Real
    from lpkernel.metrics.extractors import Extractor, Spread
    from lpkernel.metrics.portraits import Portraits
    from lpkernel.metrics.sets import ImageSet

MADE = 500  # images made for each --preset
LEAST, MOST = 4, 1_000_000  # images of a column
SHOWN = 32  # samples of each column on the page
NEAREST_SHOWN = 8


def _flag(text: str) -> bool:
    return bool(("0", "1").index(text))


OPTIONS: dict[str, Callable[[str], Any]] = {
    "patch": whole,
    "stride": whole,
    "k": whole,
    "scales": lambda text: tuple(map(whole, text.split("/"))),
    "overlap": str,
    "start": str,
    "hubness": float,
    "mirror": whole,
    "search_radius": whole,
    "refine": _flag,
    "match_colours": _flag,
}


def preset(text: str) -> tuple[str, dict[str, Any]]:
    """balanced,mirror=1 as the text and the arguments of `generate`."""
    name, *parts = text.split(",")
    if name not in PRESETS:
        raise argparse.ArgumentTypeError(
            f"got {short(text)!r}, expected one of {', '.join(PRESETS)}, with or without options"
        )
    options: dict[str, Any] = {"preset": name}
    for part in parts:
        key, _, value = part.partition("=")
        try:
            if key in options:
                raise ValueError
            options[key] = OPTIONS[key](value)
        except (KeyError, ValueError, argparse.ArgumentTypeError):
            known = (
                "patch=6, stride=2, k=3, scales=8/16, overlap=cut, start=carry, hubness=0.375, mirror=1, "
                "search_radius=1, refine=0 or match_colours=0"
            )
            raise argparse.ArgumentTypeError(
                f"got {short(part)!r} in {short(text)!r}, expected for example {known}"
            ) from None
    return text, options


def register(commands: Any) -> None:
    parser = commands.add_parser("evaluate", help="how near pictures are to real ones, how they vary, what they copy")
    parser.add_argument(
        "real",
        nargs="?",
        type=path_of,
        metavar="REAL",
        help="real pictures: a folder or a bank (default: --bank, decoded)",
    )
    parser.add_argument(
        "made", nargs="*", type=path_of, metavar="MADE", help="folders or banks to measure, a column each"
    )
    parser.add_argument(
        "--preset",
        action="append",
        default=[],
        type=preset,
        metavar="NAME[,OPTION=X]",
        help="also a column of images made now, such as balanced or balanced,mirror=1; may be repeated",
    )
    parser.add_argument(
        "--reconstruct",
        action="store_true",
        help="also columns of the (first) real pictures after the autoencoder, without and with the bank's PCA",
    )
    parser.add_argument(
        "--bank",
        type=nonempty,
        default=EMBEDDED,
        metavar="FILE",
        help="what --preset makes them from (default: the embedded avatars)",
    )
    add_autoencoder(parser)
    parser.add_argument(
        "-n", type=whole, metavar="N", help=f"images per column (default: {MADE} for --preset, otherwise all)"
    )
    parser.add_argument("--seed", type=whole, default=0)
    parser.add_argument("--backend", default="auto", help="auto, numpy, torch, cpp, triton or cuda; see lpkernel info")
    parser.add_argument(
        "--crop",
        type=integers(4),
        metavar="x0,y0,x1,y1",
        help="crop images that are not square to these pixels first (default: the bank's crop)",
    )
    parser.add_argument("--inception", type=path_of, metavar="FILE", help="weights of Inception-v3: also FID and KID")
    parser.add_argument("--lpips", type=path_of, metavar="FILE", help="LPIPS weights (AlexNet): also LPIPS")
    parser.add_argument(
        "--faces",
        action="store_true",
        help="also what dlib finds in pictures that one face fills: landmarks, eyes, identities (extra evaluate)",
    )
    parser.add_argument(
        "--held-out",
        type=path_of,
        metavar="FOLDER",
        help="pictures the autoencoder was not trained on; REAL are its training pictures: does it remember those?",
    )
    parser.add_argument(
        "--out", type=path_of, default=Path("out/evaluate"), metavar="FOLDER", help="default: out/evaluate"
    )
    add_output(parser)
    parser.set_defaults(run=run, begins=lambda args: f"evaluating, into {args.out}")


def run(args: argparse.Namespace) -> None:
    _check(args)
    from lpkernel import __version__
    from lpkernel.metrics import compare, page
    from lpkernel.metrics.cache import Cache
    from lpkernel.metrics.extractors import Inception, Latents, Spread
    from lpkernel.metrics.portraits import Portraits

    cache = Cache(args.out / "cache")
    spread = None if args.lpips is None else Spread(args.lpips, args.device)
    by_features: list[Extractor] = [Latents(args.device)]
    if args.inception is not None:
        by_features.append(Inception(args.inception, args.device))
    portraits = Portraits() if args.faces else None
    extractors = _all(by_features, spread, portraits)
    sets = _Sets(args, cache)
    with Progress("features", sum(one.size for one in sets.all), "image", args.quiet) as progress:
        real = compare.Real(sets.real, compare.collect(sets.real, extractors, cache, progress.add))
        columns, notes, near = [], [], []
        for images in sets.columns:
            column, more, nearest = _column(real, images, by_features, spread, portraits, cache, progress)
            columns.append(column)
            notes += more
            near.append(nearest)
    metrics = [metric for extractor in by_features for metric in compare.feature_metrics(extractor.name)]
    metrics += [compare.LPIPS_METRIC] if spread else []
    metrics += [*compare.FACE_METRICS, *compare.MAP_METRICS, *compare.PAIR_METRICS]
    metrics = [metric for metric in metrics if any(metric.key in column["metrics"] for column in columns)]
    result = {
        "lpkernel": __version__,
        "real": {"name": sets.real.name, "images": sets.real.size, "facts": sets.real.facts},
        "extractors": [extractor.facts for extractor in extractors],
        "columns": columns,
        "memorisation": sets.memorisation(spread),
        "notes": list(dict.fromkeys(notes)),
        "seed": args.seed,
        "files": ["evaluate.json", "evaluate.html"],
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "evaluate.json", result)
    titles = [f"Real: {sets.real.name}", *(one.name for one in sets.columns)]
    samples = [(title, one.read(range(min(SHOWN, one.size)))) for title, one in zip(titles, sets.all, strict=True)]
    pairs = [
        (one.name, one.read(rows), sets.real.read(nearest))
        for one, (rows, nearest) in zip(sets.columns, near, strict=True)
    ]
    with atomic_path(args.out / "evaluate.html") as partial:
        partial.write_text(page.page(result, metrics, samples, pairs), encoding="utf-8")
    lines = [*page.table(metrics, columns), *result["notes"]]
    if result["memorisation"] is not None:
        lines.append(page.memorisation_text(result["memorisation"]))
    real_text = f"against {sets.real.size} real pictures of {sets.real.name}"
    report(args, result, [*lines, f"{real_text}; evaluate.json and evaluate.html in {args.out}"])


def _check(args: argparse.Namespace) -> None:
    """Raise InputError for options that contradict each other or are out of range; nothing is loaded yet."""
    from lpkernel import philox

    check_folder(args.out)
    if not (args.made or args.preset or args.reconstruct or args.held_out):
        raise InputError("nothing to measure; give folders or banks after REAL, --preset, --reconstruct or --held-out")
    if args.held_out is not None and args.real is None:
        raise InputError("--held-out is compared with REAL, the pictures the autoencoder was trained on; give REAL")
    if args.n is not None and not LEAST <= args.n <= MOST:
        raise InputError(f"-n: got {args.n}, expected at least {LEAST} images and at most {MOST}")
    philox.check_seed(args.seed)


class _Sets:
    """The real pictures and the columns, as the arguments name them."""

    def __init__(self, args: argparse.Namespace, cache: Any) -> None:
        from lpkernel import load_autoencoder
        from lpkernel.autoencoder.once import Once
        from lpkernel.metrics import sets

        self.args, self.cache = args, cache
        self.autoencoder = Once(load_autoencoder(args.autoencoder, args.device, args.dtype))
        self.side = self.autoencoder.image_size
        self.bank, self.digest = load_bank(args.bank), file_hash(args.bank)
        self.crop = args.crop if args.crop is not None or args.bank == EMBEDDED else self.bank.crop
        real = Path(args.bank) if args.real is None else args.real
        self.real = self._of_path(real, None)
        self.columns = [self._of_path(path, args.n) for path in args.made]
        if args.reconstruct:
            some = self._of_path(real, args.n)  # the first ones of REAL, with which they are compared by number
            self.columns.append(sets.reconstructed(some, self.autoencoder))
            self.columns.append(sets.reconstructed(some, self.autoencoder, self.bank))
        count = args.n or MADE
        with Progress("generating", count * len(args.preset), "image", args.quiet) as progress:
            for name, options in args.preset:
                self.columns.append(
                    sets.of_preset(
                        self.bank,
                        self.digest,
                        options,
                        name,
                        count,
                        args.seed,
                        self.autoencoder,
                        self.side,
                        cache,
                        args.backend,
                        args.device,
                        progress.add,
                    )
                )
        for one in self.all:
            if one.size < LEAST:
                raise InputError(f"{one.name}: {one.size} images, expected at least {LEAST}")
        names: set[str] = set()
        for one in self.columns:
            base, number = one.name, 2
            while one.name in names:
                one.name, number = f"{base} ({number})", number + 1
            names.add(one.name)

    @property
    def all(self) -> list[ImageSet]:
        return [self.real, *self.columns]

    def _of_path(self, path: Path, most: int | None) -> ImageSet:
        from lpkernel.metrics import sets

        if str(path) == EMBEDDED or path.is_file():
            bank, digest = load_bank(str(path)), file_hash(str(path))
            return sets.of_bank(bank, digest, str(path), self.autoencoder, self.side, most)
        return sets.of_folder(path, self.side, self.crop, most, self.bank, self.digest)

    def memorisation(self, spread: Spread | None) -> dict[str, Any] | None:
        """REAL against --held-out, if that is given."""
        from lpkernel.metrics import compare, sets

        if self.args.held_out is None:
            return None
        found = []
        for images in (self.real, self._of_path(self.args.held_out, None)):
            back = sets.reconstructed(images, self.autoencoder)
            found.append(compare.errors(images, back, spread, self.cache)[:, 0])
        return compare.memorisation(found[0], found[1], self.args.seed)


def _all(by_features: list[Extractor], spread: Spread | None, portraits: Portraits | None) -> list[Extractor]:
    return [*by_features, *([spread] if spread else []), *([portraits] if portraits else [])]


def _column(
    real: Real,
    images: ImageSet,
    by_features: list[Extractor],
    spread: Spread | None,
    portraits: Portraits | None,
    cache: Any,
    progress: Progress,
) -> tuple[dict[str, Any], list[str], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """A column of the result, notes on it, and the numbers of the results nearest to a real picture, and of those."""
    import numpy as np

    from lpkernel.metrics import compare

    features = compare.collect(images, _all(by_features, spread, portraits), cache, progress.add)
    values: dict[str, Any] = {}
    notes: list[str] = []
    shown = None
    for extractor in by_features:
        rows, more, nearest, apart = compare.by_features(real, images, features[extractor.name], extractor)
        values |= rows
        notes += more
        if shown is None:
            first = np.argsort(apart, kind="stable")[:NEAREST_SHOWN]
            shown = first, nearest[first]
    assert shown is not None
    if spread is not None:
        values |= compare.by_lpips(real, images, features[spread.name], spread)
    if portraits is not None:
        values |= compare.by_faces(real, images, features[portraits.name], portraits)
    values |= compare.by_maps(images)
    if images.facts["kind"] == "reconstruction":
        values |= compare.by_pairs(real.images, images, compare.errors(real.images, images, spread, cache), spread)
    return {"name": images.name, "images": images.size, "facts": images.facts, "metrics": values}, notes, shown
