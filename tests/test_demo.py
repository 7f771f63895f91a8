"""The demo's engine, painted masks, provenance sheets and server, without a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from fakes import FakeVQ
from PIL import Image

import lpkernel as lp
from lpkernel.cli import main
from lpkernel.demo import guard, painting, provenance, serve
from lpkernel.demo.engine import CHOICES, Engine, Result, Settings
from lpkernel.errors import InputError, MissingExtra
from lpkernel.modes import cells
from lpkernel.modes.inputs import read_input
from lpkernel.pictures import composite
from lpkernel.pictures.images import Crop
from lpkernel.pictures.render import png
from lpkernel.pictures.warp import Similarity
from lpkernel.presets import PRESETS

SIZE, GRID = 64, 8  # of FakeVQ
FEW = Settings(n=2, patch=3, scales=2)


@pytest.fixture(scope="module")
def engine() -> Engine:
    images = np.random.default_rng(3).integers(0, 256, (20, SIZE, SIZE, 3), np.uint8)
    bank = lp.Bank.build(images, FakeVQ(), channels=3, attributes={"Even": np.arange(20) % 2 == 0})
    bank = replace(bank, names=[f"<b>&{number}" for number in range(20)])
    return Engine(bank, FakeVQ(), device="cpu")


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def painted(y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def last(steps: Iterator[str | Result]) -> tuple[list[str], Result]:
    *lines, result = steps
    assert isinstance(result, Result)
    assert all(isinstance(line, str) for line in lines)
    return [str(line) for line in lines], result


def test_generate_tells_each_stage_as_it_ends(engine: Engine) -> None:
    lines, result = last(engine.generate(FEW))
    assert [re.sub(r"[\d.]+ ms", "T", line.partition(";")[0]) for line in [*lines, result.line]] == [
        "preparing T, synthesis T",
        "preparing T, synthesis T, decode T",
        "preparing T, synthesis T, decode T, drawing T",
    ]
    assert f"backend {result.made.settings['backend']}" in result.line
    assert "20 of 20 bank images" in result.line
    assert result.images.shape == result.maps.shape == (2, SIZE, SIZE, 3)


@pytest.mark.parametrize("preset", PRESETS)
def test_generate_equals_the_library(engine: Engine, preset: str) -> None:
    settings = Settings(n=3, k=2, patch=3, stride=2, preset=preset, mirror=1, seed=11, backend="numpy")
    _, result = last(engine.generate(settings))
    made = lp.generate(engine.bank, n=3, k=2, patch=3, stride=2, preset=preset, mirror=1, seed=11, backend="numpy")
    np.testing.assert_array_equal(result.made.sources, made.sources)
    np.testing.assert_array_equal(result.images, made.decode(engine.autoencoder))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (
            Settings(preset="paper", start="carry", overlap="cut", hubness="0.75"),
            {"start": "carry", "overlap": "cut", "hubness": 0.75},
        ),
        (Settings(preset="paper", refine="yes", match_colours="yes"), {"refine": True, "match_colours": True}),
        (
            Settings(start="resize", overlap="replace", hubness="0"),
            {"start": "resize", "overlap": "replace", "hubness": 0},
        ),
        (Settings(refine="no", match_colours="no", mirror=0), {"refine": False, "match_colours": False, "mirror": 0}),
    ],
)
def test_what_a_style_sets_can_be_set_otherwise(engine: Engine, settings: Settings, options: dict[str, Any]) -> None:
    _, result = last(engine.generate(replace(settings, n=3, patch=3, backend="numpy")))
    made = lp.generate(engine.bank, n=3, patch=3, preset=settings.preset, backend="numpy", **options)
    plain = lp.generate(engine.bank, n=3, patch=3, preset=settings.preset, backend="numpy")
    np.testing.assert_array_equal(result.made.sources, made.sources)
    np.testing.assert_array_equal(result.images, made.decode(engine.autoencoder))
    assert not np.array_equal(result.images, plain.decode(engine.autoencoder))


def test_a_search_radius_moves_what_is_marked_of_a_source(engine: Engine) -> None:
    settings = Settings(n=2, k=2, patch=3, search_radius=1, seed=11, backend="numpy")
    _, result = last(engine.generate(settings))
    made = lp.generate(engine.bank, n=2, k=2, patch=3, search_radius=1, seed=11, backend="numpy")
    np.testing.assert_array_equal(result.made.sources, made.sources)
    assert made.shifts is not None
    moved = int(np.flatnonzero(made.shifts.any(axis=(1, 2, 3)))[0])
    still = replace(result, made=replace(made, shifts=None))
    assert provenance.sheet(engine, result, moved) != provenance.sheet(engine, still, moved)


@pytest.mark.parametrize("scales", [1, 2, 8])
def test_scales_end_at_the_grid(engine: Engine, scales: int) -> None:
    sides = engine.sides(Settings(patch=3, scales=scales))
    assert sides[-1] == GRID and min(sides) >= 3 and len(sides) <= scales


def test_named_parts_alone_come_from_one_donor() -> None:
    avatars = Engine(lp.Bank.default(), lp.load_autoencoder(device="cpu"), device="cpu")
    face, eyes = avatars.bank_picture(5), avatars.region(None, ["eyes"])
    painted = np.zeros(face.shape[:2], bool)
    painted[60:90, 60:90] = True
    cases: tuple[tuple[Any, str], ...] = (
        ((None, ["eyes"], "free"), "one"),
        ((painted, ["eyes"], "free"), "patches"),
        ((painted, [], "free"), "patches"),
        ((None, ["eyes"], "guided"), "patches"),
    )
    for (mask, names, mode), donor in cases:
        _, result = last(avatars.change(Settings(n=2), face, mask, names, "edit", mode, False))
        assert result.made.settings["donor"] == donor
    _, result = last(avatars.change(Settings(n=2), face, None, ["eyes"], "edit", "free", False))
    assert all(len(np.unique(one[eyes])) == 1 for one in result.made.sources)


def test_where_limits_the_sources(engine: Engine) -> None:
    _, result = last(engine.generate(Settings(n=2, patch=3, where=" Even ")))
    assert set(np.unique(result.made.sources) % 2) == {0}
    assert "10 of 20 bank images" in result.line


@pytest.mark.parametrize("mode", ["free", "guided"])
def test_edit_changes_only_the_painted_cells(engine: Engine, face: np.ndarray, mode: str) -> None:
    mask = painted(9, 30, 20, 22)
    _, result = last(engine.change(FEW, face, mask, [], "edit", mode, keep_outside=True))
    touched = cells.touched(mask, GRID)
    assert touched.sum() == 3
    np.testing.assert_array_equal(result.made.sources == -1, np.broadcast_to(~touched, (2, GRID, GRID)))
    far = np.ones((GRID, GRID), bool)
    far[:6, :5] = False  # the closing composite fades over two cells around the painted ones
    outside = far.repeat(SIZE // GRID, 0).repeat(SIZE // GRID, 1)
    np.testing.assert_array_equal(result.images[:, outside], np.broadcast_to(face[outside], (2, outside.sum(), 3)))


def test_the_parts_of_a_face_are_those_of_the_bank(engine: Engine) -> None:
    avatars = Engine(lp.Bank.default(), FakeVQ())
    assert "eyes" in avatars.regions()
    assert avatars.region(None, ["eyes"]).any()
    assert engine.regions() == []  # nothing says how its images are framed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(n=0), "n: got 0"),
        (Settings(n=33), "n: got 33"),
        (Settings(preset="best"), "preset: got 'best'"),
        (Settings(patch=3, mirror=9), "mirror: got 9"),
        *((Settings(patch=3, **{name: "x"}), f"{name}: got 'x'") for name in CHOICES),  # type: ignore[arg-type]
        (Settings(patch=3, k=0), "k"),
        (Settings(patch=9), "patch"),
        (Settings(patch=3, stride=99), "stride"),
        (Settings(patch=3, search_radius=3), "search_radius: got 3"),
        (Settings(patch=3, seed=-1), "seed"),
        (Settings(patch=3, backend="abacus"), "abacus"),
        (Settings(patch=3, where="Even &"), "where"),
        (Settings(patch=3, where="Evem"), "Even"),
        (Settings(patch=3, where="__import__('os')"), "where"),
        (Settings(patch=3, where="Even & ~Even"), "where"),
    ],
)
def test_wrong_settings_give_one_line(engine: Engine, settings: Settings, words: str) -> None:
    with pytest.raises(lp.LpkernelError) as caught:
        last(engine.generate(settings))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_edit_wants_a_picture_and_something_to_change(engine: Engine, face: np.ndarray) -> None:
    with pytest.raises(InputError, match="image: none is given"):
        last(engine.change(FEW, None, painted(0, 9, 0, 9), [], "edit", "free", False))
    for nothing in (None, np.zeros((SIZE, SIZE), bool)):
        with pytest.raises(InputError, match="nothing is chosen"):
            last(engine.change(FEW, face, nothing, [], "edit", "free", False))
    with pytest.raises(InputError, match=r"^region: names are known[^\n]*$"):
        last(engine.change(FEW, face, None, ["nose"], "edit", "free", False))


@pytest.mark.parametrize("crop", [None, (10, 5, 70, 65)])
def test_a_picture_is_framed_as_the_bank(engine: Engine, tmp_path: Path, crop: Crop | None) -> None:
    one = replace(engine, bank=replace(engine.bank, crop=crop, source_size=(100, 80)))
    for name, size in (("wide.png", (100, 80)), ("square.png", (90, 90))):
        noise = np.random.default_rng(9).integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        framed = one.frame(tmp_path / name).pixels
        np.testing.assert_array_equal(framed, read_input(one.bank, tmp_path / name, one.autoencoder).pixels)
        np.testing.assert_array_equal(framed, read_input(one.bank, framed, one.autoencoder).pixels)
    assert one.likeness(np.full((SIZE, SIZE, 3), (200, 30, 30), np.uint8))  # noise images are not like one plain colour


@pytest.mark.parametrize("keep", [True, False])
def test_a_result_goes_back_into_the_file(engine: Engine, tmp_path: Path, keep: bool) -> None:
    """Exactly as the library does it, whether or not the page's results keep the pixels outside."""
    one = replace(engine, bank=replace(engine.bank, crop=(10, 5, 70, 65), source_size=(100, 80)))
    noise = np.random.default_rng(9).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    mask = painted(20, 40, 20, 40)
    _, result = last(one.change(FEW, one.frame(tmp_path / "a.png").pixels, mask, [], "edit", "free", keep))
    closed = result.closed()
    assert closed is not None and closed.shape == (*result.images.shape[:3], 4)
    read = painting.read_closed(png(closed[1]), SIZE)
    whole = one.put_back(read, tmp_path / "a.png")
    made = lp.edit(
        one.bank, tmp_path / "a.png", one.autoencoder, region=cells.touched(mask, GRID), n=FEW.n, k=FEW.k,
        patch=FEW.patch, seed=FEW.seed, scales=one.sides(FEW), keep_outside=keep,
    )  # fmt: skip
    np.testing.assert_array_equal(whole, list(made.put_back(made.decode(one.autoencoder)))[1])
    assert (whole != noise).any()


