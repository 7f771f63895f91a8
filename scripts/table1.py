"""The paper's table 1 on 999 photographs: reconstructions, LatentPatch and random pieces, for banks of several sizes.

    make table1             # or: python scripts/table1.py -n 100 --seeds 1 --banks 999,16 --features latents

Fetches the photographs and the weights of LPIPS and Inception (scripts/packages.py). Everything is measured by
lpkernel.metrics with equal N in every row. One seed of all rows comes first, by bank size in the order of --banks, then
the next seed; finished work is kept in the cache of --out, and table1.json and table1.md there are written after every
row, so that a stopped run goes on. Both record N, the seeds and the extractors' hashes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import console
import numpy as np
import packages

from lpkernel import Autoencoder, Bank, load_autoencoder
from lpkernel.commands.common import integers, write_json
from lpkernel.commands.generate import random_cells
from lpkernel.files import atomic_path
from lpkernel.metrics import compare, sets
from lpkernel.metrics.cache import Cache
from lpkernel.metrics.extractors import Extractor, Inception, Latents, Spread

PAPER = """
The paper's own figures, FID and LPIPS diversity (FFHQ's VQ-GAN, S = 1, k = 10, B = 30,000 of CelebA-HQ, 10,000 images
for FID and 700 for LPIPS): reconstruction 8.9 and 1.03, with PCA 8.9 and 1.03, LatentPatch 35.1 and 0.84, random 123.0
and 0.85. They cannot be compared with these in absolute terms: other photographs, another autoencoder, fewer images
(the Fréchet distance grows as N falls), smaller banks.
"""

RECONSTRUCTION, PAPERS = "reconstruction", "LatentPatch, paper"
METHODS: dict[str, dict[str, Any]] = {
    PAPERS: {"preset": "paper"},
    "LatentPatch, balanced": {"preset": "balanced"},
    "LatentPatch, balanced, mirror = 0": {"preset": "balanced", "mirror": 0},
}
RANDOM_PATCHES, RANDOM_CODES = "random patches", "random codes"


@dataclass
class Row:
    """One row: a method and the values of each seed, by metric. bank: images of the bank, 0 where none is used."""

    autoencoder: str
    bank: int
    method: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def cell(self, key: str) -> str:
        found = self.values.get(key)
        if not found:
            return "-"
        digits = 1 if np.mean(found) >= 10 else 2 if np.mean(found) >= 1 else 3
        spread = f" ± {np.std(found, ddof=1):.{digits}f}" if len(found) > 1 else ""
        return f"{np.mean(found):.{digits}f}{spread}"

    @property
    def seeds(self) -> int:
        return max(map(len, self.values.values()), default=0)


@dataclass(frozen=True)
class Job:
    """One set of pictures for one row; it is made when its turn comes."""

    row: Row
    images: Callable[[], sets.ImageSet]


class Table:
    """All rows against one set of real pictures."""

    def __init__(self, args: argparse.Namespace, side: int) -> None:
        self.args, self.side, self.cache = args, side, Cache(args.out / "cache")
        self.spread = Spread(packages.lpips_weights(), args.device)
        self.by_features: list[Extractor] = [Latents(args.device)]
        if "inception" in args.features:
            self.by_features.append(Inception(packages.inception_weights(), args.device))
        self.extractors: list[Extractor] = [*self.by_features, self.spread]
        images = sets.of_folder(packages.face_files()[0].parent, side, packages.FACE_CROP)
        self.real = compare.Real(images, compare.collect(images, self.extractors, self.cache))
        self.rows: list[Row] = []

    def add(self, row: Row, images: sets.ImageSet) -> None:
        """Measure the pictures and append the results to the row's values."""
        features = compare.collect(images, self.extractors, self.cache)
        found = compare.by_maps(images) | compare.by_lpips(self.real, images, features[self.spread.name], self.spread)
        for extractor in self.by_features:
            found |= compare.by_features(self.real, images, features[extractor.name], extractor)[0]
        for key, entry in found.items():
            if entry["value"] is not None:
                row.values.setdefault(key, []).append(entry["value"])
        if row not in self.rows:
            self.rows.append(row)

    def columns(self) -> list[tuple[str, str]]:
        """Metric and heading of each column."""
        columns = []
        for name in (one.name for one in reversed(self.by_features)):
            short = "Inc." if name == "inception" else "lat."
            columns.append((f"frechet_{name}", "FID" if name == "inception" else "FD, latents"))
            columns.append((f"kid_{name}", f"KID, {short}"))
            columns += [(f"{key}_{name}", f"{key}, {short}") for key in ("precision", "recall")]
        areas = [("copied_area", "copied area"), ("hub_share", "hubs")]
        return [*columns, ("diversity_lpips", "LPIPS div."), *areas]

    def text(self) -> str:
        heads = ["autoencoder", "B", "method", "seeds", *(head for _, head in self.columns())]
        lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in self.rows:
            cells = [row.autoencoder, str(row.bank or "-"), row.method, str(row.seeds)]
            lines.append(f"| {' | '.join([*cells, *(row.cell(key) for key, _ in self.columns())])} |")
        return "\n".join(lines)

    def gaps(self) -> str:
        """How much of the distance between the paper's settings and the reconstruction each method closes."""
        known = {(row.autoencoder, row.bank, row.method): row for row in self.rows}
        lines = []
        for row in self.rows:
            best = known.get((row.autoencoder, 0, RECONSTRUCTION))
            worst = known.get((row.autoencoder, row.bank, PAPERS))
            if best is None or worst is None or row is worst or row.method not in METHODS:
                continue
            shares = []
            for key, head in self.columns():
                if key.startswith("frechet"):
                    low, high, own = (float(np.mean(one.values[key])) for one in (best, worst, row))
                    shares.append(f"{(high - own) / (high - low):.0%} ({head})")
            lines.append(f"{row.autoencoder}, B = {row.bank}, {row.method}: {', '.join(shares)}")
        title = "Of the gap between the paper's settings and the reconstruction are closed:"
        return "\n".join([title, "", *(f"- {line}" for line in lines)]) if lines else ""

    def write(self) -> str:
        """Write table1.json and table1.md; returns the text of the latter."""
        used = ", ".join(f"{one.name} {one.hash[:12]}" for one in self.extractors)
        facts = f"N = {self.args.n} in every row, {self.real.images.size} real pictures of {self.side} pixels"
        text = f"{facts}; {used}.\n\n{self.text()}\n\n{self.gaps()}\n{PAPER}"
        self.args.out.mkdir(parents=True, exist_ok=True)
        result = {
            "n": self.args.n,
            "n_real": self.real.images.size,
            "side": self.side,
            "extractors": [one.facts for one in self.extractors],
            "rows": [vars(row) for row in self.rows],
        }
        write_json(self.args.out / "table1.json", result)
        with atomic_path(self.args.out / "table1.md") as partial:
            partial.write_text(text, encoding="utf-8")
        return text


