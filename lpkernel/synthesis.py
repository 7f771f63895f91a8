"""generate(): a plan, a bank and a backend make a `Synthesis`."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lpkernel import checks, presets, views
from lpkernel.arrays import host_array
from lpkernel.autoencoder.partial import Original
from lpkernel.autoencoder.protocol import Autoencoder
from lpkernel.backends import registry
from lpkernel.backends.base import Array, CodeBank, LatentBank, MixedBank, ScanRequest
from lpkernel.bank import TABLE_ROWS, Bank, allowed_images, as_bank, autoencoder_of
from lpkernel.bank.generation import check_distances, check_generation
from lpkernel.content import ByContent
from lpkernel.copies import CopyLimit, largest_areas, redraw
from lpkernel.errors import InputError
from lpkernel.levels import resize_level
from lpkernel.pictures import seams
from lpkernel.pictures.composite import Composite, Whole
from lpkernel.plan import Plan

DOMAINS = ("auto", "codes", "latents")
NOTEBOOK_IMAGES = 32


@dataclass(frozen=True, eq=False, repr=False)
class Synthesis(ByContent):
    """New images, as the bank cells they are made of.

    A sequence of N: `made[3]` and `made[2:5]` are Syntheses of those images, and so are the items of a loop. Two are
    equal if their source maps, contents and banks are. A notebook shows it as pictures, if the bank was made with the
    embedded autoencoder.

    sources: (N, M, M) int32 bank indices; -1 where the starting canvas was kept.
    shifts: (N, M, M, 2) int8: how many cells below and to the right of its place each cell was copied from, with a
        search radius above 0; else None.
    codes: (N, M, M) int64, or None for a continuous bank, whose latents are (N, M, M, L) float32.
    settings: all options as they were resolved, ready for JSON.
    composite: how `decode` restores the outside, for an edit that keeps it; usually None.
    whole: the picture that was edited, for `put_back`; None for new images.
    match_colours: whether `decode` matches the colours of the parts (`lpkernel.pictures.seams`).
    original: that picture as it was encoded; where the composite keeps it, variants are not decoded.
    """

    sources: NDArray[np.int32]
    codes: NDArray[np.int64] | None
    latents: NDArray[np.float32] | None
    plan: Plan = field(compare=False)
    bank: Bank
    settings: dict[str, Any] = field(compare=False)
    shifts: NDArray[np.int8] | None = None
    match_colours: bool = False
    composite: Composite | None = None
    whole: Whole | None = field(default=None, compare=False)
    original: Original | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        did, side = self.settings, self.bank.grid
        what = did.get("mode", did["kind"])
        kind = "codes" if self.codes is not None else "latents"
        images = f"{len(self)} image{'s' * (len(self) != 1)} of {side}x{side} {kind}"
        return f"Synthesis({images}, {what}, seed {did['seed']}, k {did['k']}, {self.bank.size} bank images)"

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int | slice) -> Synthesis:
        """One image, or those of a slice without a step, as a Synthesis with the same settings and image numbers."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                raise InputError(f"images: got a slice with step {step}, expected consecutive images")
            part = slice(start, max(start, stop))
        else:
            number = range(len(self))[checks.integer("images", index)]  # raises IndexError
            part = slice(number, number + 1)
        return replace(
            self,
            sources=self.sources[part],
            shifts=None if self.shifts is None else self.shifts[part],
            codes=None if self.codes is None else self.codes[part],
            latents=None if self.latents is None else self.latents[part],
            settings=self.settings
            | {"n": part.stop - part.start, "first_image": self.settings["first_image"] + part.start},
        )

    def __iter__(self) -> Iterator[Synthesis]:
        return (self[number] for number in range(len(self)))

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the first images in rows; None where nothing says which autoencoder decodes them."""
        from lpkernel.pictures import render

        try:
            images = self[:NOTEBOOK_IMAGES].decode()
        except InputError:
            return None
        file = io.BytesIO()
        Image.fromarray(render.grid(images, min(render.COLUMNS, max(1, len(images))))).save(file, "PNG")
        return file.getvalue()

    def decode(self, autoencoder: Autoencoder | None = None) -> NDArray[np.uint8]:
        """(N, H, W, 3) uint8. The autoencoder may be omitted if the bank was made with the embedded one.

        Raises InputError if the bank was made with another autoencoder.
        """
        autoencoder = autoencoder_of(self.bank, autoencoder)
        content = self.codes if self.codes is not None else self.latents
        assert content is not None
        if self.composite is None or self.original is None:
            images = autoencoder.decode(content)
        else:
            images = self.original.variants(autoencoder, content, self.composite.weight > 0)
        if self.match_colours:
            images = matched(self.bank, images, self.sources, self.shifts)
        return images if self.composite is None else self.composite.apply(images)

    def put_back(self, images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
        """Each image that `decode` returned, (N, S, S, 3), put back into the picture that was edited: (H, W, 3) uint8
        each.

        Crop and rotation are undone; the result is blended in with a feathered edge, where its colours are matched. All
        pixels beyond it are those of the picture, bit for bit. Raises InputError when no picture was edited.
        """
        if self.whole is None:
            raise InputError("put_back: there is no picture to put results back into; edit one given by its pixels")
        for image in images:
            yield self.whole.apply(self.whole.closing.apply(image[None])[0] if self.composite is None else image)

    def shares(self) -> NDArray[np.float64]:
        """(N, B): the share of each result's cells that each bank image supplied."""
        flat = self.sources.reshape(len(self.sources), -1)
        counts = np.zeros((len(flat), self.bank.size))
        for row, cells in zip(counts, flat, strict=True):
            row += np.bincount(cells[cells >= 0], minlength=self.bank.size)
        return counts / flat.shape[1] if flat.size else counts

    def origins(self) -> NDArray[np.int32]:
        """(N, M, M, 3): bank image, y and x of the cell that each cell was copied from; all -1 where none was."""
        moved = np.zeros((*self.sources.shape, 2), np.int8) if self.shifts is None else self.shifts
        origins = np.stack([self.sources, *views.places(moved)], axis=-1).astype(np.int32)
        origins[self.sources < 0] = -1
        return origins

    def largest_copies(self) -> NDArray[np.int64]:
        """(N,): cells of the largest 4-connected area of each result that was copied from one bank image, however
        shifted, or from its mirror image."""
        return largest_areas(self.bank.examples_of(self.sources))


