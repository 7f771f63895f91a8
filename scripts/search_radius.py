"""The two tables of docs/method.md about the search radius: its cost, and its effect on a bank and on the same bank
with every image moved by a random shift of up to one cell.

    python scripts/search_radius.py out/faces.lpbank
"""

from __future__ import annotations

import argparse
import time

import console
import numpy as np
import torch

import lpkernel as lp
from lpkernel.errors import InputError
from lpkernel.metrics import distances, maps

RUNS, IMAGES, POOLED = 4, 500, 4
PRESETS = ("balanced", "paper")


def moved(bank: lp.Bank) -> lp.Bank:
    codes = bank.views(1).codes
    assert codes is not None
    shift = np.random.default_rng(0).integers(0, len(codes) // bank.size, bank.size)
    return bank.with_images(codes[np.arange(bank.size) + bank.size * shift], bank.names)


def features(bank: lp.Bank, codes: np.ndarray) -> np.ndarray:
    """(n, D): the vectors of codes (n, M, M), averaged over 4 x 4 cells, in units of their root mean square."""
    assert bank.codebook is not None
    vectors = bank.codebook[codes] / np.sqrt(np.square(bank.codebook, dtype=np.float64).mean())
    n, side, _, width = vectors.shape
    parts = side // POOLED
    return vectors.reshape(n, parts, POOLED, parts, POOLED, width).mean((2, 4)).reshape(n, -1)


def costs(bank: lp.Bank) -> None:
    for preset in PRESETS:
        for n in (1, 16):
            for radius in (0, 1, 2):
                taken = []
                for seed in range(1 + RUNS):  # the first measures isolations
                    begun = time.perf_counter()
                    lp.generate(bank, n, seed=seed, preset=preset, search_radius=radius, backend="cpp")
                    taken.append(time.perf_counter() - begun)
                first, best = taken[0] * 1e3, min(taken[1:]) * 1e3
                print(f"{preset}, {n} images, r = {radius}: {best:.1f} ms, the first {first:.0f} ms", flush=True)


def effects(bank: lp.Bank, name: str) -> None:
    real = features(bank, np.asarray(bank.codes))
    for preset in PRESETS:
        for radius in (0, 1):
            made = lp.generate(bank, IMAGES, preset=preset, search_radius=radius)
            assert made.codes is not None
            found = features(bank, made.codes)
            apart = distances.frechet(distances.Gaussian.of(real), distances.Gaussian.of(found))
            precision, recall = distances.precision_recall(real, found)
            diversity = distances.mean_distance(found) / distances.mean_distance(real)
            area = maps.copied_areas(made.sources).mean()
            print(
                f"{name}, {preset}, r = {radius}: Fréchet distance {apart:.1f}, precision {precision:.2f}, "
                f"recall {recall:.2f}, diversity {diversity:.2f}, largest copied area {area:.2f}",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bank", help="a bank of codes")
    bank = lp.Bank.load(parser.parse_args().bank)
    if not bank.is_discrete:
        raise InputError("got a bank of latents, expected one of codes; build it with --autoencoder default")
    torch.set_num_threads(1)
    costs(bank)
    effects(bank, "bank")
    effects(moved(bank), "moved bank")
    return 0


if __name__ == "__main__":
    console.run(main)
