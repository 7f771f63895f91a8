"""What this installation consists of and what can run on this machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "torch", "triton", "pillow", "safetensors", "diffusers")
DATA = {"autoencoder": "autoencoder.safetensors", "bank": "avatars.lpbank"}


def info(
    autoencoder: str = "default", device: str = "auto", dtype: str = "auto", compile: str = "auto"
) -> dict[str, Any]:
    """A JSON-ready report of the installation. Loads the backends and an autoencoder to query them; changes nothing and
    never raises for what is missing. autoencoder, device, dtype, compile: as `load_autoencoder` takes them.

    Keys: lpkernel, python, platform (str); packages (name -> version or None); cpu (model, cores, usable_cores);
    gpus (names); backends (name -> {usable, reasons}) in the order "auto" tries them; auto ({backend, reason}: what
    it picks, None with the reason if nothing is usable); autoencoder ({source, layers: {kind: what runs them}}, or
    {source, reason} if it does not load); build (cpp and cuda -> {built, ...}); data (embedded file ->
    present).
    """
    import torch

    from lpkernel import __version__
    from lpkernel._native import build_record
    from lpkernel.backends import registry

    data = Path(__file__).with_name("data")
    record = build_record()
    return {
        "lpkernel": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {"model": cpu_model(), "cores": os.cpu_count(), "usable_cores": len(os.sched_getaffinity(0))},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "backends": {
            name: {"usable": not reasons, "reasons": reasons}
            for name, reasons in ((name, backend.unavailable()) for name, backend in registry.BACKENDS.items())
        },
        "auto": _auto(),
        "autoencoder": _autoencoder(autoencoder, device, dtype, compile),
        "build": {name: record[name] for name in ("cpp", "cuda")},
        "data": {name: (data / file).is_file() for name, file in DATA.items()},
    }


def _auto() -> dict[str, str | None]:
    """The backend that "auto" takes, and why: the environment, or the reasons against those before it."""
    from lpkernel.backends import registry
    from lpkernel.errors import LpkernelError

    try:
        return {"backend": registry.choose("auto").name, "reason": why_chosen("auto")}
    except LpkernelError as error:
        return {"backend": None, "reason": str(error)}


def _autoencoder(source: str, device: str, dtype: str, compile: str) -> dict[str, Any]:
    from lpkernel.autoencoder import load_autoencoder
    from lpkernel.autoencoder.described import described
    from lpkernel.errors import LpkernelError

    try:
        return {"source": source, "layers": described(load_autoencoder(source, device, dtype, compile))}
    except LpkernelError as error:
        return {"source": source, "reason": str(error)}


def why_chosen(asked: str, device: str = "auto") -> str:
    """One line: why a call with backend=`asked` takes the backend that it takes."""
    from lpkernel.backends import registry

    if asked != "auto":
        return "asked for by name"
    if os.environ.get("LPKERNEL_BACKEND", "auto") not in ("", "auto"):
        return "asked for by LPKERNEL_BACKEND"
    skipped = []
    for name, backend in registry.BACKENDS.items():
        if not (reasons := registry.against_auto(backend, device)):
            break
        skipped.append(f"{name} ({'; '.join(reasons)})")
    return f"first usable; before it: {', '.join(skipped) or 'none'}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