def matched(
    bank: Bank, images: NDArray[np.uint8], sources: NDArray[np.integer], shifts: NDArray[np.integer] | None
) -> NDArray[np.uint8]:
    """Decoded images (N, S, S, 3) with the colours of their parts matched, where the bank holds colours."""
    if bank.colours is None:
        return images
    bank.check_file()
    return seams.matched(images, sources, shifts, bank.colours)


class PlanOptions(TypedDict, total=False):
    """The options that every plan of `lpkernel.plan` takes."""

    overlap: str
    start: str
    mirror: int


class Options(PlanOptions, total=False):
    """The options of `generate` that hold for every mode."""

    k: int
    hubness: float | None
    seed: int
    candidates: ArrayLike | None
    first_image: int
    backend: str
    device: str
    domain: str
    search_radius: int
    copy_limit: CopyLimit | None


def taken_by_plan(options: Options) -> PlanOptions:
    """The options of the plan, taken out of those of a mode."""
    taken: PlanOptions = {}
    for name in PlanOptions.__annotations__:
        if name in options:
            taken[name] = options.pop(name)  # type: ignore[literal-required, misc]
    return taken


def generate(
    bank: Bank | str | Path,
    n: int = 16,
    patch: int = 6,
    stride: int | None = None,
    k: int = 3,
    scales: Sequence[int] | None = None,
    seed: int = 0,
    overlap: str | None = None,
    candidates: ArrayLike | None = None,
    first_image: int = 0,
    backend: str = "auto",
    device: str = "auto",
    plan: Plan | None = None,
    canvas: ArrayLike | None = None,
    domain: str = "auto",
    copy_limit: CopyLimit | None = None,
    preset: str = presets.DEFAULT_PRESET,
    start: str | None = None,
    hubness: float | None = None,
    mirror: int | None = None,
    search_radius: int = 0,
    refine: bool | None = None,
    match_colours: bool | None = None,
) -> Synthesis:
    """Make n images by the method of docs/method.md (Samuth et al. 2023, section 2).

    Args:
        bank: the examples, or the path of their bank.
        n, first_image: images first_image .. first_image + n - 1 of this seed's endless series; each is the same
            whatever n is.
        preset: "paper", "balanced" or "diverse" (`lpkernel.presets`): the defaults of the options below.
        patch, stride, scales, overlap, start, mirror: P, w, grid sides, overlap rule, what a scale starts from, and
            weight of mirrored cells, of `plan.random`.
        hubness: ρ in [0, 1]: the part of an image's distance to its nearest neighbours in the bank that is subtracted
            from its distances, so that a few images do not supply most cells; in 1/256ths.
        k: neighbours to draw from; more than the allowed images means all of them (settings["k_used"]).
        seed: [0, 2^64).
        candidates: allowed bank images, (B,) bool or integer indices; None allows all.
        backend, device: see `lpkernel.info()`; device: where the backend runs.
        refine: whether cells and small parts of the finished map join a neighbouring part where that makes seams
            cheaper (`lpkernel.refine`). Default: as the preset says.
        match_colours: whether `decode` moves the colours of parts of different examples towards each other where they
            meet (`lpkernel.pictures.seams`), which changes no source map. Default: as the preset says, if the bank
            holds the colours of its pictures.
        plan: any other plan, instead of preset, patch .. mirror; hubness is then 0, nothing is refined, and no colours
            are matched, unless given.
        canvas: starting canvas of plans that need one (reference, edit): (M, M) or (n, M, M) codes, or
            (M, M, L) or (n, M, M, L) latents, as the bank's autoencoder encodes them.
        domain: compare "codes" (the full side, by table; plans of one scale or with start "carry"), "latents", or
            "auto": codes where possible, unless the backend is quicker with latents. Both give the same integers.
        search_radius: r, 0 to 4: patches are also copied from up to r cells beside their place in the bank images, for
            banks that are not well aligned; this compares (2 r + 1)^2 times as many. See `lpkernel.views`.
        copy_limit: redraw images that copy too much of one source; see `lpkernel.copies`.

    The source maps depend only on bank, plan, k, hubness, seed, candidates, canvas, search radius, refine, copy limit
    and image number, not on backend, device, threads or batch. Raises InputError, BackendUnavailable.
    """
    bank, defaults = as_bank(bank), presets.find(preset)
    for name, value in (("backend", backend), ("device", device), ("domain", domain)):
        if type(value) is not str:
            checks.text(name, value)
    if copy_limit is not None and not isinstance(copy_limit, CopyLimit):
        raise InputError(f"copy_limit: got {copy_limit!r}, expected a CopyLimit")
    if plan is None:
        plan = defaults.plan(bank.grid, patch, stride, scales, overlap, start, mirror)
        hubness = defaults.hubness if hubness is None else hubness
    else:
        defaults = replace(defaults, refine=False, match_colours=False)
    refining = presets.refines(defaults, refine)
    matching = presets.matches_colours(defaults, match_colours, bank.colours is not None)
    pull = 0.0 if hubness is None else hubness
    asked = request(
        bank, plan, n, k, seed, candidates, first_image, canvas, domain, pull, search_radius, device, refining
    )
    runner = registry.choose(backend, asked)
    started = time.perf_counter()
    maps = runner.scan(asked)
    limited = None
    if copy_limit is not None:

        def again(rows: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int32]:
            return runner.scan(asked.part(rows, images))

        def examples(maps: NDArray[np.int32]) -> NDArray[np.integer]:
            return bank.examples_of(views.images_of(maps, bank.size))

        maps, limited = redraw(copy_limit, maps, first_image, again, examples)
    sources, shifts = views.taken_apart(maps, bank.size, search_radius) if search_radius else (maps, None)
    settings = _settings(plan, asked, len(views.shifts(search_radius))) | {
        "n": n,
        "k": k,
        "seed": seed,
        "first_image": first_image,
        "bank_images": bank.size,
        "search_radius": int(search_radius),
        "copy_limit": limited,
        "refine": refining,
        "match_colours": matching,
        "backend": runner.name,
        "backend_asked": backend,
        "device": device,
        "seconds": round(time.perf_counter() - started, 6),
    }
    content = _content(bank, sources, shifts, None if canvas is None else canvas_array(bank, canvas, n))
    codes, latents = (content, None) if bank.is_discrete else (None, content)
    return Synthesis(sources, codes, latents, plan, bank, settings, shifts=shifts, match_colours=matching)


