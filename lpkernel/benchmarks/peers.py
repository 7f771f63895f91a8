"""Other people's exact nearest-neighbour search on a CPU, each in its best layout.

`prepare` copies and indexes the bank, which is not timed, and returns the ways to run the search; the fastest of
them stands for the peer. A call takes the number of a query batch; `answer` turns what it returned into squared
distances and indices, not timed either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpkernel.backends.base import TopK

Call = Callable[[int], Any]
Variants = dict[str, Call]
BLOCKS = {"16 MB blocks": 16 << 20, "64 MB blocks": 64 << 20, "one block": 2 << 30}


@dataclass(frozen=True)
class Search:
    """K nearest of the bank's rows for each query: bank (B, D), each batch of queries (N, D), float32, contiguous."""

    bank: NDArray[np.float32]
    queries: list[NDArray[np.float32]]
    k: int


class Peer(Protocol):
    name: str

    def missing(self) -> str:
        """Why it cannot run here; "" if it can."""
        ...

    def prepare(self, search: Search) -> Variants: ...

    def answer(self, raw: Any) -> TopK: ...


def blocks(queries: int, bank: int) -> Iterator[tuple[str, int]]:
    """Ways to split the (N, B) float32 distances by queries: name and rows, no two alike."""
    seen = set()
    for name, size in BLOCKS.items():
        rows = min(queries, max(1, size // (4 * bank)))
        if rows not in seen:
            seen.add(rows)
            yield ("one block" if rows == queries else name), rows


class TorchMatmul:
    """|b|^2 - 2 q.b by one matrix product, norms of the bank kept, then topk."""

    name = "torch matmul+topk"

    def missing(self) -> str:
        return ""

    def prepare(self, search: Search) -> Variants:
        bank, k = torch.from_numpy(search.bank), search.k
        norms = bank.square().sum(1)
        batches = [torch.from_numpy(queries) for queries in search.queries]

        def nearest(part: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            values, indices = torch.topk(scores, k, largest=False)
            return values + part.square().sum(1, keepdim=True), indices

        def by_blocks(rows: int) -> Call:
            @torch.inference_mode()
            def call(i: int) -> list[tuple[Tensor, Tensor]]:
                parts = batches[i].split(rows)
                return [nearest(part, torch.addmm(norms, part, bank.T, alpha=-2)) for part in parts]

            return call

        @torch.inference_mode()
        def one_query(i: int) -> list[tuple[Tensor, Tensor]]:
            return [nearest(batches[i], torch.addmv(norms, bank, batches[i][0], alpha=-2)[None])]

        variants = {name: by_blocks(rows) for name, rows in blocks(len(batches[0]), len(bank))}
        return variants | ({"matrix-vector": one_query} if len(batches[0]) == 1 else {})

    def answer(self, raw: Any) -> TopK:
        return TopK(*(torch.cat(column).numpy() for column in zip(*raw, strict=True)))


class TorchCdist:
    """torch.cdist, then topk."""

    name = "torch cdist+topk"

    def missing(self) -> str:
        return ""

    def prepare(self, search: Search) -> Variants:
        bank, k = torch.from_numpy(search.bank), search.k
        batches = [torch.from_numpy(queries) for queries in search.queries]

        def by_blocks(rows: int) -> Call:
            @torch.inference_mode()
            def call(i: int) -> list[tuple[Tensor, Tensor]]:
                found = (torch.topk(torch.cdist(part, bank), k, largest=False) for part in batches[i].split(rows))
                return [(values, indices) for values, indices in found]

            return call

        return {name: by_blocks(rows) for name, rows in blocks(len(batches[0]), len(bank))}

    def answer(self, raw: Any) -> TopK:
        distances, indices = (torch.cat(column).numpy() for column in zip(*raw, strict=True))
        return TopK(np.square(distances.astype(np.float64)), indices)


class Faiss:
    """faiss IndexFlatL2, built beforehand; by BLAS or directly, whatever is faster."""

    name = "faiss IndexFlatL2"

    def missing(self) -> str:
        try:
            import faiss  # noqa: F401
        except ImportError:
            return "the package faiss-cpu is not installed: pip install 'lpkernel[bench]'"
        return ""

    def prepare(self, search: Search) -> Variants:
        import faiss

        index = faiss.IndexFlatL2(search.bank.shape[1])
        index.add(search.bank)

        def with_blas_from(queries: int) -> Call:
            def call(i: int) -> Any:
                faiss.cvar.distance_compute_blas_threshold = queries
                return index.search(search.queries[i], search.k)

            return call

        return {"BLAS": with_blas_from(1), "direct": with_blas_from(1 << 30)}

    def answer(self, raw: Any) -> TopK:
        return TopK(*raw)


class ScikitLearn:
    """ArgKmin, which scikit-learn's brute-force NearestNeighbors runs on; norms of the bank kept."""

    name = "scikit-learn ArgKmin"

    def missing(self) -> str:
        try:
            from sklearn.metrics import _pairwise_distances_reduction as reduction
        except ImportError:
            return "the package scikit-learn is not installed: pip install 'lpkernel[bench]'"
        return "" if hasattr(reduction, "ArgKmin") else "this scikit-learn has no ArgKmin; install another version"

    def prepare(self, search: Search) -> Variants:
        from sklearn.metrics._pairwise_distances_reduction import ArgKmin

        bank = search.bank
        norms = np.einsum("bd,bd->b", bank, bank, dtype=np.float64)

        def with_strategy(strategy: str) -> Call:
            def call(i: int) -> Any:
                return ArgKmin.compute(
                    search.queries[i],
                    bank,
                    search.k,
                    metric="sqeuclidean",
                    metric_kwargs={"Y_norm_squared": norms},
                    strategy=strategy,
                    return_distance=True,
                )

            return call

        return {name.replace("_", " "): with_strategy(name) for name in ("parallel_on_X", "parallel_on_Y")}

    def answer(self, raw: Any) -> TopK:
        return TopK(*raw)


class Keops:
    """pykeops Kmin_argKmin, which compiles one formula for each width and K at its first use."""

    name = "pykeops argKmin"

    def missing(self) -> str:
        try:
            with redirect_stdout(sys.stderr):  # it speaks when imported
                import pykeops
        except ImportError:
            return "the package pykeops is not installed (it compiles at run time): pip install pykeops"
        except Exception as error:  # it looks for compilers and folders at import
            return f"pykeops does not load: {type(error).__name__}: {error}"
        pykeops.set_verbose(False)
        return ""

    def prepare(self, search: Search) -> Variants:
        from pykeops.torch import LazyTensor

        bank = LazyTensor(torch.from_numpy(search.bank)[None])
        batches = [torch.from_numpy(queries)[:, None] for queries in search.queries]

        def call(i: int) -> Any:
            return ((LazyTensor(batches[i]) - bank) ** 2).sum(-1).Kmin_argKmin(search.k, dim=1)

        return {"compiled": call}

    def answer(self, raw: Any) -> TopK:
        return TopK(*(column.numpy() for column in raw))


PEERS: dict[str, Peer] = {
    "matmul": TorchMatmul(),
    "cdist": TorchCdist(),
    "faiss": Faiss(),
    "sklearn": ScikitLearn(),
    "keops": Keops(),
}
