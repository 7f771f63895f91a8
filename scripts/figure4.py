"""The paper's figure 4 on 999 photographs: what each option does to fidelity, diversity and copying.

    make figure4            # or: python scripts/figure4.py -n 100 --bank default --preset balanced --examples 16

For each preset one option at a time is changed: patch, stride, k, the number of bank images B, the number of scales
S, and the hubness rho. Fidelity and diversity are measured in the autoencoder's own latents, averaged over 4 x 4 cells,
with the bank's images as the real set: no picture is decoded and no network runs, so a setting takes as long as its
synthesis. This measures layout, colour and coarse texture. Draws out/figure4/fidelity.png and copied-area.png, writes
figure4.json, and a sheet of pictures for the first and the last value of each option. Finished work is kept in the
cache of --out, so that a stopped run goes on. The sheets show faces made from real people's: not to be published.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import console
import numpy as np
import packages
import table1
from numpy.typing import NDArray

from lpkernel import Autoencoder, Bank, load_autoencoder, presets
from lpkernel.commands.common import EMBEDDED, file_hash, load_bank, write_json
from lpkernel.errors import InputError
from lpkernel.files import atomic_path
from lpkernel.metrics import distances, maps, sets
from lpkernel.metrics.cache import Cache
from lpkernel.metrics.extractors import POOLED
from lpkernel.pictures import render

SHOWN = 16  # pictures on a sheet
PATCH = 6  # of the presets
SWEEPS: dict[str, tuple[Any, ...]] = {
    "patch": (2, 3, 4, 6, 8),
    "stride": (1, 2, 3, 4, 6),
    "k": (1, 2, 3, 5, 10, 30),
    "B": (16, 50, 100, 300, 999),
    "S": (1, 2, 3, 5),
    "hubness": (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0),
}


@dataclass
class Point:
    """One setting and what was measured with it. option: the one that differs from the preset's."""

    preset: str
    option: str
    value: Any
    numbers: dict[str, float] = field(default_factory=dict)


def pooled(content: NDArray[Any], bank: Bank) -> NDArray[np.float64]:
    """Codes (N, M, M) or latents (N, M, M, L) -> (N, D): latents averaged over 4 x 4 cells."""
    latents = content if bank.codebook is None else bank.codebook[content]
    n, side, _, width = latents.shape
    parts = side // POOLED
    cells = latents[:, : parts * POOLED, : parts * POOLED].reshape(n, parts, POOLED, parts, POOLED, width)
    return cells.astype(np.float64).mean(axis=(2, 4)).reshape(n, -1)


def scales(side: int, count: int) -> tuple[int, ...]:
    """`count` grid sides from half the grid, or what the patch needs, to the grid; or the grid alone."""
    if count == 1:
        return (side,)
    return tuple(int(m) for m in np.unique(np.floor(np.linspace(max(side / 2, PATCH), side, count) + 0.5)))


class Sweep:
    """Every point of the figure, against one bank."""

    def __init__(self, args: argparse.Namespace, bank: Bank, name: str, autoencoder: Autoencoder) -> None:
        self.args, self.name, self.autoencoder = args, name, autoencoder
        if args.examples is not None and not 1 <= args.examples <= bank.size:
            raise InputError(f"--examples: got {args.examples}, expected 1 to the bank's {bank.size} images")
        self.examples = bank if args.examples is None else table1.first_images(bank, args.examples)
        self.cache = Cache(args.out / "cache")
        self.real = pooled(bank.whole(np.arange(bank.size)), bank)
        self.gaussian = distances.Gaussian.of(self.real)
        self.spread = distances.mean_distance(self.real)

    def images(self, point: Point) -> sets.ImageSet:
        bank, options = self.examples, {"preset": point.preset, point.option: point.value}
        if point.option == "B":
            bank = table1.first_images(bank, options.pop("B"))
        if point.option == "S":
            options["scales"] = scales(bank.grid, options.pop("S"))
        digest = f"{self.name} first {bank.size}"
        args, side = self.args, self.autoencoder.image_size
        title = f"{point.preset}, {point.option} = {point.value}"
        return sets.of_preset(
            bank, digest, options, title, args.n, args.seed, self.autoencoder, side, self.cache, args.backend
        )

    def measure(self, point: Point) -> sets.ImageSet:
        """The pictures of a point, whose numbers are filled in."""
        images = self.images(point)
        assert images.maps is not None and images.bank is not None
        features = pooled(images.bank.gather(images.maps), images.bank)
        point.numbers = {
            "frechet": distances.frechet(self.gaussian, distances.Gaussian.of(features)),
            "kid": distances.kernel_distance(self.real, features)[0],
            "diversity": distances.mean_distance(features) / self.spread,
            "copied_area": float(maps.copied_areas(images.maps).mean()),
            "distinct_sources": float(maps.distinct_sources(images.maps).mean()),
            "hub_share": maps.hub_share(images.maps, images.bank.size)[0],
        }
        return images

    def sheet(self, point: Point, images: sets.ImageSet) -> None:
        pictures = images.read(range(min(SHOWN, images.size)))
        render.save_png(self.args.out / f"{point.preset}-{point.option}-{point.value}.png", render.grid(pictures, 4))


