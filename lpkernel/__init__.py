"""lpkernel: the engine for LatentPatch, new images from a few examples with no training."""

from importlib.metadata import version

from lpkernel import plan
from lpkernel.autoencoder import Autoencoder, load_autoencoder
from lpkernel.bank import Bank
from lpkernel.errors import BackendUnavailable, InputError, LpkernelError, MissingExtra
from lpkernel.info import info
from lpkernel.ops import masked_topk
from lpkernel.synthesis import Synthesis, generate

__version__ = version("lpkernel")

__all__ = [
    "Autoencoder",
    "BackendUnavailable",
    "Bank",
    "InputError",
    "LpkernelError",
    "MissingExtra",
    "Synthesis",
    "generate",
    "info",
    "load_autoencoder",
    "masked_topk",
    "plan",
]
