"""Which backend computes: by name, or the first usable one in order of speed."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

import torch

from lpkernel.backends.base import Backend, ScanRequest, TopkRequest
from lpkernel.backends.cpp import CppBackend
from lpkernel.backends.cuda import CudaBackend
from lpkernel.backends.pytorch import TorchBackend
from lpkernel.backends.specification import NumpyBackend
from lpkernel.backends.triton_lang import TritonBackend
from lpkernel.errors import BackendUnavailable, InputError

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        CudaBackend(),
        TritonBackend(),
        CppBackend(),
        TorchBackend(),
        NumpyBackend(),
    )
}
NAMES = ("auto", *BACKENDS)
Wanted = ScanRequest | TopkRequest | str  # a request, or the device of any
_log = logging.getLogger("lpkernel")
_said: set[str] = set()


def choose(name: str, wanted: Wanted = "auto") -> Backend:
    """The backend `name`, or for "auto" the first of `BACKENDS` that can run what is wanted.

    A name, the caller's or the environment's (`named`), never falls back. Logs once which backend "auto" took. Raises
    InputError for an unknown name, BackendUnavailable with the reasons when it cannot run.
    """
    if type(wanted) is not TopkRequest:  # rows have a device already
        _check_device(wanted)
    if name == "auto":
        name = named(name)
    if name not in NAMES:
        raise InputError(f"backend: got {name!r}, expected one of {', '.join(NAMES)}")
    if name != "auto":
        backend = BACKENDS[name]
        if reasons := _reasons(backend, wanted):
            raise BackendUnavailable(f"backend {name} cannot run this: {'; '.join(reasons)}")
        return backend
    refused = []
    for backend in BACKENDS.values():
        reasons = against_auto(backend, wanted)
        if not reasons:
            if backend.name not in _said:
                _said.add(backend.name)
                _log.info("backend auto took %s", backend.name)
            return backend
        refused.append(f"{backend.name}: {'; '.join(reasons)}")
    raise BackendUnavailable(f"no backend can run this. {' | '.join(refused)}")


def _check_device(wanted: Wanted) -> None:
    device = wanted if isinstance(wanted, str) else wanted.device
    try:
        known = device == "auto" or torch.device(device).type != "meta"
    except RuntimeError:
        known = False
    if not known:
        raise InputError(f'device: got {device!r}, expected "auto", "cpu", "cuda" or one of several, such as "cuda:1"')


def named(name: str) -> str:
    """The name that counts: for "auto" that in the environment variable LPKERNEL_BACKEND, if there is one."""
    return (os.environ.get("LPKERNEL_BACKEND") or "auto") if name == "auto" else name


def plain_topk(name: str, queries: Any, bank: Any, k: int, here: bool) -> tuple[Any, Any, bool] | None:
    """The search of float32 NumPy rows without masks or weights, if `choose(name)` is `cpp` and that choice has been
    made before: a search of one query takes less time than `choose`. See `CppBackend.plain_topk`; None: call `choose`.

    here: "auto" may not take a GPU, since the rows come from tensors on the CPU.
    """
    cpp = BACKENDS.get("cpp")
    by_auto = name == "auto" and "cpp" in _said and (here or _no_gpu())
    if not isinstance(cpp, CppBackend) or not (by_auto or name == "cpp"):
        return None
    return cpp.plain_topk(queries, bank, k, by_auto)


@cache
def _no_gpu() -> bool:
    """Whether there is no GPU, which does not change while the process lives."""
    return not torch.cuda.is_available()


def against_auto(backend: Backend, wanted: Wanted = "auto") -> list[str]:
    """Reasons why "auto" passes a backend by: what it cannot do, or that it is for checking only."""
    if reasons := _reasons(backend, wanted):
        return reasons
    return ["is only for checking; ask for it by name"] if backend.checks_only else []


def _reasons(backend: Backend, wanted: Wanted) -> list[str]:
    return backend.unavailable(wanted) if isinstance(wanted, str) else backend.unsupported(wanted)
