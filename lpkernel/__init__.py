"""lpkernel: the engine for LatentPatch, new images from a few examples with no training."""

from lpkernel import _startup  # first, so that it is in effect while the rest is imported

# isort: split
import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from lpkernel.errors import BackendUnavailable, InputError, LpkernelError, MissingExtra
from lpkernel.info import info

if TYPE_CHECKING:
    from lpkernel import plan
    from lpkernel.alignment.align import Aligned, Framing, align
    from lpkernel.autoencoder import Autoencoder, load_autoencoder
    from lpkernel.backends.base import TopK
    from lpkernel.bank import Bank
    from lpkernel.copies import CopyLimit
    from lpkernel.modes.edit import edit
    from lpkernel.modes.harmonize import harmonize
    from lpkernel.modes.inpaint import inpaint
    from lpkernel.modes.reference import reference
    from lpkernel.pictures import render as render
    from lpkernel.search.index import IndexFlatL2, NearestNeighbors
    from lpkernel.search.ops import masked_topk
    from lpkernel.search.patches import normalised_nearest, patch_nearest
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
    "TopK",
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

# Names that are imported on first use, so that the command line answers before torch is loaded.
_HOMES = {
    "Aligned": "alignment.align",
    "Autoencoder": "autoencoder",
    "Bank": "bank",
    "CopyLimit": "copies",
    "Framing": "alignment.align",
    "IndexFlatL2": "search.index",
    "NearestNeighbors": "search.index",
    "Synthesis": "synthesis",
    "TopK": "backends.base",
    "align": "alignment.align",
    "edit": "modes.edit",
    "generate": "synthesis",
    "harmonize": "modes.harmonize",
    "inpaint": "modes.inpaint",
    "load_autoencoder": "autoencoder",
    "masked_topk": "search.ops",
    "normalised_nearest": "search.patches",
    "patch_nearest": "search.patches",
    "reference": "modes.reference",
}
_ROOMS = {"render": "pictures.render"}  # modules that go by a shorter name


if not TYPE_CHECKING:  # or a misspelt name would be one of any type

    def __getattr__(name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module 'lpkernel' has no attribute {name!r}")
        if name in _HOMES:
            value = getattr(importlib.import_module(f"lpkernel.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        try:
            return importlib.import_module(f"lpkernel.{_ROOMS.get(name, name)}")
        except ModuleNotFoundError as error:
            if error.name != f"lpkernel.{name}":
                raise
            raise AttributeError(f"module 'lpkernel' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not _startup.is_command():
    # A program that imports lpkernel finds torch.ops.lpkernel.
    importlib.import_module("lpkernel.search.ops")
