"""The demo's page as a visitor sees it: every tab, in a real headless Chromium, served by a real server."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import browser
import fakes
import numpy as np
import pytest
from PIL import Image

import lpkernel as lp
from lpkernel.alignment.regions import named_region
from lpkernel.demo import painting
from lpkernel.errors import printable
from lpkernel.modes import cells

pytestmark = pytest.mark.thorough

CELLS = range(16)
SECONDS = 60  # a page that does not answer by then fails


class Visitor:
    """A page in a browser. Elements are found by CSS selectors, waiting for those that are not there yet."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver = driver
        self.address = address
        browser.asked(driver)
        driver.get_log("browser")
        driver.get(address)
        self.one("#lpk-generate-run")

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        """The first visible element of a selector."""
        return self.until(lambda: next((one for one in self.all(selector) if one.is_displayed()), None), selector)

    def until(self, true: Callable[[], Any], what: str) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self.driver, SECONDS, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: true(), f"waited for {what}")

    def tab(self, name: str) -> None:
        next(one for one in self.all("button[role=tab]") if one.text == name).click()

    def type(self, selector: str, text: str) -> None:
        from selenium.webdriver import Keys

        self.one(selector).send_keys(Keys.CONTROL, "a")
        self.one(selector).send_keys(Keys.BACKSPACE, text, Keys.TAB)

    def line(self, tab: str, holding: str) -> str:
        """The status line of a tab, once it contains these words."""
        selector = f"#lpk-{tab}-note"

        def found() -> str:
            text: str = self.one(selector).text
            return text if holding in text else ""

        return str(self.until(found, f"{selector} to hold {holding!r}"))

    def press(self, tab: str) -> tuple[str, list[np.ndarray]]:
        """Press the tab's button; return the line when all is done, and the pictures without their maps."""
        words = f"#lpk-{tab}-note .lpk-line"
        before = [one.text for one in self.all(words)]  # the times in it differ on every run
        self.one(f"#lpk-{tab}-run").click()

        def done() -> str:
            text = "".join(one.text for one in self.all(words))
            return text if "drawing " in text and "…" not in text and [text] != before else ""

        return str(self.until(done, "the result")), [
            self.picture(image.get_attribute("src")) for image in self.all(f"#lpk-{tab}-gallery .lpk-made")
        ]

    def picture(self, source: str) -> np.ndarray:
        data = base64.b64decode(source.partition(",")[2]) if source.startswith("data:") else fetch(source)
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image.convert("RGB"))

    def refused(self, tab: str) -> str:
        """The error of a tab: one line in the page, no pop-up."""
        error = self.one(f"#lpk-{tab}-note .lpk-error").text
        assert "\n" not in error
        assert "Traceback" not in error
        assert not self.all(".toast-wrap .toast-body")
        return error

    def paint(self, x: int, y: int, to_x: int, to_y: int) -> str:
        """Draw a stroke between two places of the canvas, in percent; return the mask that the page would send."""
        from selenium.webdriver import ActionChains

        canvas = self.one(".lpk-paint canvas")
        box, before = canvas.size, self.mask()
        steps = [
            (round((a - 50) * box["width"] / 100), round((b - 50) * box["height"] / 100))
            for a, b in ((x, y), (to_x, to_y))
        ]
        chain = ActionChains(self.driver, duration=50).move_to_element_with_offset(canvas, *steps[0]).click_and_hold()
        chain.move_to_element_with_offset(canvas, *steps[1]).release().perform()
        self.until(lambda: self.mask() != before, "the stroke")
        return self.mask()

    def mask(self) -> str:
        """The mask that the page would send."""
        return str(self.driver.execute_script("return document.querySelector('#lpk-mask :is(input, textarea)').value"))

    def sources(self) -> np.ndarray:
        """The source map (M, M) of the sheet that is shown."""
        sheet = self.one(".lpk-cells")
        return np.array(json.loads(sheet.get_attribute("data-map"))).reshape(
            2 * (int(sheet.get_attribute("data-grid")),)
        )

    def hover(self, view: int, grid: int, x: int, y: int) -> str:
        """Point at a cell of a view; return the visible card's text. The same sheet may still be drawn once more."""
        from selenium.webdriver import ActionChains

        def words() -> str:
            box = self.all(".lpk-view")[view]
            place = [round(((at + 0.5) / grid - 0.5) * box.size[side]) for at, side in ((x, "width"), (y, "height"))]
            ActionChains(self.driver, duration=20).move_to_element_with_offset(box, *place).perform()
            return "|".join(card.text for card in self.all(".lpk-card") if card.is_displayed())

        self.until(lambda: self.all(".lpk-view"), "the views")
        return str(self.until(words, "a card"))

    def catch_saved(self) -> None:
        """Collect what the page would save in window.saved, as [name, address]."""
        saved = "window.saved = []; HTMLAnchorElement.prototype.click = "
        self.driver.execute_script(saved + "function () { window.saved.push([this.download, this.href]); }")

    def click(self) -> None:
        """Click where the pointer is."""
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).click().perform()


