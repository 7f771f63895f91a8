"""A nearest-neighbour field between two images, which PSIN approximates by PatchMatch: exact, without storing rows.

python examples/dropin_psin.py [side]      # of the images, 64; patches of 11 pixels

`shift_map` takes and returns what PSIN's `patch_match` does. docs/dropin.md has the lines to change in PSIN.
"""

from __future__ import annotations

import argparse

import numpy as np

import lpkernel as lp
from lpkernel.benchmarks.measure import peak_extra

PATCH = 11


def shift_map(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(H, W, 3): how far down and right of each pixel's patch the nearest of the source lies, and its distance.

    image, source: (H, W, C) float32. Pixels whose patch would leave the image keep 0.
    """
    near = lp.patch_nearest(image.transpose(2, 0, 1), source.transpose(2, 0, 1), PATCH)
    rows, columns = near.indices.shape[:2]
    there = np.stack(np.divmod(near.indices[..., 0], source.shape[1] - PATCH + 1), 2)
    half, found = PATCH // 2, np.zeros((*image.shape[:2], 3), np.float32)
    inner = found[half : half + rows, half : half + columns]
    inner[..., :2] = there - np.indices((rows, columns)).transpose(1, 2, 0)
    inner[..., 2] = near.distances[..., 0]
    return found


def by_rows(image: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The nearest source patch of each patch, by a search over all patches stored as rows."""
    windows = (
        np.lib.stride_tricks.sliding_window_view(array, (PATCH, PATCH), axis=(0, 1)).reshape(-1, PATCH**2 * 3)
        for array in (image, source)
    )
    queries, bank = (np.ascontiguousarray(rows, np.float32) for rows in windows)
    indices: np.ndarray = lp.masked_topk(queries, bank, 1).indices[:, 0]
    return indices


def main(side: int = 64) -> bool:
    """Prints time and memory of both; returns whether they found the same."""
    random = np.random.default_rng(0)
    image, source = (random.random((side, side, 3), np.float32) for _ in range(2))
    answers = []
    for name, search in (("rows", by_rows), ("patch_nearest", shift_map)):
        memory, seconds = peak_extra(lambda: answers.append(search(image, source)))  # noqa: B023
        taken = "?" if memory is None else f"{memory / 2**20:.0f}"
        print(f"{name}: {seconds:.2f} s, {taken} MB more than the images")
    half, count = PATCH // 2, side - PATCH + 1
    at = answers[1][half : half + count, half : half + count, :2] + np.indices((count, count)).transpose(1, 2, 0)
    same = bool((at[..., 0] * count + at[..., 1] == answers[0].reshape(count, count)).all())
    print(f"the same patches: {same}")
    return same


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", type=int, nargs="?", default=64)
    main(parser.parse_args().side)