def _settings(plan: Plan, asked: ScanRequest, views_of_an_image: int) -> dict[str, Any]:
    """The settings that a plan and a request hold, ready for JSON."""
    return {
        "kind": plan.kind,
        "patch": plan.patch,
        "stride": plan.stride,
        "scales": list(plan.sides),
        "start": plan.start,
        "overlap": plan.overlap,
        "mirror": plan.mirror,
        "steps": plan.steps,
        "hubness": asked.hubness / presets.HUBNESS_PARTS,
        "k_used": min(asked.k, len(asked.candidates)),
        "candidates": len(asked.candidates) // views_of_an_image,
        "domain": "latents" if isinstance(asked.bank, LatentBank) else "codes",
    }


def request(
    bank: Bank,
    plan: Plan,
    n: int,
    k: int = 3,
    seed: int = 0,
    candidates: ArrayLike | None = None,
    first_image: int = 0,
    canvas: ArrayLike | None = None,
    domain: str = "auto",
    hubness: float = 0.0,
    search_radius: int = 0,
    device: str = "auto",
    refine: bool = False,
) -> ScanRequest:
    """What `generate` asks of a backend, checked. Arguments as there. Raises InputError."""
    check_generation(bank, plan, n, k, first_image)
    radius = views.checked_radius(search_radius, bank.size)
    n, k, seed, first_image = int(n), int(k), checks.integer("seed", seed), int(first_image)
    allowed = allowed_images(bank, candidates)
    start = None if canvas is None else canvas_array(bank, canvas, n)
    if start is None and (plan.starts_known or plan.keeps):
        raise InputError(
            f"canvas: a plan of kind {plan.kind} needs a starting canvas; pass canvas=autoencoder.encode(image)"
        )
    check_distances(bank, plan, start)
    in_codes = _in_codes(bank, plan, domain)
    return ScanRequest(
        plan=plan,
        bank=_view(bank, plan, in_codes, domain, radius),
        canvas=_canvases(bank, plan, start, in_codes),
        candidates=views.of_images(allowed, bank.size, radius) if radius else allowed,
        images=np.arange(first_image, first_image + n, dtype=np.int64),
        k=k,
        seed=seed,
        hubness=presets.hubness_parts(hubness),
        refine=refine,
        device=device,
    )


