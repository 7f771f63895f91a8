"""Any mask, and any command line with images, masks, regions and attributes: a result, or exit code 2 and one line."""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import lpkernel as lp
from lpkernel.cli import main
from lpkernel.errors import InputError
from lpkernel.modes import cells

GRID, CELL = 6, 4
SIDE = GRID * CELL
NAMES = ("Male", "wavy hair")
THOROUGH = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@cache
def small(kind: str) -> tuple[lp.Bank, Any, np.ndarray]:
    """A bank of 12 images, its autoencoder, and an image that is not in it."""
    autoencoder = fakes.FakeVQ(GRID, CELL) if kind == "codes" else fakes.FakeContinuous(GRID, CELL)
    images = np.random.default_rng(0).integers(0, 256, (13, GRID, GRID, 3), np.uint8).repeat(CELL, 1).repeat(CELL, 2)
    attributes = {name: np.arange(12) % (2 + i) == 0 for i, name in enumerate(NAMES)}
    return lp.Bank.build(images[:12], autoencoder, channels=3, attributes=attributes), autoencoder, images[12]


@st.composite
def masks(draw: st.DrawFn, height: int, width: int) -> np.ndarray:
    """Nothing, everything, noise of any density, and boxes, perhaps inverted."""
    kind = draw(st.sampled_from(["nothing", "everything", "noise", "boxes", "boxes", "boxes"]))
    mask = np.zeros((height, width), bool)
    if kind == "noise":
        mask = np.random.default_rng(draw(st.integers(0, 99))).random(mask.shape) < draw(st.floats(0, 1))
    for _ in range(draw(st.integers(1, 4)) if kind == "boxes" else 0):
        y, x = (sorted((draw(st.integers(0, side)), draw(st.integers(0, side)))) for side in (height, width))
        mask[y[0] : y[1], x[0] : x[1]] = True
    return mask if kind == "noise" or not draw(st.booleans()) else ~mask


