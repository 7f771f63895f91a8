"""The bank: the encoded example images, and the fixed-point numbers that every backend compares.

One number system (so that all backends agree bit for bit): each latent vector is projected to C
channels in float64, multiplied by one `scale` for the whole bank and rounded, ties to even, to int16
within +-`limit`; `limit` is small enough that the squared distance of two patches of up to `max_patch`
cells a side fits int32. The rounded numbers are stored, never derived again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from lpkernel import checks
from lpkernel.arrays import host_array
from lpkernel.backends.base import CodeBank, LatentBank
from lpkernel.bank import pca as pca_module
from lpkernel.bank.checks import bool_arrays, check_bank, fixed_limit, within_limit
from lpkernel.bank.extent import Extent
from lpkernel.bank.fields import FLIPPED, BankFields, default_names
from lpkernel.bank.file import read_fields
from lpkernel.bank.file import save as write_file
from lpkernel.checks import check_codes
from lpkernel.errors import InputError, short, unknown_name
from lpkernel.levels import resize_level
from lpkernel.limits import INT16_CODES
from lpkernel.views import BankViews, places

if TYPE_CHECKING:
    from lpkernel.autoencoder.protocol import Autoencoder
    from lpkernel.bank.ingest import Images

DEFAULT_BANK = Path(__file__).resolve().parent.parent / "data" / "avatars.lpbank"
CHANNELS = 16  # the default, where a latent has as many
TABLE_ROWS = 4096  # codebooks up to this size have a distance table
_CHUNK = 256  # bank images, or rows of a table, handled at once


def _fixed(projected: np.ndarray, scale: float, limit: int) -> np.ndarray:
    return np.clip(np.rint(projected * scale), -limit, limit).astype(np.int16)


def _scale(largest: float, magnitude: float, limit: int) -> float:
    """limit / largest, or 1 when all latents are the same vector: what is left is the rounding of its mean."""
    return float(limit / largest) if largest > 1e-12 * magnitude else 1.0


def _array(value: object, what: str, axes: int) -> np.ndarray:
    array = _numbers(value, what)
    if array.ndim != axes or 0 in array.shape:
        raise InputError(f"{what} has shape {array.shape}, expected {axes} axes, none of them empty")
    return array


def _numbers(value: object, what: str) -> np.ndarray:
    array = host_array(what, value)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what}: got {array.dtype}, expected real numbers")
    return array


@dataclass(eq=False, repr=False)
class Bank(BankFields):
    """B encoded images. Make one with `build`, `from_codes`, `from_latents`, `load` or `default`.

    Two are equal if `save` would write the same for both.

    Treat it and its arrays as read-only (those of a loaded bank are; large latents are views of the file). What it
    holds: `lpkernel.bank.fields.BankFields`.
    """

    _levels: dict[int, np.ndarray] = field(default_factory=dict, init=False, compare=False)
    _table: np.ndarray | None = field(default=None, init=False, compare=False)
    _extent: Extent | None = field(default=None, init=False, compare=False)
    _views: dict[int, BankViews] = field(default_factory=dict, init=False, compare=False)

    def __post_init__(self) -> None:
        check_bank(self)
        self.attributes = bool_arrays(self.attributes, self.size)

    @classmethod
    def build(
        cls,
        images: Images,
        autoencoder: Autoencoder,
        channels: int | None = None,
        max_patch: int = 8,
        crop: tuple[int, int, int, int] | None = None,
        strict: bool = False,
        limit: int | None = None,
        attributes: str | Path | Mapping[str, np.ndarray] | None = None,
        batch: int = 32,
        progress: Callable[[int, int], None] | None = None,
        cache: str | Path | None = None,
        mapping: str | Path | None = None,
        missing_attributes: str = "refuse",
        flip: bool = False,
    ) -> Bank:
        """Encode a folder (recursive, naturally sorted), a list of files, or images.

        Images are (B, H, W, 3) or (B, 3, H, W), arrays or tensors, uint8 or floats in [0, 1]; or a list of such without
        B, or of PIL images, each of any size. `channels`: min(16, L) by default. `crop` (x0, y0, x1, y1) pixels is cut
        out first; then the centre square, resized to the autoencoder's side. Files that cannot be used are left out and
        listed in `skipped`; `strict` raises InputError for the first instead. `limit`: use at most this many images,
        the first ones. `attributes`: a table of CelebA or CelebAMask-HQ (text or CSV) joined by file name, or else its
        stem, with CelebA-HQ's `mapping` file if it needs one (`lpkernel.bank.attributes`); or name -> bool for each
        image given. `missing_attributes`: "refuse" a table without a row for an image, or "skip" the image. `batch`
        images are encoded at once, while the next are read; `progress(done, total)` is called after each batch.
        `cache`: a folder for what is encoded so far, so that a killed build resumes and only new or changed files are
        encoded (`shards.discard_cache` removes it). A second build that uses it meanwhile raises InputError. `flip`:
        after all images come their mirror images, flipped left to right after crop and resize, with " (flipped)" added
        to the name and with the image's attributes and label: twice as many examples where both sides are alike, as in
        faces.
        """
        from lpkernel.bank.ingest import encode_images, latent_width

        check_type(autoencoder)
        channels = check_options(channels, max_patch, lambda: latent_width(autoencoder))
        found = encode_images(
            images,
            autoencoder,
            crop,
            strict,
            limit,
            attributes,
            batch,
            progress,
            cache,
            mapping,
            missing_attributes,
            flip,
        )
        if autoencoder.codebook is not None:
            bank = cls.from_codes(
                found.values,
                autoencoder.codebook,
                channels,
                max_patch,
                found.names,
                found.labels,
                found.attributes,
                autoencoder,
            )
        else:
            bank = cls.from_latents(
                found.values, channels, max_patch, found.names, found.labels, found.attributes, autoencoder
            )
        bank.crop, bank.resize_filter = crop, found.resize_filter
        bank.sources_hash, bank.source_size = found.sources_hash, found.source_size
        bank.skipped, bank.left_out, bank.colours = found.skipped, found.left_out, found.colours
        return bank

    @classmethod
    def from_codes(
        cls,
        codes: ArrayLike,
        codebook: ArrayLike,
        channels: int | None = None,
        max_patch: int = 8,
        names: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        attributes: Mapping[str, np.ndarray] | None = None,
        autoencoder: Autoencoder | None = None,
    ) -> Bank:
        """Bank of (B, M, M) integer codes into a (V, L) codebook, arrays or tensors, made by `autoencoder` if given.

        A `max_patch` beyond M means M. Raises InputError on wrong shapes, codes outside [0, V), values that
        are not finite, channels > L, or an autoencoder with another grid or codebook.
        """
        codes = _array(codes, "codes", 3)
        with np.errstate(over="ignore"):  # refused below
            book = np.ascontiguousarray(_array(codebook, "codebook", 2), np.float32)
        channels = check_options(channels, max_patch, lambda: book.shape[1])
        if not np.issubdtype(codes.dtype, np.integer) or codes.shape[1] != codes.shape[2]:
            raise InputError(f"codes are {codes.dtype} {codes.shape}, expected integers (B, M, M)")
        check_codes(codes, len(book))
        if not np.isfinite(book).all():
            raise InputError("codebook holds NaN, infinity or what float32 cannot hold")
        max_patch = min(max_patch, codes.shape[1])
        limit = fixed_limit(channels, max_patch)
        counts = sum((np.bincount(part.ravel(), minlength=len(book)) for part in codes), np.zeros(len(book), np.int64))
        pca = pca_module.fit(book, counts, channels)
        projected = pca.project(book)
        scale = _scale(np.abs(projected[counts > 0]).max(), np.abs(book[counts > 0]).max(), limit)
        bank = cls(
            pca,
            scale,
            limit,
            max_patch,
            default_names(len(codes)) if names is None else checks.texts("names", names),
            codes=np.ascontiguousarray(codes, np.int16 if len(book) <= INT16_CODES else np.int32),
            codebook=book,
            fixed_codebook=_fixed(projected, scale, limit),
            labels=None if labels is None else checks.texts("labels", labels),
            attributes={} if attributes is None else bool_arrays(attributes, len(codes)),
        )
        bank._adopt(autoencoder)
        return bank

    @classmethod
    def from_latents(
        cls,
        latents: ArrayLike,
        channels: int | None = None,
        max_patch: int = 8,
        names: Sequence[str] | None = None,
        labels: Sequence[str] | None = None,
        attributes: Mapping[str, np.ndarray] | None = None,
        autoencoder: Autoencoder | None = None,
    ) -> Bank:
        """Bank of (B, M, M, L) real latents, an array or tensor, kept as float16: all else is computed from those.

        A `max_patch` beyond M means M. Raises InputError on wrong shapes, values that float16 cannot hold
        (NaN, infinity, beyond 65504), channels > L, or an autoencoder with another grid.
        """
        latents = _array(latents, "latents", 4)
        channels = check_options(channels, max_patch, lambda: latents.shape[3])
        if not np.issubdtype(latents.dtype, np.floating) or latents.shape[1] != latents.shape[2]:
            raise InputError(f"latents are {latents.dtype} {latents.shape}, expected floats (B, M, M, L)")
        with np.errstate(over="ignore"):
            kept = np.ascontiguousarray(latents, np.float16)
        if not all(np.isfinite(part).all() for part in kept):
            raise InputError("latents hold NaN, infinity or values beyond 65504, the float16 range")
        max_patch = min(max_patch, kept.shape[1])
        limit = fixed_limit(channels, max_patch)
        pca = pca_module.fit(kept.reshape(-1, kept.shape[-1]), None, channels)
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(kept), _CHUNK)]
        # projected twice: the first pass only looks for the largest magnitude, so memory stays bounded
        largest = max(float(np.abs(pca.project(kept[chunk])).max()) for chunk in chunks)
        scale = _scale(largest, float(np.abs(kept).max()), limit)
        fixed = np.empty((*kept.shape[:3], channels), np.int16)
        for chunk in chunks:
            fixed[chunk] = _fixed(pca.project(kept[chunk]), scale, limit)
        bank = cls(
            pca,
            scale,
            limit,
            max_patch,
            default_names(len(kept)) if names is None else checks.texts("names", names),
            latents=kept,
            fixed_latents=fixed,
            labels=None if labels is None else checks.texts("labels", labels),
            attributes={} if attributes is None else bool_arrays(attributes, len(kept)),
        )
        bank._adopt(autoencoder)
        return bank

    def _adopt(self, autoencoder: Autoencoder | None) -> None:
        if autoencoder is not None:
            self.check_autoencoder(autoencoder)
            self.autoencoder_name, self.autoencoder_fingerprint = autoencoder.name, autoencoder.fingerprint
            self.image_size = autoencoder.image_size

    @classmethod
    def load(cls, path: str | Path, verify: bool = False) -> Bank:
        """A saved bank. The codes and latents of files above 32 MiB are mapped: read, and checked, when first touched.

        The header, shapes and types are always checked; `verify` also reads everything and
        compares its SHA-256. Raises InputError, one line, for any file that is not a sound bank.
        """
        fields = read_fields(checks.path("path", path), verify)
        try:
            return cls(**fields)
        except InputError as error:
            raise InputError(f"{path}: damaged bank: {error}") from error

    @classmethod
    def default(cls) -> Bank:
        """The bank that comes with the package: 1,200 CC0 avatars for the embedded autoencoder."""
        return cls.load(DEFAULT_BANK)

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all (an old file stays if this fails); equal banks give equal bytes.

        Raises InputError when the folder does not exist, OSError (disk full) as the system reports it.
        """
        write_file(self, checks.path("path", path))

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        kind = f"codes of {len(self.codebook)}" if self.codebook is not None else "latents"
        made_by = self.autoencoder_name or "unknown"
        return f"Bank({self.size} images, {self.grid}x{self.grid} {kind}, C={self.channels}, autoencoder {made_by})"

    def sound_codes(self, images: slice = slice(None), cells: np.ndarray | slice = slice(None)) -> np.ndarray:
        """A copy of the codes of some images, at some cells (M, M) bool. Raises InputError for a damaged file."""
        assert self.codes is not None and self.codebook is not None
        self.check_file()
        codes = np.array(self.codes[images, cells])
        check_codes(codes, len(self.codebook))
        return codes

    def level(self, m: int) -> np.ndarray:
        """The bank at grid side m, 1 <= m <= M: (B, m, m, C) int16, contiguous; computed once and kept.

        Raises InputError for any other m, when the stored latents exceed the limit (a damaged file), and when a mapped
        file was cut short.
        """
        self.check_file()
        if type(m) is not int:
            m = checks.integer("scale side", m)
        if not 1 <= m <= self.grid:
            raise InputError(f"scale side {m}, expected 1 to {self.grid}, the grid of the bank")
        if m not in self._levels:
            if m == self.grid and self.fixed_latents is not None:
                self._levels[m] = self.fixed_values(slice(None))
            else:
                level = np.empty((self.size, m, m, self.channels), np.int16)
                for start in range(0, self.size, _CHUNK):
                    chunk = slice(start, start + _CHUNK)
                    level[chunk] = (
                        self.fixed_values(chunk) if m == self.grid else resize_level(self.fixed_values(chunk), m)
                    )
                self._levels[m] = level
        return self._levels[m]

    def views(self, radius: int) -> BankViews:
        """The bank's images moved by up to `radius` cells, for backends; made once and kept (`lpkernel.views`)."""
        if radius not in self._views:
            cells = self.level(self.grid) if self.codes is None else self.codes
            self._views[radius] = BankViews(radius, cells, self.fixed_codebook)
        return self._views[radius]

    def latent_view(self, radius: int = 0) -> LatentBank:
        """What backends compare as latents: the bank or, with a radius, its views. Raises InputError as `level`."""
        self.check_file()
        seen = self.views(radius) if radius else self
        if seen.codes is None or self.codes is None or self.codes.dtype != np.int16:
            return LatentBank(seen.level, seen.size)
        assert self.fixed_codebook is not None
        return LatentBank(seen.level, seen.size, (seen.codes, self.fixed_codebook))

    def code_view(self, radius: int = 0, latents: LatentBank | None = None) -> CodeBank:
        """What backends compare as codes, likewise, or as these latents. Raises InputError as `table`."""
        self.check_file()
        table, seen = self.table(), self.views(radius) if radius else self
        assert seen.codes is not None and self.fixed_codebook is not None
        return CodeBank(seen.codes, self.fixed_codebook, table, latents)

    def fixed_values(self, images: slice) -> np.ndarray:
        """Fixed-point values (n, M, M, C) int16 of some images. Raises InputError as `level` does."""
        if self.codes is not None and self.fixed_codebook is not None:
            return self.fixed_codebook[self.sound_codes(images)]
        assert self.fixed_latents is not None
        self.check_file()
        values = self.fixed_latents[images]
        if not within_limit(values, self.limit):  # not checked when the file was mapped, to keep that lazy
            raise InputError(
                f"the stored latents exceed the bank's limit of {self.limit}: damaged file, build it again"
            )
        return values

    def table(self) -> np.ndarray:
        """Squared distance between every two rows of the fixed codebook: (V, V) int32, exact; computed once.

        Raises InputError for a continuous bank and for V > 4096.
        """
        if self.fixed_codebook is None or len(self.fixed_codebook) > TABLE_ROWS:
            rows = "no codebook" if self.fixed_codebook is None else f"{len(self.fixed_codebook)} codebook rows"
            raise InputError(f"the bank has {rows}; a distance table needs 1 to {TABLE_ROWS}")
        if self._table is None:
            rows64 = self.fixed_codebook.astype(np.float64)  # float64 products of these integers are exact
            squares = (rows64 * rows64).sum(axis=1)
            table = np.empty((len(rows64), len(rows64)), np.int32)
            for start in range(0, len(rows64), _CHUNK):  # whole, the sums in float64 would take several times as much
                some = slice(start, start + _CHUNK)
                table[some] = squares[some, None] + squares - 2 * (rows64[some] @ rows64.T)
            self._table = table
        return self._table

    def largest_cell_distance(self, start: np.ndarray | None = None, resizes: int = 0) -> int:
        """A bound on the squared distance of any two cells, of the bank at any side or of a canvas made of them.

        start: fixed-point values (..., C) of a starting canvas, whose cells then count, too. resizes: how many times a
        canvas is resized; each rounds once more. Reads all latents the first time.
        """
        if self._extent is None:
            self._extent = Extent.of(self._fixed_parts)
        extent = self._extent if start is None else self._extent.with_cells(start)
        return extent.largest_distance(2 + resizes)

    def _fixed_parts(self) -> Iterator[np.ndarray]:
        """The codebook's fixed-point values, or all latents', some at a time: (..., C) int16."""
        if self.fixed_codebook is not None:
            yield self.fixed_codebook
        else:
            yield from (self.fixed_values(slice(i, i + _CHUNK)) for i in range(0, self.size, _CHUNK))

    def project(self, latents: np.ndarray) -> np.ndarray:
        """Fixed-point values of other latent vectors: (..., L) finite -> (..., C) int16 within +-limit."""
        latents = _numbers(latents, "latents")
        if not np.isfinite(latents).all():
            raise InputError("latents to project hold NaN or infinity")
        return _fixed(self.pca.project(latents), self.scale, self.limit)

    def gather(self, sources: np.ndarray, shifts: np.ndarray | None = None) -> np.ndarray:
        """Cell (y, x) of image n taken from bank image sources[n, y, x] at (y, x), moved by shifts[n, y, x] if given.

        sources (N, M, M) integers in [0, B), shifts (N, M, M, 2) integers or None -> codes (N, M, M) int64 or latents
        (N, M, M, L) float32. A place outside the grid stands for the nearest cell inside.
        Raises InputError for other shapes, types or values, and when a mapped file was cut short.
        """
        self.check_file()
        sources = host_array("sources", sources)
        cells = (self.grid, self.grid)
        if sources.ndim != 3 or sources.shape[1:] != cells or not np.issubdtype(sources.dtype, np.integer):
            got = f"{sources.dtype} {sources.shape}"
            raise InputError(f"sources are {got}, expected integers (N, {self.grid}, {self.grid})")
        if sources.size and (sources.min() < 0 or sources.max() >= self.size):
            raise InputError(f"sources run from {sources.min()} to {sources.max()}, expected 0 to {self.size - 1}")
        area = self.grid * self.grid
        flat = self.cells.reshape(self.size * area, *self.cells.shape[3:])
        within: np.ndarray = np.arange(area)
        if shifts is not None:
            shifts = host_array("shifts", shifts)
            if shifts.shape != (*sources.shape, 2) or not np.issubdtype(shifts.dtype, np.integer):
                raise InputError(f"shifts have shape {shifts.shape}, expected integers {(*sources.shape, 2)}")
            y, x = places(shifts)
            within = (y * self.grid + x).reshape(-1, area)
        chosen = sources.reshape(-1, area).astype(np.int64) * area + within  # one index is faster than three
        content = flat.take(chosen.reshape(sources.shape), axis=0)
        if self.codebook is not None:
            check_codes(content, len(self.codebook))
        elif not np.isfinite(content).all():  # not checked when the file was mapped, to keep that lazy
            raise InputError("the stored latents hold NaN or infinity: damaged file, build it again")
        return content.astype(np.int64 if self.is_discrete else np.float32)

    def whole(self, numbers: np.ndarray) -> np.ndarray:
        """The whole bank images `numbers` (B',), as `gather` gives them: ready for the autoencoder's decode."""
        numbers = host_array("numbers", numbers)
        if numbers.ndim != 1:
            raise InputError(f"numbers have shape {numbers.shape}, expected one axis: the images to take")
        return self.gather(np.broadcast_to(numbers[:, None, None], (len(numbers), self.grid, self.grid)))

    def where(self, expression: str, at_least: int = 0) -> np.ndarray:
        """The images that an expression over attributes and class labels describes: (B,) bool.

        "Eyeglasses & (Blond_Hair | Hat) & ~Male": `lpkernel.bank.where` has the grammar. A name is an attribute or,
        if there is none of that name, a class label. Raises InputError for an expression that is malformed or
        has an unknown name (the nearest are listed), and when fewer than `at_least` images are left.
        """
        from lpkernel.bank import where

        expression = checks.text("where", expression)
        labels = np.asarray(self.labels if self.labels is not None else [], dtype=object)
        names = dict.fromkeys([*self.attributes, *(label for label in labels if label)])

        def lookup(name: str) -> np.ndarray:
            if name in self.attributes:
                return np.asarray(self.attributes[name])
            if name in names:
                return labels == name
            raise unknown_name("where: attribute or label", name, names)

        found = where.evaluate(expression, self.size, lookup).copy()
        count = int(found.sum())
        if count < at_least:
            left = "no image is" if count == 0 else f"only {count} of {self.size} images are"
            fix = "widen it" if count == 0 else "widen it or lower k"
            raise InputError(f"where: {short(expression)!r}: {left} left, expected at least {at_least}; {fix}")
        return found

    @cached_property
    def _examples(self) -> np.ndarray:
        """(B,) int64: for each image the one that it mirrors, by its name, or else itself."""
        places = {name: i for i, name in enumerate(self.names)}
        names = enumerate(self.names)
        return np.array([places.get(name.removesuffix(FLIPPED), i) for i, name in names], np.int64)

    def examples_of(self, sources: np.ndarray) -> np.ndarray:
        """Bank image numbers (...), a mirror image (`build` with `flip`) replaced by its original; -1 stays.

        Raises InputError for anything but integers in [-1, B).
        """
        given = host_array("sources", sources)
        if not np.issubdtype(given.dtype, np.integer):
            raise InputError(f"sources are {given.dtype} {given.shape}, expected integers: numbers of bank images")
        if given.size and (given.min() < -1 or given.max() >= self.size):
            raise InputError(f"sources run from {given.min()} to {given.max()}, expected -1 to {self.size - 1}")
        return np.where(given < 0, -1, self._examples[given])

    def flips_of(self, images: np.ndarray) -> np.ndarray:
        """The mirror images of some images, by the names that `build` with `flip` gives; both are (B,) bool.

        Raises InputError for anything else.
        """
        given = host_array("images", images)
        if given.shape != (self.size,) or given.dtype != np.bool_:
            raise InputError(f"images are {given.dtype} {given.shape}, expected bool ({self.size},)")
        return np.isin(self._examples, self._examples[given]) & ~given

    def with_images(self, values: np.ndarray, names: Sequence[str]) -> Bank:
        """A bank of other images in this one's number system: codes (B, M, M) or latents (B, M, M, L).

        They must be encoded by the same autoencoder. PCA, scale and codebook stay, and latents beyond the limit are
        clipped. Raises InputError on wrong shapes, codes or values.
        """
        if self.is_discrete:
            assert self.codes is not None and self.codebook is not None
            codes = _array(values, "codes", 3)
            if not np.issubdtype(codes.dtype, np.integer):
                raise InputError(f"codes are {codes.dtype}, expected integers")
            check_codes(codes, len(self.codebook))
            cells: dict[str, Any] = {"codes": np.ascontiguousarray(codes, self.codes.dtype)}
        else:
            latents = _array(values, "latents", 4)
            cells = {"latents": np.ascontiguousarray(latents, np.float16), "fixed_latents": self.project(latents)}
        if np.shape(values)[1:3] != (self.grid, self.grid):
            raise InputError(f"images have shape {np.shape(values)}, expected a grid of {self.grid}x{self.grid}")
        return replace(
            self,
            **cells,
            colours=None,
            names=checks.texts("names", names),
            labels=None,
            attributes={},
            sources_hash="",
            skipped=[],
        )

    def subset(self, images: ArrayLike) -> Bank:
        """A bank of some of these images, in this one's number system: (B,) bool or indices, in the bank's order.

        Generating from it is generating from this bank with these candidates. Raises InputError as `candidates` does.
        """
        chosen = allowed_images(self, images)
        self.check_file()
        cells = (
            {"codes": self.codes}
            if self.is_discrete
            else {"latents": self.latents, "fixed_latents": self.fixed_latents}
        )
        return replace(
            self,
            **{name: np.asarray(array)[chosen] for name, array in cells.items()},
            colours=None if self.colours is None else np.asarray(self.colours)[chosen],
            names=[self.names[i] for i in chosen],
            labels=None if self.labels is None else [self.labels[i] for i in chosen],
            attributes={name: values[chosen] for name, values in self.attributes.items()},
            sources_hash="",
            skipped=[],
            left_out=[],
        )

    @classmethod
    def merge(cls, banks: Sequence[Bank]) -> Bank:
        """One bank of all images of several, made by one autoencoder with one crop: as if built at once.

        Only `sources_hash`, a hash of the pictures' files, is empty. The PCA is fitted anew. Channels and max_patch are
        the first bank's; labels are "" where a bank has none; attributes are those that all have. Raises InputError for
        banks that do not fit or share an image name.
        """
        if not isinstance(banks, list | tuple) or not all(isinstance(bank, cls) for bank in banks):
            raise InputError(f"merge: got {short(repr(banks))}, expected a list of Banks; load files by Bank.load")
        if not banks:
            raise InputError("merge: got no banks, expected at least one")
        first = banks[0]
        for bank in banks[1:]:
            for what in ("grid", "width", "is_discrete", "autoencoder_fingerprint", "image_size", "crop"):
                ours, theirs = getattr(first, what), getattr(bank, what)
                if ours != theirs:
                    raise InputError(
                        f"merge: expected banks of one autoencoder and crop, got {what} {ours} and {theirs}"
                    )
            if bank.codebook is not None and not np.array_equal(np.asarray(first.codebook), bank.codebook):
                raise InputError("merge: the banks have different codebooks")
        names = [name for bank in banks for name in bank.names]
        if len(set(names)) < len(names):
            twice = next(name for name, count in Counter(names).items() if count > 1)
            raise InputError(f"merge: {short(repr(twice))} is in two banks, or twice in one; names tell images apart")
        labels = None
        if any(bank.labels for bank in banks):
            labels = [label for bank in banks for label in bank.labels or [""] * bank.size]
        shared = [name for name in first.attributes if all(name in bank.attributes for bank in banks)]
        attributes = {name: np.concatenate([bank.attributes[name] for bank in banks]) for name in shared}
        options = (first.channels, first.max_patch, names, labels, attributes)
        if first.codebook is not None:
            made = cls.from_codes(np.concatenate([bank.sound_codes() for bank in banks]), first.codebook, *options)
        else:
            made = cls.from_latents(np.concatenate([np.asarray(bank.latents) for bank in banks]), *options)
        for name in ("autoencoder_name", "autoencoder_fingerprint", "image_size", "crop", "resize_filter"):
            setattr(made, name, getattr(first, name))
        if all(bank.colours is not None for bank in banks):
            made.colours = np.concatenate([np.asarray(bank.colours) for bank in banks])
        sizes = {bank.source_size for bank in banks}
        made.source_size = sizes.pop() if len(sizes) == 1 else None
        return made

    def check_autoencoder(self, autoencoder: Autoencoder) -> None:
        """Raise InputError unless `autoencoder` can decode this bank: grid, codebook, sizes, fingerprint."""
        check_type(autoencoder)
        reason = ""
        book = autoencoder.codebook
        if autoencoder.grid != self.grid:
            reason = f"its grid is {autoencoder.grid}, the bank's {self.grid}"
        elif (book is not None) != self.is_discrete:
            kinds = ("latents", "codes")
            reason = f"it makes {kinds[book is not None]}, the bank holds {kinds[self.is_discrete]}"
        elif self.image_size and autoencoder.image_size != self.image_size:
            reason = f"its images have side {autoencoder.image_size}, the bank's {self.image_size}"
        elif book is not None and not np.array_equal(np.asarray(book, np.float32), self.codebook):  # type: ignore[arg-type]
            reason = "its codebook is a different one"
        elif self.autoencoder_fingerprint and autoencoder.fingerprint != self.autoencoder_fingerprint:
            reason = "its weights are different"
        if reason:
            made_by = self.autoencoder_name or "another one"
            raise InputError(
                f"autoencoder {autoencoder.name!r} does not fit the bank (made with {made_by!r}): {reason}; "
                "give the one that made it, or build the bank again from its images"
            )


