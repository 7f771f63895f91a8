"""The page: three tabs of controls around an `Engine`. Gradio is imported here and in `serve` only."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lpkernel.backends import registry
from lpkernel.demo import painting, provenance
from lpkernel.demo.engine import MAX_IMAGES, MAX_SCALES, Engine, Result, Settings
from lpkernel.errors import LpkernelError

# One call at a time: the backends use all cores.
CALL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "engine", "api_visibility": "private"}
FORGET = 3600  # seconds after which a visitor's results are dropped
NOTHING = "Nothing is made yet: generate or edit first, then see here where each piece comes from."


def note(text: str) -> str:
    """A line under the controls."""
    return f'<div class="lpk-line">{html.escape(text)}</div>'


def error_note(error: Exception) -> str:
    """What went wrong, as one line."""
    return f'<div class="lpk-line lpk-error">{html.escape(" ".join(str(error).split()))}</div>'


def told(outputs: int) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """For a handler that yields (line, ...) of `outputs` parts, or nothing: errors of the user become its line.

    What is not yielded stays as it is; Gradio itself would empty all parts of a handler that yields nothing.
    """

    def wrap(handler: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @wraps(handler)
        def safe(*values: Any) -> Iterator[Any]:
            stay = (gr.skip(),) * outputs
            steps = handler(*values)
            try:
                yield next(steps, stay)
                yield from steps
            except (LpkernelError, OSError, MemoryError) as error:
                yield (error_note(error), *stay[1:])

        return safe

    return wrap


def build(engine: Engine) -> gr.Blocks:
    """The page of an engine, ready to be served."""
    with gr.Blocks(title="lpkernel", analytics_enabled=False, delete_cache=(FORGET, FORGET)) as page:
        bank = engine.bank
        gr.Markdown(
            f"### lpkernel\n{bank.size} bank images, {bank.grid} × {bank.grid} cells, autoencoder "
            f"{engine.autoencoder.name}. Every piece of a result is copied from one bank image."
        )
        latest = gr.State(None, time_to_live=FORGET)
        with gr.Tabs():
            with gr.Tab("Generate", id="generate", elem_id="lpk-tab-generate"):
                _generate_tab(engine, latest)
            with gr.Tab("Edit", id="edit", elem_id="lpk-tab-edit"):
                _edit_tab(engine, latest)
            with gr.Tab("Provenance", id="provenance", elem_id="lpk-tab-provenance") as tab:
                _provenance_tab(engine, latest, tab)
    return page


def _controls(engine: Engine, n: int, scales: int, prefix: str) -> list[Any]:
    """The controls that `_settings` reads, in its order."""
    bank = engine.bank
    top = min(bank.max_patch, bank.grid)
    patch = min(6, top)
    # No bounds where a number is typed: what is out of them gets the engine's line, not a pop-up.
    return [
        gr.Slider(1, MAX_IMAGES, n, step=1, label="images", elem_id=f"{prefix}-n"),
        gr.Slider(1, min(50, bank.size), min(3, bank.size), step=1, label="k: drawn from so many"),
        gr.Slider(1, top, patch, step=1, label="patch, cells a side"),
        gr.Slider(0, top, 0, step=1, label="stride, 0: patch / 3"),
        gr.Slider(1, MAX_SCALES, scales, step=1, label="scales"),
        gr.Number(0, precision=0, label="seed", elem_id=f"{prefix}-seed"),
        gr.Dropdown(list(registry.NAMES), value=engine.backend, label="backend", elem_id=f"{prefix}-backend"),
        gr.Textbox(
            "", label="only bank images with", placeholder="Eyeglasses & ~Hat", elem_id=f"{prefix}-where", max_lines=1
        ),
    ]


def _settings(values: tuple[Any, ...]) -> Settings:
    """Controls as settings; a cleared number counts as its least."""
    n, k, patch, stride, scales, seed, backend, where = values
    return Settings(int(n), int(k), int(patch), int(stride), int(scales), int(seed or 0), str(backend), str(where))


def _shown(steps: Iterator[str | Result]) -> Iterator[tuple[Any, Any, Any]]:
    """Lines as they come; with the last one the gallery and the result."""
    yield note("working …"), gr.skip(), gr.skip()
    for step in steps:
        if isinstance(step, Result):
            yield note(step.line), gallery(step), step
        else:
            yield note(step), gr.skip(), gr.skip()


def gallery(result: Result) -> list[Any]:
    """Each result above its source map."""
    return [
        Image.fromarray(np.concatenate([image, coded])) for image, coded in zip(result.images, result.maps, strict=True)
    ]


def thumbnails(result: Result) -> list[Any]:
    """Results alone, to be chosen from: the colours of their maps are not those of a provenance sheet."""
    return [Image.fromarray(image) for image in result.images]


def _gallery(prefix: str) -> gr.Gallery:
    return gr.Gallery(
        label="results above their source maps",
        show_label=False,
        elem_classes="lpk-gallery",
        format="png",
        columns=8,
        height="auto",
        interactive=False,
        allow_preview=False,
        buttons=[],
        elem_id=f"{prefix}-gallery",
    )


def _generate_tab(engine: Engine, latest: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            controls = _controls(engine, 8, 5, "lpk-generate")
        with gr.Column(scale=3):
            button = gr.Button("Generate", variant="primary", elem_id="lpk-generate-run")
            line = gr.HTML(elem_id="lpk-generate-note", elem_classes="lpk-note", padding=False)
            results = _gallery("lpk-generate")

    @told(3)
    def run(*values: Any) -> Iterator[Any]:
        yield from _shown(engine.generate(_settings(values)))

    button.click(run, controls, [line, results, latest], show_progress="hidden", **CALL)


def _edit_tab(engine: Engine, latest: gr.State) -> None:
    parts = engine.regions()
    first = engine.bank_picture(0)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            controls = _controls(engine, 4, 1, "lpk-edit")
        with gr.Column(scale=3):
            with gr.Row():
                with gr.Column(min_width=300):
                    painter = gr.HTML(painting.painter(first), elem_id="lpk-painter", padding=False)
                    sent = gr.Textbox("", elem_id="lpk-mask", show_label=False, container=False)
                with gr.Column(min_width=300):
                    file = gr.File(label="a picture", type="filepath", elem_id="lpk-edit-file", height=120)
                    with gr.Row(equal_height=True):
                        number = gr.Number(
                            0, precision=0, label="or a bank image, by number", elem_id="lpk-edit-number", min_width=160
                        )
                        take = gr.Button("Take it", elem_id="lpk-edit-take", min_width=100)
                    names = gr.CheckboxGroup(
                        parts, label="change what is painted, and", visible=bool(parts), elem_id="lpk-edit-parts"
                    )
                    mode = gr.Radio(
                        [("free: grown from around", "free"), ("guided: starts from what is there", "guided")],
                        value="free",
                        show_label=False,
                        elem_id="lpk-edit-mode",
                    )
                    keep = gr.Checkbox(False, label="keep the picture's own pixels outside", elem_id="lpk-edit-keep")
            button = gr.Button("Edit", variant="primary", elem_id="lpk-edit-run")
            line = gr.HTML(elem_id="lpk-edit-note", elem_classes="lpk-note", padding=False)
            results = _gallery("lpk-edit")
    picture = gr.State(first, time_to_live=FORGET)

    @told(4)
    def load(path: str | None) -> Iterator[Any]:
        if path is None:
            return
        pixels, warnings = engine.picture(path)
        line = "; ".join(f"the picture may not suit the bank: {warning}" for warning in warnings)
        yield note(line), painting.painter(pixels), "", pixels

    @told(4)
    def take_one(chosen: float | None) -> Iterator[Any]:
        pixels = engine.bank_picture(int(chosen or 0))
        yield note(""), painting.painter(pixels), "", pixels

    @told(3)
    def run(pixels: NDArray[np.uint8] | None, mask: str, parts: list[str], how: str, kept: bool, *values: Any) -> Any:
        painted = None if pixels is None else painting.read_mask(mask, len(pixels))
        yield from _shown(engine.edit(_settings(values), pixels, painted, parts or [], how, kept))

    loaded = [line, painter, sent, picture]
    file.change(load, file, loaded, show_progress="hidden", **CALL)
    take.click(take_one, number, loaded, show_progress="hidden", **CALL)
    given = [picture, sent, names, mode, keep, *controls]
    button.click(run, given, [line, results, latest], show_progress="hidden", **CALL)


def _provenance_tab(engine: Engine, latest: gr.State, tab: gr.Tab) -> None:
    line = gr.HTML(note(NOTHING), elem_id="lpk-provenance-note", elem_classes="lpk-note", padding=False)
    shown = gr.HTML(elem_id="lpk-provenance", padding=False)
    choices = _gallery("lpk-provenance")
    seen = gr.State(None, time_to_live=FORGET)

    def sheet(result: Result, index: int) -> tuple[str, str]:
        return note(f"result {index + 1} of {len(result.images)}; choose another below"), provenance.sheet(
            engine, result, index
        )

    @told(2)
    def choose(result: Result | None, chosen: gr.SelectData) -> Iterator[Any]:
        if result is not None and isinstance(chosen.index, int) and 0 <= chosen.index < len(result.images):
            yield sheet(result, chosen.index)

    @told(4)
    def open_tab(result: Result | None, old: Result | None) -> Iterator[Any]:
        if result is not None and result is not old:
            yield *sheet(result, 0), gr.Gallery(value=thumbnails(result), selected_index=None), result

    choices.select(choose, latest, [line, shown], show_progress="hidden", **CALL)
    tab.select(open_tab, [latest, seen], [line, shown, choices, seen], show_progress="hidden", **CALL)
