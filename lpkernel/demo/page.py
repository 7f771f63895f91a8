"""The page: three tabs of controls around an `Engine`. Gradio is imported here and in `serve` only."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from lpkernel.backends import registry
from lpkernel.demo import guard, painting, provenance
from lpkernel.demo.engine import MAX_IMAGES, MAX_SCALES, Engine, Result, Settings
from lpkernel.demo.guard import Refused
from lpkernel.errors import InputError, LpkernelError
from lpkernel.presets import DEFAULT_PRESET, PRESETS

# One call at a time: the backends use all cores. The guard has checked the kinds of what is sent; what is out of bounds
# gets the engine's line.
CALL: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "engine",
    "api_visibility": "private",
    "preprocess": False,
    "show_progress": "hidden",
}
FORGET = 3600  # seconds after which a visitor's results are dropped
SESSIONS = 100  # visitors whose results are kept
JOBS, JOBS_OF_ADDRESS, JOBS_OF_SESSION = 32, 8, 4  # waiting or running; one runs at a time
LINE = 400  # characters of a line that a browser asks to be shown
UNREAD = 16  # messages that a session may leave unread and still post jobs
NOTHING = "Nothing is made yet: generate or edit first, then see here where each piece comes from."


def note(text: str) -> str:
    """A line under the controls."""
    return f'<div class="lpk-line">{html.escape(text)}</div>'


def error_note(text: str) -> str:
    """What went wrong, as one line."""
    return f'<div class="lpk-line lpk-error">{html.escape(" ".join(text.split()))}</div>'


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
            except LpkernelError as error:
                yield (error_note(guard.without_folders(str(error))), *stay[1:])
            except MemoryError:
                yield (error_note("the server has too little memory for this; ask for less"), *stay[1:])

        return safe

    return wrap


def once(handler: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
    """A handler that yields once, as one that returns. Gradio sends what is yielded again when the handler ends, by
    when the visitor may have painted on it."""

    @wraps(handler)
    def first(*values: Any) -> Any:
        return next(handler(*values))

    return first


def build(engine: Engine) -> gr.Blocks:
    """The page of an engine, ready to be served."""
    with gr.Blocks(title="lpkernel", analytics_enabled=False) as page:
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
    page.queue(max_size=JOBS, api_open=False)
    page.state_session_capacity = SESSIONS
    page.has_launched = True  # only then does Gradio look at where files come from; mounting leaves it unset
    return page


class Jobs:
    """What may be posted to a page, by its functions, and the places in its queue."""

    def __init__(self, page: gr.Blocks) -> None:
        self.inputs = {index: [_check(one) for one in function.inputs] for index, function in page.fns.items()}
        self.triggers = frozenset(page.blocks)
        self._queue = page._queue

    def admit(self, session: str, address: str) -> None:
        """Raise Refused if the session or the address has as many jobs as it may, or all together have."""
        live = list(self._queue.event_ids_to_events.values())
        unread = self._queue.pending_messages_per_session.get(session)
        if sum(one.session_hash == session for one in live) >= JOBS_OF_SESSION or (unread and unread.qsize() > UNREAD):
            raise Refused(503, "your last calls are not done yet; wait for their results")
        of_address = sum(one.request.client is not None and one.request.client.host == address for one in live)
        if len(live) >= JOBS or of_address >= JOBS_OF_ADDRESS:
            raise Refused(503, "too many calls wait; try again in a moment")

    def known(self, session: str) -> bool:
        """Whether the session has posted a job whose results were not fetched yet."""
        return session in self._queue.pending_messages_per_session

    def drop(self, keep: set[str]) -> None:
        """Forget the results of all sessions that have no job, but for those in `keep`."""
        keep = keep | {one.session_hash for one in self._queue.event_ids_to_events.values()}
        for session in self._queue.pending_messages_per_session.keys() - keep:
            del self._queue.pending_messages_per_session[session]
            self._queue.pending_event_ids_session.pop(session, None)


def _check(control: Any) -> guard.Check:
    """What a browser sends for a control."""
    match control:
        case gr.State():
            return guard.nothing
        case gr.Slider() | gr.Number():
            return guard.number
        case gr.Checkbox():
            return guard.truth
        case gr.CheckboxGroup():
            return guard.some_of(value for _, value in control.choices)
        case gr.Dropdown() | gr.Radio():
            return guard.one_of(value for _, value in control.choices)
        case gr.Textbox():
            return guard.text(control.max_length)
    raise TypeError(f"nobody has said what a browser may send for a {type(control).__name__}")


def _controls(engine: Engine, n: int, prefix: str) -> list[Any]:
    """The controls of both tabs, that `_settings` reads in this order; a tab's own follow."""
    bank = engine.bank
    top = min(bank.max_patch, bank.grid)
    patch = min(6, top)
    # No bounds where a number is typed: what is out of them gets the engine's line, not a pop-up.
    return [
        gr.Slider(1, MAX_IMAGES, n, step=1, label="images", elem_id=f"{prefix}-n"),
        gr.Slider(1, min(50, bank.size), min(3, bank.size), step=1, label="k: drawn from so many"),
        gr.Slider(1, top, patch, step=1, label="patch, cells a side"),
        gr.Slider(0, top, 0, step=1, label="stride, 0: patch / 3"),
        gr.Number(0, precision=0, label="seed", elem_id=f"{prefix}-seed"),
        gr.Dropdown(list(registry.NAMES), value=engine.backend, label="backend", elem_id=f"{prefix}-backend"),
        gr.Textbox(
            "",
            label="only bank images with",
            placeholder="Eyeglasses & ~Hat",
            elem_id=f"{prefix}-where",
            max_lines=1,
            max_length=1000,
        ),
    ]


