"""Runs one of the kernels in kernels/probe.cu, in a process of its own, since a mistake that is found ends it.

    run_probe.py LIBRARY PTX|- KERNEL BUG

Prints `right` or `wrong`; KERNEL `operations` prints its results.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
from numpy.typing import NDArray

KERNELS = ("row_sums", "copied_sums", "group_sums")
BUGS = (
    *("none", "no_barrier", "out_of_bounds", "misaligned", "short_wait", "divergent_shuffle", "divergent_barrier"),
    *("lost_barrier", "no_arrival", "no_group_barrier", "deadlock"),
)


def pointers(*arrays: NDArray[np.generic]) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(array.ctypes.data) for array in arrays]


def sums(library: ctypes.CDLL, kernel: str, bug: str, rows: int, columns: int, threads: int) -> bool:
    """Whether the kernel's sums are those of numpy."""
    numbers = np.random.default_rng(0).integers(-1000, 1000, (rows, columns), dtype=np.int32)
    found, partial, counter = np.full(rows, 7, np.int32), np.full(rows, 7, np.int32), np.zeros(1, np.uint32)
    code = library.probe(
        KERNELS.index(kernel),
        BUGS.index(bug),
        *pointers(numbers, found, counter, partial),
        rows,
        columns,
        threads,
    )
    if code:
        raise RuntimeError(f"launch failed with {code}")
    wanted = np.full(rows, numbers.sum()) if kernel == "group_sums" else numbers.sum(axis=1)
    return bool((found == wanted).all())


def operations(library: ctypes.CDLL, threads: int = 96) -> list[str]:
    values = np.random.default_rng(1).integers(-(2**63), 2**63, threads, dtype=np.int64)
    values[:8] = (0, 1, -1, 2**31, -(2**31), 2**63 - 1, -(2**63), 12345)
    results, counters = np.zeros((threads, 64), np.uint64), np.zeros(8, np.uint32)
    code = library.run_operations(*pointers(values, results, counters), threads)
    if code:
        raise RuntimeError(f"launch failed with {code}")
    return [*(" ".join(map(str, column)) for column in results.T), " ".join(map(str, counters))]


def main() -> None:
    path, ptx, kernel, bug = sys.argv[1:]
    library = ctypes.CDLL(path)
    if ptx != "-" and library.simt_use_ptx(ptx.encode()):
        raise RuntimeError(f"{ptx} does not load")
    if kernel == "operations":
        print("\n".join(operations(library)))
        return
    shapes = [(6, 1000, 96)] if bug != "none" else [(6, 1000, 96), (1, 4, 32), (3, 64, 64), (9, 388, 128)]
    print("right" if all(sums(library, kernel, bug, *shape) for shape in shapes) else "wrong")


if __name__ == "__main__":
    main()
