"""Banks on disk: one safetensors file, `.lpbank` by custom.

Tensors: the PCA, the codebook with its fixed-point rows and the codes, or the float16 latents with their
fixed-point values; attributes as bits; in version 2 the colours of the cells. The header's metadata holds the rest as
JSON, and a SHA-256 of all of it. That checksum is compared only on request, because mapping codes or latents should not
read them; what could make a kernel read outside an array is always checked: shapes and the limit of the codebook here,
codes here or, where they are mapped, as they are used.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lpkernel import tensor_file
from lpkernel.bank.fields import BankFields
from lpkernel.bank.pca import PCA
from lpkernel.errors import InputError
from lpkernel.files import atomic_path, check_place

FORMAT = "lpbank"
VERSIONS = ("1", "2")  # without colours, with them
_ARRAYS = ("codes", "codebook", "fixed_codebook", "latents", "fixed_latents", "colours")
_MAPPED = ("codes", *_ARRAYS[3:])  # another process may write into these at any time, even after a check
_PCA = ("mean", "components", "explained")
_LISTS = ("names", "labels")  # tensors of bytes where there are too many for the header
SEPARATOR = "\0"
LONGEST_SIDE = 65_535  # of the pictures that a bank was made from, as `pictures.images.MAX_SIDE`
MOST_TEXT = 1 << 22  # characters of names or labels in the header


def save(bank: BankFields, path: Path) -> None:
    """Write `bank`, whole or not at all. Raises InputError for a missing folder, OSError from the system."""
    check_place(path)
    bank.check_file()
    tensors = {name: getattr(bank, name) for name in _ARRAYS if getattr(bank, name) is not None}
    tensors |= {f"pca_{name}": getattr(bank.pca, name) for name in _PCA}
    if bank.attributes:
        tensors["attributes"] = np.packbits(np.stack(list(bank.attributes.values())), axis=1)
    texts = {"names": bank.names, "labels": bank.labels}
    for name, lines in texts.items():
        if lines is not None and _takes_too_much(lines):
            tensors[name] = np.frombuffer(SEPARATOR.join(lines).encode("utf-8", "surrogatepass"), np.uint8)
            texts[name] = []
    text = json.dumps(
        {
            "kind": "codes" if bank.is_discrete else "latents",
            "layout": "image, y, x, channel",
            "size": bank.size,
            "grid": bank.grid,
            "channels": bank.channels,
            "max_patch": bank.max_patch,
            "limit": bank.limit,
            "scale": bank.scale,
            "image_size": bank.image_size,
            "crop": bank.crop,
            "source_size": bank.source_size,
            "resize_filter": bank.resize_filter,
            "autoencoder_name": bank.autoencoder_name,
            "autoencoder_fingerprint": bank.autoencoder_fingerprint,
            "codebook_sha256": _codebook_hash(bank.codebook),
            "sources_hash": bank.sources_hash,
            **texts,
            "attributes": list(bank.attributes),
        },
        sort_keys=True,
    )
    version = VERSIONS[bank.colours is not None]
    metadata = {"format": FORMAT, "version": version, "bank": text, "sha256": tensor_file.digest(tensors, text)}
    with atomic_path(path) as partial:
        tensor_file.write(partial, tensors, metadata)


def _takes_too_much(lines: list[str]) -> bool:
    """Whether texts are too long for a header, and can be told apart outside it."""
    return sum(map(len, lines)) + 6 * len(lines) > MOST_TEXT and not any(SEPARATOR in line for line in lines)


def _codebook_hash(codebook: np.ndarray | None) -> str:
    return "" if codebook is None else hashlib.sha256(codebook.tobytes()).hexdigest()


class _Header:
    """The JSON of a bank file, read field by field with its type checked."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        data = tensor_file.json_object(text.encode("utf-8", "surrogatepass"))
        if data is None:
            raise self.wrong("the description, a JSON object,")
        self.data = data

    def wrong(self, what: str) -> InputError:
        return InputError(f"{self.path}: damaged bank: {what} is missing or wrong; build it again")

    def get(self, name: str, kind: type) -> Any:
        value = self.data.get(name)
        if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 2**31):
            raise self.wrong(f"field {name!r}")
        return value

    def integers(self, name: str, count: int, within: range) -> Any:
        """A tuple of `count` integers, or None."""
        values = self.data.get(name)
        if values is None:
            return None
        if (
            not isinstance(values, list)
            or [type(value) for value in values] != [int] * count
            or any(value not in within for value in values)
        ):
            raise self.wrong(f"field {name!r}")
        return tuple(values)

    def texts(self, name: str) -> list[str]:
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(f"field {name!r}")
        return list(values)

    def lines(self, name: str, packed: np.ndarray | None, size: int) -> list[str]:
        """Texts, in the header or in a tensor of bytes, `size` of them."""
        if packed is None:
            return self.texts(name)
        try:
            # counted first: as Python objects they take fifty times what they do here
            if packed.dtype == np.uint8 and packed.ndim == 1 and np.count_nonzero(packed == 0) == max(size - 1, 0):
                return packed.tobytes().decode("utf-8", "surrogatepass").split(SEPARATOR)
        except UnicodeDecodeError:
            pass
        raise self.wrong(f"the table of {name}")


