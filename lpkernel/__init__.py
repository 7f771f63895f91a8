"""lpkernel: the engine for LatentPatch, new images from a few examples with no training."""

from lpkernel import _startup  # noqa: F401  before the rest: what it does holds while that is imported

# isort: split
from importlib.metadata import version

from lpkernel import plan
from lpkernel.autoencoder import Autoencoder, load_autoencoder
from lpkernel.bank import Bank
from lpkernel.copies import CopyLimit
from lpkernel.errors import BackendUnavailable, InputError, LpkernelError, MissingExtra
from lpkernel.info import info
from lpkernel.modes.aligning import Aligned, Framing, align
from lpkernel.modes.editing import edit
from lpkernel.modes.guided import reference
from lpkernel.modes.harmonizing import harmonize
from lpkernel.modes.inpainting import inpaint
from lpkernel.ops import masked_topk
from lpkernel.synthesis import Synthesis, generate

__version__ = version("lpkernel")

__all__ = [
    "Aligned",
    "Autoencoder",
    "BackendUnavailable",
    "Bank",
    "CopyLimit",
    "Framing",
    "InputError",
    "LpkernelError",
    "MissingExtra",
    "Synthesis",
    "align",
    "edit",
    "generate",
    "harmonize",
    "info",
    "inpaint",
    "load_autoencoder",
    "masked_topk",
    "plan",
    "reference",
]
