"""The memory bank of PatchCore: a faiss index in patchcore-inspection, a matrix of roots in anomalib; here one call.

python examples/dropin_patchcore.py [rows]      # of the memory bank, 2,000

docs/dropin.md has the lines to change in both.
"""

from __future__ import annotations

import argparse

import torch

import lpkernel as lp
from lpkernel.benchmarks.measure import peak_extra

WIDTH, PATCHES, NEIGHBOURS = 384, 784, 9  # of the features, of an image, of the score


def by_matrix(embedding: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Roots of the expanded square, then the smallest of each row."""
    squares = embedding.square().sum(1, keepdim=True) + memory.square().sum(1) - 2 * embedding @ memory.T
    found = squares.clamp(min=0).sqrt().topk(NEIGHBOURS, largest=False)
    return found.values, found.indices


def by_search(embedding: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same without the matrix."""
    found = lp.masked_topk(embedding, memory, NEIGHBOURS, metric="sqrt")
    return found.distances, found.indices


def by_index(embedding: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same by an index; distances are squared, as faiss's are."""
    index = lp.IndexFlatL2(memory.shape[1])
    index.add(memory)
    found = index.search(embedding, NEIGHBOURS)
    return found.distances.sqrt(), found.indices


def main(rows: int = 2000) -> bool:
    """Prints time and memory of the three; returns whether ours agree, and theirs too except for near ties."""
    generator = torch.Generator().manual_seed(0)
    memory = torch.randn((rows, WIDTH), generator=generator)
    embedding = torch.randn((PATCHES, WIDTH), generator=generator)
    answers = []
    for search in (by_matrix, by_search, by_index):
        used, seconds = peak_extra(lambda: answers.append(search(embedding, memory)))  # noqa: B023
        print(f"{search.__name__}: {1e3 * seconds:.1f} ms, {'?' if used is None else f'{used / 2**20:.1f}'} MB more")
    agree = bool(torch.equal(answers[1][1], answers[2][1]) and torch.allclose(answers[0][0], answers[1][0], rtol=1e-4))
    print(f"the same neighbours: {agree}")
    return agree


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="?", default=2000)
    main(parser.parse_args().rows)