def first_images(bank: Bank, count: int) -> Bank:
    """A bank of the first images, with their mirror images if there are any and its own PCA, as if built from them."""
    chosen = np.arange(bank.size) < count
    chosen |= bank.flips_of(chosen)
    if bank.codes is not None and bank.codebook is not None:
        first = Bank.from_codes(bank.codes[chosen], bank.codebook, bank.channels, bank.max_patch)
    else:
        assert bank.latents is not None
        first = Bank.from_latents(bank.latents[chosen], bank.channels, bank.max_patch)
    first.colours = None if bank.colours is None else bank.colours[chosen]
    return first


def bank_of_faces(autoencoder: Autoencoder, folder: Path, flip: bool = False) -> Bank:
    """The bank of all photographs and, with `flip`, their mirror images; it is kept in the folder."""
    path = folder / f"{autoencoder.fingerprint[:16]}{'-flip' if flip else ''}.lpbank"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        Bank.build(packages.face_files(), autoencoder, crop=packages.FACE_CROP, flip=flip).save(path)
    return Bank.load(path)


def jobs(table: Table, autoencoder: Autoencoder) -> Iterator[tuple[int, int, Job]]:
    """The sets of one autoencoder, each with its seed and the place of its bank among --banks."""
    args, side = table.args, table.side
    name = autoencoder.name
    everything = bank_of_faces(autoencoder, args.out, args.flip)
    photographs = everything.size // (1 + args.flip)
    some = sets.of_folder(packages.face_files()[0].parent, side, packages.FACE_CROP, args.n)
    yield 0, 0, Job(Row(name, 0, RECONSTRUCTION), lambda: sets.reconstructed(some, autoencoder))
    by_pca = Row(name, 0, "reconstruction + PCA")
    yield 0, 0, Job(by_pca, lambda: sets.reconstructed(some, autoencoder, everything))
    for place, count in enumerate(args.banks):
        bank = first_images(everything, min(count, photographs))
        for row, images in bank_jobs(table, autoencoder, bank):
            for seed in range(args.seeds):
                yield seed, place, Job(row, lambda images=images, seed=seed: images(seed))  # type: ignore[misc]


