"""What callers give as numbers: tensors of any kind, or arrays."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from lpkernel.errors import InputError, one_line, short

_NUMPY_FLOATS = ("torch.float16", "torch.float32", "torch.float64")


def check_dense(name: str, tensor: Any) -> None:
    """Raise InputError unless a tensor of torch holds all its numbers in memory: others fail in torch's own words.

    Checks nothing while torch.compile looks on.
    """
    import torch  # which made the tensor; a bank of arrays does without

    if torch.compiler.is_compiling():
        return
    if tensor.device.type == "meta":
        raise InputError(f"{name}: got a tensor on the device meta, which holds no numbers; make it on cpu or a GPU")
    if tensor.is_nested:
        raise InputError(f"{name}: got a nested tensor, expected a dense one; join its parts by torch.stack or cat")
    if tensor.layout != torch.strided:
        raise InputError(f"{name}: got a tensor of layout {tensor.layout}, expected a dense one; use .to_dense()")
    if tensor.is_quantized:
        raise InputError(f"{name}: got a quantised tensor, expected plain numbers; use .dequantize()")


def host_array(name: str, value: Any) -> np.ndarray:
    """An array, nested lists, or a tensor on any device, without its gradient, as a NumPy array of any dtype.

    Floats that NumPy lacks, such as bfloat16, become float32. Raises InputError for what has no one shape, for masked
    elements, and for numbers that NumPy has no dtype for.
    """
    if type(value) is np.ndarray:
        return value
    if np.ma.is_masked(value):
        raise InputError(f"{name}: got an array with masked elements, expected all its numbers; use .filled(...)")
    torch = sys.modules.get("torch")  # no tensor was made without it
    if torch is not None and isinstance(value, torch.Tensor):
        check_dense(name, value)
        widen = value.is_floating_point() and str(value.dtype) not in _NUMPY_FLOATS
        try:
            return np.asarray((value.detach().float() if widen else value).numpy(force=True))
        except TypeError as error:  # complex numbers of 16 bits
            raise InputError(f"{name}: got a tensor of {value.dtype}, expected a dtype that NumPy has") from error
    if hasattr(value, "toarray"):
        raise InputError(f"{name}: got a {type(value).__name__}, expected a dense array; use .toarray()")
    try:
        return np.asarray(value)
    except (TypeError, ValueError) as error:  # lists of different lengths; arrays that live on a GPU
        got = f"{short(repr(value))} ({one_line(error)})"
        raise InputError(f"{name}: got {got}, expected an array, every row as long") from error