@pytest.mark.parametrize(
    "name",
    ["[md link](https://evil.example/md)", "https://evil.example", "www.evil.example", "*a*", "![](//e)", "`a`", "<a>"],
)
def test_a_hint_has_no_markup_of_the_bank_s(name: str) -> None:
    """Gradio reads hints as Markdown, where a name could become a link to another site."""
    pytest.importorskip("gradio")
    from lpkernel.demo.page import _hint

    plain, long = _hint(["Even", name]), _hint(["a" * 5000])
    assert unescape(plain).endswith(f"; Even, {name}")
    assert set(plain.partition("Even, ")[2]) <= set("&#;0123456789 abcdefghijklmnopqrstuvwxyz")
    assert len(long) < 100


def test_a_whole_picture_is_the_same_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many rows are worked on at a time: a large photograph would take gigabytes at once."""
    draw = np.random.default_rng(4)
    photograph, inside = draw.integers(0, 256, (90, 70, 3), np.uint8), np.zeros((32, 32), bool)
    inside[3:25, 8:30] = True
    original, image = draw.integers(0, 256, (2, 32, 32, 3), np.uint8)
    closing = composite.Composite.feathered(original, inside, 3)
    made = []
    for strip in (2**20, 1, 500):
        monkeypatch.setattr(composite, "STRIP", strip)
        whole = composite.Whole.around(closing, photograph, Similarity(1.5 + 0.4j, 20 + 5j))
        made.append((whole.weight, whole.apply(image)))
    assert (made[0][1] != photograph).any()
    for weight, pixels in made[1:]:
        np.testing.assert_array_equal(weight, made[0][0])
        np.testing.assert_array_equal(pixels, made[0][1])


def test_a_result_that_is_nowhere_gives_one_line(engine: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    size = engine.autoencoder.image_size
    with pytest.raises(InputError, match="transparent"):
        engine.put_back(np.zeros((size, size, 4), np.uint8), tmp_path / "a.png", "as-is")


@pytest.mark.parametrize(
    "content", [b"", b"these are words", b"\x89PNG\r\n\x1a\n" + bytes(40)], ids=["empty", "words", "cut"]
)
def test_a_file_that_is_no_picture_gives_one_line(engine: Engine, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"^[^\n/]+$"):  # a server names no path
        engine.frame(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 1), (3, 2)])
def test_a_tiny_picture_is_told_to_be_tiny(engine: Engine, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (90, 90, 90)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"^[^\n/]+$"):  # a server names no path
        engine.frame(tmp_path / "a.png")


@pytest.mark.parametrize("number", [-1, 20])
def test_a_bank_picture_is_in_the_bank(engine: Engine, number: int) -> None:
    np.testing.assert_array_equal(
        engine.bank_picture(7), engine.autoencoder.decode(engine.bank.gather(np.full((1, GRID, GRID), 7)))[0]
    )
    with pytest.raises(InputError, match="expected 0 to 19"):
        engine.bank_picture(number)


def sent(mask: np.ndarray, kind: str = "PNG") -> str:
    """The data that a canvas with white strokes sends."""
    file = io.BytesIO()
    Image.fromarray(np.repeat((mask * 255).astype(np.uint8)[..., None], 4, 2)).save(file, format=kind)
    return painting.data_url(np.zeros((1, 1, 3), np.uint8)).partition(",")[0] + "," + encoded(file.getvalue())


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_mask_comes_back_as_painted() -> None:
    mask = painted(3, 40, 5, 9)
    read = painting.read_mask(sent(mask), SIZE)
    assert read is not None
    np.testing.assert_array_equal(read, mask)
    assert painting.read_mask("", SIZE) is None


def test_a_picture_comes_back_as_it_was_framed(face: np.ndarray) -> None:
    np.testing.assert_array_equal(painting.read_picture(painting.data_url(face), SIZE), face)


NO_PNG = [
    "white",
    "data:image/png;base64,%%%%",
    "data:image/png;base64,",
    "data:image/svg+xml;base64,PHN2Zy8+",
    painting.PREFIX + encoded(b"these are words"),
    painting.PREFIX + "é",
    sent(painted(0, 9, 0, 9)[:32]),
    sent(painted(0, 9, 0, 9), "WEBP"),
    sent(painted(0, 9, 0, 9))[:-40],
    painting.PREFIX + "A" * (painting.LONGEST + 4),
]


@pytest.mark.parametrize("text", NO_PNG)
def test_what_no_page_sends_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"picture: what the page sent is not a PNG of 64x64 pixels"):
        painting.read_picture(text, SIZE)
    with pytest.raises(InputError, match=r"mask: what the page sent is not a PNG of 64x64 pixels"):
        painting.read_mask(text, SIZE)


def test_a_sheet_has_one_card_for_each_source(engine: Engine, face: np.ndarray) -> None:
    _, result = last(engine.change(FEW, face, painted(0, 40, 0, 40), [], "edit", "free", False))
    sources = result.made.sources[1]
    html = provenance.sheet(engine, result, 1)
    given = re.search(r'data-map="([^"]*)"', html)
    assert given is not None
    np.testing.assert_array_equal(json.loads(given[1]), sources.ravel())
    cards = dict(re.findall(r'<figure class="lpk-card" data-source="(-?\d+)">(.*?)</figure>', html))
    assert {int(number) for number in cards} == set(np.unique(sources).tolist())
    for number, card in cards.items():
        said = unescape(re.sub("<[^>]*>", "", card))
        name = engine.bank.names[int(number)] if number != "-1" else "kept from the picture itself"
        assert said.startswith(name)
        assert f"({(sources == int(number)).sum()} of 64)" in said


def test_shares_put_the_largest_first() -> None:
    assert provenance.shares(np.array([[5, 2], [5, -1]])) == [(5, 2), (-1, 1), (2, 1)]


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_a_port(port: int) -> None:
    with pytest.raises(InputError, match=f"--port: got {port}"):
        serve.listen("127.0.0.1", port)


def test_a_taken_port_and_an_unknown_host_give_one_line() -> None:
    with serve.listen("127.0.0.1", 0) as bound:
        # a client that connects before the page is served waits and is not refused
        socket.create_connection(bound.getsockname(), timeout=5).close()
        assert serve.address(bound) == f"http://127.0.0.1:{bound.getsockname()[1]}/"
        with pytest.raises(InputError, match=r"^--host 127\.0\.0\.1 --port \d+: [^\n]*; choose another$"):
            serve.listen("127.0.0.1", bound.getsockname()[1])
    with pytest.raises(InputError, match="choose another"):
        serve.listen("a" * 70, 0)


IN_A_GAP = """
import os, shutil, signal, sys
from pathlib import Path
from lpkernel.demo import serve
owner, name = {"made": (Path, "mkdir"), "removed": (shutil, "rmtree")}[sys.argv[1]]
usual = getattr(owner, name)
def told(*arguments, **more):
    setattr(owner, name, usual)
    if name == "mkdir":
        usual(*arguments, **more)
    os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    return usual(*arguments, **more)