def draw(path: Path, points: list[Point], x: str | None, y: str, title: str) -> None:
    """A panel for each option; x: another number, or None for the option's own value."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8), layout="constrained")
    panels = figure.subplots(2, 3, sharey=True, sharex=x is not None)
    for axes, option in zip(panels.flat, SWEEPS, strict=True):
        for preset in dict.fromkeys(point.preset for point in points):
            line = [point for point in points if (point.preset, point.option) == (preset, option)]
            across = [point.numbers[x] if x else place for place, point in enumerate(line)]
            axes.plot(across, [point.numbers[y] for point in line], "o-", markersize=4, label=preset)
            every = max(1, len(line) - 1) if x else 1  # labels of neighbours would cover each other: only the ends
            for place, point in list(zip(across, line, strict=True))[::every]:
                axes.annotate(
                    f"{point.value}", (place, point.numbers[y]), xytext=(4, 4), fontsize=8, textcoords="offset points"
                )
        axes.set(title=option, xlabel=x or option, ylabel=y)
        axes.grid(True, alpha=0.2)
        if x is None:
            axes.set_xticks([])
    panels.flat[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def values_of(option: str, bank: Bank) -> tuple[Any, ...]:
    values = SWEEPS[option]
    if option == "B":
        return tuple(sorted({min(value, bank.size) for value in values}))
    if option == "patch":
        return tuple(value for value in values if value <= bank.max_patch)
    return values


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=300, help="images of each setting (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bank", metavar="FILE", help="a bank, or default (default: of the 999 photographs)")
    parser.add_argument("--examples", type=int, metavar="N", help="only its first images; all are the real set")
    parser.add_argument("--autoencoder", default=EMBEDDED, metavar="SRC", help="the bank's")
    parser.add_argument("--preset", action="append", choices=[*presets.PRESETS], help="default: paper and balanced")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/figure4"), metavar="FOLDER")
    args = parser.parse_args()
    autoencoder = load_autoencoder(args.autoencoder)
    if args.bank is None:
        bank, name = table1.bank_of_faces(autoencoder, args.out), packages.PACKAGES["faces"].sha256
        name = f"faces {name} {autoencoder.fingerprint}"
    else:
        bank, name = load_bank(args.bank), file_hash(args.bank)
    sweep = Sweep(args, bank, name, autoencoder)
    points = []
    for preset in args.preset or ["paper", "balanced"]:
        for option in SWEEPS:
            values = values_of(option, sweep.examples)
            for value in values:
                point = Point(preset, option, value)
                images = sweep.measure(point)
                if value in (values[0], values[-1]):
                    sweep.sheet(point, images)
                points.append(point)
                found = ", ".join(f"{key} {number:.4g}" for key, number in point.numbers.items())
                print(f"{preset}, {option} = {value}: {found}", file=sys.stderr)
    title = f"N = {args.n}, seed {args.seed}, {sweep.examples.size} examples, latents of {autoencoder.name}"
    draw(args.out / "fidelity.png", points, "diversity", "frechet", f"Fréchet distance and diversity: {title}")
    draw(args.out / "copied-area.png", points, None, "copied_area", f"largest copied area: {title}")
    facts = {
        "n": args.n,
        "seed": args.seed,
        "bank": name,
        "bank_images": bank.size,
        "examples": sweep.examples.size,
        "autoencoder": autoencoder.name,
    }
    write_json(args.out / "figure4.json", {**facts, "points": [asdict(point) for point in points]})
    print(f"{len(points)} settings in {args.out}: figure4.json, fidelity.png, copied-area.png and sheets")
    return 0


if __name__ == "__main__":
    console.run(main)
