"""Sets of pictures to be measured: a folder, a decoded bank, results made on the spot, reconstructions.

All give square uint8 images of one side, a few at a time, the same ones however often they are asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lpkernel import presets
from lpkernel.autoencoder.protocol import Autoencoder
from lpkernel.bank import Bank
from lpkernel.errors import InputError, one_line, short
from lpkernel.files import open_regular
from lpkernel.metrics.cache import Cache
from lpkernel.pictures.images import RESIZE_FILTER, Crop, find_images, load_pixels, square
from lpkernel.synthesis import generate, matched
from lpkernel.tensor_file import json_object

Pixels = NDArray[np.uint8]
Maps = NDArray[np.int32]
Shifts = NDArray[np.int8]
Numbers = Sequence[int] | NDArray[np.integer]

MOST_EXAMPLES = 1 << 24  # of a bank whose maps are read: each takes memory in the counts of copies
LONGEST = 1 << 23  # bytes of a record
SYNTHESIS_BATCH = 256  # images made at once, whose maps are cached together


@dataclass
class ImageSet:
    """`size` pictures. read(numbers) gives some as (n, S, S, 3) uint8; stamp(numbers) changes when they do.

    facts: what the record says of it, ready for JSON. maps: source maps (N, M, M) where there are any, of a bank with
    `bank_images` images, which is `bank` itself if that is at hand. shifts: (N, M, M, 2) with a search radius, or None.
    """

    name: str
    size: int
    read: Callable[[Numbers], Pixels]
    stamp: Callable[[Numbers], Any]
    facts: dict[str, Any]
    maps: Maps | None = None
    bank: Bank | None = None
    bank_images: int = 0
    shifts: Shifts | None = None


def of_folder(
    folder: Path,
    side: int,
    crop: Crop | None,
    most: int | None = None,
    bank: Bank | None = None,
    digest: str = "",
) -> ImageSet:
    """The images of a folder, the first `most`; `crop` is cut out of those that are not square.

    In a folder that `lpkernel generate` wrote, only the results count, and their source maps are read, too; `bank` is
    theirs if the record gives the hash of its file as `digest`. Raises InputError.
    """
    names = find_images(folder).names
    maps = _maps(folder)
    if maps is not None:
        names = [name for name in names if name.startswith("image-")]
        if len(names) != len(maps):
            raise InputError(f"{folder}: {len(names)} images and {len(maps)} source maps, expected as many of both")
        maps = maps[:most]
    names = names[:most]

    def read(numbers: Numbers) -> Pixels:
        return np.stack([_image(folder / names[i], side, crop) for i in numbers])

    def stamp(numbers: Numbers) -> Any:
        status = [(names[i], (folder / names[i]).stat()) for i in numbers]
        return [side, crop, RESIZE_FILTER, [(name, s.st_size, s.st_mtime_ns) for name, s in status]]

    facts = {"kind": "folder", "folder": str(folder), "crop": crop, "side": side, "resize_filter": RESIZE_FILTER}
    found = ImageSet(folder.name or str(folder), len(names), read, stamp, facts)
    if maps is not None:
        record = _record(folder)
        candidates = min(record.get("candidates", 0), MOST_EXAMPLES)
        found.maps, found.bank_images = maps, max(candidates, int(maps.max(initial=0)) + 1)
        found.bank = bank if digest and record.get("bank") == digest else None
        found.facts |= record
    return found


def _image(path: Path, side: int, crop: Crop | None) -> Pixels:
    try:
        image = Image.fromarray(load_pixels(path))
        return square(image, side, None if image.width == image.height else crop)
    except InputError as error:
        raise InputError(f"{path}: {error}; mend it or take it out of the folder") from error


def _maps(folder: Path) -> Maps | None:
    path = folder / "sources.npy"
    if not path.is_file():
        return None
    try:
        # mapped, so that a shape beyond the file's size is an error and not an allocation
        with np.errstate(over="ignore"):
            maps = np.lib.format.open_memmap(path, mode="r")
    except (TypeError, OSError, ValueError, EOFError, OverflowError, RecursionError, MemoryError, SyntaxError) as error:
        raise InputError(f"{path}: not an array ({one_line(error)}); make it again with lpkernel generate") from error
    if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or not np.issubdtype(maps.dtype, np.integer):
        raise InputError(f"{path}: {maps.dtype} {short(str(maps.shape))}, expected integers (N, M, M)")
    if maps.size == 0 or maps.min() < 0 or maps.max() >= MOST_EXAMPLES:
        raise InputError(f"{path}: empty, or not of numbers from 0 to {MOST_EXAMPLES - 1}; make it again")
    return np.array(maps, np.int32)


def _record(folder: Path) -> dict[str, Any]:
    """The number of bank images allowed, the seed and the hash of the bank's file, from generate.json if present."""
    try:
        with open_regular(folder / "generate.json") as file:
            record = json_object(file.read(LONGEST)) or {}
        chosen = {name: int(record["settings"][name]) for name in ("candidates", "seed")}
        if record["settings"].get("search_radius"):
            return chosen  # the maps alone do not tell which cells of the bank were copied
        return {**chosen, "bank": str(record["bank"]["sha256"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return {}


def of_bank(
    bank: Bank, digest: str, name: str, autoencoder: Autoencoder, side: int, most: int | None = None
) -> ImageSet:
    """The images of a bank, decoded: reconstructions of its examples. digest: the hash of its file."""
    bank.check_autoencoder(autoencoder)
    size = bank.size if most is None else min(most, bank.size)

    def read(numbers: Numbers) -> Pixels:
        return _sized(autoencoder.decode(bank.whole(np.asarray(numbers))), side)

    facts = {"kind": "bank", "bank": name, "sha256": digest, **_decoder(autoencoder), "side": side}
    return ImageSet(Path(name).stem, size, read, _numbered(facts), facts)


def of_preset(
    bank: Bank,
    digest: str,
    options: dict[str, Any],
    name: str,
    n: int,
    seed: int,
    autoencoder: Autoencoder,
    side: int,
    cache: Cache,
    backend: str = "auto",
    device: str = "auto",
    progress: Callable[[int], None] | None = None,
) -> ImageSet:
    """Images 0 to n - 1 of the seed's series by `generate` with these options; their source maps are cached."""
    preset = presets.find(options.get("preset", presets.DEFAULT_PRESET))
    facts = {"kind": "generated", "bank": digest, "bank_images": bank.size, "seed": seed, "options": options}
    facts["preset"] = asdict(preset)  # a preset that a later lpkernel changes makes other images
    matching = presets.matches_colours(preset, options.get("match_colours"), bank.colours is not None)
    parts = []
    for start in range(0, n, SYNTHESIS_BATCH):
        count = min(SYNTHESIS_BATCH, n - start)
        key = ["maps", facts, start, count]
        cells = (count, bank.grid, bank.grid)
        maps = cache.get(key, (*cells, 3) if options.get("search_radius") else cells, "i")
        if maps is None or not _of_bank(maps, bank, options.get("search_radius", 0)):
            made = generate(bank, count, seed=seed, first_image=start, backend=backend, device=device, **options)
            maps = made.sources
            if made.shifts is not None:
                maps = np.concatenate([maps[..., None], made.shifts], axis=-1, dtype=np.int32)
            cache.put(key, maps)
        parts.append(maps)
        if progress is not None:
            progress(len(maps))
    found = np.concatenate(parts)
    shifts = None
    if options.get("search_radius"):
        found, shifts = found[..., 0], found[..., 1:].astype(np.int8)
    return of_maps(bank, found, facts, name, autoencoder, side, shifts, matching)


def _of_bank(maps: Maps, bank: Bank, radius: int) -> bool:
    """Whether maps, or maps with shifts (N, M, M, 3), name images of the bank, and cells within the search radius."""
    sources, moved = (maps[..., 0], maps[..., 1:]) if radius else (maps, maps[:0])
    return bool(sources.min() >= 0 and sources.max() < bank.size and ((moved >= -radius) & (moved <= radius)).all())


def of_maps(
    bank: Bank,
    maps: Maps,
    facts: dict[str, Any],
    name: str,
    autoencoder: Autoencoder,
    side: int,
    shifts: Shifts | None = None,
    match_colours: bool = False,
) -> ImageSet:
    """The pictures of source maps (N, M, M) and their shifts, decoded, their colours matched if wanted.

    facts: what determines the maps, including the bank's hash.
    """
    bank.check_autoencoder(autoencoder)

    def read(numbers: Numbers) -> Pixels:
        chosen = np.asarray(numbers)
        moved = None if shifts is None else shifts[chosen]
        images = autoencoder.decode(bank.gather(maps[chosen], moved))
        if match_colours:
            images = matched(bank, images, maps[chosen], moved)
        return _sized(images, side)

    facts = {**facts, **({"match_colours": True} if match_colours else {}), **_decoder(autoencoder), "side": side}
    return ImageSet(name, len(maps), read, _numbered(facts), facts, maps, bank, bank.size, shifts)


def reconstructed(real: ImageSet, autoencoder: Autoencoder, through: Bank | None = None) -> ImageSet:
    """A set as the autoencoder reconstructs it. through: by way of the C channels of this bank's PCA.

    A vector is projected and mapped back; a code becomes the row of the codebook that is then nearest, as in the paper.
    """
    change = None
    if through is not None:
        through.check_autoencoder(autoencoder)
        change = _by_pca(through)
    side = real.facts["side"]

    def read(numbers: Numbers) -> Pixels:
        pictures = _sized(real.read(numbers), autoencoder.image_size)
        content = np.asarray(autoencoder.encode(pictures))
        return _sized(autoencoder.decode(content if change is None else change(content)), side)

    channels = None if through is None else through.channels
    facts = {"kind": "reconstruction", "pca_channels": channels, **_decoder(autoencoder), "side": side}
    # where the PCA changes nothing the pictures are those without it, and so is their stamp
    pca = "" if through is None or change is None else _digest(through.pca.components, through.pca.mean)
    stamped = facts if change is not None else {**facts, "pca_channels": None}

    def stamp(numbers: Numbers) -> Any:
        return [stamped, pca, real.stamp(numbers)]

    name = "reconstruction" if through is None else f"reconstruction, {channels} channels"
    return ImageSet(name, real.size, read, stamp, facts)


def _by_pca(bank: Bank) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """What the bank's PCA makes of codes or latents; None if every code stays what it is."""
    pca = bank.pca
    if bank.codebook is None:
        return lambda latents: (pca.project(latents) @ pca.components + pca.mean).astype(np.float32)
    rows = pca.project(bank.codebook) @ pca.components + pca.mean
    book = bank.codebook.astype(np.float64)
    distances = np.square(rows).sum(axis=1)[:, None] + np.square(book).sum(axis=1) - 2 * rows @ book.T
    nearest = distances.argmin(axis=1)
    return None if (nearest == np.arange(len(book))).all() else lambda codes: nearest[codes]


def _decoder(autoencoder: Autoencoder) -> dict[str, Any]:
    dtype = str(getattr(autoencoder, "dtype", "")).removeprefix("torch.")
    return {"autoencoder": autoencoder.name, "fingerprint": autoencoder.fingerprint, "dtype": dtype}


def _numbered(facts: dict[str, Any]) -> Callable[[Numbers], Any]:
    return lambda numbers: [facts, np.asarray(numbers).tolist()]


def _digest(*arrays: NDArray[Any]) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def _sized(images: Pixels, side: int) -> Pixels:
    if images.shape[1] == side:
        return images
    return np.stack([square(Image.fromarray(image), side, None) for image in images])
