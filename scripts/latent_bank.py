"""A bank of 28,000 real code maps for benchmarks: 7,000 CelebA latents, quantised, and shifted by one cell.

    python scripts/latent_bank.py out/celeba-28k.lpbank
    lpkernel bench step --bank out/celeba-28k.lpbank --b 28000

The latents (16x16x8, from a package that scripts/packages.py fetches) become 1,024 codes by k-means; the four copies
of each map are shifted by 0 or 1 cell in y and in x, edges repeated. Needs scikit-learn (the `bench` extra).
The same seed gives the same bank on one machine; k-means in floating point cannot promise more. Research use only;
not to be redistributed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import console
import numpy as np
from packages import latent_files
from sklearn.cluster import MiniBatchKMeans

from lpkernel import Bank
from lpkernel.benchmarks.data import shift

SHAPE = (16, 16, 8)
CODEBOOK_ROWS = 1024


def latents() -> tuple[np.ndarray, list[str]]:
    """(7000, 16, 16, 8) float32, and the group of each."""
    parts, labels = [], []
    for path in latent_files():
        parts.append(np.load(path, allow_pickle=False).reshape(-1, *SHAPE).astype(np.float32))
        labels += [path.name.removeprefix("img_").partition(".")[0]] * len(parts[-1])
    return np.concatenate(parts), labels


def quantise(vectors: np.ndarray, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes (n,) and codebook (rows, L) of vectors (n, L) by mini-batch k-means."""
    means = MiniBatchKMeans(rows, batch_size=16_384, n_init=1, max_iter=20, random_state=seed).fit(vectors)
    return means.predict(vectors).astype(np.int16), means.cluster_centers_.astype(np.float32)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="FILE")
    parser.add_argument("--rows", type=int, default=CODEBOOK_ROWS, help="codebook rows (default: 1024)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.out.parent.is_dir():
        parser.error(f"{args.out}: expected a file name in a folder that exists")
    values, labels = latents()
    codes, codebook = quantise(values.reshape(-1, SHAPE[2]), args.rows, args.seed)
    maps = codes.reshape(-1, *SHAPE[:2])
    shifted = np.concatenate([shift(maps, dy, dx) for dy in (0, 1) for dx in (0, 1)])
    bank = Bank.from_codes(shifted, codebook, channels=SHAPE[2], labels=labels * 4)
    bank.save(args.out)
    print(f"{bank.size} code maps in {args.out}, {len(np.unique(codes))} codes used")
    return 0


if __name__ == "__main__":
    console.run(main)
