"""Every preset, with any options overridden, gives the same source maps on every backend, batch and thread count.

The emulated GPU kernels and the native strategies have their own tests: test_cuda_scan, triton_checks, test_cpp.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lpkernel as lp
from lpkernel import plan
from lpkernel.backends.base import Backend
from lpkernel.presets import PRESETS

GRID, SIZE = 6, 18
RANDOM = np.random.default_rng(0)
BANKS = {
    # few codes, so that ties are common
    "codes": lp.Bank.from_codes(RANDOM.integers(0, 9, (SIZE, GRID, GRID)), RANDOM.normal(size=(9, 5)), 3),
    "latents": lp.Bank.from_latents(RANDOM.normal(size=(SIZE, GRID, GRID, 4)), 3),
}
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "overlap": st.sampled_from(plan.OVERLAPS),
    "start": st.sampled_from(plan.STARTS),
    "hubness": st.sampled_from([0.0, 0.1, 0.25, 1.0]),
    "mirror": st.sampled_from([0, 1, 2]),
    "stride": st.just(1),
    "k": st.sampled_from([1, 2, SIZE + 1]),
    "scales": st.sampled_from([(GRID,), (4, GRID), (4, 5, GRID)]),
    "candidates": st.sampled_from([(3,), (2, 5, 16, 17), tuple(range(1, SIZE))]),
    "first_image": st.just(7),
}
ASKED = st.fixed_dictionaries(
    {
        "preset": st.sampled_from(sorted(PRESETS)),
        "patch": st.integers(2, 4),
        "seed": st.integers(0, 2**64 - 1),
    },
    optional=OPTIONS,
)


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(sorted(BANKS)),
    asked=ASKED,
    n=st.integers(1, 5),
    cut=st.integers(0, 4),
    threads=st.integers(1, 3),
)
def test_same_on_every_backend_batch_and_thread_count(
    fast_backend: Backend, name: str, asked: dict[str, Any], n: int, cut: int, threads: int
) -> None:
    bank, cut, first = BANKS[name], min(cut, n - 1), asked.get("first_image", 0)
    wanted = lp.generate(bank, n, backend="numpy", **asked).sources
    part = {**asked, "first_image": first + cut}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert np.array_equal(lp.generate(bank, n, backend=fast_backend.name, **asked).sources, wanted)
        assert np.array_equal(lp.generate(bank, n - cut, backend=fast_backend.name, **part).sources, wanted[cut:])
    finally:
        torch.set_num_threads(before)