def allowed_images(bank: Bank, candidates: ArrayLike | None) -> np.ndarray:
    """Sorted distinct indices of the allowed bank images. Raises InputError if none, or out of range."""
    if candidates is None:
        return np.arange(bank.size)
    given = host_array("candidates", candidates)
    if given.dtype == np.bool_:
        if given.shape != (bank.size,):
            raise InputError(f"candidates: got a bool mask of shape {given.shape}, expected ({bank.size},)")
        given = np.flatnonzero(given)
    elif given.ndim != 1 or not (given.size == 0 or np.issubdtype(given.dtype, np.integer)):
        raise InputError(f"candidates: got {given.dtype} of shape {given.shape}, expected (B,) bool or integer indices")
    if given.size == 0:
        raise InputError("candidates: no bank image is allowed; allow at least one")
    if given.min() < 0 or given.max() >= bank.size:
        raise InputError(f"candidates: indices {given.min()} to {given.max()}, expected 0 to {bank.size - 1}")
    return np.unique(given).astype(np.int64)


def as_bank(bank: Bank | str | Path) -> Bank:
    """A bank, or the one in a file; "default" is the embedded one, as on the command line. Raises InputError."""
    if isinstance(bank, Bank):
        return bank
    if not isinstance(bank, str | Path):
        raise InputError(f"bank: got {short(repr(bank))}, expected a Bank or the path of one")
    return Bank.default() if str(bank) == "default" else Bank.load(bank)