@pytest.mark.parametrize("kind", ["codes", "latents"])
@pytest.mark.parametrize("name", ["edit", "guided", "inpaint", "harmonize"])
def test_any_mask(name: str, kind: str) -> None:
    """The outside is kept and the inside is made; only empty masks and too large ones are refused."""
    bank, autoencoder, image = small(kind)
    seen: Counter[str] = Counter()

    @settings(THOROUGH, max_examples=200 // 4)
    @given(masks(SIDE, SIDE), st.booleans())
    def run(mask: np.ndarray, keep_outside: bool) -> None:
        options: dict[str, Any] = {"n": 1, "patch": 2, "keep_outside": keep_outside}
        near, touched, covered = (cells_of(mask, GRID) for cells_of in (cells.near, cells.touched, cells.covered))
        pasted = covered if covered.any() else touched
        too_much = {"edit": False, "guided": False, "inpaint": near.all(), "harmonize": pasted.all()}
        try:
            if name in ("inpaint", "harmonize"):
                made = getattr(lp, name)(bank, image, autoencoder, mask, **options)
            else:
                how = "free" if name == "edit" else name
                made = lp.edit(bank, image, autoencoder, mask=mask, mode=how, **options)
        except InputError as error:
            message = str(error)
        else:
            message = ""
        seen["refused" if message else "made"] += 1
        assert "\n" not in message and len(message) < 300
        assert bool(message) == (not mask.any() or bool(too_much[name])), message
        if not message:
            region = {"inpaint": near, "harmonize": cells.grown(touched)}.get(name, touched)
            assert ((made.sources[0] >= 0) == region).all()
            assert made.decode(autoencoder).shape == (1, SIDE, SIDE, 3)

    run()
    assert seen["made"] and seen["refused"]


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
EXPRESSIONS = st.one_of(
    st.sampled_from(["Male", "~Male & 'wavy hair'", "Male & ~Male", "Mael", "__import__('os').abort()", "(" * 200]),
    st.text("Male'wvy hr~&|() ", max_size=20),
    TEXT,
)
NUMBERS = st.one_of(st.integers(-2, 8), st.integers(), st.sampled_from(["", "1e3", "nan", "-", "٣", "1_0"])).map(str)


def boxes(side: int) -> st.SearchStrategy[str]:
    place = st.integers(-1, side + 1)
    return st.one_of(st.lists(place, min_size=4, max_size=4).map(lambda box: ",".join(map(str, box))), TEXT)


def save(path: Path, draw: st.DrawFn, height: int, width: int) -> Path:
    """A picture in one of many modes, or a file that is no picture."""
    kind = draw(st.sampled_from(["RGB"] * 12 + ["L", "RGBA", "P", "1", "I;16", "cut", "text", "missing", "folder"]))
    image = Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8))
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "I;16":
        Image.fromarray(np.full((height, width), 65535, np.uint16)).save(path)
    elif kind != "missing":
        image.convert(kind if kind != "cut" else "RGB").save(path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@st.composite
def command_lines(draw: st.DrawFn, folder: Path) -> list[str]:
    """A command on an image of any shape, with a mask of its shape or another; some options are right, some not."""
    height, width = draw(st.sampled_from([(SIDE, SIDE), (SIDE, SIDE), (40, 30), (9, 80), (7, 7), (1, 1)]))
    image = save(folder / "image.png", draw, height, width)
    command = draw(st.sampled_from(["edit", "inpaint", "harmonize", "generate"]))
    argv = ["generate", "--reference", str(image)] if command == "generate" else [command, str(image)]
    if command != "generate":
        shape = draw(st.sampled_from([(height, width)] * 6 + [(width, height), (SIDE, SIDE + 1)]))
        mask = folder / "mask.png"
        if draw(st.integers(0, 9)):
            Image.fromarray(draw(masks(*shape)).astype(np.uint8) * 255).save(mask)
        else:
            save(mask, draw, *shape)
        region = ["--mask", str(mask)]
        if command == "edit":
            named = st.sampled_from(["eyes", "ears", ",", "eyes,,mouth"]) | TEXT
            region = draw(
                st.sampled_from([region, region])
                | boxes(SIDE).map(lambda box: [f"--box={box}"])
                | named.map(lambda names: [f"--region={names}"])
            )
        argv += region
    wild = {
        "--where": EXPRESSIONS,
        "--k": NUMBERS,
        "--seed": NUMBERS,
        "--first-image": NUMBERS,
        "--patch": NUMBERS,
        "--stride": NUMBERS,
        "--crop": boxes(SIDE),
        "--scales": st.sampled_from(["6", "4,6", "6,4", "5", "6,6", "0,6", "x"]),
        "--copy-limit": st.sampled_from(["share=0.5", "area=4,tries=1", "area=0", "share=nan", "share=inf", "tries=2"]),
        "--dtype": st.sampled_from(["float32", "complex64"]),
    }
    most = draw(st.sampled_from([0, 0, 1, 2]))
    for option in draw(st.lists(st.sampled_from(sorted(wild)), max_size=most, unique=True)):
        argv.append(f"{option}={draw(wild[option])}")
    return argv


def run_line(argv: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return code, out.getvalue(), err.getvalue()


def test_any_command_line(tmp_path: Path) -> None:
    bank, _, _ = small("codes")
    bank.save(tmp_path / "small.lpbank")
    plug_in = tmp_path / "small_vq.py"
    plug_in.write_text(f"from fakes import FakeVQ\n\n\ndef load():\n    return FakeVQ({GRID}, {CELL})\n")
    seen: Counter[int] = Counter()

    @THOROUGH
    @given(st.data())
    def run(data: st.DataObject) -> None:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        argv = ["-n", "2", "--patch", "2", "--bank", str(tmp_path / "small.lpbank"), "--autoencoder", f"{plug_in}:load"]
        line = data.draw(command_lines(folder))
        code, out, err = run_line([line[0], *argv, *line[1:], "--quiet", f"--out={folder / 'out'}"])
        seen[code] += 1
        assert out == "" and code in (0, 2)
        if code == 2:
            assert (
                err.startswith("lpkernel: error: ") and err.count("\n") == 1 and err.endswith("\n") and len(err) < 600
            )
            assert not (folder / "out").exists()
        else:
            assert err == "" and len(list((folder / "out").glob("image-*.png"))) == 2
        shutil.rmtree(folder)

    run()
    assert seen[0] and seen[2], seen


BANK = small("codes")[0]


@THOROUGH
@given(EXPRESSIONS)
@example("\udcff")
@example("Male\0")
@example("~" * 10_000 + "Male")
def test_any_expression(expression: str) -> None:
    try:
        found = BANK.where(expression)
    except InputError as error:
        message = str(error)
    else:
        message = ""
        assert found.shape == (12,) and found.dtype == np.bool_
    assert "\n" not in message and len(message) < 400