def _in_codes(bank: Bank, plan: Plan, domain: str) -> bool:
    if domain not in DOMAINS:
        raise InputError(f"domain: got {domain!r}, expected one of {', '.join(DOMAINS)}")
    by_codes = len(plan.scales) == 1 or plan.start == "carry"
    possible = bank.codebook is not None and len(bank.codebook) <= TABLE_ROWS and by_codes
    if domain == "codes" and not possible:
        raise InputError(
            f"domain: codes needs a bank of at most {TABLE_ROWS} codes and a plan of one scale or that carries, "
            f"got scales {list(plan.sides)}, start {plan.start!r}; use auto"
        )
    return possible and domain != "latents"


def _view(bank: Bank, plan: Plan, in_codes: bool, domain: str, radius: int) -> LatentBank | CodeBank | MixedBank:
    """The bank, or its views, as backends see it."""
    latents = bank.latent_view(radius)
    if not in_codes:
        return latents
    codes = bank.code_view(radius, latents if domain == "auto" else None)
    return codes if len(plan.scales) == 1 else MixedBank(latents, codes)


def canvas_array(bank: Bank, canvas: ArrayLike, n: int) -> Array:
    """The canvas with its image axis, (1 or n, M, M) codes or (1 or n, M, M, L) latents."""
    start = host_array("canvas", canvas)
    cells = (bank.grid, bank.grid) if bank.is_discrete else (bank.grid, bank.grid, bank.width)
    if start.ndim == len(cells):
        start = start[None]
    if start.shape[1:] != cells or len(start) not in (1, n):
        raise InputError(f"canvas: got shape {np.shape(canvas)}, expected {cells} or {(n, *cells)}")
    if not bank.is_discrete:
        return start.astype(np.float32)
    assert bank.codebook is not None
    if not np.issubdtype(start.dtype, np.integer) or start.min() < 0 or start.max() >= len(bank.codebook):
        raise InputError(f"canvas: expected integer codes in [0, {len(bank.codebook)})")
    return start.astype(np.int64)


def _canvases(bank: Bank, plan: Plan, start: Array | None, in_codes: bool) -> tuple[Array | None, ...]:
    """What each scale needs of the starting canvas."""
    if start is None:
        return (None,) * len(plan.scales)
    full = bank.project(start) if bank.fixed_codebook is None else bank.fixed_codebook[start]
    needed = [i == 0 or plan.start == "carry" or bool(scale.kept.any()) for i, scale in enumerate(plan.scales)]
    lower = [resize_level(full, m) if need else None for m, need in zip(plan.sides[:-1], needed, strict=False)]
    last = start if in_codes else resize_level(full, bank.grid) if needed[-1] else None
    return *lower, last


def _content(bank: Bank, sources: NDArray[np.int32], shifts: NDArray[np.int8] | None, start: Array | None) -> Any:
    """Codes or latents of a source map; kept cells come from the canvas."""
    kept = sources < 0
    content = bank.gather(np.where(kept, 0, sources), shifts)
    if start is not None and kept.any():
        content[kept] = np.broadcast_to(start, (len(sources), *start.shape[1:]))[kept]
    return content
