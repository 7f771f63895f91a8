"""From image files to codes or latents: reading, batched encoding, and going on after a kill.

Sources are taken in shards. With a cache folder each encoded shard is a file whose name is a hash of
everything that determines it (autoencoder, crop, resize filter, and each source's name, size, time of change
and ends), so a later run takes up whatever still fits and passes over the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from lpkernel import checks
from lpkernel.attributes import read_attributes
from lpkernel.bank import default_names
from lpkernel.errors import InputError
from lpkernel.files import content_stamp
from lpkernel.images import RESIZE_FILTER, Crop, Found, find_images, load_image, picture_size, plain_pixels, square
from lpkernel.shards import Problem, owned, read_shard, write_shard

if TYPE_CHECKING:
    from lpkernel.autoencoder.base import Autoencoder

SHARD = 256  # sources encoded between two writes to the cache
SAMPLE = 64  # sources whose sizes are compared

Images = str | Path | Sequence[str | Path] | Sequence[Image.Image] | Sequence[Any] | Any  # Any: an array or a tensor
Progress = Callable[[int, int], None]


@dataclass
class Encoded:
    """What `encode_images` made of n usable sources, in their order."""

    values: np.ndarray  # codes (n, M, M) int32, or latents (n, M, M, L) float16
    names: list[str]
    labels: list[str] | None
    attributes: dict[str, np.ndarray]
    skipped: list[Problem]
    sources_hash: str  # of the names and sizes of the usable sources
    resize_filter: str
    left_out: list[str]  # files of the folder with another ending than a picture's
    source_size: tuple[int, int] | None  # width and height of the usable sources, if a sample has but one


@dataclass(frozen=True)
class _Source:
    """One image to encode."""

    name: str
    bytes: int
    content: Path | np.ndarray

    def stamp(self) -> str:
        """What changes when the content does."""
        if isinstance(self.content, np.ndarray):
            return hashlib.sha256(self.content.tobytes()).hexdigest()
        try:
            return content_stamp(self.content)
        except OSError as error:
            return f"cannot be read: {error.strerror}"

    def size(self) -> tuple[int, int] | None:
        """Width and height; None if it cannot be read."""
        if isinstance(self.content, np.ndarray):
            return self.content.shape[1], self.content.shape[0]
        try:
            return picture_size(self.content)
        except InputError:
            return None

    def read(self, size: int, crop: Crop | None) -> np.ndarray | Problem:
        try:
            if isinstance(self.content, Path):
                return load_image(self.content, size, crop)
            return square(Image.fromarray(self.content), size, crop)
        except InputError as error:
            return self.name, str(error)


def _file_source(name: str, path: Path) -> _Source:
    try:
        return _Source(name, path.stat().st_size, path)
    except (OSError, ValueError):  # reading it will give the reason
        return _Source(name, 0, path)


def _sources(images: Images) -> tuple[list[_Source], list[str] | None, Found]:
    """Sources in bank order, their labels when some lie in subfolders of a given folder, and what that left out."""
    nothing = Found([], [], [])
    if isinstance(images, str | Path):
        folder = Path(images)
        found = find_images(folder)
        names = found.names
        labels = [name.split("/")[0] if "/" in name else "" for name in names]
        return [_file_source(name, folder / name) for name in names], labels if any(labels) else None, found
    if not isinstance(images, Sequence):
        return _unnamed(list(pixels_of("images", images, 4))), None, nothing
    if not images:
        raise InputError("the list of images is empty")
    if not all(isinstance(image, str | Path) for image in images):
        return _unnamed([pixels_of(f"images[{i}]", image, 3) for i, image in enumerate(images)]), None, nothing
    paths = [Path(path) for path in cast(Sequence[str | Path], images)]
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = os.path.commonpath([path.parent for path in absolute])
    relative = [full.relative_to(root).as_posix() for full in absolute]
    return [_file_source(name, path) for name, path in zip(relative, paths, strict=True)], None, nothing


def _common_size(sources: list[_Source]) -> tuple[int, int] | None:
    """Width and height of a sample of the sources, spread evenly, if they are the same for all of it."""
    sizes = {source.size() for source in sources[:: -(-len(sources) // SAMPLE)]}
    return sizes.pop() if len(sizes) == 1 else None


def _unnamed(images: list[np.ndarray]) -> list[_Source]:
    names = default_names(len(images))
    return [_Source(name, image.nbytes, image) for name, image in zip(names, images, strict=True)]


def pixels_of(what: str, image: Any, axes: int) -> np.ndarray:
    """An array or tensor of `axes` axes, or a PIL image, as (..., H, W, 3) uint8.

    The colours may be the axis before the height, as torch has them; floats are in [0, 1]. Raises InputError.
    """
    if isinstance(image, Image.Image):
        return plain_pixels(image)
    found = image.detach().cpu().numpy() if hasattr(image, "detach") else image  # a tensor
    expected = f"{'(B, H, W, 3) or (B, 3, H, W)' if axes == 4 else '(H, W, 3), (3, H, W) or PIL images'}"
    if not isinstance(found, np.ndarray):
        got = f"a {type(image).__name__}"
        raise InputError(
            f"{what}: got {got}, expected a folder, files, or images, uint8 or floats in [0, 1], {expected}"
        )
    if found.ndim == axes and found.shape[-1] != 3 and found.shape[-3] == 3:
        found = np.moveaxis(found, -3, -1)
    floats = np.issubdtype(found.dtype, np.floating)
    if found.ndim != axes or found.shape[-1] != 3 or not (floats or found.dtype == np.uint8) or 0 in found.shape:
        got = f"{found.dtype} {tuple(np.shape(image))}"
        raise InputError(f"{what}: got {got}, expected uint8, or floats in [0, 1], {expected}")
    if not floats:
        return found
    if not (found.min() >= 0 and found.max() <= 1):
        raise InputError(f"{what}: floats from {found.min():g} to {found.max():g}, expected 0 to 1")
    return np.rint(found * 255).astype(np.uint8)


def latent_width(autoencoder: Autoencoder) -> int:
    """L of an autoencoder: its codebook's, the one that it says, or that of a picture that it encodes."""
    if autoencoder.codebook is not None:
        return int(autoencoder.codebook.shape[1])
    if isinstance(told := getattr(autoencoder, "width", None), int):
        return told
    side = autoencoder.image_size
    return int(autoencoder.encode(np.zeros((1, side, side, 3), np.uint8)).shape[-1])


