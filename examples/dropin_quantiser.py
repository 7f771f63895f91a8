"""The quantiser of a VQ model, as in taming-transformers: the nearest codebook entry of each cell, in one call.

python examples/dropin_quantiser.py [images]      # of 16 x 16 cells, 8

docs/dropin.md has the lines to change in taming-transformers.
"""

from __future__ import annotations

import argparse

import torch

import lpkernel as lp
from lpkernel.benchmarks.measure import peak_extra

CODES, WIDTH, CELLS = 1024, 256, 256


def by_matrix(cells: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The expanded square of every pair, then the smallest."""
    squares = cells.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * cells @ codebook.T
    return squares.argmin(1)


def by_search(cells: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """The same without the matrix; codes carry no gradient, as an argmin's do not."""
    codes: torch.Tensor = lp.masked_topk(cells, codebook, 1).indices[:, 0]
    return codes


def main(images: int = 8) -> float:
    """Prints time and memory of both, and the share of codes that agree; returns that share."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn((CODES, WIDTH), generator=generator)
    cells = torch.randn((images * CELLS, WIDTH), generator=generator)
    answers = []
    for search in (by_matrix, by_search):
        used, seconds = peak_extra(lambda: answers.append(search(cells, codebook)))  # noqa: B023
        print(f"{search.__name__}: {1e3 * seconds:.1f} ms, {'?' if used is None else f'{used / 2**20:.1f}'} MB more")
    share = float((answers[0] == answers[1]).double().mean())
    print(f"the same code in {100 * share:.3f} % of {len(cells)} cells")
    return share


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=int, nargs="?", default=8)
    main(parser.parse_args().images)
