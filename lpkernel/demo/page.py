"""The page: three tabs of controls around an `Engine`. Gradio is imported here and in `serve` only."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from lpkernel.backends import registry
from lpkernel.bank import Bank
from lpkernel.demo import guard, painting, provenance
from lpkernel.demo.engine import CHOICES, MAX_IMAGES, MAX_RADIUS, MAX_SCALES, Engine, Result, Settings
from lpkernel.demo.guard import Refused
from lpkernel.errors import InputError, LpkernelError, printable
from lpkernel.presets import DEFAULT_PRESET, PRESETS

# One call at a time: the backends use all cores. The guard has checked the types of what is sent; values out of bounds
# get the engine's error line.
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
# Visitors with results that they may still fetch. Gradio's queue drops the oldest of 2000 and stops for good when that
# one has a job.
FETCHING, FETCHING_OF_ADDRESS = 500, 64
LINE = 400  # characters of a line that a browser asks to be shown
UNREAD = 16  # messages that a session may leave unread and still post jobs
HINTED, NAMED = 6, 40  # attributes named in a hint, and characters of each


def note(text: str) -> str:
    """A line under the controls."""
    return f'<div class="lpk-line">{html.escape(printable(text))}</div>'


def error_note(text: str) -> str:
    """What went wrong, as one line."""
    return f'<div class="lpk-line lpk-error">{html.escape(" ".join(text.split()))}</div>'


def told(outputs: int) -> Callable[[Callable[..., Iterator[Any]]], Callable[..., Iterator[Any]]]:
    """For a handler that yields (line, ...) of `outputs` parts, or nothing: the user's errors become its line.

    Parts that are not yielded stay as they are; Gradio itself would empty all parts of a handler that yields nothing.
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
    """Turn a handler that yields once into one that returns. Gradio would send what is yielded again when the handler
    ends, and by then the visitor may have painted on it."""

    @wraps(handler)
    def first(*values: Any) -> Any:
        return next(handler(*values))

    return first


def build(engine: Engine) -> gr.Blocks:
    """The page of an engine, ready to be served."""
    with gr.Blocks(title="lpkernel", analytics_enabled=False) as page:
        bank, opening = engine.bank, engine.opening()
        gr.HTML(
            "<h1>lpkernel</h1><p>New pictures, copied piece by piece from examples: "
            f"{bank.size} bank images, {bank.grid} × {bank.grid} cells, autoencoder "
            f"{html.escape(printable(engine.autoencoder.name))}. Every piece of a result comes from one of them.</p>",
            padding=False,
            elem_id="lpk-head",
        )
        # What a visitor made last, and what they last made from nothing; None: the opening result, shared by all.
        latest, generated = (gr.State(None, time_to_live=FORGET) for _ in range(2))
        with gr.Tabs():
            with gr.Tab("Generate", id="generate", elem_id="lpk-tab-generate"):
                _generate_tab(engine, opening, latest, generated)
            with gr.Tab("Edit", id="edit", elem_id="lpk-tab-edit"):
                _edit_tab(engine, latest, generated)
            with gr.Tab("Sources", id="provenance", elem_id="lpk-tab-provenance") as tab:
                _provenance_tab(engine, opening, latest, tab)
    page.queue(max_size=JOBS, api_open=False)
    page.state_session_capacity = SESSIONS
    page.has_launched = True  # only then does Gradio check where files come from; mounting leaves it unset
    return page


