"""Colours, source maps, grids and contact sheets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lpkernel.errors import InputError
from lpkernel.pictures import render


@pytest.mark.parametrize("count", [1, 2, 16, 24])
def test_few_colours_are_all_far_apart(count: int) -> None:
    colours = render.source_colours(count).astype(int)
    assert colours.shape == (count, 3)
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=-1)
    assert apart[~np.eye(count, dtype=bool)].min(initial=255) >= 50


def test_neighbours_among_many_colours_are_far_apart() -> None:
    colours = render.source_colours(3000)
    steps = np.abs(np.diff(colours.astype(int), axis=0)).sum(axis=-1)
    assert colours.dtype == np.uint8 and steps.min() >= 200


@given(st.integers(0, 400), st.integers(0, 400))
def test_a_source_has_one_colour_however_many_there_are(one: int, other: int) -> None:
    fewer, more = sorted((one, other))
    np.testing.assert_array_equal(render.source_colours(more)[:fewer], render.source_colours(fewer))


def test_no_colours() -> None:
    assert render.source_colours(0).shape == (0, 3)
    with pytest.raises(InputError):
        render.source_colours(-1)


def test_source_map_repeats_cells_and_greys_the_unsourced() -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    picture = render.source_map(np.array([[0, 1], [-1, 0]], np.int32), colours, 6)
    assert picture.shape == (6, 6, 3)
    assert (picture[:3, :3] == colours[0]).all() and (picture[:3, 3:] == colours[1]).all()
    assert (picture[3:, :3] == render.UNSOURCED).all() and (picture[3:, 3:] == colours[0]).all()


def test_source_map_of_another_size_is_nearest() -> None:
    sources = np.arange(9).reshape(3, 3)
    colours = render.source_colours(9)
    cells = [0, 0, 1, 1, 2]
    np.testing.assert_array_equal(render.source_map(sources, colours, 5), colours[sources[np.ix_(cells, cells)]])


@pytest.mark.parametrize("sources", [np.zeros((2, 3), int), np.full((2, 2), 4), np.full((2, 2), -2), np.zeros(4, int)])
def test_source_map_refuses(sources: np.ndarray) -> None:
    with pytest.raises(InputError):
        render.source_map(sources, render.source_colours(4), 8)


def test_grid_places_images_in_order() -> None:
    images = np.stack([np.full((2, 3, 3), i, np.uint8) for i in range(5)])
    page = render.grid(images, columns=3, padding=1, background=(9, 9, 9))
    assert page.shape == (7, 13, 3)
    for i in range(5):
        y, x = 1 + i // 3 * 3, 1 + i % 3 * 4
        assert (page[y : y + 2, x : x + 3] == i).all()
    assert (page == 9).all(axis=-1).sum() == 7 * 13 - 5 * 6


@pytest.mark.parametrize(
    ("images", "columns"),
    [(np.zeros((2, 4, 4), np.uint8), 2), (np.zeros((2, 4, 4, 3)), 2), (np.zeros((2, 4, 4, 3), np.uint8), 0)],
)
def test_grid_refuses(images: np.ndarray, columns: int) -> None:
    with pytest.raises(InputError):
        render.grid(images, columns)


def test_most_used_orders_by_cells_then_number() -> None:
    maps = np.array([[[5, 5], [2, -1]], [[7, 7], [2, 9]]])
    assert render.most_used(maps, 3).tolist() == [2, 5, 7]
    assert render.most_used(np.full((1, 2, 2), -1), 3).tolist() == []


def _seen(sheet: np.ndarray) -> dict[tuple[int, ...], int]:
    """How often each colour occurs in a picture."""
    pixels, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(map(int, pixel)): int(count) for pixel, count in zip(pixels, counts, strict=True)}


def test_sheet_has_the_colour_of_each_source_in_frame_and_map() -> None:
    size = 32
    pictures = np.zeros((3, size, size, 3), np.uint8)
    maps = np.array([[[10, 4], [4, 30]], [[10, 99], [-1, 4]]])
    shown = [10, 4, 30]
    results = np.zeros((2, size, size, 3), np.uint8)
    seen = _seen(render.contact_sheet(pictures, shown, [("results", results, maps)]))
    colours = [tuple(map(int, colour)) for colour in render.source_colours(100)]
    quarter, frame = (size // 2) ** 2, (size + 6) ** 2 - size**2
    assert seen[colours[10]] == frame + 2 * quarter
    assert seen[colours[4]] == frame + 3 * quarter
    assert seen[colours[30]] == frame + quarter
    assert seen[colours[99]] == quarter  # not shown: no frame
    assert seen[render.UNSOURCED] == quarter


def test_all_sheets_give_a_source_the_same_colour() -> None:
    """Whichever sources are shown beside it, and however many there are."""
    size = 64
    image, maps = np.zeros((size, size, 3), np.uint8), np.array([[7, 3], [50, 7]])
    colour = tuple(map(int, render.source_colours(51)[7]))
    contact = _seen(render.contact_sheet(image[None], [7], [("", image[None], maps[None])]))
    provenance = _seen(render.provenance_sheet(image, maps, [50, 7], np.stack([image] * 2), ["a", "b"]))
    assert contact[colour] > size * size / 2 and provenance[colour] > size * size / 2
    assert colour in _seen(render.overlay(image, maps, render.source_colours(900)))


@pytest.mark.parametrize(("shown", "words"), [([7, 3], ""), ([7], "first 1 of 2 shown")])
def test_sheets_say_what_they_leave_out(shown: list[int], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    heading = render.heading
    monkeypatch.setattr(render, "heading", lambda text, *size: said.append(text) or heading(text, *size))  # type: ignore[func-returns-value]
    image, maps = np.zeros((64, 64, 3), np.uint8), np.array([[7, 3], [7, 7]])
    pictures = np.stack([image] * len(shown))
    render.contact_sheet(pictures, shown, [("", image[None], maps[None])])
    render.provenance_sheet(image, maps, shown, pictures, ["name"] * len(shown))
    assert words in said[0] and ("shown" in said[0]) == bool(words)
    assert ("; 1 of 2 sources shown" in " ".join(said)) == bool(words)


def test_names_that_are_no_text_are_drawn() -> None:
    image, maps = np.zeros((64, 64, 3), np.uint8), np.zeros((2, 2), int)
    assert render.provenance_sheet(image, maps, [0], image[None], ["a\udcff\n.png"]).ndim == 3


def test_sheet_refuses_counts_that_differ() -> None:
    image, maps = np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 2, 2), int)
    with pytest.raises(InputError):
        render.contact_sheet(image, [0, 1], [("", image, maps)])
    with pytest.raises(InputError):
        render.contact_sheet(image, [0], [("", image, np.zeros((2, 2, 2), int))])


def test_png_is_exact_and_reproducible(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    render.save_png(tmp_path / "a.png", image)
    render.save_png(tmp_path / "b.png", image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_png_in_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        render.save_png(tmp_path / "none" / "a.png", np.zeros((2, 2, 3), np.uint8))


def test_png_carries_text(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    for fast in (False, True):
        render.save_png(tmp_path / "a.png", image, {"lpkernel": '{"seed": 3}'}, fast)
        with Image.open(tmp_path / "a.png") as opened:
            assert opened.info == {"lpkernel": '{"seed": 3}'}
            np.testing.assert_array_equal(np.asarray(opened), image)


def test_titles_are_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest title on a small page is broken into lines that fit, with no word lost."""
    said: list[str] = []
    line = render._line
    monkeypatch.setattr(render, "_line", lambda text, *size: said.append(text) or line(text, *size))  # type: ignore[func-returns-value]
    sources = np.arange(16).reshape(4, 4)
    shifts = np.ones((4, 4, 2), np.int8)
    pictures = np.zeros((8, 128, 128, 3), np.uint8)
    sheet = render.provenance_sheet(pictures[0], sources, range(8), pictures, ["a"] * 8, shifts)
    lines = [one for one in said if "%" not in one.split()[0]]
    assert " ".join(lines) == (
        "Result, its source map, the map over it; 100.0% from beside their place; 8 of 16 sources shown"
    )
    assert len(lines) > 1 and all(render._font().getlength(one) <= sheet.shape[1] - 8 for one in lines)
