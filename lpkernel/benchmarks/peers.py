"""Nearest-neighbour searches of other libraries on a CPU or a GPU, each in its best layout.

`prepare` copies bank and queries to the device and indexes the bank, which is not timed, and returns the ways to run
the search; the fastest of them stands for the peer. A call takes the number of a query batch; `answer` turns what it
returned into squared distances and indices in NumPy, not timed either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpkernel.autoencoder.device_decoder import no_compiler
from lpkernel.backends.base import TopK
from lpkernel.benchmarks import machine, measure

Call = Callable[[int], Any]
Variants = dict[str, Call]
CPU_ONLY = "runs on the CPU only"
BLOCKS = {"16 MB blocks": 16 << 20, "64 MB blocks": 64 << 20, "one block": 2 << 30}


@dataclass(frozen=True)
class Search:
    """K nearest of the bank's rows for each query: bank (B, D), each batch of queries (N, D), float32, contiguous.

    device: where the search is to run.
    """

    bank: NDArray[np.float32]
    queries: list[NDArray[np.float32]]
    k: int
    device: str = "cpu"

    def tensors(self) -> tuple[Tensor, list[Tensor]]:
        """Bank and batches, on the device."""
        return torch.from_numpy(self.bank).to(self.device), [
            torch.from_numpy(queries).to(self.device) for queries in self.queries
        ]


class Peer(Protocol):
    name: str
    exact: bool  # except for float32 rounding

    def missing(self, device: str) -> str:
        """Why it cannot run on a device here; "" if it can."""
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


def ranked(queries: Tensor, norms: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(n, D), (B,), (B, D) -> |b|^2 - 2 q.b, which ranks the bank's rows, and indices, (n, k): one matrix product."""
    values, indices = torch.topk(torch.addmm(norms, queries, bank.T, alpha=-2), k, largest=False)
    return values, indices