def autoencoder_of(bank: Bank, given: Autoencoder | None) -> Autoencoder:
    """`given`, or the embedded autoencoder for a bank that was made with it. Raises InputError if it does not fit."""
    if given is None:
        if bank.autoencoder_name != "default":
            made_by = repr(bank.autoencoder_name) if bank.autoencoder_name else "one that it does not name"
            raise InputError(f"autoencoder: got None, but the bank was made with {made_by}; pass that one")
        from lpkernel.autoencoder.embedded import embedded

        given = embedded()
    bank.check_autoencoder(given)
    return given


def check_options(channels: int | None, max_patch: int, width: Callable[[], int]) -> int:
    """The channels, min(16, L) if none are given. Raise InputError unless they and max_patch are in range.

    width: returns L, called only when needed.
    """
    if checks.integer("max_patch", max_patch) < 1 or (
        channels is not None and checks.integer("channels", channels) < 1
    ):
        raise InputError(f"channels={channels}, max_patch={max_patch}: both must be at least 1")
    most = width()
    if channels is not None and channels > most:
        raise InputError(f"channels={channels}, expected 1 to {most}, the numbers in a latent vector")
    return min(CHANNELS, most) if channels is None else channels


def check_type(autoencoder: object) -> None:
    """Raise InputError for anything but an autoencoder, such as a mask given in its place."""
    if not all(hasattr(autoencoder, name) for name in ("image_size", "grid", "codebook", "encode", "decode")):
        got = "None" if autoencoder is None else f"a {type(autoencoder).__name__}"
        hint = "; a mask is given as mask=" if isinstance(autoencoder, np.ndarray) else ""
        raise InputError(f"autoencoder: got {got}, expected what load_autoencoder returns{hint}")