def bank_jobs(
    table: Table, autoencoder: Autoencoder, bank: Bank
) -> Iterator[tuple[Row, Callable[[int], sets.ImageSet]]]:
    """The rows of one bank, each with the function that makes its pictures for a seed."""
    args, side = table.args, table.side
    of = f"first {bank.size}{', flipped' if args.flip else ''}"
    facts = f"faces {packages.PACKAGES['faces'].sha256} {autoencoder.fingerprint} {of}"

    def searched(method: str, options: dict[str, Any]) -> Callable[[int], sets.ImageSet]:
        return lambda seed: sets.of_preset(
            bank, facts, options, method, args.n, seed, autoencoder, side, table.cache, args.backend, args.device
        )

    def single_codes(seed: int) -> sets.ImageSet:
        maps = random_cells(seed, 0, args.n, bank.grid, bank.size).astype(np.int32)
        return sets.of_maps(
            bank, maps, {"kind": RANDOM_CODES, "bank": facts, "seed": seed}, RANDOM_CODES, autoencoder, side
        )

    patches = {"preset": "paper", "scales": (bank.grid,), "k": bank.size}
    for method, options in {**METHODS, RANDOM_PATCHES: patches}.items():
        yield Row(autoencoder.name, bank.size, method), searched(method, options)
    yield Row(autoencoder.name, bank.size, RANDOM_CODES), single_codes


def features(text: str) -> list[str]:
    names = text.split(",")
    if not {"latents"} <= set(names) <= {"latents", "inception"}:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected latents or latents,inception")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=500, help="images of each row (default: 500)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each row that has any (default: 3)")
    parser.add_argument("--banks", type=integers(), default=(999, 100, 16), metavar="B1,...", help="bank sizes")
    parser.add_argument("--flip", action="store_true", help="banks of the photographs and their mirror images")
    parser.add_argument("--autoencoder", action="append", metavar="SRC", help="one or several (default: the embedded)")
    parser.add_argument("--features", type=features, default=["latents", "inception"], metavar="A,B")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/table1"), metavar="FOLDER")
    args = parser.parse_args()
    networks = [load_autoencoder(source, args.device) for source in args.autoencoder or ["default"]]
    table = Table(args, max(one.image_size for one in networks))
    found = [job for autoencoder in networks for job in jobs(table, autoencoder)]
    for seed, _, job in sorted(found, key=lambda job: job[:2]):  # stable: autoencoders in their order
        table.add(job.row, job.images())
        table.write()
        print(f"{job.row.autoencoder}: B = {job.row.bank or '-'}, {job.row.method}, seed {seed}", file=sys.stderr)
    print(table.write())
    return 0


if __name__ == "__main__":
    console.run(main)
