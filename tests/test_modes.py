"""Reference, edit, inpaint and harmonize: the same on every backend, with the cells that each promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeContinuous, FakeVQ
from PIL import Image

import lpkernel as lp
from lpkernel.alignment.regions import layouts, named_region
from lpkernel.backends.base import Backend
from lpkernel.errors import InputError
from lpkernel.modes import cells, likeness
from lpkernel.modes.inputs import read_input
from lpkernel.pictures.composite import MOST_MOVED
from lpkernel.pictures.fill import fill_hole

Make = Callable[..., lp.Synthesis]
SIZE, GRID = 64, 8  # of the fake autoencoders


@cache
def avatars() -> tuple[lp.Bank, lp.Autoencoder]:
    return lp.Bank.default(), lp.load_autoencoder("default", device="cpu", dtype="float32")


@cache
def avatar(index: int) -> np.ndarray:
    bank, autoencoder = avatars()
    return autoencoder.decode(bank.gather(np.full((1, 16, 16), index)))[0]


def square_of(side: int, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((side, side), bool)
    mask[y0:y1, x0:x1] = True
    return mask


FACE = square_of(128, 55, 90, 60, 105)


def _composite() -> np.ndarray:
    return np.where(FACE[..., None], avatar(40), avatar(9))


MODES: dict[str, Callable[..., lp.Synthesis]] = {
    "reference": lambda bank, ae, **o: lp.reference(bank, avatar(9), ae, **o),
    "reference, three passes": lambda bank, ae, **o: lp.reference(bank, avatar(9), ae, strength=3, **o),
    "reference, two scales": lambda bank, ae, **o: lp.reference(bank, avatar(9), ae, scales=[12, 16], **o),
    "edit free": lambda bank, ae, **o: lp.edit(bank, avatar(9), ae, region="eyes,mouth", **o),
    "edit guided": lambda bank, ae, **o: lp.edit(bank, avatar(9), ae, box=(40, 0, 90, 50), mode="guided", **o),
    "inpaint": lambda bank, ae, **o: lp.inpaint(bank, avatar(9), ae, FACE, **o),
    "harmonize": lambda bank, ae, **o: lp.harmonize(bank, _composite(), ae, FACE, **o),
}


SOME = np.arange(0, 1200, 4)  # bank images: the specification takes its time


@cache
def specified(mode: str) -> lp.Synthesis:
    return MODES[mode](*avatars(), n=3, seed=5, backend="numpy", candidates=SOME)


@pytest.mark.parametrize("mode", MODES)
def test_every_backend_makes_the_same(mode: str, backend: Backend) -> None:
    made = MODES[mode](*avatars(), n=3, seed=5, backend=backend.name, candidates=SOME)
    assert np.array_equal(made.sources, specified(mode).sources)
    assert made.codes is not None and np.array_equal(made.codes, specified(mode).codes)  # type: ignore[arg-type]
    assert made.settings["mode"] in mode.replace("edit ", "edit-") and made.settings["backend"] == backend.name


@pytest.mark.parametrize("mode", MODES)
def test_an_image_does_not_depend_on_its_batch(mode: str) -> None:
    alone = MODES[mode](*avatars(), n=1, first_image=2, seed=5, candidates=SOME)
    assert np.array_equal(alone.sources[0], specified(mode).sources[2])


def small_bank(kind: str) -> tuple[lp.Bank, Any]:
    images = np.random.default_rng(0).integers(0, 256, (30, GRID, GRID, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    autoencoder = FakeVQ(GRID) if kind == "codes" else FakeContinuous(GRID)
    return lp.Bank.build(images, autoencoder, channels=3), autoencoder


def small_image(seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (GRID, GRID, 3), np.uint8).repeat(8, 0).repeat(8, 1)


@pytest.mark.parametrize("kind", ["codes", "latents"])
@pytest.mark.parametrize("name", ["edit", "guided", "inpaint", "harmonize"])
def test_cells_outside_keep_their_values_exactly(name: str, kind: str, backend: Backend) -> None:
    bank, autoencoder = small_bank(kind)
    image, mask = small_image(), square_of(SIZE, 20, 41, 24, 40)
    options: dict[str, Any] = {"n": 3, "patch": 3, "backend": backend.name}
    canvas = autoencoder.encode(image[None])[0]
    if name == "inpaint":
        made = lp.inpaint(bank, image, autoencoder, mask, **options)
        region = cells.near(mask, GRID)
        canvas = autoencoder.encode(fill_hole(image, mask)[None])[0]
    elif name == "harmonize":
        made = lp.harmonize(bank, image, autoencoder, mask, **options)
        region = cells.grown(cells.touched(mask, GRID))
    else:
        made = lp.edit(bank, image, autoencoder, mask=mask, mode="free" if name == "edit" else "guided", **options)
        region = cells.touched(mask, GRID)
    content = made.codes if made.codes is not None else made.latents
    assert content is not None and ((made.sources >= 0) == region).all()
    assert np.array_equal(content[:, ~region], np.broadcast_to(canvas, content.shape)[:, ~region])


def test_codes_and_latents_given_instead_of_an_image() -> None:
    for kind in ("codes", "latents"):
        bank, autoencoder = small_bank(kind)
        canvas = autoencoder.encode(small_image()[None])[0]
        from_codes = lp.reference(bank, canvas, n=2, patch=3)
        from_pixels = lp.reference(bank, small_image(), autoencoder, n=2, patch=3)
        assert np.array_equal(from_codes.sources, from_pixels.sources)
        region = square_of(GRID, 2, 5, 1, 6)
        assert ((lp.edit(bank, canvas, region=region, n=1, patch=3).sources[0] >= 0) == region).all()
        mask = square_of(SIZE, 16, 40, 8, 48)
        assert ((lp.edit(bank, canvas, mask=mask, n=1, patch=3).sources[0] >= 0) == region).all()
        with pytest.raises(InputError, match="keep_outside"):
            lp.edit(bank, canvas, region=region, keep_outside=True, n=1, patch=3)


def test_each_pass_goes_on_from_the_last_and_draws_anew() -> None:
    bank, autoencoder = avatars()
    start = autoencoder.encode(avatar(9)[None])[0]
    differing = [
        (lp.reference(bank, avatar(9), autoencoder, n=24, strength=passes).codes != start).mean()
        for passes in (1, 4, 12)
    ]
    assert differing == sorted(differing) and differing[0] < differing[-1]
    plan = lp.plan.reference(16, 6, passes=3)
    assert plan.steps == 3 * 36 and np.array_equal(plan.scales[0].positions[:36], plan.scales[0].positions[36:72])
    codes, latents = (
        lp.reference(bank, avatar(9), autoencoder, n=2, strength=3, domain=domain) for domain in ("codes", "latents")
    )
    assert np.array_equal(codes.sources, latents.sources)


@pytest.mark.parametrize(
    ("preset", "plan", "options"),
    [
        ("paper", lp.plan.reference(16), {}),
        ("balanced", lp.plan.reference(16, 6, 4, overlap="cut", mirror=1), {"hubness": 0.375, "refine": True}),
        ("diverse", lp.plan.reference(16, 6, 4, overlap="cut", mirror=1), {"hubness": 0.5, "refine": True}),
    ],
)
def test_presets_of_reference(preset: str, plan: lp.plan.Plan, options: dict[str, Any]) -> None:
    bank, autoencoder = avatars()
    made = lp.reference(bank, avatar(9), autoencoder, n=3, preset=preset)
    others = np.flatnonzero(~np.isin(bank.names, made.settings["left_out_as_the_input"]))
    canvas = autoencoder.encode(avatar(9)[None])[0]
    wanted = lp.generate(bank, 3, plan=plan, canvas=canvas, candidates=others, **options)
    assert np.array_equal(made.sources, wanted.sources)
    given: dict[str, Any] = {"overlap": "replace", "hubness": 0.0, "mirror": 0, "refine": False}
    assert np.array_equal(
        lp.reference(bank, avatar(9), autoencoder, n=3, preset=preset, **given).sources,
        lp.reference(bank, avatar(9), autoencoder, n=3, preset="paper").sources,
    )


def test_the_input_is_not_copied_from() -> None:
    bank, autoencoder = avatars()
    for made in (
        lp.reference(bank, avatar(9), autoencoder, n=4, k=1),
        lp.edit(bank, avatar(9), autoencoder, region="hair", k=1),
        lp.inpaint(bank, avatar(9), autoencoder, FACE, k=1),
    ):
        assert "avatar-000009" in made.settings["left_out_as_the_input"]
        assert not (made.sources == 9).any()
    noisy = (avatar(9) ^ 1).astype(np.uint8)  # the same picture again, with other bytes
    assert not (lp.reference(bank, noisy, autoencoder, n=1, k=1).sources == 9).any()
    with pytest.raises(InputError, match="besides the input itself"):
        lp.reference(bank, avatar(9), autoencoder, candidates=[9])


def test_the_mirror_image_of_the_input_is_not_copied_from() -> None:
    autoencoder = lp.load_autoencoder("default", "cpu")
    bank = lp.Bank.build(np.stack([avatar(i) for i in range(12)]), autoencoder, flip=True)
    for picture in (avatar(9), avatar(9)[:, ::-1]):
        made = lp.reference(bank, picture, autoencoder, n=2, k=1)
        assert sorted(made.settings["left_out_as_the_input"]) == ["image-000009", "image-000009 (flipped)"]
        assert not np.isin(made.sources, (9, 21)).any()


def test_nothing_of_what_was_in_the_hole_is_left() -> None:
    bank, autoencoder = avatars()
    other = np.where(FACE[..., None], np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8), avatar(9))
    first, second = (lp.inpaint(bank, image, autoencoder, FACE, n=2) for image in (avatar(9), other))
    assert np.array_equal(first.codes, second.codes)  # type: ignore[arg-type]
    assert np.array_equal(first.decode(autoencoder), second.decode(autoencoder))
    assert first.settings["hole_filled_with"].startswith("pull-push")
    answers = lp.inpaint(bank, avatar(9), autoencoder, FACE, n=8).sources
    assert len({one.tobytes() for one in answers}) == 8


def test_a_hole_is_filled_before_the_image_is_resized(tmp_path: Path) -> None:
    bank, autoencoder = avatars()
    photograph = np.asarray(Image.fromarray(avatar(9)).resize((301, 301)))
    mask = square_of(301, 130, 200, 120, 221)
    vandalised = photograph.copy()
    vandalised[mask] = (255, 0, 255)
    Image.fromarray(vandalised).save(tmp_path / "damaged.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    from_file = lp.inpaint(bank, tmp_path / "damaged.png", autoencoder, tmp_path / "mask.png", n=1)
    assert np.array_equal(from_file.codes, lp.inpaint(bank, photograph, autoencoder, mask, n=1).codes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 9), (7, 5), (64, 64), (33, 100)])
def test_filling_a_hole(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(3)
    image = random.integers(40, 200, (*shape, 3), np.uint8)
    hole = random.random(shape) < 0.7
    hole[0, 0] = False
    filled = fill_hole(image, hole)
    assert np.array_equal(filled[~hole], image[~hole])
    assert filled.min() >= 40 and filled.max() < 200
    other = np.where(hole[..., None], random.integers(0, 256, image.shape, np.uint8), image)
    assert np.array_equal(fill_hole(other, hole), filled)
    grey = np.full((*shape, 3), 77, np.uint8)
    assert (fill_hole(np.where(hole[..., None], np.uint8(0), grey), hole) == 77).all()


def test_masks_in_cells() -> None:
    random = np.random.default_rng(4)
    for side, grid in ((64, 8), (50, 8), (128, 16)):
        mask = random.random((side, side)) < 0.01
        assert np.array_equal(cells.pixels(cells.touched(mask, grid), side) & mask, mask)
        assert not (cells.pixels(cells.covered(~mask, grid), side) & mask).any()
        unknown, cell = cells.near(mask, grid), side / grid
        assert (unknown >= cells.touched(mask, grid)).all() or side % grid
        ys, xs = np.nonzero(mask)
        for y, x in np.ndindex(grid, grid):
            away = np.maximum(abs(ys + 0.5 - (y + 0.5) * cell), abs(xs + 0.5 - (x + 0.5) * cell))
            assert unknown[y, x] == (away <= cell).any()
    one = square_of(5, 0, 1, 4, 5)
    assert np.array_equal(cells.grown(one), square_of(5, 0, 2, 3, 5))


def test_harmonizing_frees_the_seam_and_guides_the_rest() -> None:
    bank, autoencoder = small_bank("codes")
    mask = square_of(SIZE, 12, 44, 16, 40)  # rows of cells 1 (half), 2 to 4, 5 (half); columns 2 to 4
    made = lp.harmonize(bank, small_image(), autoencoder, mask, n=1, patch=3)
    assert ((made.sources[0] >= 0) == square_of(GRID, 0, 7, 1, 6)).all()
    assert made.settings["guided_cells"] == 9 and made.settings["free_cells"] == 7 * 5 - 9
    first = made.plan.scales[0]
    assert made.plan.kind == "edit-mixed"
    # at (0, 0): column 0 lies outside, row 2 of column 2 is guided, the rest is free
    assert first.compare[0].tolist() == [[True, False, False], [True, False, False], [True, False, True]]
    thin = lp.harmonize(bank, small_image(), autoencoder, square_of(SIZE, 20, 22, 20, 50), n=1, patch=3)
    assert thin.settings["guided_cells"] == 5


@pytest.mark.parametrize("mode", [lp.edit, lp.inpaint, lp.harmonize])
def test_the_embedded_autoencoder_need_not_be_given(mode: Callable[..., lp.Synthesis]) -> None:
    bank, autoencoder = avatars()
    told, left_out = (mode(bank, avatar(9), given, mask=FACE, n=1) for given in (autoencoder, None))
    assert left_out.settings["keep_outside"] is not None
    assert np.array_equal(told.decode(), left_out.decode())


def test_keeping_the_outside() -> None:
    bank, autoencoder = avatars()
    alike = bank.where("Skin_Tan")  # as the avatar's: another skin is rightly moved further
    options: dict[str, Any] = {"mask": FACE, "n": 2, "candidates": alike}
    kept = lp.edit(bank, avatar(9), autoencoder, keep_outside=True, **options)
    plain = lp.edit(bank, avatar(9), autoencoder, keep_outside=False, **options)
    images, bare = kept.decode(autoencoder), plain.decode(autoencoder)
    assert np.array_equal(kept.sources, plain.sources)
    moved = np.abs(images[:, FACE].astype(int) - bare[:, FACE])  # to match the colours at the region's edge
    assert moved.max() <= MOST_MOVED and moved.mean() < 6
    away = ~cells.pixels(cells.grown(cells.grown(cells.touched(FACE, 16))), 128)
    assert np.array_equal(images[:, away], np.stack([avatar(9)] * 2)[:, away])
    assert (bare[:, away] != images[:, away]).any()  # the decoder alone does not keep them
    assert kept.settings["keep_outside"] == {"feather_pixels": 4} and plain.settings["keep_outside"] is None


def test_region_names() -> None:
    bank = lp.Bank.default()
    eyes, mouth = (named_region(name, bank) for name in ("eyes", "mouth"))
    assert np.array_equal(named_region("mouth, eyes", bank), eyes | mouth) and not (eyes & mouth).any()
    halves = [named_region(name, bank) for name in ("left_half", "right_half")]
    assert (halves[0] ^ halves[1]).all()
    with pytest.raises(InputError, match="'eye' is unknown; nearest: eyes"):
        named_region("eye", bank)
    bank, _ = small_bank("codes")
    with pytest.raises(InputError, match="give a mask or a box"):
        named_region("eyes", bank)
    bank.crop, bank.source_size = (19, 40, 159, 180), (178, 218)
    assert named_region("eyes", bank).any()


def test_regions_follow_the_crop() -> None:
    """Landmarks measured on 999 photographs (scripts/face_regions.py), in pixels of the 178x218 frame."""
    means = {"eyebrows": (88.1, 98.6), "eyes": (88.1, 110.9), "nose": (87.3, 132.8), "mouth": (88.1, 153.8)}
    bank, _ = small_bank("codes")
    bank.source_size = (178, 218)
    for crop in ((19, 40, 159, 180), (0, 20, 178, 198), (29, 65, 149, 185)):
        bank.crop = crop
        for name, (x, y) in means.items():
            side = crop[2] - crop[0]
            column, row = int((x - crop[0]) / side * GRID), int((y - crop[1]) / side * GRID)
            assert named_region(name, bank)[row, column], (crop, name)
    for layout in layouts():
        assert all(mask.shape == (16, 16) and mask.any() for mask in layout.regions.values())


def test_donors_and_candidates() -> None:
    bank, autoencoder = avatars()
    glasses = bank.where("Eyeglasses", at_least=3)
    made = lp.edit(bank, avatar(9), autoencoder, region="eyes", candidates=glasses)
    assert glasses[made.sources[made.sources >= 0]].all()
    others = bank.with_images(np.asarray(bank.codes)[[3, 70]], ["a", "b"])
    given = lp.edit(bank, avatar(9), autoencoder, region="eyes", donors=others)
    assert set(np.unique(given.sources)) == {-1, 0, 1} and given.bank is others
    chosen = lp.edit(bank, avatar(9), autoencoder, region="eyes", candidates=[3, 70])
    assert np.array_equal(given.codes, chosen.codes)  # type: ignore[arg-type]


def test_inputs_unlike_the_bank_are_told() -> None:
    bank, autoencoder = avatars()

    def found(image: np.ndarray) -> list[str]:
        return likeness.warnings(bank, read_input(bank, image, autoencoder), autoencoder)

    assert sum(bool(found(avatar(index))) for index in range(0, 200, 10)) <= 2
    turned = found(np.rot90(avatar(9)))
    assert len(turned) == 1 and "aligned" in turned[0]
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    assert [word in reason for word, reason in zip(("aligned", "PSNR"), found(noise), strict=True)] == [True, True]
    small, other = small_bank("latents")
    assert likeness.warnings(small, read_input(small, small_image(), other), other, np.zeros((8, 8), bool)) == []


def test_framing() -> None:
    bank, autoencoder = small_bank("codes")
    bank.crop, bank.source_size = (10, 20, 74, 84), (90, 100)
    frame = np.random.default_rng(2).integers(0, 256, (100, 90, 3), np.uint8)
    made = lp.reference(bank, frame, autoencoder, n=1, patch=3)
    inner = lp.reference(bank, frame[20:84, 10:74], autoencoder, n=1, patch=3)
    assert np.array_equal(made.sources, inner.sources)
    assert made.settings["input_crop"] == (10, 20, 74, 84) and inner.settings["input_crop"] is None
    own = lp.reference(bank, frame, autoencoder, n=1, patch=3, crop=(0, 0, 64, 64))
    assert np.array_equal(own.sources, lp.reference(bank, frame[:64, :64], autoencoder, n=1, patch=3).sources)


def random_masks(count: int) -> Iterator[np.ndarray]:
    """Boxes, noise, stripes, single pixels, nothing and everything."""
    random = np.random.default_rng(7)
    for number in range(count):
        kind = number % 5
        mask = np.zeros((SIZE, SIZE), bool)
        if kind == 0:
            (y0, y1), (x0, x1) = np.sort(random.integers(0, SIZE + 1, (2, 2)), axis=1)
            mask[y0:y1, x0:x1] = True
        elif kind == 1:
            mask = random.random((SIZE, SIZE)) < 10.0 ** random.uniform(-4, 0)
        elif kind == 2:
            mask[:, :: int(random.integers(1, 40))] = True
        elif kind == 3:
            mask[tuple(random.integers(0, SIZE, 2))] = True
        else:
            mask[:] = number % 2 == 0
        yield mask


def test_200_random_masks_give_images_or_one_line() -> None:
    bank, autoencoder = small_bank("codes")
    image, failures = small_image(), 0
    for number, mask in enumerate(random_masks(200)):
        calls: list[Callable[[], lp.Synthesis]] = [
            lambda mask=mask: lp.edit(bank, image, autoencoder, mask=mask, n=2, patch=3),  # type: ignore[misc]
            lambda mask=mask: lp.edit(bank, image, autoencoder, mask=mask, mode="guided", n=2, patch=3),  # type: ignore[misc]
            lambda mask=mask: lp.inpaint(bank, image, autoencoder, mask, n=2, patch=3),  # type: ignore[misc]
            lambda mask=mask: lp.harmonize(bank, image, autoencoder, mask, n=2, patch=3),  # type: ignore[misc]
        ]
        for call in (calls[number % 4], calls[(number + 1) % 4]):
            try:
                made = call()
            except InputError as error:
                failures += 1
                message = str(error)
                assert not mask.any() or cells.near(mask, GRID).all() or mask.all(), message
            else:
                message = ""
                assert ((made.sources[0] >= 0) | ~cells.touched(mask, GRID)).all()
                assert made.decode(autoencoder).shape == (2, SIZE, SIZE, 3)
            assert "\n" not in message and len(message) < 300
    assert 0 < failures < 200


def _any(value: Any) -> Any:
    return value


WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "no region": (lambda b, a: lp.edit(b, small_image(), a), "exactly one"),
    "two regions": (lambda b, a: lp.edit(b, small_image(), a, region="eyes", box=(0, 0, 9, 9)), "exactly one"),
    "region of another grid": (
        lambda b, a: lp.edit(b, small_image(), a, region=np.ones((9, 9), bool)),
        "the bank's grid",
    ),
    "region of numbers": (lambda b, a: lp.edit(b, small_image(), a, region=np.ones((8, 8), int)), "square bool mask"),
    "no cell": (lambda b, a: lp.edit(b, small_image(), a, region=np.zeros((8, 8), bool), patch=3), "nothing to edit"),
    "unknown mode": (lambda b, a: lp.edit(b, small_image(), a, box=(0, 0, 9, 9), mode="bold", patch=3), "free, guided"),
    "box outside": (lambda b, a: lp.edit(b, small_image(), a, box=(0, 0, 9, 65)), "not within the image's 64x64"),
    "box inside out": (lambda b, a: lp.edit(b, small_image(), a, box=(9, 0, 9, 9)), "not within"),
    "mask of another size": (
        lambda b, a: lp.inpaint(b, small_image(), a, np.ones((9, 64), bool)),
        "64x9, expected bool of 64x64",
    ),
    "mask of numbers": (lambda b, a: lp.inpaint(b, small_image(), a, np.ones((64, 64))), "float64"),
    "mask of three axes": (lambda b, a: lp.inpaint(b, small_image(), a, np.ones((64, 64, 1), bool)), "shape"),
    "empty mask": (lambda b, a: lp.inpaint(b, small_image(), a, np.zeros((64, 64), bool)), "nothing is set"),
    "full mask": (lambda b, a: lp.inpaint(b, small_image(), a, np.ones((64, 64), bool)), "whole image"),
    "pasted everywhere": (lambda b, a: lp.harmonize(b, small_image(), a, np.ones((64, 64), bool)), "whole image"),
    "hole in codes": (
        lambda b, a: lp.inpaint(b, np.zeros((8, 8), int), a, np.ones((64, 64), bool)),
        "expected a path or",
    ),
    "no such file": (lambda b, a: lp.reference(b, "nowhere.png", a), "nowhere.png: no such file"),
    "no such mask": (lambda b, a: lp.inpaint(b, small_image(), a, "nowhere.png"), "nowhere.png: no such file"),
    "tiny image": (lambda b, a: lp.reference(b, np.zeros((4, 90, 3), np.uint8), a), "at least 8 a side"),
    "empty image": (lambda b, a: lp.reference(b, np.zeros((0, 9, 3), np.uint8), a), "shape"),
    "grey image": (lambda b, a: lp.reference(b, np.zeros((64, 64), np.uint8), a), "expected \\(H, W, 3\\)"),
    "a result": (lambda b, a: lp.edit(b, _any(lp.generate(b, n=1, patch=3)), a, box=(0, 0, 9, 9)), "got a Synthesis"),
    "names as a list": (lambda b, a: lp.edit(b, small_image(), a, region=_any(["eyes", "mouth"])), "in one text"),
    "float image": (lambda b, a: lp.reference(b, np.zeros((64, 64, 3)), a, patch=3), "float64 .* uint8 pixels"),
    "codes of another grid": (
        lambda b, a: lp.reference(b, np.zeros((9, 9), int), patch=3),
        r"codes or latents of \(8, 8\)",
    ),
    "codes out of range": (lambda b, a: lp.reference(b, np.full((8, 8), 32), patch=3), "codes in"),
    "crop outside": (
        lambda b, a: lp.reference(b, small_image(), a, crop=(0, 0, 65, 65)),
        "crop 0,0,65,65 is not within",
    ),
    "no autoencoder": (lambda b, a: lp.reference(b, small_image()), "pass that one"),
    "another autoencoder": (lambda b, a: lp.reference(b, small_image(), FakeVQ(8, seed=4)), "does not fit"),
    "strength 0": (lambda b, a: lp.reference(b, small_image(), a, strength=0), "strength: got 0"),
    "strength 101": (lambda b, a: lp.reference(b, small_image(), a, strength=101), "strength: got 101"),
    "patch too large": (lambda b, a: lp.reference(b, small_image(), a, patch=9), "patch"),
    "no images": (lambda b, a: lp.reference(b, small_image(), a, n=0, patch=3), "n: got 0"),
    "no candidates": (lambda b, a: lp.reference(b, small_image(), a, candidates=[], patch=3), "no bank image"),
    "no share": (lambda b, a: lp.CopyLimit(share=0.0), "share is 0.0"),
    "no limit": (lambda b, a: lp.CopyLimit(), "neither a share nor an area"),
}


@pytest.mark.parametrize(("call", "word"), WRONG.values(), ids=WRONG)
def test_wrong_arguments(call: Callable[..., Any], word: str) -> None:
    bank, autoencoder = small_bank("codes")
    with pytest.raises(InputError, match=word) as raised:
        call(bank, autoencoder)
    assert "\n" not in str(raised.value)


def test_200_malformed_images_and_masks_are_one_line() -> None:
    bank, autoencoder = small_bank("codes")
    random = np.random.default_rng(11)
    modes: list[Make] = [lp.edit, lp.inpaint, lp.harmonize]
    for number in range(200):
        shape = tuple(int(side) for side in random.integers(1, 90, 2))
        image = random.integers(0, 256, (*shape, [1, 3, 3, 3, 4][number % 5]), np.uint8)
        other = shape if number % 2 else tuple(int(side) for side in random.integers(1, 90, 2))
        mask = random.random(other) < random.random()
        try:
            made = modes[number % 3](bank, image, mask=mask, autoencoder=autoencoder, n=1, patch=3, framing="as-is")
        except InputError as error:
            message = str(error)
        else:
            message = ""
            assert made.sources.shape == (1, GRID, GRID)
        assert "\n" not in message and len(message) < 300


def test_a_named_region_comes_from_one_donor() -> None:
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder(device="cpu")
    face = bank.whole(np.array([9]))[0]
    one = lp.edit(bank, face, region="eyes", n=6)
    assert one.settings["donor"] == "one" and one.settings["k"] == 12 and one.settings["steps"] == 1
    region = named_region("eyes", bank)
    for sources in one.sources:
        assert len(np.unique(sources[region])) == 1 and (sources[~region] == -1).all()
    assert len(np.unique(one.sources[:, region])) > 2
    patches = lp.edit(bank, face, region="eyes", n=6, donor="patches")
    assert patches.settings["donor"] == "patches" and patches.settings["k"] == 3
    for options in ({"scales": [8, 16]}, {"mirror": 1}, {"mode": "guided"}):
        assert lp.edit(bank, face, region="eyes", n=1, **options).settings["donor"] == "patches"
        with pytest.raises(InputError, match=r'donor: "one" copies a free region in one step'):
            lp.edit(bank, face, region="eyes", n=1, donor="one", **options)
    assert lp.edit(bank, face, region=region, n=1).settings["donor"] == "patches"
    assert lp.edit(bank, face, region=region, n=1, donor="one", k=2).settings["k"] == 2
    with pytest.raises(InputError, match="donor: got 'two'"):
        lp.edit(bank, face, region="eyes", n=1, donor="two")
    assert one.decode(autoencoder).shape == (6, 128, 128, 3)


def test_a_small_grid_is_inpainted_by_default_on_the_scales_that_a_patch_fits() -> None:
    bank, autoencoder = small_bank("codes")
    mask = square_of(8 * GRID, 24, 40, 24, 40)
    assert lp.inpaint(bank, small_image(), autoencoder, mask, n=1).settings["scales"] == [6, 7, 8]