def nearest(part: Tensor, norms: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(n, D), (B,), (B, D) -> squared distances and indices, (n, k): |q|^2 + |b|^2 - 2 q.b."""
    values, indices = ranked(part, norms, bank, k)
    return values + part.square().sum(1, keepdim=True), indices


@cache
def compiled_nearest() -> Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]:
    """`nearest`, compiled for every shape at once: two or three compilations in a run."""
    return torch.compile(nearest, dynamic=True)


def missing(device: str, tf32: bool, compiled: bool) -> str:
    """Why products in TF32, or compiled ones, are not tried on a device; "" if they are."""
    if not measure.on_gpu(device):
        if tf32:
            return "a CPU has no TF32"
        return "on a CPU product and topk are the library's, compiled or not" if compiled else ""
    return no_compiler(torch.device(device).type) if compiled else ""


class TorchMatmul:
    """|b|^2 - 2 q.b by one matrix product, norms of the bank kept, then topk; in TF32, or by torch.compile."""

    def __init__(self, tf32: bool = False, compiled: bool = False) -> None:
        self.tf32, self.compiled, self.exact = tf32, compiled, not tf32
        own = "torch.compile" if compiled else "torch"
        self.name = f"{own} matmul+topk" + (" TF32, not exact" if tf32 else "")

    def missing(self, device: str) -> str:
        return missing(device, self.tf32, self.compiled)

    def prepare(self, search: Search) -> Variants:
        k, (bank, batches) = search.k, search.tensors()
        norms = bank.square().sum(1)
        found = compiled_nearest() if self.compiled else nearest

        def by_blocks(rows: int) -> Call:
            @torch.inference_mode()
            def call(i: int) -> list[tuple[Tensor, Tensor]]:
                with machine.tf32(self.tf32):
                    return [found(part, norms, bank, k) for part in batches[i].split(rows)]

            return call

        @torch.inference_mode()
        def one_query(i: int) -> list[tuple[Tensor, Tensor]]:
            with machine.tf32(self.tf32):
                query = batches[i]
                values, indices = torch.topk(torch.addmv(norms, bank, query[0], alpha=-2)[None], k, largest=False)
                return [(values + query.square().sum(1, keepdim=True), indices)]

        variants = {name: by_blocks(rows) for name, rows in blocks(len(batches[0]), len(bank))}
        return variants | ({"matrix-vector": one_query} if len(batches[0]) == 1 and not self.compiled else {})

    def answer(self, raw: Any) -> TopK:
        return TopK(*(torch.cat(column).cpu().numpy() for column in zip(*raw, strict=True)))


class TorchCdist:
    """torch.cdist, then topk."""

    name = "torch cdist+topk"
    exact = True

    def missing(self, device: str) -> str:
        return ""

    def prepare(self, search: Search) -> Variants:
        k, (bank, batches) = search.k, search.tensors()

        def by_blocks(rows: int) -> Call:
            @torch.inference_mode()
            def call(i: int) -> list[tuple[Tensor, Tensor]]:
                found = (torch.topk(torch.cdist(part, bank), k, largest=False) for part in batches[i].split(rows))
                return [(values, indices) for values, indices in found]

            return call

        return {name: by_blocks(rows) for name, rows in blocks(len(batches[0]), len(bank))}

    def answer(self, raw: Any) -> TopK:
        distances, indices = (torch.cat(column).cpu().numpy() for column in zip(*raw, strict=True))
        return TopK(np.square(distances.astype(np.float64)), indices)


class Faiss:
    """faiss IndexFlatL2, built beforehand; by BLAS or directly, whichever is faster. On a GPU GpuIndexFlatL2."""

    name = "faiss IndexFlatL2"
    exact = True

    def missing(self, device: str) -> str:
        gpu = measure.on_gpu(device)
        try:
            import faiss
        except ImportError:
            package = "faiss-gpu-cu12" if gpu else "faiss-cpu"
            fix = "pip install faiss-gpu-cu12" if gpu else "pip install 'lpkernel[bench]'"
            return f"the package {package} is not installed: {fix}"
        return "" if not gpu or hasattr(faiss, "GpuIndexFlatL2") else f"this faiss {faiss.__version__} is for CPUs only"

    def prepare(self, search: Search) -> Variants:
        import faiss

        if measure.on_gpu(search.device):
            return self._on_gpu(search)
        index = faiss.IndexFlatL2(search.bank.shape[1])
        index.add(search.bank)

        def with_blas_from(queries: int) -> Call:
            def call(i: int) -> Any:
                faiss.cvar.distance_compute_blas_threshold = queries
                return index.search(search.queries[i], search.k)

            return call

        return {"BLAS": with_blas_from(1), "direct": with_blas_from(1 << 30)}

    def _on_gpu(self, search: Search) -> Variants:
        import faiss
        import faiss.contrib.torch_utils  # indexes take tensors, and work on torch's stream

        bank, batches = search.tensors()
        resources, options = faiss.StandardGpuResources(), faiss.GpuIndexFlatConfig()
        options.device = bank.device.index or 0
        index = faiss.GpuIndexFlatL2(resources, bank.shape[1], options)
        index.add(bank)
        return {"": lambda i: index.search(batches[i], search.k)}

    def answer(self, raw: Any) -> TopK:
        return TopK(*(torch.as_tensor(column).cpu().numpy() for column in raw))


class ScikitLearn:
    """ArgKmin, which scikit-learn's brute-force NearestNeighbors runs on; norms of the bank kept."""

    name = "scikit-learn ArgKmin"
    exact = True

    def missing(self, device: str) -> str:
        if measure.on_gpu(device):
            return CPU_ONLY
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
    exact = True

    def missing(self, device: str) -> str:
        try:
            with redirect_stdout(sys.stderr):  # it prints when imported
                import pykeops
        except ImportError:
            return "the package pykeops is not installed (it compiles at run time): pip install pykeops"
        except Exception as error:  # it looks for compilers and folders at import
            return f"pykeops does not load: {type(error).__name__}: {error}"
        pykeops.set_verbose(False)
        return ""

    def prepare(self, search: Search) -> Variants:
        from pykeops.torch import LazyTensor

        rows, batches = search.tensors()
        bank = LazyTensor(rows[None])

        def call(i: int) -> Any:
            return ((LazyTensor(batches[i][:, None]) - bank) ** 2).sum(-1).Kmin_argKmin(search.k, dim=1)

        return {"compiled": call}

    def answer(self, raw: Any) -> TopK:
        return TopK(*(column.cpu().numpy() for column in raw))


PEERS: dict[str, Peer] = {
    "matmul": TorchMatmul(),
    "matmul-tf32": TorchMatmul(tf32=True),
    "matmul-compiled": TorchMatmul(compiled=True),
    "matmul-compiled-tf32": TorchMatmul(tf32=True, compiled=True),
    "cdist": TorchCdist(),
    "faiss": Faiss(),
    "sklearn": ScikitLearn(),
    "keops": Keops(),
}
