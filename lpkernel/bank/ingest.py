"""From image files to codes or latents: reading, batched encoding, and resuming after a kill.

Sources are taken in shards, read while earlier ones are encoded. With a cache folder each encoded shard is a file that
names each source by a hash of everything that determines what is made of it (autoencoder, crop, resize filter, and the
source's name, size, modification time and ends), so a later run reuses whatever still fits, wherever it now is among
the sources, and ignores the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from lpkernel import checks
from lpkernel.arrays import host_array
from lpkernel.bank.attributes import attribute_rows, missing_rows
from lpkernel.bank.checks import bool_arrays
from lpkernel.bank.fields import FLIPPED, default_names
from lpkernel.bank.shards import Example, Problem, owned, read_shards, write_shard
from lpkernel.errors import InputError
from lpkernel.files import content_stamp
from lpkernel.pictures.images import (
    RESIZE_FILTER,
    Crop,
    Found,
    find_images,
    load_image,
    picture_size,
    plain_pixels,
    square,
)
from lpkernel.pictures.seams import cell_colours

if TYPE_CHECKING:
    from lpkernel.autoencoder.protocol import Autoencoder

SHARD = 256  # sources encoded between two writes to the cache
SAMPLE = 64  # sources whose sizes are compared
MISSING_ATTRIBUTES = ("refuse", "skip")

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
    left_out: list[str]  # files of the folder whose extension is not a picture's
    colours: np.ndarray  # (n, M, M, 3) uint8, mean colours of the cells
    source_size: tuple[int, int] | None  # width and height of the usable sources, if a sample has only one


@dataclass(frozen=True)
class _Source:
    """One image to encode, or its mirror image."""

    name: str
    bytes: int
    content: Path | np.ndarray
    flipped: bool = False

    def mirrored(self) -> _Source:
        return replace(self, name=self.name + FLIPPED, flipped=True)

    def stamp(self) -> str:
        """What changes when the content does."""
        if isinstance(self.content, np.ndarray):
            content = hashlib.sha256(self.content.tobytes()).hexdigest()
        else:
            try:
                content = content_stamp(self.content)
            except OSError as error:
                content = f"cannot be read: {error.strerror}"
        return f"{content} flipped" if self.flipped else content

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
                picture = load_image(self.content, size, crop)
            else:
                picture = square(Image.fromarray(self.content), size, crop)
            return np.ascontiguousarray(picture[:, ::-1]) if self.flipped else picture
        except InputError as error:
            return self.name, str(error)


@dataclass(frozen=True)
class _Chosen:
    """Sources in bank order, with a label, if any has one, and a row of attributes each."""

    sources: list[_Source]
    labels: list[str] | None
    table: dict[str, np.ndarray]

    def without(self, problems: list[Problem]) -> _Chosen:
        """Those that have no problem."""
        names = {name for name, _ in problems}
        rows = [i for i, source in enumerate(self.sources) if source.name not in names]
        labels = None if self.labels is None else [self.labels[i] for i in rows]
        return _Chosen([self.sources[i] for i in rows], labels, {name: col[rows] for name, col in self.table.items()})

    def with_mirrored(self) -> _Chosen:
        """These, then the mirror image of each."""
        mirrored = [source.mirrored() for source in self.sources]
        table = {name: np.tile(values, 2) for name, values in self.table.items()}
        return _Chosen([*self.sources, *mirrored], self.labels and self.labels * 2, table)


def _file_source(name: str, path: Path) -> _Source:
    try:
        return _Source(name, path.stat().st_size, path)
    except (OSError, ValueError):  # reading it will give the reason
        return _Source(name, 0, path)


def _sources(images: Images) -> tuple[list[_Source], list[str] | None, Found]:
    """Sources in bank order, their labels when some lie in subfolders of a given folder, and what was left out."""
    nothing = Found([], [], [])
    if isinstance(images, str | Path):
        folder = Path(images)
        found = find_images(folder)
        names = found.names
        labels = [name.split("/")[0] if "/" in name else "" for name in names]
        return [_file_source(name, folder / name) for name in names], labels if any(labels) else None, found
    if not isinstance(images, Sequence) or isinstance(images, bytes):
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

    The colour axis may come before the height, as in torch; floats are in [0, 1]. Raises InputError.
    """
    if isinstance(image, Image.Image):
        if axes == 4:
            raise InputError(f"{what}: got one picture, expected several; put it into a list")
        return plain_pixels(image)
    found = host_array(what, image) if hasattr(image, "detach") else image  # a tensor
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
    """L of an autoencoder: its codebook's, the one that it states, or that of a picture that it encodes."""
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
) -> tuple[dict[str, np.ndarray], list[Problem]]:
    """The attributes, and the sources that a table has no row for."""
    if mapping is not None and not isinstance(attributes, str | Path):
        raise InputError("mapping: is for attributes from a file, but none is given; give attributes, too")
    if attributes is None:
        return {}, []
    if isinstance(attributes, str | Path):
        table, missing = attribute_rows(attributes, [source.name for source in sources], mapping)
        return table, [(sources[i].name, f"no row in {Path(attributes).name}") for i in missing]
    return {name: values[: len(sources)] for name, values in bool_arrays(attributes, given).items()}, []


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
    missing_attributes: str = "refuse",
    flip: bool = False,
) -> Encoded:
    """Encode a folder, a list of files or images; options as in `Bank.build`.

    Raises InputError when there is nothing to encode, when `strict` and a source cannot be used, for a
    bad attribute table, for an autoencoder whose output does not have its stated shape, and when another build
    owns the cache folder.
    """
    if checks.integer("batch", batch) < 1 or (limit is not None and checks.integer("limit", limit) < 1):
        raise InputError(f"batch={batch}, limit={limit}: both must be at least 1")
    strict, flip = checks.flag("strict", strict), checks.flag("flip", flip)
    folder = None if cache is None else checks.path("cache", cache)
    crop = None if crop is None else cast(Crop, checks.integers("crop", crop, 4))
    every, labels, found = _sources(images)
    if strict and found.unreadable:
        raise InputError(f"{found.unreadable[0][0]}: {found.unreadable[0][1]}")
    sources = every[:limit]
    if checks.text("missing_attributes", missing_attributes) not in MISSING_ATTRIBUTES:
        raise InputError(f"missing_attributes: got {missing_attributes!r}, expected {' or '.join(MISSING_ATTRIBUTES)}")
    table, rowless = _attributes_of(attributes, mapping, sources, len(every))  # before the long work
    if rowless and (missing_attributes == "refuse" or strict or len(rowless) == len(sources)):
        raise missing_rows(attributes, [name for name, _ in rowless], len(sources))
    chosen = _Chosen(sources, labels and labels[:limit], table)
    if rowless:
        chosen = chosen.without(rowless)
    if flip:
        chosen = chosen.with_mirrored()
    work = _Work(autoencoder, crop, strict, batch, folder)
    with nullcontext() if folder is None else owned(folder):
        made = work.encode(chosen.sources, progress or (lambda done, total: None))
    examples = [one for one in made if not isinstance(one, tuple)]
    failed = [one for one in made if isinstance(one, tuple)]
    skipped = [*found.unreadable, *rowless, *failed]
    if not examples:
        reason = f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise InputError(f"none of the {len(made)} images can be used{reason}")
    used = chosen.without(failed)
    lines = "".join(f"{source.name}\t{source.bytes}\n" for source in used.sources)
    return Encoded(
        np.stack([one.values for one in examples]),
        [source.name for source in used.sources],
        used.labels,
        used.table,
        [one for one in skipped if not (flip and one[0].endswith(FLIPPED))],  # reported once
        hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest(),
        RESIZE_FILTER,
        found.others,
        np.stack([one.colours for one in examples]),
        _common_size(used.sources),
    )


