"""What the page does, without the page: takes the settings of its controls, returns images and their sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel import edit, generate, harmonize, inpaint, plan, reference
from lpkernel.alignment import faces
from lpkernel.alignment.framing import Framed, frame
from lpkernel.alignment.regions import layout_of, named_region
from lpkernel.autoencoder.protocol import Autoencoder
from lpkernel.bank import Bank
from lpkernel.clock import Clock
from lpkernel.errors import InputError
from lpkernel.modes import cells, likeness
from lpkernel.modes.inputs import read_input
from lpkernel.pictures import render
from lpkernel.pictures.composite import Composite, Whole, feather
from lpkernel.pictures.images import load_pixels
from lpkernel.presets import DEFAULT_PRESET
from lpkernel.synthesis import Synthesis

Pixels = NDArray[np.uint8]

TASKS = ("edit", "inpaint", "harmonize", "reference")
WORDS = {
    "as-is": "its centre square was taken",
    "crop": "it was cropped like the bank's pictures",
    "align": "it was aligned by its eyes",
}
# What a visitor may choose instead of what the preset sets, by its word.
CHOICES: dict[str, dict[str, Any]] = {
    "start": {start: start for start in plan.STARTS},
    "overlap": {overlap: overlap for overlap in ("cut", "replace")},
    "hubness": {f"{share:g}": share for share in (0, 0.25, 0.375, 0.5, 0.75, 1)},
    "refine": {"yes": True, "no": False},
    "match_colours": {"yes": True, "no": False},
}
MAX_IMAGES = 32
MAX_SCALES = 8
MAX_RADIUS = 2  # cells; 25 times as many views to search as images


@dataclass(frozen=True)
class Settings:
    """The controls of a tab. stride 0: P/3 rounded; where: "" allows all images.

    preset, mirror and the words of `CHOICES`: for new images; mirror -1, or no word: what the preset sets. scales: how
    many grid sides an edit has. search_radius: 0 to `MAX_RADIUS`.
    """

    n: int = 8
    k: int = 3
    patch: int = 6
    stride: int = 0
    search_radius: int = 0
    seed: int = 0
    backend: str = "auto"
    where: str = ""
    preset: str = DEFAULT_PRESET
    mirror: int = -1
    start: str = ""
    overlap: str = ""
    hubness: str = ""
    refine: str = ""
    match_colours: str = ""
    scales: int = 1

    def of_style(self) -> dict[str, Any]:
        """The options of `lpkernel.generate` that a preset sets, as far as they are chosen. Raises InputError."""
        found: dict[str, Any] = {"preset": self.preset}
        if self.mirror != -1:
            found["mirror"] = self.mirror
        for name, meant in CHOICES.items():
            if word := getattr(self, name):
                if word not in meant:
                    raise InputError(f"{name}: got {word!r}, expected one of {', '.join(meant)}")
                found[name] = meant[word]
        return found


@dataclass(frozen=True, eq=False)
class Result:
    """images (N, S, S, 3) uint8, their source maps of the same shape; line: times, backend and plan of the call."""

    made: Synthesis
    images: Pixels
    maps: Pixels
    line: str

    def closed(self) -> Pixels | None:
        """(N, S, S, 4) uint8: the images blended into the picture's own pixels, with alpha where they differ from
        those; None if no picture was changed in a part of it."""
        whole = self.made.whole
        if whole is None:
            return None
        images = whole.closing.apply(self.images) if self.made.composite is None else self.images
        weight = np.broadcast_to(whole.closing.weight[..., None], (*images.shape[:3], 1))
        return np.concatenate([images, weight], -1)


@dataclass(eq=False)
class Engine:
    """A bank, its autoencoder, and where they run. Methods raise LpkernelError for wrong input by the user."""

    bank: Bank
    autoencoder: Autoencoder
    device: str = "auto"
    backend: str = "auto"

    def regions(self) -> list[str]:
        """Names of the face's parts; [] when the framing of the bank's faces is unknown."""
        try:
            return list(layout_of(self.bank).regions)
        except InputError:
            return []

    def sides(self, settings: Settings) -> tuple[int, ...]:
        """The grid sides of `settings.scales` scales, none below the patch."""
        if not 1 <= settings.scales <= MAX_SCALES:
            raise InputError(f"scales: got {settings.scales}, expected 1 to {MAX_SCALES}")
        side = self.bank.grid
        if settings.scales == 1:
            return (side,)
        return plan.fitting(plan.default_scales(side, settings.scales), settings.patch)

    def frame(self, path: str | Path, framing: str = "auto") -> Framed:
        """An image file framed as the bank's images. Raises InputError, without the path."""
        return frame(self.bank, load_pixels(path), self.autoencoder, framing=framing, find=faces.find_faces)

    def put_back(self, closed: Pixels, path: str | Path, framing: str = "auto") -> Pixels:
        """A result (S, S, 4) of `Result.closed`, in its place in the image file that was framed so."""
        framed, whole = self.frame(path, framing), load_pixels(path)
        closing = Composite(framed.pixels, closed[..., 3], feather(len(closed), self.bank.grid))
        return Whole.around(closing, whole, framed.where).apply(closed[..., :3])

    def framed_words(self, framed: Framed) -> str:
        """How a picture was framed, for the visitor."""
        return framed.said or WORDS[framed.how]

    def opening(self) -> Result:
        """What the page shows at first."""
        top = min(self.bank.max_patch, self.bank.grid)
        settings = Settings(patch=min(6, top), k=min(3, self.bank.size), backend=self.backend)
        *_, result = self.generate(settings)
        assert isinstance(result, Result)
        return result

    def likeness(self, picture: Pixels) -> list[str]:
        """Why a picture (S, S, 3) may not suit the bank; [] if nothing is found."""
        return likeness.warnings(self.bank, read_input(self.bank, picture, self.autoencoder), self.autoencoder)

    def bank_picture(self, number: int) -> Pixels:
        """Bank image `number` as the autoencoder decodes it, (S, S, 3)."""
        if not 0 <= number < self.bank.size:
            raise InputError(f"bank image: got {number}, expected 0 to {self.bank.size - 1}")
        return self.bank_pictures(np.array([number]))[0]

    def bank_pictures(self, numbers: NDArray[np.int64], bank: Bank | None = None) -> Pixels:
        """Bank images (B',) as the autoencoder decodes them, (B', S, S, 3)."""
        return self.autoencoder.decode((self.bank if bank is None else bank).whole(numbers))

    def region(self, mask: NDArray[np.bool_] | None, names: list[str]) -> NDArray[np.bool_]:
        """Cells (M, M) that the painted pixels (S, S) touch, or that a named part contains."""
        chosen = np.zeros((self.bank.grid, self.bank.grid), bool)
        if mask is not None:
            chosen |= cells.touched(mask, self.bank.grid)
        if names:
            chosen |= named_region(",".join(names), self.bank)
        if not chosen.any():
            raise InputError("mask: nothing is chosen; paint over what is to change, or tick a part of the face")
        return chosen

    def generate(self, settings: Settings) -> Iterator[str | Result]:
        """New images. Yields a line after each stage, then the result."""
        yield from self._staged(
            settings,
            lambda options: generate(
                self.bank,
                patch=settings.patch,
                stride=settings.stride or None,
                **settings.of_style(),
                **options,
            ),
        )

    def change(
        self,
        settings: Settings,
        picture: Pixels | None,
        mask: NDArray[np.bool_] | None,
        names: list[str],
        task: str,
        mode: str,
        keep_outside: bool,
    ) -> Iterator[str | Result]:
        """What is made of a picture (S, S, 3), by one of the `TASKS`. Yields as `generate`.

        edit: variants of the painted pixels (S, S) and the named parts, in one `mode` of `lpkernel.edit`; named parts
        alone, free and at one scale, come from one donor. inpaint, harmonize: the painted pixels. reference: the whole
        picture, nothing need be painted.
        """
        if picture is None:
            raise InputError("image: none is given; choose a file or a bank image first")
        if task not in TASKS:
            raise InputError(f"task: got {task!r}, expected one of {', '.join(TASKS)}")
        if task == "edit":
            make = self._edit(settings, picture, mask, names, mode, keep_outside)
        elif task == "reference":
            scales = None if settings.scales == 1 else self.sides(settings)

            def make(options: dict[str, Any]) -> Synthesis:
                return reference(self.bank, picture, self.autoencoder, scales=scales, **_patches(settings), **options)

        else:
            if mask is None or not mask.any():
                what = "what is missing" if task == "inpaint" else "what was pasted in"
                raise InputError(f"mask: nothing is painted; paint over {what}")
            called = inpaint if task == "inpaint" else harmonize
            scales = None if settings.scales == 1 else self.sides(settings)

            def make(options: dict[str, Any]) -> Synthesis:
                return called(
                    self.bank,
                    picture,
                    self.autoencoder,
                    mask,
                    scales=scales,
                    keep_outside=keep_outside,
                    **_patches(settings),
                    **options,
                )

        yield from self._staged(settings, make)

    def _edit(
        self,
        settings: Settings,
        picture: Pixels,
        mask: NDArray[np.bool_] | None,
        names: list[str],
        mode: str,
        keep_outside: bool,
    ) -> Callable[[dict[str, Any]], Synthesis]:
        region = self.region(mask, names)
        scales = self.sides(settings)
        painted = mask is not None and bool(mask.any())
        one = mode == "free" and len(scales) == 1 and not painted
        return lambda options: edit(
            self.bank,
            picture,
            self.autoencoder,
            region=region,
            mode=mode,
            scales=None if one else scales,
            donor="one" if one else "patches",
            keep_outside=keep_outside,
            **_patches(settings),
            **options,
        )

    def _staged(self, settings: Settings, make: Any) -> Iterator[str | Result]:
        if not 1 <= settings.n <= MAX_IMAGES:
            raise InputError(f"n: got {settings.n}, expected 1 to {MAX_IMAGES} images")
        if not 0 <= settings.search_radius <= MAX_RADIUS:
            raise InputError(f"search_radius: got {settings.search_radius}, expected 0 to {MAX_RADIUS} cells")
        clock = Clock()
        with clock.stage("preparing"):
            where = settings.where.strip()
            allowed = np.flatnonzero(self.bank.where(where, at_least=1)) if where else None
        with clock.stage("synthesis"):
            made: Synthesis = make(self._options(settings, allowed))
        # reading and encoding an input, making plans and tables do not count as search
        search = float(made.settings["seconds"])
        clock.seconds["preparing"] += max(0.0, clock.seconds["synthesis"] - search)
        clock.seconds["synthesis"] = search
        facts = self._facts(made)
        yield f"{timing(clock)}; {facts}; decoding …"
        with clock.stage("decode"):
            images = made.decode(self.autoencoder)
        yield f"{timing(clock)}; {facts}; drawing …"
        with clock.stage("drawing"):
            colours = render.source_colours(made.bank.size)
            maps = np.stack([render.source_map(one, colours, images.shape[1]) for one in made.sources])
        yield Result(made, images, maps, f"{timing(clock)}; {facts}")

    def _options(self, settings: Settings, allowed: NDArray[np.int64] | None) -> dict[str, Any]:
        return {
            "n": settings.n,
            "k": settings.k,
            "seed": settings.seed,
            "search_radius": settings.search_radius,
            "backend": settings.backend,
            "device": self.device,
            "candidates": allowed,
        }

    def _facts(self, made: Synthesis) -> str:
        """One line: the backend that was used, the plan, and how many bank images were allowed."""
        did = made.settings
        left_out = did.get("left_out_as_the_input")
        return (
            f"backend {did['backend']}; "
            f"seed {did['seed']}, stride {did['stride']}, scales {', '.join(map(str, did['scales']))}; "
            f"{did['candidates']} of {did['bank_images']} bank images allowed"
            + (f", fewer than k {did['k']}: drawn from all of them" if did["k_used"] < did["k"] else "")
            + (f", {len(left_out)} left out as the input itself" if left_out else "")
        )


def _patches(settings: Settings) -> dict[str, Any]:
    return {"patch": settings.patch, "stride": settings.stride or None}


def timing(clock: Clock) -> str:
    """Milliseconds of each stage so far, on one line."""
    return ", ".join(f"{stage} {1000 * seconds:.1f} ms" for stage, seconds in clock.seconds.items())