def _settings(values: tuple[Any, ...], *own: str) -> Settings:
    """Controls as settings, the tab's own by their names; a cleared number counts as 0."""
    names = ("n", "k", "patch", "stride", "seed", "backend", "where", *own)
    numbers_and_words: dict[str, Any] = {
        name: value if isinstance(value, str) else int(value or 0) for name, value in zip(names, values, strict=True)
    }
    return Settings(**numbers_and_words)


def _shown(steps: Iterator[str | Result]) -> Iterator[tuple[Any, Any, Any]]:
    """Lines as they come; with the last one the gallery and the result."""
    yield note("working …"), gr.skip(), gr.skip()
    for step in steps:
        if isinstance(step, Result):
            yield note(step.line), gallery(step), step
        else:
            yield note(step), gr.skip(), gr.skip()


def gallery(result: Result) -> str:
    """Each result above its source map."""
    return _grid(np.concatenate([result.images, result.maps], axis=1))


def thumbnails(result: Result) -> str:
    """Results alone, to be chosen from: the colours of their maps are not those of a provenance sheet."""
    return _grid(result.images)


def _grid(pictures: NDArray[np.uint8]) -> str:
    """Pictures that stand in the page itself, so that no file of the server need be asked for."""
    shown = (
        f'<button type="button" class="lpk-thumb" data-index="{index}" aria-label="result {index + 1}">'
        f'<img src="{painting.data_url(picture)}" alt="result {index + 1}"></button>'
        for index, picture in enumerate(pictures)
    )
    return f'<div class="lpk-grid">{"".join(shown)}</div>'


def _gallery(prefix: str) -> gr.HTML:
    return gr.HTML(elem_id=f"{prefix}-gallery", elem_classes="lpk-gallery", padding=False)


def _sent(name: str, longest: int | None = None) -> gr.Textbox:
    """A field that nobody sees, in which page.js sends something."""
    return gr.Textbox("", elem_id=name, elem_classes="lpk-sent", show_label=False, container=False, max_length=longest)


def _words(sent: str) -> str:
    """What page.js tells, without the time that makes it new."""
    return sent.partition(" ")[2]