class Jobs:
    """What may be posted to a page, by its functions, and the places in its queue."""

    def __init__(self, page: gr.Blocks) -> None:
        self.inputs = {index: [_check(one) for one in function.inputs] for index, function in page.fns.items()}
        self.triggers = frozenset(page.blocks)
        self._queue = page._queue
        self._addresses: dict[str, str] = {}  # of the sessions that are known

    def admit(self, session: str, address: str) -> None:
        """Raise Refused if the session, the address or the whole page already has as many jobs, or results to fetch, as
        it may."""
        live = list(self._queue.event_ids_to_events.values())
        unread = self._queue.pending_messages_per_session.get(session)
        if sum(one.session_hash == session for one in live) >= JOBS_OF_SESSION or (unread and unread.qsize() > UNREAD):
            raise Refused(503, "your last calls are not done yet; wait for their results")
        of_address = sum(one.request.client is not None and one.request.client.host == address for one in live)
        if len(live) >= JOBS or of_address >= JOBS_OF_ADDRESS:
            raise Refused(503, "too many calls are waiting; try again in a moment")
        if not self.known(session):
            others = list(self._addresses.values())
            if len(others) >= FETCHING or others.count(address) >= FETCHING_OF_ADDRESS:
                raise Refused(503, "too many results wait to be fetched; try again in a minute")
            self._addresses[session] = address

    def known(self, session: str) -> bool:
        """Whether the session has posted a job whose results have not been fetched yet."""
        return session in self._queue.pending_messages_per_session

    def drop(self, recent: set[str], read: set[str]) -> None:
        """Forget all sessions that have no job, except those in `read`, and those in `recent` with results unread."""
        queue = self._queue
        keep = read | {one.session_hash for one in queue.event_ids_to_events.values()}
        for session in queue.pending_messages_per_session.keys() - keep:
            unread = queue.pending_event_ids_session.get(session) or queue.pending_messages_per_session[session].qsize()
            if session not in recent or not unread:
                del queue.pending_messages_per_session[session]
                queue.pending_event_ids_session.pop(session, None)
        for session in self._addresses.keys() - queue.pending_messages_per_session.keys():
            del self._addresses[session]


def _check(control: Any) -> guard.Check:
    """The check for what a browser sends for a control."""
    match control:
        case gr.State():
            return guard.nothing
        case gr.Slider() | gr.Number():
            return guard.number
        case gr.Checkbox():
            return guard.truth
        case gr.CheckboxGroup():
            return guard.some_of(value for _, value in control.choices)
        case gr.Radio():
            return guard.one_of(value for _, value in control.choices)
        case gr.Textbox():
            return guard.text(control.max_length)
    raise TypeError(f"no check says what a browser may send for a {type(control).__name__}")


def _controls(engine: Engine, n: int, prefix: str) -> list[Any]:
    """The controls of both tabs that are always visible, in the order of `_settings`; those of `_more` follow."""
    names = _names(engine.bank)
    # No bounds where a number is typed: a value out of bounds gets the engine's line, not a pop-up.
    found = [
        gr.Slider(1, MAX_IMAGES, n, step=1, label="how many", info="pictures to make", elem_id=f"{prefix}-n"),
        gr.Number(
            0,
            precision=0,
            label="seed",
            info="the same number and settings give the same pictures",
            elem_id=f"{prefix}-seed",
        ),
    ]
    gr.Button("Random seed", size="sm", elem_id=f"{prefix}-dice", elem_classes="lpk-dice")
    found.append(
        gr.Textbox(
            "",
            label="only from bank images with",
            placeholder=_example(names),
            elem_id=f"{prefix}-where",
            max_lines=1,
            max_length=1000,
            visible=bool(names),
        )
    )
    # not as the box's info: what Gradio makes of markup in that depends on its version
    gr.HTML(
        f'<div class="lpk-line">{_hint(names)}</div>',
        elem_id=f"{prefix}-names",
        elem_classes="lpk-note",
        padding=False,
        visible=bool(names),
    )
    return found


def _names(bank: Bank) -> list[str]:
    """The bank's attributes and labels, as they are written in an expression."""
    names = [*bank.attributes, *sorted({label for label in bank.labels or [] if label})]
    return [name if re.fullmatch(r"\w+", name) else json.dumps(name, ensure_ascii=False) for name in names]


def _example(names: list[str]) -> str:
    return printable(f"{names[0]} & ~{names[1]}" if len(names) > 1 else "".join(names))


def _hint(names: list[str]) -> str:
    more = f" and {len(names) - HINTED} more" if len(names) > HINTED else ""
    return f"&amp; and, | or, ~ not; {', '.join(map(_plain, names[:HINTED]))}{more}"


def _plain(name: str) -> str:
    """A name as HTML, and as Markdown, that shows it as it is, cut where it is long: no markup, no links."""
    name = printable(name)
    short = name if len(name) <= NAMED else name[: NAMED - 1] + "…"
    return "".join(one if one.isalnum() or one in " …" else f"&#{ord(one)};" for one in short)


