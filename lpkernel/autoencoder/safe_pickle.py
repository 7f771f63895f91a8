"""Reading pickles without running what is in them.

Only the classes needed to rebuild arrays, tensors and plain containers can be named by the file;
objects of training frameworks become inert placeholders; any other name is refused.
"""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lpkernel.errors import InputError

NUMPY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}

# Objects that checkpoints carry beside the weights and that nobody here needs.
INERT_MODULES = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "torch.optim",
    "torchmetrics",
    "taming",
    "ldm",
    "pathlib",
)
INERT_NAMES = {("argparse", "Namespace"), ("collections", "Counter"), ("typing", "Any"), ("typing", "Union")}


class Refused(pickle.UnpicklingError):
    """The pickle asks for more than data."""


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that can rebuild NumPy arrays and plain containers and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMPY_GLOBALS:
            return super().find_class(module, name)
        raise Refused(f"it names {module}.{name}, which is not an array or a plain container")


def load_arrays(path: Path) -> Any:
    """Nested dicts of NumPy arrays from a pickle file."""
    with path.open("rb") as file:
        return RestrictedUnpickler(file).load()


class _Placeholder:
    """Stands for an object of a training framework: takes whatever the pickle gives it and keeps none of it."""

    __slots__ = ()

    def __new__(cls, *_args: object, **_kwargs: object) -> _Placeholder:
        return super().__new__(cls)

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    # An ordinary method, so that a pickle cannot set attributes on the class itself either.
    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _value: object) -> None:
        pass

    def extend(self, _values: object) -> None:
        pass


class _Function:
    """A function that a pickle may call and cannot alter."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, _value: object) -> None:
        raise Refused(f"it sets the attribute {name} of a function")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *_grad_hooks_metadata: object) -> torch.Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


def _parameter(data: torch.Tensor, *_grad_hooks: object) -> torch.Tensor:
    return data


def _numpy_scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    if dtype.hasobject or not isinstance(data, bytes):
        raise Refused("it holds a NumPy scalar of Python objects")
    return np.frombuffer(data, dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":  # the one that pickle itself writes, for bytes
        raise Refused(f"it encodes text as {encoding}")
    return text.encode("latin1")


def _reconstruct_object(cls: type, _base: object, _state: object) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, _Placeholder)):
        raise Refused(f"it builds an object of {cls!r}")
    return cls()


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("numpy.core.multiarray", "scalar"): _numpy_scalar,
    ("numpy._core.multiarray", "scalar"): _numpy_scalar,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstruct_object,
    ("copy_reg", "_reconstructor"): _reconstruct_object,
    ("torch", "device"): str,  # where a tensor was is no concern of ours
    ("torch", "Size"): tuple,
}
# Types written in C cannot be altered by a pickle, so they are handed out as they are.
_PLAIN_TYPES = (set, frozenset, list, dict, tuple, int, float, complex, bool, str, bytes, object)
_PLAIN = {
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _PLAIN_TYPES},
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
}


class _CheckpointUnpickler(RestrictedUnpickler):
    """`RestrictedUnpickler` for training checkpoints: tensors too, and placeholders for framework objects."""

    def find_class(self, module: str, name: str) -> Any:
        key = (module, name)
        if key in _FUNCTIONS:
            return _Function(_FUNCTIONS[key])
        if key in _PLAIN:
            return _PLAIN[key]
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        if key in INERT_NAMES or any(module == known or module.startswith(known + ".") for known in INERT_MODULES):
            return type("Placeholder", (_Placeholder,), {"__slots__": ()})  # a fresh class for each name
        if key in NUMPY_GLOBALS:
            return super().find_class(module, name)
        raise Refused(f"it names {module}.{name}, which is no tensor, array or plain container")


def _load(file: Any, **options: Any) -> Any:
    return _CheckpointUnpickler(file, **options).load()


# What torch.load asks of a `pickle_module`.
_CHECKPOINT_PICKLE = SimpleNamespace(
    __name__="checkpoint_pickle", Unpickler=_CheckpointUnpickler, load=_load, UnpicklingError=pickle.UnpicklingError
)


def load_checkpoint(path: Path) -> Any:
    """The content of a torch checkpoint (zip or legacy format), tensors on the CPU; nothing in it is run.

    Objects of training frameworks (Lightning, OmegaConf, optimisers) come back as empty placeholders.
    Raises InputError if the file is missing, damaged, of another kind, or names anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols that it reads all the same
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:  # other errors (TorchScript, torch's old tar files) end here
                return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_CHECKPOINT_PICKLE)
    except Refused as error:
        raise InputError(f"{path} is refused: {_one_line(error)}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise InputError(f"{path} is not a readable torch checkpoint ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return str(error).split("\n")[0].strip()[:160] or type(error).__name__
