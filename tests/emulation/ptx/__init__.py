"""Compiled kernels on the CPU: PTX of nvcc or Triton, at the level of sm_80, translated to C++ and executed."""

from .module import Module
from .parse import PtxError
from .translate import Translator

__all__ = ["Module", "PtxError", "Translator"]