def backends(engine: Engine) -> list[str]:
    """The backends that a visitor may choose: the one that the server was started with, and those that are fast. With
    another, one call at the limits of the controls would keep all others waiting for half an hour."""
    slow = {"numpy"} | {one.name for one in registry.BACKENDS.values() if one.checks_only}
    if not registry.BACKENDS["cpp"].unavailable(engine.device):
        slow.add("torch")
    return [name for name in registry.NAMES if name not in slow or name == engine.backend]


def _more(engine: Engine, prefix: str) -> list[Any]:
    """The controls of both tabs that most visitors leave alone."""
    bank = engine.bank
    top = min(bank.max_patch, bank.grid)
    return [
        gr.Slider(
            1,
            min(50, bank.size),
            min(3, bank.size),
            step=1,
            label="k",
            info="each piece is drawn from this many best matches",
        ),
        gr.Slider(1, top, min(6, top), step=1, label="patch", info="side of a piece, in cells: larger copies more"),
        gr.Slider(0, top, 0, step=1, label="stride", info="cells from one piece to the next; 0: a third of the patch"),
        gr.Slider(
            0,
            MAX_RADIUS,
            0,
            step=1,
            label="search radius",
            info="how many cells from its place a piece may come: slower, for pictures that are not well aligned",
        ),
        gr.Radio(
            backends(engine),
            value=engine.backend,
            label="backend",
            info="what computes the pictures: all give the same ones",
            elem_id=f"{prefix}-backend",
        ),
    ]


STYLE = ("mirror", *CHOICES)


def _style() -> list[Any]:
    """What a style sets, each to be set otherwise, in the order of `STYLE`."""
    offered: dict[str, tuple[str, dict[str, str]]] = {  # label: info, and what the words of `CHOICES` are called
        "start": (
            "what the next, finer grid begins with",
            {"carry": "the pieces found so far", "resize": "the picture so far, enlarged"},
        ),
        "overlap": (
            "what becomes of cells where pieces overlap",
            {"cut": "a border where it shows least", "replace": "the new piece"},
        ),
        "hubness": (
            "how far sources that suit everything are held back: more is more varied",
            {word: word for word in CHOICES["hubness"]},
        ),
        "seams": ("single cells and small pieces join the one beside them", {"yes": "refined", "no": "as they fell"}),
        "colours": ("of pieces from different sources", {"yes": "matched at the seams", "no": "as decoded"}),
    }
    return [
        gr.Slider(-1, 2, -1, step=1, label="mirror", info="how closely the two halves match; -1: as the style sets"),
        *(
            gr.Radio(
                [("as the style sets", ""), *((called, word) for word, called in words.items())],
                value="",
                label=label,
                info=info,
            )
            for label, (info, words) in offered.items()
        ),
    ]


def _settings(values: tuple[Any, ...], *own: str) -> Settings:
    """Controls as settings, the tab's own by their names; a cleared number counts as 0."""
    names = ("n", "seed", "where", "k", "patch", "stride", "search_radius", "backend", *own)
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
    """Each result above its source map; page.js can enlarge and save it, and put it back into a visitor's file."""
    seed, count, closed = result.made.settings["seed"], len(result.images), result.closed()

    def whole(i: int) -> str:
        """A button that page.js shows when the picture is a file: it sends the file back, together with the result."""
        return (
            ""
            if closed is None
            else (
                f'<button type="button" class="lpk-whole" data-name="lpkernel-{seed}-{i + 1}" '
                f'data-closed="{painting.data_url(closed[i])}" aria-label="download your whole picture with result '
                f'{i + 1}">in the whole picture</button>'
            )
        )

    shown = (
        '<figure class="lpk-result">'
        f'<button type="button" class="lpk-thumb" aria-label="enlarge result {i + 1} of {count}">'
        f'<img class="lpk-made" src="{painting.data_url(image)}" alt="result {i + 1}"></button>'
        f'<img class="lpk-map" src="{painting.data_url(coded)}" '
        f'alt="source map of result {i + 1}: one colour per source">'
        f'<figcaption><button type="button" class="lpk-save" data-name="lpkernel-{seed}-{i + 1}.png" '
        f'aria-label="download result {i + 1}">download</button>{whole(i)}</figcaption></figure>'
        for i, (image, coded) in enumerate(zip(result.images, result.maps, strict=True))
    )
    return f'<div class="lpk-grid">{"".join(shown)}</div>'


