"""One result and where each of its cells comes from, as HTML that reacts to the pointer without asking the server."""

from __future__ import annotations

import json
from html import escape

import numpy as np
from numpy.typing import NDArray

from lpkernel.demo.engine import Engine, Result
from lpkernel.demo.painting import data_url
from lpkernel.errors import printable
from lpkernel.pictures import render
from lpkernel.views import copied_from

KEPT = -1


def shares(sources: NDArray[np.integer]) -> list[tuple[int, int]]:
    """(source, cells) of a map (M, M), most cells first; kept cells are counted as source -1."""
    numbers, counts = np.unique(sources, return_counts=True)
    order = np.lexsort((numbers, -counts))
    return [(int(numbers[j]), int(counts[j])) for j in order]


def sheet(engine: Engine, result: Result, index: int) -> str:
    """Result `index` with its map beside it, and a hidden card for each source: its picture, name and share."""
    made = result.made
    sources, image, bank = made.sources[index], result.images[index], made.bank
    shifts = None if made.shifts is None else made.shifts[index]
    given = shares(sources)
    numbers = np.array([number for number, _ in given if number != KEPT], np.int64)
    colours = render.source_colours(bank.size)
    cards = []
    if len(numbers):
        pictures = dict(zip(numbers.tolist(), engine.bank_pictures(numbers, bank), strict=True))
    for number, count in given:
        share = f"{count / sources.size:.1%} of the cells ({count} of {sources.size})"
        if number == KEPT:
            cards.append(
                f'<figure class="lpk-card" data-source="{KEPT}"><figcaption>kept from the picture itself, {share}'
                "</figcaption></figure>"
            )
            continue
        marked = render.marked(pictures[number], copied_from(number, sources, shifts), colours[number])
        cards.append(
            f'<figure class="lpk-card" data-source="{number}">'
            f'<img src="{data_url(marked)}" alt="bank image {number}, the cells it gave are bright">'
            f"<figcaption><b>{escape(printable(bank.names[number]))}</b> (bank image {number}), {share}"
            "</figcaption></figure>"
        )
    overlay = render.overlay(image, sources, colours)
    views = "".join(
        f'<div class="lpk-view" tabindex="0" role="group" aria-label="{what}: point at a cell, or use the arrow keys">'
        f'<img src="{data_url(view)}" alt="{what}" draggable="false"><i></i></div>'
        for what, view in (("result", image), ("the map over the result", overlay))
    )
    return (
        f'<div class="lpk-cells" data-grid="{len(sources)}" data-map="{escape(json.dumps(sources.ravel().tolist()))}">'
        '<p class="lpk-hint">Point at a cell to see its source; click to pin it, click again to release it. '
        "With the keyboard: arrow keys.</p>"
        f'<div class="lpk-views">{views}<div class="lpk-cards" aria-live="polite">{"".join(cards)}</div></div></div>'
    )