# Reads an address that only the browser knows, as a data URL.
READ = """
const [address, done] = arguments;
fetch(address).then((answer) => answer.blob()).then((blob) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.readAsDataURL(blob);
});
"""


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=SECONDS) as answer:
        data: bytes = answer.read()
        return data


@contextmanager
def serving(temporary: Path, *options: object) -> Iterator[str]:
    """The address of `lpkernel demo`, run as a user runs it."""
    if find_spec("gradio") is None:
        browser.missing("no gradio")
    kept = os.environ | {"TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "lpkernel", "demo", "--port", "0", "--device", "cpu", *map(str, options)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=kept) as server:
        try:
            assert server.stdout is not None
            first = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/", first)
            assert found, f"the server said {first!r}"
            yield found[0]
        finally:
            server.terminate()
    assert list(temporary.iterdir()) == []  # visitors' pictures are removed when the server ends


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def avatars(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("temporary")) as address:
        yield address


@pytest.fixture
def page(driver: Any, avatars: str) -> Iterator[Visitor]:
    """The embedded bank's page; whatever a test does there contacts no other host and logs no error."""
    visitor = Visitor(driver, avatars)
    yield visitor
    unharmed(visitor)


def unharmed(visitor: Visitor) -> None:
    asked = browser.asked(visitor.driver)
    assert len(asked) > 10
    assert browser.hosts(asked) == {urlsplit(visitor.address).netloc}
    # the browser logs each file that the server refuses; the page reports it in its line
    told = [entry for entry in visitor.driver.get_log("browser") if "/lpkernel/picture" not in entry["message"]]
    assert [entry for entry in told if entry["level"] not in ("INFO", "WARNING")] == []


def test_generate_is_the_library_s(page: Visitor) -> None:
    page.type("#lpk-generate-n input[type=number]", "3")
    page.type("#lpk-generate-seed input", "5")
    page.type("#lpk-generate-where input, #lpk-generate-where textarea", "Eyeglasses")
    line, pictures = page.press("generate")
    assert re.match(
        r"preparing [\d.]+ ms, synthesis [\d.]+ ms, decode [\d.]+ ms, drawing [\d.]+ ms; backend \w+;", line
    )
    bank = lp.Bank.default()
    made = lp.generate(bank, n=3, patch=6, k=3, seed=5, candidates=np.flatnonzero(bank.where("Eyeglasses")))
    images = made.decode(lp.load_autoencoder(device="cpu"))
    assert len(pictures) == 3
    for picture, image in zip(pictures, images, strict=True):
        assert picture.shape == (128, 128, 3)
        assert np.abs(picture.astype(int) - image).max() <= 1  # rounding may depend on the threads


def test_edit_changes_what_is_painted_and_its_sources_are_shown(page: Visitor) -> None:
    page.tab("Edit")
    page.type("#lpk-edit-number input", "7")
    before = page.one(".lpk-paint img").get_attribute("src")
    page.paint(5, 5, 95, 95)  # has no effect: another picture starts unpainted
    page.one("#lpk-edit-take").click()
    page.until(lambda: page.one(".lpk-paint img").get_attribute("src") != before, "bank image 7")
    picture = page.picture(page.one(".lpk-paint img").get_attribute("src"))
    mask = painting.read_mask(page.paint(40, 40, 60, 45), 128)
    assert mask is not None
    touched = cells.touched(mask, 16)
    assert 8 < touched.sum() < 64
    line, pictures = page.press("edit")
    assert "left out as the input itself" in line
    assert len(pictures) == 4

    # what is painted, and two cells around it over which the composite fades
    near = np.array([[touched[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3].any() for x in CELLS] for y in CELLS])
    far = ~near.repeat(8, 0).repeat(8, 1)
    for made in pictures:
        np.testing.assert_array_equal(made[far], picture[far])
        assert np.abs(made.astype(int) - picture)[mask].max() > 32

    page.tab("Sources")
    sources = page.sources()
    np.testing.assert_array_equal(sources == -1, ~touched)
    names = lp.Bank.default().names
    y, x = np.argwhere(touched)[0]
    inside = page.hover(0, 16, x, y)
    assert names[sources[y, x]] in inside
    assert f"bank image {sources[y, x]}" in inside
    assert "kept from the picture itself" in page.hover(1, 16, 0, 15)

    # a click holds a cell, another click releases it
    assert page.hover(0, 16, x, y) == inside
    page.click()
    assert page.hover(0, 16, 0, 15) == inside
    assert page.hover(0, 16, x, y) == inside
    page.click()
    assert "kept from the picture itself" in page.hover(0, 16, 0, 15)


def test_provenance_follows_the_latest_result_and_the_choice(page: Visitor) -> None:
    page.tab("Sources")
    first = page.sources()  # of the page's initial state
    page.tab("Generate")
    page.type("#lpk-generate-seed input", "1")
    page.press("generate")
    page.tab("Sources")
    page.until(lambda: (page.sources() != first).any(), "another sheet")
    maps = [page.sources()]
    for index in (3, 0):
        page.until(lambda: len(page.all("#lpk-provenance-gallery .lpk-thumb")) == 8, "the results")
        page.all("#lpk-provenance-gallery .lpk-thumb")[index].click()
        page.line("provenance", f"result {index + 1} of 8;")
        page.until(lambda: (page.sources() != maps[-1]).any(), "another sheet")
        maps.append(page.sources())
        page.tab("Generate")
        page.tab("Sources")  # coming back changes nothing
        for y, x in ((0, 0), (8, 7), (15, 15)):
            source = maps[-1][y, x]
            words = page.hover(0, 16, x, y)
            assert f"{lp.Bank.default().names[source]} (bank image {source})" in words
        assert page.line("provenance", f"result {index + 1} of 8;")
    np.testing.assert_array_equal(maps[0], maps[2])


def test_mistakes_get_one_line(page: Visitor, tmp_path: Path) -> None:
    page.type("#lpk-generate-where input, #lpk-generate-where textarea", "Eyeglasses & ~(")
    page.one("#lpk-generate-run").click()
    assert "where" in page.refused("generate")
    page.type("#lpk-generate-where input, #lpk-generate-where textarea", "")
    page.type("#lpk-generate-seed input", "-3")
    page.one("#lpk-generate-run").click()
    page.until(lambda: "seed" in page.one("#lpk-generate-note").text, "the seed's error")
    page.refused("generate")

    page.tab("Edit")
    page.one("#lpk-edit-run").click()
    assert "nothing is chosen" in page.refused("edit")
    page.type("#lpk-edit-number input", "1200")
    page.one("#lpk-edit-take").click()
    page.line("edit", "expected 0 to 1199")
    page.refused("edit")
    (tmp_path / "notes.png").write_text("these are words")
    page.all("#lpk-edit-file input[type=file]")[0].send_keys(str(tmp_path / "notes.png"))
    page.line("edit", "notes.png")
    page.refused("edit")
    page.one("#lpk-edit-task input[value=inpaint]").click()
    page.one("#lpk-edit-run").click()
    assert "nothing is painted; paint over what is missing" in page.line("edit", "painted")


def test_a_file_is_edited_by_parts_and_paint_is_erased(page: Visitor, tmp_path: Path) -> None:
    bank = lp.Bank.default()
    image = lp.load_autoencoder(device="cpu").decode(bank.gather(np.full((1, 16, 16), 30)))[0]
    Image.fromarray(image).resize((200, 200)).save(tmp_path / "face.png")
    page.tab("Edit")
    before = page.one(".lpk-paint img").get_attribute("src")
    page.all("#lpk-edit-file input[type=file]")[0].send_keys(str(tmp_path / "face.png"))
    page.until(lambda: page.one(".lpk-paint img").get_attribute("src") != before, "the file")
    page.paint(10, 90, 20, 90)
    page.one(".lpk-erase").click()
    mask = painting.read_mask(page.paint(0, 90, 30, 90), 128)
    assert mask is not None
    assert not mask.any()
    page.one(".lpk-clear").click()
    assert page.mask() == ""
    next(one for one in page.all("#lpk-edit-parts label") if one.text == "mouth").click()
    _, pictures = page.press("edit")
    assert len(pictures) == 4
    # the file comes back with a result in it, the same as from the command
    page.catch_saved()
    page.all(".lpk-whole")[1].click()
    [[name, address]] = page.until(lambda: page.driver.execute_script("return window.saved"), "the whole picture")
    assert name == "face-lpkernel-0-2.png"
    made = lp.edit(bank, tmp_path / "face.png", region="mouth", n=4, k=3, seed=0)
    expected = list(made.put_back(made.decode()))[1]
    found = page.picture(page.driver.execute_async_script(READ, address))
    assert found.shape == (200, 200, 3)
    assert made.whole is not None
    kept = ~made.whole.changed()
    np.testing.assert_array_equal(found[kept], np.asarray(Image.open(tmp_path / "face.png"))[kept])
    assert np.abs(found.astype(int) - expected).max() <= 2
    page.tab("Sources")
    np.testing.assert_array_equal(page.sources() != -1, named_region("mouth", bank))
    page.tab("Edit")
    page.one("#lpk-edit-take").click()  # a bank image has no file
    page.line("edit", "bank image 0")
    page.press("edit")
    assert not any(one.is_displayed() for one in page.all(".lpk-whole"))


def test_a_bank_file_and_a_plugged_in_autoencoder(driver: Any, tmp_path: Path) -> None:
    images = np.random.default_rng(3).integers(0, 256, (20, 64, 64, 3), np.uint8)
    lp.Bank.build(images, fakes.FakeVQ(), channels=3).save(tmp_path / "small.lpbank")
    options = ["--bank", tmp_path / "small.lpbank", "--autoencoder", f"{fakes.__file__}:FakeVQ", "--backend", "numpy"]
    (tmp_path / "temporary").mkdir()
    with serving(tmp_path / "temporary", *options) as address:
        page = Visitor(driver, address)
        assert "20 bank images, 8 × 8 cells, autoencoder fake-vq" in page.one("body").text
        line, pictures = page.press("generate")
        assert "backend numpy; " in line
        assert {picture.shape for picture in pictures} == {(64, 64, 3)}
        assert not page.one("#lpk-generate-run").find_elements("xpath", "//*[@id='lpk-generate-where']")
        page.tab("Edit")
        assert page.all("#lpk-edit-parts label") == []
        page.paint(30, 30, 70, 70)
        assert len(page.press("edit")[1]) == 4
        unharmed(page)


HOSTILE = [
    "<script>window.harmed = 1</script>",
    "<img src=x onerror='window.harmed = 1'>",
    '" onfocus="window.harmed = 1" autofocus="',
    "</textarea></title><svg onload='window.harmed = 1'>",
    "[md](javascript:window.harmed=1) ![](//evil.example/a.png) https://evil.example",
    "bidi \u202e eman \x1b[2J \x00 \u2028 \ud800",
    "{{constructor.constructor('window.harmed = 1')()}} ${window.harmed = 1}",
]


def test_names_of_a_bank_file_are_shown_and_nothing_more(driver: Any, tmp_path: Path) -> None:
    """As images, attributes and labels: no markup, and nothing that is not seen."""
    count = len(HOSTILE)
    images = np.random.default_rng(3).integers(0, 256, (count, 64, 64, 3), np.uint8)
    bank = lp.Bank.build(images, fakes.FakeVQ(), channels=3)
    attributes = {name: np.arange(count) == i for i, name in enumerate(HOSTILE[1:])}
    attributes = {HOSTILE[0]: np.ones(count, bool), **attributes}
    changed = replace(bank, names=HOSTILE, labels=HOSTILE, attributes=attributes)
    changed.save(tmp_path / "small.lpbank")
    options = ["--bank", tmp_path / "small.lpbank", "--autoencoder", f"{fakes.__file__}:FakeVQ", "--backend", "numpy"]
    (tmp_path / "temporary").mkdir()
    with serving(tmp_path / "temporary", *options) as address:
        page = Visitor(driver, address)
        where = page.one("#lpk-generate-where")
        shown = page.one("#lpk-generate-names").text
        assert shown.startswith('& and, | or, ~ not; "<script>window.harmed = 1</script>", ') and "&#" not in shown
        said = [shown, where.find_element("css selector", "input, textarea").get_attribute("placeholder")]
        assert not page.all("#lpk-generate-names :is(a, img, svg, script)")
        page.press("generate")
        page.tab("Edit")
        for number, name in enumerate(HOSTILE):
            page.type("#lpk-edit-number input", str(number))
            page.one("#lpk-edit-take").click()
            said.append(page.line("edit", f"bank image {number}: "))
            assert said[-1].endswith(" ".join(printable(name).split()))
        page.tab("Sources")
        page.until(lambda: page.all(".lpk-view"), "the sheet")
        said += [one.text for one in page.all("#lpk-provenance figcaption")]
        assert any("onerror" in one for one in said)
        assert all(line.isprintable() for one in said for line in one.splitlines())
        assert page.driver.execute_script("return window.harmed") is None
        assert (
            page.driver.execute_script("return document.querySelectorAll('[onerror], [onload], [onfocus]').length") == 0
        )
        unharmed(page)


def test_it_opens_with_pictures_which_are_enlarged_and_saved(page: Visitor) -> None:
    images = lp.generate(lp.Bank.default(), n=8, seed=0).decode(lp.load_autoencoder(device="cpu"))
    shown = [page.picture(one.get_attribute("src")) for one in page.all("#lpk-generate-gallery .lpk-made")]
    assert np.abs(np.stack(shown).astype(int) - images).max() <= 1
    assert "seed 0" in page.one("#lpk-generate-note").text
    page.all("#lpk-generate-gallery .lpk-thumb")[2].click()
    large = page.one("#lpk-large .lpk-made")
    assert large.size["width"] > 300
    np.testing.assert_array_equal(page.picture(large.get_attribute("src")), shown[2])
    page.catch_saved()
    page.one("#lpk-large .lpk-save").click()
    [[name, address]] = page.driver.execute_script("return window.saved")
    assert name == "lpkernel-0-3.png"
    np.testing.assert_array_equal(page.picture(address), shown[2])
    page.one("#lpk-large .lpk-close").click()
    page.until(lambda: not page.all("#lpk-large")[0].is_displayed(), "the dialog to close")
    seed = page.one("#lpk-generate-seed input")
    page.one("#lpk-generate-dice").click()
    page.until(lambda: seed.get_attribute("value") != "0", "another seed")
    line, _ = page.press("generate")
    assert f"seed {seed.get_attribute('value')}," in line
    # at the end, the live region says what happened
    page.until(lambda: page.all("#lpk-said")[0].get_attribute("textContent") == line, "the line to be read out")


@pytest.mark.parametrize("task", ["inpaint", "harmonize", "reference"])
def test_what_else_is_made_of_a_picture(page: Visitor, task: str) -> None:
    page.tab("Edit")
    page.one(f"#lpk-edit-task input[value={task}]").click()
    mask = painting.read_mask(page.paint(40, 40, 60, 45), 128)
    _, pictures = page.press("edit")
    bank, autoencoder = lp.Bank.default(), lp.load_autoencoder(device="cpu")
    picture = autoencoder.decode(bank.whole(np.array([0])))[0]
    if task == "reference":
        made = lp.reference(bank, picture, autoencoder, n=4)
    else:
        made = (lp.inpaint if task == "inpaint" else lp.harmonize)(bank, picture, autoencoder, mask, n=4)
    assert np.abs(np.stack(pictures).astype(int) - made.decode(autoencoder)).max() <= 2
    # another picture: results made from the old one disappear, here and in the Sources tab
    page.tab("Sources")
    old = page.sources()
    page.tab("Edit")
    page.type("#lpk-edit-number input", "9")
    page.one("#lpk-edit-take").click()
    page.line("edit", "bank image 9")
    assert page.all("#lpk-edit-gallery .lpk-made") == []
    page.tab("Sources")
    page.until(lambda: (page.sources() != old).any(), "the sources of what the page opened with")


def test_painting_and_pointing_with_the_keyboard(page: Visitor) -> None:
    from selenium.webdriver import Keys

    page.tab("Edit")
    canvas = page.one(".lpk-paint canvas")
    canvas.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_DOWN, " ")
    page.until(page.mask, "the stroke")
    mask = painting.read_mask(page.mask(), 128)
    assert mask is not None
    y, x = (np.flatnonzero(mask.any(axis)).mean() for axis in (1, 0))
    assert abs(x - 74) < 3 and abs(y - 70) < 3
    page.tab("Sources")
    view = page.one(".lpk-view")
    view.send_keys(Keys.ARROW_LEFT)
    source = page.sources()[8, 7]
    assert f"bank image {source}" in "|".join(card.text for card in page.all(".lpk-card") if card.is_displayed())


@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_for_everybody(page: Visitor, width: int) -> None:
    """The page passes axe-core, has one heading and nothing wider than the window, and every result is reachable."""
    if find_spec("axe_core_python") is None:
        browser.missing("no axe-core-python")
    from axe_core_python.selenium import Axe

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.driver.get(page.address)
        page.until(lambda: len(page.all("#lpk-generate-gallery .lpk-made")) == 8, "the results")
        for name in ("Generate", "Edit", "Sources"):
            page.tab(name)
            page.one({"Generate": "#lpk-generate-run", "Edit": "#lpk-edit-run", "Sources": ".lpk-cells"}[name])
            assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
            found = Axe().run(page.driver)["violations"]
            assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []
            assert len([one for one in page.all("h1, h2, h3, h4, h5, h6") if one.is_displayed()]) == 1
            assert all(one.get_attribute("alt") for one in page.all("img") if one.is_displayed())
        page.tab("Generate")
        for picture in page.all("#lpk-generate-gallery .lpk-made"):
            page.driver.execute_script("arguments[0].scrollIntoView()", picture)
            box = page.driver.execute_script("return arguments[0].getBoundingClientRect()", picture)
            assert box["left"] >= 0 and box["right"] <= width and box["width"] >= 100
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