setattr(owner, name, told)
with serve.own_folder():
    pass
"""


@pytest.mark.parametrize("when", ["made", "removed"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_while_its_folder_is_made_or_removed_leaves_nothing(when: str, number: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", IN_A_GAP, when, number]
    done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 128 + getattr(signal, number), done.stderr
    assert not list(tmp_path.glob("lpkernel-demo-*"))


@pytest.mark.parametrize("before", [None, "/elsewhere"])
@pytest.mark.parametrize("hung_up", [signal.SIG_DFL, signal.SIG_IGN])
def test_its_folder_is_its_own_and_leaves_nothing(
    before: str | None, hung_up: signal.Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Gradio, imported later, would make the folder again, readable by everyone. nohup ignores SIGHUP."""
    monkeypatch.delenv("GRADIO_TEMP_DIR", raising=False)
    if before is not None:
        monkeypatch.setenv("GRADIO_TEMP_DIR", before)
    old = signal.signal(signal.SIGHUP, hung_up)
    try:
        with serve.own_folder() as folder:
            assert folder.stat().st_mode & 0o777 == 0o700 and os.environ["GRADIO_TEMP_DIR"] == str(folder)
            assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == (hung_up is signal.SIG_IGN)
        assert not folder.exists() and os.environ.get("GRADIO_TEMP_DIR") == before
        assert signal.getsignal(signal.SIGHUP) is hung_up
    finally:
        signal.signal(signal.SIGHUP, old)


def test_without_gradio_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert "lpkernel[demo]" in error
    assert error.count("\n") == 1
    with pytest.raises(MissingExtra):
        serve.application(Engine(lp.Bank.default(), FakeVQ()), frozenset(), tmp_path)


def test_every_answer_carries_the_policy_and_names_no_other_host(engine: Engine, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    with serve.listen("127.0.0.1", 0) as bound:
        allowed = guard.hosts("127.0.0.1", bound.getsockname()[1])
        server: Any = serve.server(serve.application(engine, allowed, tmp_path), tmp_path)
        thread = Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            with urllib.request.urlopen(serve.address(bound), timeout=30) as answer:
                assert answer.headers["content-security-policy"] == serve.POLICY
                page = answer.read().decode()
        finally:
            server.should_exit = True
            thread.join(30)
    assert "lpk-painter" in page
    # a preconnect or prefetch is sent before any policy applies and is in no log of requests
    assert re.findall(r"<(?:link|script|img|iframe)\b[^>]*https?://[^>]*>", page) == []