def _attributes_of(
    attributes: str | Path | Mapping[str, np.ndarray] | None,
    mapping: str | Path | None,
    sources: list[_Source],
    given: int,
) -> dict[str, np.ndarray]:
    if mapping is not None and not isinstance(attributes, str | Path):
        raise InputError("mapping: is for attributes from a file, and there is none; give attributes, too")
    if attributes is None:
        return {}
    if isinstance(attributes, str | Path):
        return read_attributes(attributes, [source.name for source in sources], mapping)
    for name, values in attributes.items():
        if np.shape(values) != (given,):
            got = f"attribute {name!r} has shape {np.shape(values)}"
            raise InputError(f"{got}, expected ({given},), one value for each image")
    return {name: np.asarray(values)[: len(sources)] for name, values in attributes.items()}


def encode_images(
    images: Images,
    autoencoder: Autoencoder,
    crop: Crop | None = None,
    strict: bool = False,
    limit: int | None = None,
    attributes: str | Path | Mapping[str, np.ndarray] | None = None,
    batch: int = 32,
    progress: Progress | None = None,
    cache: str | Path | None = None,
    mapping: str | Path | None = None,
) -> Encoded:
    """Encode a folder, a list of files or images; options as in `Bank.build`.

    Raises InputError when there is nothing to encode, when `strict` and a source cannot be used, for a
    bad attribute table, for an autoencoder whose output does not have its stated shape, and when another build
    owns the cache folder.
    """
    if checks.integer("batch", batch) < 1 or (limit is not None and checks.integer("limit", limit) < 1):
        raise InputError(f"batch={batch}, limit={limit}: both must be at least 1")
    crop = None if crop is None else cast(Crop, checks.integers("crop", crop, 4))
    sources, labels, found = _sources(images)
    if strict and found.unreadable:
        raise InputError(f"{found.unreadable[0][0]}: {found.unreadable[0][1]}")
    given = len(sources)
    sources = sources[:limit]
    table = _attributes_of(attributes, mapping, sources, given)  # before the long work
    folder = None if cache is None else Path(cache)
    work = _Work(autoencoder, crop, strict, batch, folder)
    values: list[np.ndarray] = []
    skipped: list[Problem] = list(found.unreadable)
    done = 0
    with nullcontext() if folder is None else owned(folder):
        for start in range(0, len(sources), SHARD):
            shard = sources[start : start + SHARD]
            for count, part, problems in work.encode(shard):
                values += [part] if len(part) else []
                skipped += problems
                done += count
                if progress is not None:
                    progress(done, len(sources))
    if not values:
        reason = f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise InputError(f"none of the {len(sources)} images can be used{reason}")
    left_out = {name for name, _ in skipped}
    used = [i for i, source in enumerate(sources) if source.name not in left_out]
    lines = "".join(f"{sources[i].name}\t{sources[i].bytes}\n" for i in used)
    return Encoded(
        np.concatenate(values),
        [sources[i].name for i in used],
        None if labels is None else [labels[i] for i in used],
        {name: column[used] for name, column in table.items()},
        skipped,
        hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest(),
        RESIZE_FILTER,
        found.others,
        _common_size([sources[i] for i in used]),
    )