def thumbnails(result: Result) -> str:
    """Results alone, to choose from; without maps, whose colours differ from those of a provenance sheet."""
    shown = (
        f'<button type="button" class="lpk-thumb" data-index="{i}" aria-label="where result {i + 1} comes from">'
        f'<img src="{painting.data_url(image)}" alt="result {i + 1}"></button>'
        for i, image in enumerate(result.images)
    )
    return f'<div class="lpk-grid">{"".join(shown)}</div>'


def _gallery(prefix: str, first: str = "") -> gr.HTML:
    return gr.HTML(first, elem_id=f"{prefix}-gallery", elem_classes="lpk-gallery", padding=False)


def _sent(name: str, longest: int | None = None) -> gr.Textbox:
    """A hidden field in which page.js sends something."""
    return gr.Textbox("", elem_id=name, elem_classes="lpk-sent", show_label=False, container=False, max_length=longest)


def _words(sent: str) -> str:
    """What page.js sent, without the time that makes it new."""
    return sent.partition(" ")[2]


def _generate_tab(engine: Engine, opening: Result, latest: gr.State, generated: gr.State) -> None:
    with gr.Row():
        with gr.Column(scale=1, min_width=280):
            controls = _controls(engine, 8, "lpk-generate")
            preset = gr.Radio(
                list(PRESETS),
                value=DEFAULT_PRESET,
                label="style",
                info="paper averages most; diverse averages least, but breaks more",
                elem_id="lpk-generate-preset",
            )
            with gr.Accordion("More settings", open=False):
                controls += _more(engine, "lpk-generate")
                style = _style()
            controls += [preset, *style]
        with gr.Column(scale=3, min_width=300):
            button = gr.Button("Generate", variant="primary", elem_id="lpk-generate-run")
            line = gr.HTML(note(opening.line), elem_id="lpk-generate-note", elem_classes="lpk-note", padding=False)
            results = _gallery("lpk-generate", gallery(opening))

    @told(4)
    def run(*values: Any) -> Iterator[Any]:
        for line, pictures, result in _shown(engine.generate(_settings(values, "preset", *STYLE))):
            yield line, pictures, result, result

    button.click(run, controls, [line, results, latest, generated], **CALL)


class _EditChoices(NamedTuple):
    """What is asked of a picture, and where the answer is shown."""

    task: gr.Radio
    parts: gr.CheckboxGroup
    mode: gr.Radio
    keep: gr.Checkbox
    controls: list[Any]
    button: gr.Button
    line: gr.HTML
    results: gr.HTML


def _edit_choices(engine: Engine) -> _EditChoices:
    task = gr.Radio(
        [
            ("edit: change what is painted or ticked", "edit"),
            ("inpaint: fill what is painted, as if it were missing", "inpaint"),
            ("harmonize: fit in what is painted, as if it were pasted", "harmonize"),
            ("reference: new pictures that follow all of it", "reference"),
        ],
        value="edit",
        label="what to do",
        info="with the picture as shown, framed like the bank's",
        elem_id="lpk-edit-task",
    )
    names = gr.CheckboxGroup(
        engine.regions(),
        label="parts of the face",
        info="for edit: these change in addition to what is painted",
        visible=bool(engine.regions()),
        elem_id="lpk-edit-parts",
    )
    controls = _controls(engine, 4, "lpk-edit")
    with gr.Accordion("More settings", open=False):
        mode = gr.Radio(
            [("free: grown from outside", "free"), ("guided: starts from what is there", "guided")],
            value="free",
            label="how to edit",
            elem_id="lpk-edit-mode",
        )
        keep = gr.Checkbox(
            True,
            label="keep the picture's own pixels outside",
            info="off: every pixel comes from the decoder",
            elem_id="lpk-edit-keep",
        )
        controls += _more(engine, "lpk-edit")
        controls.append(
            gr.Slider(1, MAX_SCALES, 1, step=1, label="scales", info="from coarse to fine; 1: what suits the task")
        )
    button = gr.Button("Make it", variant="primary", elem_id="lpk-edit-run")
    line = gr.HTML(elem_id="lpk-edit-note", elem_classes="lpk-note", padding=False)
    results = _gallery("lpk-edit")
    return _EditChoices(task, names, mode, keep, controls, button, line, results)


