"""What a user gives to a mode (an image or its codes), as the canvas that a plan starts from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lpkernel import checks
from lpkernel.alignment import faces
from lpkernel.alignment.framing import Framed, frame
from lpkernel.arrays import host_array
from lpkernel.autoencoder.partial import Original
from lpkernel.bank import TABLE_ROWS, Bank, allowed_images, autoencoder_of
from lpkernel.errors import InputError
from lpkernel.pictures.composite import Composite, Whole, feather
from lpkernel.pictures.fill import fill_hole
from lpkernel.pictures.images import Crop, given_pixels, load_alpha, load_mask, load_pixels
from lpkernel.plan import Plan
from lpkernel.synthesis import Options, Synthesis, canvas_array, generate

if TYPE_CHECKING:
    from lpkernel.autoencoder.protocol import Autoencoder

Bools = NDArray[np.bool_]
MaskLike = str | Path | NDArray[Any]

# A bank image this much nearer to the canvas than the median one is the same image, encoded again (with another batch
# size or dtype, or beside a hole). On 999 photographs such ratios were below 0.07, those of other people above 0.3.
SAME = 1 / 8


@dataclass(frozen=True, eq=False)
class Input:
    """canvas: (M, M) int64 codes or (M, M, L) float32 latents. mask: (S, S) bool, None if none was given.

    framed: the picture as a square (S, S, 3) and where that lies in the `photograph` (H, W, 3), whose hole is filled if
    asked for; both None if codes were given. whole_mask: the mask of the photograph, (H, W). marked: where the
    mask comes from, for the record.
    """

    canvas: NDArray[Any]
    mask: Bools | None
    framed: Framed | None = None
    photograph: NDArray[np.uint8] | None = None
    whole_mask: Bools | None = None
    marked: str | list[int] | None = None

    @cached_property
    def original(self) -> Original:
        """The canvas, to be decoded once."""
        return Original(self.canvas)

    @property
    def pixels(self) -> NDArray[np.uint8] | None:
        """What is encoded, (S, S, 3)."""
        return None if self.framed is None else self.framed.pixels

    def said(self) -> list[str]:
        """In words, what was done to the picture without being asked for."""
        said = [] if self.framed is None or not self.framed.said else [self.framed.said]
        if self.framed is not None and self.whole_mask is not None:
            held = self.framed.holds(self.whole_mask)
            if held < 0.995:
                said.append(f"{1 - held:.0%} of the mask lies outside the part of the picture that is used")
        return said


ImageLike = str | Path | NDArray[Any] | Image.Image | Input


def read_input(
    bank: Bank,
    image: ImageLike,
    autoencoder: Autoencoder | None,
    crop: Crop | None = None,
    mask: MaskLike | None = None,
    box: Crop | None = None,
    fill: bool = False,
    framing: str = "auto",
    invert_mask: bool = False,
    alpha: bool = False,
) -> Input:
    """Encode an image, framed as the bank's: a path, (H, W, 3) uint8 pixels, or an autoencoder's codes or latents.

    `crop`, `framing`: as in `alignment.framing.frame`. A mask (a black and white picture by its path, white = True, or
    bool) has the image's height and width and is framed the same way; `invert_mask` inverts it. A box x0, y0, x1, y1 of
    the image's pixels is a mask as well. `alpha`: without either, the transparent part of a file is the mask. `fill`
    replaces the masked pixels before anything is resized or encoded. An `Input` is returned as it is. Raises
    InputError.
    """
    framing = checks.text("framing", framing)
    if isinstance(image, Input):
        if any(given is not None for given in (crop, mask, box)) or framing != "auto" or invert_mask:
            raise InputError("image: got one already read; give crop, framing, mask and box when reading it")
        return image
    if isinstance(image, Synthesis):
        raise InputError("image: got a Synthesis; give one of its pictures, as of decode(autoencoder)[0], or codes[0]")
    given = image if isinstance(image, str | Path) else given_pixels(image)
    crop, box = _four("crop", crop), _four("box", box)
    if isinstance(given, np.ndarray) and given.dtype != np.uint8:
        if fill or crop is not None or framing != "auto":
            raise InputError(f"image: got {given.dtype} {given.shape}, expected a path or (H, W, 3) uint8 pixels")
        cells = (bank.grid, bank.grid)
        if given.shape not in ((cells,) if bank.is_discrete else ((*cells, bank.width),)):
            raise InputError(
                f"image: got {given.dtype} {given.shape}, expected a path, (H, W, 3) uint8 pixels, or codes or "
                f"latents of {cells} cells"
            )
        side = bank.image_size or bank.grid
        canvas = canvas_array(bank, given, 1)[0]
        return Input(canvas, _mask(mask, box, (side, side), invert_mask), marked=_marked(mask, box))
    autoencoder = autoencoder_of(bank, autoencoder)
    what, pixels, own = _pixels(given, alpha and mask is None and box is None)
    whole = own if own is not None and not invert_mask else _mask(mask, box, pixels.shape[:2], invert_mask)
    read = _encoded(bank, what, pixels, whole, autoencoder, crop, framing, fill)
    return replace(read, marked="transparency" if own is not None else _marked(mask, box))


def _marked(mask: MaskLike | None, box: Crop | None) -> str | list[int] | None:
    if box is not None:
        return list(box)
    return None if mask is None else str(mask) if isinstance(mask, str | Path) else "mask"


def _pixels(image: str | Path | NDArray[Any], alpha: bool) -> tuple[str, NDArray[np.uint8], Bools | None]:
    """What the image is called, its pixels (H, W, 3), and its transparent part (H, W) if that is asked for."""
    if not isinstance(image, str | Path):
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise InputError(f"image: got shape {image.shape}, expected (H, W, 3) uint8")
        return "image", image, None
    if alpha:
        found = _loaded(image, load_alpha)
        if found is None:
            raise InputError(
                f"mask: none is given, and nothing of {image} is transparent; give --mask FILE, a black and white "
                "picture, or, to edit, --region or --box (in Python mask=..., region=..., box=...)"
            )
        return str(image), *found
    return str(image), _loaded(image, load_pixels), None


def _four(name: str, edges: Any) -> Crop | None:
    return None if edges is None else cast(Crop, checks.integers(name, edges, 4))


def _encoded(
    bank: Bank,
    what: str,
    pixels: NDArray[np.uint8],
    whole: Bools | None,
    autoencoder: Autoencoder,
    crop: Crop | None,
    framing: str,
    fill: bool,
) -> Input:
    if fill and whole is not None and not whole.all():
        pixels = fill_hole(pixels, whole)
    try:
        framed = frame(bank, pixels, autoencoder, crop, framing, whole, faces.find_faces)
        chosen = None if whole is None else framed.mask(whole)
        if chosen is not None and not chosen.any():
            raise InputError("mask: nothing of it lies within the part of the image that is used; see crop and framing")
    except InputError as error:
        raise InputError(f"{what}: {error}") from error
    canvas = np.asarray(autoencoder.encode(framed.pixels[None]))[0]
    return Input(canvas, chosen, framed, pixels, whole)


def _loaded(path: str | Path, load: Callable[[str | Path], Any]) -> Any:
    try:
        return load(path)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _mask(mask: MaskLike | None, box: Crop | None, shape: tuple[int, int], invert: bool) -> Bools | None:
    """The mask as given, or of the box, (H, W) bool. Raises InputError unless it fits and anything is set."""
    height, width = shape
    if box is not None:
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise InputError(f"box: {x0},{y0},{x1},{y1} is empty or not within the image's {width}x{height} pixels")
        inside = np.zeros(shape, bool)
        inside[y0:y1, x0:x1] = True
        mask = inside
    if mask is None:
        if invert:
            raise InputError("invert_mask: there is no mask to invert; give one")
        return None
    if isinstance(mask, str | Path):
        given = _loaded(mask, lambda path: load_mask(path, invert))
        kind, expected = "a picture", "a black and white picture"
    else:
        given = host_array("mask", mask)
        kind, expected = str(given.dtype), "bool"
        if given.dtype == np.bool_ and invert:
            given = ~given
    if given.dtype != np.bool_ or given.shape != shape:
        got = f"{kind} of {given.shape[1]}x{given.shape[0]}" if given.ndim == 2 else f"shape {given.shape}"
        raise InputError(f"mask: got {got}, expected {expected} of {width}x{height} pixels, like the image")
    if not given.any():
        raise InputError("mask: nothing is set; mark what is to change")
    return given


def _without_itself(bank: Bank, start: Input, known: Bools, candidates: ArrayLike | None) -> tuple[Any, list[str]]:
    """The allowed bank images without the input itself and its mirror image, and the names of those left out.

    known: (M, M) bool, the cells of the canvas that are compared; without any, nothing is left out. Raises
    InputError when no image is left.
    """
    allowed = allowed_images(bank, candidates)
    if not known.any():
        return allowed, []
    distances = _distances(bank, start.canvas, known)
    same = distances < SAME * np.median(distances)
    same |= bank.flips_of(same)
    left = allowed[~same[allowed]]
    if not left.size:
        raise InputError("candidates: no bank image is left besides the input itself; allow others")
    return left, [bank.names[i] for i in allowed[same[allowed]]]


def _distances(bank: Bank, canvas: NDArray[Any], known: Bools) -> NDArray[np.int64]:
    """(B,) squared distance of each bank image to the canvas over the known cells, in fixed point."""
    if bank.codes is not None and bank.fixed_codebook is not None:
        if len(bank.fixed_codebook) <= TABLE_ROWS:
            return bank.table()[canvas[known], bank.sound_codes(cells=known)].sum(1, dtype=np.int64)
        values = bank.fixed_codebook[canvas]
    else:
        values = bank.project(canvas)
    level = bank.level(bank.grid)
    target = values[known].astype(np.int64)
    return np.array([np.square(one[known] - target).sum() for one in level], np.int64)


def written(
    bank: Bank,
    start: Input,
    plan: Plan,
    known: Bools,
    n: int,
    options: Options,
    facts: dict[str, Any],
    inside: Bools | None = None,
    keep_outside: bool | None = None,
    refine: bool = False,
    match_colours: bool = False,
) -> Synthesis:
    """What a mode makes of its input: n results of the plan from its canvas, the input itself left out of the bank.

    known: (M, M) bool, the cells by which the input is recognised in the bank. facts: for the settings. inside,
    keep_outside: as in `_finished`. options, refine, match_colours: of `generate`. Raises InputError.
    """
    options["candidates"], excluded = _without_itself(bank, start, known, options.get("candidates"))
    made = generate(bank, n, plan=plan, canvas=start.canvas, refine=refine, match_colours=match_colours, **options)
    return _finished(made, start, excluded, facts, inside, keep_outside)


def _finished(
    made: Synthesis,
    start: Input,
    excluded: list[str],
    facts: dict[str, Any],
    inside: Bools | None = None,
    keep_outside: bool | None = None,
) -> Synthesis:
    """The synthesis with what the mode did in its settings.

    inside: the pixels (S, S) that are the result's in the closing composite and in the whole picture. keep_outside:
    None for yes, where there are pixels. Raises InputError.
    """
    framed = start.framed
    facts = {
        **facts,
        "input_framing": None if framed is None else {"how": framed.how, **framed.facts},
        "input_crop": None if framed is None else framed.crop,
        "left_out_as_the_input": excluded,
        "keep_outside": None,
    }
    composite = whole = None
    if keep_outside is not None and checks.flag("keep_outside", keep_outside) and framed is None:
        raise InputError("keep_outside: the input is codes or latents, expected pixels to keep; pass the image")
    if inside is not None and framed is not None and start.photograph is not None:
        faded = feather(len(framed.pixels), made.bank.grid)
        closing = Composite.feathered(framed.pixels, inside, faded)
        whole = Whole.around(closing, start.photograph, framed.where, start.whole_mask)
        if keep_outside is None or keep_outside:
            composite, facts["keep_outside"] = closing, {"feather_pixels": faded}
    return replace(made, settings={**made.settings, **facts}, composite=composite, whole=whole, original=start.original)
