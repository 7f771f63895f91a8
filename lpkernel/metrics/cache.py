"""Arrays kept between runs, each in a file whose name is a hash of all that determines it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel import tensor_file
from lpkernel.errors import InputError
from lpkernel.files import atomic_path


class Cache:
    """A folder of arrays; it is made when the first one is stored. Another version of lpkernel finds none of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: Any, shape: tuple[int, ...], kind: str) -> NDArray[Any] | None:
        """The array kept under `key` (ready for JSON), None if it is missing, damaged or not of this shape and kind
        (numpy's letter), or holds a number that is not finite: another program may have written it."""
        path = self._path(key)
        try:
            tensors, metadata = tensor_file.read(path)
        except InputError:
            return None
        values = tensors.get("values")
        if values is None or values.shape != shape or values.dtype.kind != kind:
            return None
        if metadata.get("sha256") != tensor_file.digest(tensors) or not np.isfinite(values).all():
            return None
        return np.array(values)

    def put(self, key: Any, values: NDArray[Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {"values": values}
        with atomic_path(self._path(key)) as partial:
            tensor_file.write(partial, tensors, {"sha256": tensor_file.digest(tensors)})

    def _path(self, key: Any) -> Path:
        from lpkernel import __version__

        text = json.dumps([__version__, key], sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode('utf-8', 'surrogateescape')).hexdigest()}.safetensors"