def _edit_tab(engine: Engine, latest: gr.State, generated: gr.State) -> None:
    first = engine.bank_picture(0)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            gr.HTML(painting.CHOOSER, elem_id="lpk-edit-file", padding=False)
            framed = _sent("lpk-picture")
            with gr.Row():
                number = gr.Number(
                    0,
                    precision=0,
                    label="or a bank image",
                    info=f"its number, 0 to {engine.bank.size - 1}",
                    elem_id="lpk-edit-number",
                    min_width=160,
                )
                take = gr.Button("Take it", size="sm", elem_id="lpk-edit-take", min_width=100)
            painter = gr.HTML(painting.painter(first), elem_id="lpk-painter", padding=False)
            sent = _sent("lpk-mask")
        with gr.Column(scale=3, min_width=300):
            choices = _edit_choices(engine)
    picture = gr.State(first, time_to_live=FORGET)

    @once
    @told(6)
    def load(sent: str, made: Result | None) -> Iterator[Any]:
        given = _words(sent)
        if not given.startswith(painting.PREFIX):  # the line that the guard, or page.js itself, gave for the file
            raise InputError(given[:LINE])
        url, _, how = given.partition(" ")
        pixels = painting.read_picture(url, len(first))
        warnings = engine.likeness(pixels)
        lines = [how[:LINE], *(f"the picture may not suit the bank: {warning}" for warning in warnings)]
        yield note("; ".join(filter(None, lines))), painting.painter(pixels), "", pixels, "", made

    @once
    @told(6)
    def take_one(chosen: float | None, made: Result | None) -> Iterator[Any]:
        index = int(chosen or 0)
        pixels = engine.bank_picture(index)
        yield note(f"bank image {index}: {engine.bank.names[index]}"), painting.painter(pixels), "", pixels, "", made

    @told(3)
    def run(
        pixels: NDArray[np.uint8] | None, mask: str, parts: list[str], what: str, how: str, kept: bool, *values: Any
    ) -> Any:
        painted = None if pixels is None else painting.read_mask(mask, len(pixels))
        yield from _shown(engine.change(_settings(values, "scales"), pixels, painted, parts, what, how, kept))

    # the results of an old picture go with it
    loaded = [choices.line, painter, sent, picture, choices.results, latest]
    framed.change(load, [framed, generated], loaded, **CALL)
    take.click(take_one, [number, generated], loaded, **CALL)
    given = [picture, sent, choices.parts, choices.task, choices.mode, choices.keep, *choices.controls]
    choices.button.click(run, given, [choices.line, choices.results, latest], **CALL)


def _provenance_tab(engine: Engine, opening: Result, latest: gr.State, tab: gr.Tab) -> None:
    line = gr.HTML(elem_id="lpk-provenance-note", elem_classes="lpk-note", padding=False)
    choices, chosen = _gallery("lpk-provenance"), _sent("lpk-choice", 32)
    shown = gr.HTML(elem_id="lpk-provenance", padding=False)
    seen = gr.State(None, time_to_live=FORGET)

    def sheet(result: Result, index: int) -> tuple[str, str]:
        return note(f"result {index + 1} of {len(result.images)}; choose another"), provenance.sheet(
            engine, result, index
        )

    @once
    @told(2)
    def choose(made: Result | None, sent: str) -> Iterator[Any]:
        index, result = _words(sent), opening if made is None else made
        if index.isdecimal() and int(index) < len(result.images):
            yield sheet(result, int(index))

    @once
    @told(4)
    def open_tab(made: Result | None, old: Result | None) -> Iterator[Any]:
        result = opening if made is None else made
        if result is not old:
            yield *sheet(result, 0), thumbnails(result), result

    chosen.change(choose, [latest, chosen], [line, shown], **CALL)
    tab.select(open_tab, [latest, seen], [line, shown, choices, seen], **CALL)