def _metadata(path: Path, metadata: dict[str, str]) -> str:
    if metadata.get("format") != FORMAT or "bank" not in metadata:
        raise InputError(f"{path}: a safetensors file, but not a bank; make one with `lpkernel bank build`")
    version = metadata.get("version", "")
    if version not in VERSIONS:
        newer = version.isascii() and version.isdigit() and len(version) < 9 and int(version) > int(VERSIONS[-1])
        fix = "upgrade lpkernel" if newer else "build it again"
        raise InputError(f"{path}: bank version {version[:20]!r}, this lpkernel reads {' and '.join(VERSIONS)}; {fix}")
    return metadata["bank"]


def _attributes(header: _Header, packed: np.ndarray | None, size: int) -> dict[str, np.ndarray]:
    names = header.texts("attributes")
    if len(set(names)) != len(names) or (packed is None) != (not names):
        raise header.wrong("the attribute list")
    if packed is None:
        return {}
    if packed.dtype != np.uint8 or packed.shape != (len(names), -(-size // 8)):
        raise header.wrong(f"the attribute table {packed.shape} for {len(names)} names and {size} images")
    rows = np.unpackbits(packed, axis=1, count=size).astype(np.bool_)
    return dict(zip(names, rows, strict=True))


def read_fields(path: Path, verify: bool) -> dict[str, Any]:
    """Keyword arguments for `Bank` from a file. Raises InputError, one line, for any other file."""
    tensors, metadata = tensor_file.read(path, _MAPPED)
    text = _metadata(path, metadata)
    header = _Header(path, text)
    if verify and metadata.get("sha256") != tensor_file.digest(tensors, text):
        raise InputError(f"{path}: damaged bank: its content does not match its SHA-256; copy or build it again")
    kind = header.get("kind", str)
    expected = {f"pca_{name}" for name in _PCA}
    expected |= set(_ARRAYS[:3]) if kind == "codes" else set(_ARRAYS[3:5])
    expected |= {"colours"} if metadata["version"] == VERSIONS[1] else set()
    if kind not in ("codes", "latents") or set(tensors) - {"attributes", *_LISTS} != expected:
        raise header.wrong("the list of tensors")
    parts = [tensors[f"pca_{name}"] for name in _PCA]
    if [(part.ndim, part.dtype.name) for part in parts] != [(1, "float64"), (2, "float64"), (1, "float64")]:
        raise header.wrong("the PCA")
    cells = tensors[kind]
    stated = tuple(header.get(name, int) for name in ("size", "grid", "channels"))
    if cells.ndim < 3 or stated != (*cells.shape[:2], len(parts[1])):
        raise header.wrong(f"the size {stated} for {kind} of shape {cells.shape}")
    if header.get("codebook_sha256", str) != _codebook_hash(tensors.get("codebook")):
        raise header.wrong("the codebook hash")
    return {
        **{name: tensors[name] for name in _ARRAYS if name in tensors},
        "pca": PCA(*parts),
        "attributes": _attributes(header, tensors.get("attributes"), stated[0]),
        "names": header.lines("names", tensors.get("names"), stated[0]),
        "labels": None
        if header.data.get("labels") is None
        else header.lines("labels", tensors.get("labels"), stated[0]),
        "crop": header.integers("crop", 4, range(2**31)),
        "source_size": header.integers("source_size", 2, range(1, LONGEST_SIDE + 1)),  # not in files of 0.1.0
        "scale": header.get("scale", float),
        "limit": header.get("limit", int),
        "max_patch": header.get("max_patch", int),
        "image_size": header.get("image_size", int),
        **{
            name: header.get(name, str)
            for name in ("resize_filter", "autoencoder_name", "autoencoder_fingerprint", "sources_hash")
        },
    }
