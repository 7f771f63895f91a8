"""Compiled kernels on the CPU: PTX from nvcc or Triton, for sm_80, translated to C++ and executed."""

from .module import Module
from .parse import PtxError
from .translate import Translator

__all__ = ["Module", "PtxError", "Translator"]
