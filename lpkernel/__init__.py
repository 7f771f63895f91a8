"""lpkernel: the engine for LatentPatch, new images from a few examples with no training."""

from lpkernel import _startup  # before the rest: what it does holds while that is imported

# isort: split
import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lpkernel.errors import BackendUnavailable, InputError, LpkernelError, MissingExtra
from lpkernel.info import info

if TYPE_CHECKING:
    from lpkernel import plan
    from lpkernel.autoencoder import Autoencoder, load_autoencoder
    from lpkernel.bank import Bank
    from lpkernel.copies import CopyLimit
    from lpkernel.index import IndexFlatL2, NearestNeighbors
    from lpkernel.modes.aligning import Aligned, Framing, align
    from lpkernel.modes.editing import edit
    from lpkernel.modes.guided import reference
    from lpkernel.modes.harmonizing import harmonize
    from lpkernel.modes.inpainting import inpaint
    from lpkernel.ops import masked_topk
    from lpkernel.patches import normalised_nearest, patch_nearest
    from lpkernel.synthesis import Synthesis, generate

__version__ = version("lpkernel")

__all__ = [
    "Aligned",
    "Autoencoder",
    "BackendUnavailable",
    "Bank",
    "CopyLimit",
    "Framing",
    "IndexFlatL2",
    "InputError",
    "LpkernelError",
    "MissingExtra",
    "NearestNeighbors",
    "Synthesis",
    "align",
    "edit",
    "generate",
    "harmonize",
    "info",
    "inpaint",
    "load_autoencoder",
    "masked_topk",
    "normalised_nearest",
    "patch_nearest",
    "plan",
    "reference",
]

# Names that are imported when they are first asked for, so that the command line answers before torch is there.
_HOMES = {
    "Aligned": "modes.aligning",
    "Autoencoder": "autoencoder",
    "Bank": "bank",
    "CopyLimit": "copies",
    "Framing": "modes.aligning",
    "IndexFlatL2": "index",
    "NearestNeighbors": "index",
    "Synthesis": "synthesis",
    "align": "modes.aligning",
    "edit": "modes.editing",
    "generate": "synthesis",
    "harmonize": "modes.harmonizing",
    "inpaint": "modes.inpainting",
    "load_autoencoder": "autoencoder",
    "masked_topk": "ops",
    "normalised_nearest": "patches",
    "patch_nearest": "patches",
    "reference": "modes.guided",
}


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'lpkernel' has no attribute {name!r}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"lpkernel.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"lpkernel.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"lpkernel.{name}":
            raise
        raise AttributeError(f"module 'lpkernel' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not _startup.is_command():
    # A program that imports lpkernel finds torch.ops.lpkernel.
    importlib.import_module("lpkernel.ops")
