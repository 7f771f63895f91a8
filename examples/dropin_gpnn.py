"""The search of GPNN and Efficient-GPNN, nearest patches by the normalised distance: as they do it, and in one call.

python examples/dropin_gpnn.py [side]      # of the image, 64; patches of 7 pixels

Both projects score every pair of patches as d(q, k) / (alpha + min over q' of d(q', k)). docs/dropin.md has the lines
to change in them.
"""

from __future__ import annotations

import argparse

import torch

import lpkernel as lp
from lpkernel.benchmarks.measure import peak_extra

PATCH, ALPHA, TOGETHER = 7, 0.005, 256


def patches(image: torch.Tensor) -> torch.Tensor:
    """(positions, C * PATCH * PATCH) of an image (C, H, W)."""
    return torch.nn.functional.unfold(image[None], PATCH)[0].T.contiguous()


def distances(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The expanded square, as a mean over values."""
    expanded = queries.square().sum(1)[:, None] + keys.square().sum(1) - 2 * queries @ keys.T
    return expanded / queries.shape[1]


def by_matrices(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The formula in torch, a block of rows of the matrix at a time."""
    least = torch.cat([distances(queries, part).amin(0) for part in keys.split(TOGETHER)])
    return torch.cat([(distances(part, keys) / (ALPHA + least)).argmin(1) for part in queries.split(TOGETHER)])


def by_search(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The same in one call, without the matrix."""
    indices: torch.Tensor = lp.normalised_nearest(queries, keys, ALPHA).indices[:, 0]
    return indices


def main(side: int = 64) -> float:
    """Prints time and memory of both, and the share of answers that agree; returns that share."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand((1, 3, side // 4, side // 4), generator=generator)
    image = torch.nn.functional.interpolate(smooth, size=(side, side), mode="bicubic")[0]
    noisy = image + 0.1 * torch.randn(image.shape, generator=generator)
    queries, keys = patches(noisy), patches(image)
    answers = []
    for name, search in (("matrices", by_matrices), ("normalised_nearest", by_search)):
        memory, seconds = peak_extra(lambda: answers.append(search(queries, keys)))  # noqa: B023
        taken = "?" if memory is None else f"{memory / 2**20:.0f}"
        print(f"{name}: {seconds:.2f} s, {taken} MB more than the {len(queries)} rows")
    share = float((answers[0] == answers[1]).double().mean())
    print(
        f"the same patch for {100 * share:.2f} % of {len(queries)}; the others are near ties that the expansion rounds"
    )
    return share


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", type=int, nargs="?", default=64)
    main(parser.parse_args().side)
