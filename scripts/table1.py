"""The paper's table 1 on 999 photographs: reconstructions, LatentPatch and random pieces, for banks of several sizes.

    make table1             # or: python scripts/table1.py -n 100 --seeds 1 --banks 16,999 [--inception FILE]

Fetches the photographs and the LPIPS weights (scripts/packages.py). Everything is measured by lpkernel.metrics with
equal N in every row; what is done is kept in the cache of --out, so a run that was stopped goes on. N, the seeds and
the extractors' hashes stand in table1.json and above the table, which is also in table1.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import packages

from lpkernel import Autoencoder, Bank, LpkernelError, load_autoencoder
from lpkernel.commands.common import integers, write_json
from lpkernel.commands.generate import random_cells
from lpkernel.metrics import compare, sets
from lpkernel.metrics.cache import Cache
from lpkernel.metrics.extractors import Extractor, Inception, Latents, Spread

PAPER = """
The paper's own figures, FID and LPIPS diversity (FFHQ's VQ-GAN, S = 1, k = 10, B = 30,000 of CelebA-HQ, 10,000 images
for FID and 700 for LPIPS): reconstruction 8.9 and 1.03, with PCA 8.9 and 1.03, LatentPatch 35.1 and 0.84, random 123.0
and 0.85. They cannot be compared with these in absolute terms: other photographs, another autoencoder, fewer images
(the Fréchet distance grows as N falls), smaller banks.
"""


@dataclass
class Row:
    """One row: a method and the values of each seed, by metric."""

    autoencoder: str
    bank: str
    method: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def cell(self, key: str) -> str:
        found = self.values.get(key)
        if not found:
            return "-"
        spread = f" ± {np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
        return f"{np.mean(found):.2f}{spread}"


class Table:
    """All rows against one set of real pictures."""

    def __init__(self, args: argparse.Namespace, real: sets.ImageSet, side: int, cache: Cache) -> None:
        self.args, self.side, self.cache = args, side, cache
        self.spread = Spread(packages.lpips_weights())
        self.by_features: list[Extractor] = [Latents()]
        if args.inception is not None:
            self.by_features.append(Inception(args.inception))
        self.extractors: list[Extractor] = [*self.by_features, self.spread]
        self.real = compare.Real(real, compare.collect(real, self.extractors, cache))
        self.rows: list[Row] = []

    def add(self, row: Row, images: sets.ImageSet) -> None:
        """Measure the pictures and append what is found to the row's values."""
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
        frechet = [
            (f"frechet_{one.name}", "FID" if one.name == "inception" else "FD latents") for one in self.by_features
        ]
        areas = [("copied_area", "copied area"), ("hub_share", "hubs")]
        return [*frechet, ("diversity_lpips", "LPIPS div."), ("recall_latents", "recall"), *areas]

    def text(self) -> str:
        heads = ["autoencoder", "B", "method", *(head for _, head in self.columns())]
        lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in self.rows:
            cells = [row.autoencoder, row.bank, row.method, *(row.cell(key) for key, _ in self.columns())]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)


def first_images(bank: Bank, count: int) -> Bank:
    """A bank of the first images, with a PCA of its own, as if built from them alone."""
    if bank.codes is not None and bank.codebook is not None:
        return Bank.from_codes(bank.codes[:count], bank.codebook, bank.channels, bank.max_patch)
    assert bank.latents is not None
    return Bank.from_latents(bank.latents[:count], bank.channels, bank.max_patch)


def fill(table: Table, source: str, autoencoder: Autoencoder) -> None:
    """The rows of one autoencoder."""
    args, side = table.args, table.side
    some = sets.of_folder(packages.face_files()[0].parent, side, packages.FACE_CROP, args.n)
    everything = Bank.build(packages.face_files(), autoencoder, crop=packages.FACE_CROP)
    name = autoencoder.name
    table.add(Row(name, "-", "reconstruction"), sets.reconstructed(some, autoencoder))
    table.add(Row(name, "-", "reconstruction + PCA"), sets.reconstructed(some, autoencoder, everything))
    for count in args.banks:
        bank = first_images(everything, min(count, everything.size))
        digest = f"{everything.sources_hash} {autoencoder.fingerprint} first {bank.size}"
        methods: dict[str, dict[str, Any]] = {
            "LatentPatch, paper": {"preset": "paper"},
            "LatentPatch, balanced": {"preset": "balanced"},
            "random patches": {"preset": "paper", "scales": (bank.grid,), "k": bank.size},
        }
        for method, options in methods.items():
            row = Row(name, str(bank.size), method)
            for seed in range(args.seeds):
                made = sets.of_preset(
                    bank, digest, options, method, args.n, seed, autoencoder, side, table.cache, args.backend
                )
                table.add(row, made)
            print(f"{source}: B = {bank.size}, {method}: done", file=sys.stderr)
        row = Row(name, str(bank.size), "random codes")
        for seed in range(args.seeds):
            maps = random_cells(seed, 0, args.n, bank.grid, bank.size).astype(np.int32)
            facts = {"kind": "random codes", "bank": digest, "seed": seed}
            table.add(row, sets.of_maps(bank, maps, facts, "random codes", autoencoder, side))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100, help="images of each row (default: 100)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each row that has any (default: 3)")
    parser.add_argument("--banks", type=integers(), default=(16, 100, 999), metavar="B1,...", help="bank sizes")
    parser.add_argument("--autoencoder", action="append", metavar="SRC", help="one or several (default: the embedded)")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="TorchScript Inception-v3: also FID")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--out", type=Path, default=Path("out/table1"), metavar="FOLDER")
    args = parser.parse_args()
    try:
        networks = {source: load_autoencoder(source) for source in args.autoencoder or ["default"]}
        side = max(one.image_size for one in networks.values())
        real = sets.of_folder(packages.face_files()[0].parent, side, packages.FACE_CROP)
        table = Table(args, real, side, Cache(args.out / "cache"))
        for source, autoencoder in networks.items():
            fill(table, source, autoencoder)
    except (packages.FetchError, LpkernelError) as error:
        print(f"table1.py: {error}", file=sys.stderr)
        return 2
    used = ", ".join(f"{one.name} {one.hash[:12]}" for one in table.extractors)
    head = f"N = {args.n} in every row, {real.size} real pictures of {side} pixels, {args.seeds} seeds; {used}."
    text = f"{head}\n\n{table.text()}\n{PAPER}"
    print(text)
    rows = [vars(row) for row in table.rows]
    facts = [one.facts for one in table.extractors]
    result = {"n": args.n, "n_real": real.size, "side": side, "seeds": args.seeds, "extractors": facts, "rows": rows}
    write_json(args.out / "table1.json", result)
    (args.out / "table1.md").write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