class _Work:
    """Encoding of shards with one set of options."""

    def __init__(
        self, autoencoder: Autoencoder, crop: Crop | None, strict: bool, batch: int, cache: Path | None
    ) -> None:
        self.autoencoder, self.crop, self.strict, self.batch, self.cache = autoencoder, crop, strict, batch, cache

    def encode(self, sources: list[_Source], progress: Progress) -> list[Example | Problem]:
        """What is made of each source, or its problem."""
        keys = [] if self.cache is None else [self._key(source) for source in sources]
        kept = {} if self.cache is None else read_shards(self.cache)
        found: dict[int, Example | Problem] = {i: kept[key] for i, key in enumerate(keys) if key in kept}
        if self.strict:
            found = {i: one for i, one in found.items() if not isinstance(one, tuple)}
        missing = [i for i in range(len(sources)) if i not in found]
        shards = [missing[start : start + SHARD] for start in range(0, len(missing), SHARD)]
        batches = [shard[start : start + self.batch] for shard in shards for start in range(0, len(shard), self.batch)]
        if found:
            progress(len(found), len(sources))
        ends = {shard[-1]: shard for shard in shards}
        for batch, pictures in zip(
            batches, self._read([[sources[i] for i in batch] for batch in batches]), strict=True
        ):
            found |= zip(batch, self._examples(pictures), strict=True)
            if self.cache is not None and batch[-1] in ends:
                self._keep(self.cache, {keys[i]: found[i] for i in ends[batch[-1]]})
            progress(len(found), len(sources))
        return [found[i] for i in range(len(sources))]

    def _keep(self, folder: Path, found: dict[str, Example | Problem]) -> None:
        examples = {key: one for key, one in found.items() if not isinstance(one, tuple)}
        write_shard(folder, examples, {key: one for key, one in found.items() if isinstance(one, tuple)})

    def _key(self, source: _Source) -> str:
        ae = self.autoencoder
        identity = [ae.name, ae.fingerprint, ae.image_size, ae.grid, self.crop, RESIZE_FILTER, "sRGB", "colours"]
        return hashlib.sha256(json.dumps([identity, source.name, source.stamp()]).encode()).hexdigest()

    def _read(self, batches: list[list[_Source]]) -> Iterator[list[np.ndarray | Problem]]:
        """The pictures of each batch, while the next one is read."""
        size = self.autoencoder.image_size
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:

            def begin(batch: list[_Source]) -> list[Future[np.ndarray | Problem]]:
                return [pool.submit(source.read, size, self.crop) for source in batch]

            try:
                following = begin(batches[0]) if batches else []
                for number in range(len(batches)):
                    reading, following = following, begin(batches[number + 1]) if number + 1 < len(batches) else []
                    results = [future.result() for future in reading]
                    for problem in results:
                        if self.strict and isinstance(problem, tuple):
                            raise InputError(f"{problem[0]}: {problem[1]}")
                    yield results
            finally:
                pool.shutdown(cancel_futures=True)

    def _examples(self, pictures: list[np.ndarray | Problem]) -> list[Example | Problem]:
        """What is made of each picture; problems stay."""
        sound = [one for one in pictures if not isinstance(one, tuple)]
        made: Iterator[Example] = iter(())
        if sound:
            stack = np.stack(sound)
            made = map(Example, self._encode(stack), cell_colours(stack, self.autoencoder.grid))
        return [one if isinstance(one, tuple) else next(made) for one in pictures]

    def _encode(self, pictures: np.ndarray) -> np.ndarray:
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