def _generate_tab(engine: Engine, latest: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            controls = [
                gr.Dropdown(list(PRESETS), value=DEFAULT_PRESET, label="preset", elem_id="lpk-generate-preset"),
                gr.Slider(-1, 2, -1, step=1, label="mirror: how much halves answer each other; -1: as the preset"),
            ]
            controls = [*_controls(engine, 8, "lpk-generate"), *controls]
        with gr.Column(scale=3):
            button = gr.Button("Generate", variant="primary", elem_id="lpk-generate-run")
            line = gr.HTML(elem_id="lpk-generate-note", elem_classes="lpk-note", padding=False)
            results = _gallery("lpk-generate")

    @told(3)
    def run(*values: Any) -> Iterator[Any]:
        yield from _shown(engine.generate(_settings(values, "preset", "mirror")))

    button.click(run, controls, [line, results, latest], **CALL)


def _edit_tab(engine: Engine, latest: gr.State) -> None:
    parts = engine.regions()
    first = engine.bank_picture(0)
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            controls = _controls(engine, 4, "lpk-edit")
            controls.append(gr.Slider(1, MAX_SCALES, 1, step=1, label="scales"))
        with gr.Column(scale=3):
            with gr.Row():
                with gr.Column(min_width=300):
                    painter = gr.HTML(painting.painter(first), elem_id="lpk-painter", padding=False)
                    sent = _sent("lpk-mask")
                with gr.Column(min_width=300):
                    gr.HTML(painting.CHOOSER, elem_id="lpk-edit-file", padding=False)
                    framed = _sent("lpk-picture")
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

    @once
    @told(4)
    def load(sent: str) -> Iterator[Any]:
        given = _words(sent)
        if not given.startswith(painting.PREFIX):  # the line that the guard, or page.js itself, gave for the file
            raise InputError(given[:LINE])
        pixels = painting.read_picture(given, len(first))
        warnings = engine.likeness(pixels)
        line = "; ".join(f"the picture may not suit the bank: {warning}" for warning in warnings)
        yield note(line), painting.painter(pixels), "", pixels

    @once
    @told(4)
    def take_one(chosen: float | None) -> Iterator[Any]:
        pixels = engine.bank_picture(int(chosen or 0))
        yield note(""), painting.painter(pixels), "", pixels

    @told(3)
    def run(pixels: NDArray[np.uint8] | None, mask: str, parts: list[str], how: str, kept: bool, *values: Any) -> Any:
        painted = None if pixels is None else painting.read_mask(mask, len(pixels))
        yield from _shown(engine.edit(_settings(values, "scales"), pixels, painted, parts, how, kept))

    loaded = [line, painter, sent, picture]
    framed.change(load, framed, loaded, **CALL)
    take.click(take_one, number, loaded, **CALL)
    given = [picture, sent, names, mode, keep, *controls]
    button.click(run, given, [line, results, latest], **CALL)


def _provenance_tab(engine: Engine, latest: gr.State, tab: gr.Tab) -> None:
    line = gr.HTML(note(NOTHING), elem_id="lpk-provenance-note", elem_classes="lpk-note", padding=False)
    shown = gr.HTML(elem_id="lpk-provenance", padding=False)
    choices, chosen = _gallery("lpk-provenance"), _sent("lpk-choice", 32)
    seen = gr.State(None, time_to_live=FORGET)

    def sheet(result: Result, index: int) -> tuple[str, str]:
        return note(f"result {index + 1} of {len(result.images)}; choose another below"), provenance.sheet(
            engine, result, index
        )

    @once
    @told(2)
    def choose(result: Result | None, sent: str) -> Iterator[Any]:
        index = _words(sent)
        if result is not None and index.isdecimal() and int(index) < len(result.images):
            yield sheet(result, int(index))

    @once
    @told(4)
    def open_tab(result: Result | None, old: Result | None) -> Iterator[Any]:
        if result is not None and result is not old:
            yield *sheet(result, 0), thumbnails(result), result

    chosen.change(choose, [latest, chosen], [line, shown], **CALL)
    tab.select(open_tab, [latest, seen], [line, shown, choices, seen], **CALL)