class _Work:
    """Encoding of shards with one set of options."""

    def __init__(
        self, autoencoder: Autoencoder, crop: Crop | None, strict: bool, batch: int, cache: Path | None
    ) -> None:
        self.autoencoder, self.crop, self.strict, self.batch, self.cache = autoencoder, crop, strict, batch, cache

    def encode(self, shard: list[_Source]) -> Iterator[tuple[int, np.ndarray, list[Problem]]]:
        """Sources done, their values and problems: at once when the shard is cached, else batch by batch."""
        path = None if self.cache is None else self.cache / f"{self._key(shard)}.shard"
        cached = None if path is None else read_shard(path)
        if cached is not None and not (self.strict and cached[1]):
            yield len(shard), *cached
            return
        values: list[np.ndarray] = []
        skipped: list[Problem] = []
        for start in range(0, len(shard), self.batch):
            part = shard[start : start + self.batch]
            pictures, problems = self._read(part)
            encoded = self._encode(pictures)
            values.append(encoded)
            skipped += problems
            if path is not None and start + self.batch >= len(shard):
                kept = [part for part in values if len(part)]
                write_shard(path, np.concatenate(kept) if kept else None, skipped)
            yield len(part), encoded, problems

    def _key(self, shard: list[_Source]) -> str:
        ae = self.autoencoder
        identity = [ae.name, ae.fingerprint, ae.image_size, ae.grid, self.crop, RESIZE_FILTER, "sRGB"]
        sources = [(source.name, source.stamp()) for source in shard]
        return hashlib.sha256(json.dumps([identity, sources]).encode()).hexdigest()

    def _read(self, part: list[_Source]) -> tuple[np.ndarray, list[Problem]]:
        size = self.autoencoder.image_size
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            results = list(pool.map(lambda source: source.read(size, self.crop), part))
        problems = [result for result in results if isinstance(result, tuple)]
        if problems and self.strict:
            raise InputError(f"{problems[0][0]}: {problems[0][1]}")
        pictures = [result for result in results if not isinstance(result, tuple)]
        return np.stack(pictures) if pictures else np.empty((0, size, size, 3), np.uint8), problems

    def _encode(self, pictures: np.ndarray) -> np.ndarray:
        if len(pictures) == 0:
            return np.empty((0, 0, 0), np.int32)
        ae = self.autoencoder
        values = np.asarray(ae.encode(pictures))
        discrete = ae.codebook is not None
        right_kind = np.issubdtype(values.dtype, np.integer if discrete else np.floating)
        right_shape = values.ndim == (3 if discrete else 4) and values.shape[:3] == (len(pictures), ae.grid, ae.grid)
        if not (right_kind and right_shape):
            got = f"autoencoder {ae.name!r} encoded {len(pictures)} images as {values.dtype} {values.shape}"
            expected = "integers (n, M, M)" if discrete else "floats (n, M, M, L)"
            raise InputError(f"{got}, expected {expected} with M={ae.grid}")
        with np.errstate(over="ignore"):  # Bank.from_latents refuses what float16 cannot hold
            return values.astype(np.int32 if discrete else np.float16)
