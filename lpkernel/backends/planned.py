"""Backends that have a name and a place in `auto`'s order, but no kernels in this version."""

from __future__ import annotations

from typing import NoReturn

from lpkernel.backends.base import ScanRequest, TopkRequest
from lpkernel.errors import BackendUnavailable


class PlannedBackend:
    """Says why it cannot run, and nothing else."""

    def __init__(self, name: str, what: str) -> None:
        self.name, self.what = name, what

    def unsupported(self, request: ScanRequest | TopkRequest | None, device: str = "auto") -> list[str]:
        return [f"this version has no {self.what} yet; use cpp, torch or numpy"]

    def scan(self, request: ScanRequest, device: str = "auto") -> NoReturn:
        raise BackendUnavailable(f"backend {self.name}: {self.unsupported(request)[0]}")

    def masked_topk(self, request: TopkRequest) -> NoReturn:
        raise BackendUnavailable(f"backend {self.name}: {self.unsupported(request)[0]}")
