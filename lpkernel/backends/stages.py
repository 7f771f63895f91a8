"""Plans that carry, for backends that run one domain at a time: one scale after the other.

A scale starts from the bank cells that the previous scale's source map names, so only that map passes from stage to
stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lpkernel.backends.base import Array, CodeBank, Codes, Level, ScanRequest
from lpkernel.plan import Scale


def requests(request: ScanRequest) -> Iterator[ScanRequest]:
    """The request of each stage, with the canvas that is known beforehand: for later stages only what they keep. Only
    the last one's maps are refined."""
    if len(request.plan.stages) == 1:
        side = request.plan.sides[-1]
        yield replace(request, bank=request.bank_at(side)) if len(request.plan.scales) == 1 else request
        return
    for plan, scale, start in zip(request.plan.stages, request.plan.scales, request.canvas, strict=True):
        refine = request.refine and plan is request.plan.stages[-1]
        yield replace(request, plan=plan, bank=request.bank_at(scale.side), canvas=(start,), refine=refine)


def reasons(request: ScanRequest, unsupported: Callable[[ScanRequest], list[str]]) -> list[str]:
    """What `unsupported` says against any stage, each reason once. Later stages start from one canvas per image."""
    found: dict[str, None] = {}
    for number, stage in enumerate(requests(request)):
        if number:
            content = _content(stage)
            stage = replace(stage, canvas=(np.broadcast_to(content[:1], (len(stage.images), *content.shape[1:])),))
        found.update(dict.fromkeys(unsupported(stage)))
    return list(found)


def run(request: ScanRequest, scan: Callable[[ScanRequest], NDArray[np.int32]]) -> NDArray[np.int32]:
    """The source maps (N, M, M) of a request whose stages `scan` can all run."""
    sources: NDArray[np.int32] | None = None
    for stage, scale in zip(requests(request), request.plan.scales[-len(request.plan.stages) :], strict=True):
        if sources is not None:
            stage = replace(stage, canvas=(_carried(stage, scale, sources),))
        sources = scan(stage)
    assert sources is not None
    return sources


def _carried(stage: ScanRequest, scale: Scale, sources: NDArray[np.int32]) -> Array:
    """The canvas (n, m, m, ...) that a scale starts from, given the sources (n, m', m') of the previous one."""
    assert scale.carry is not None
    index, content, start = scale.carry.index, _content(stage), stage.canvas[0]
    wanted = sources[:, index[:, None], index]
    y, x = np.indices(wanted.shape[1:])
    canvas = content[wanted, y, x]
    if start is not None:
        kept = (wanted < 0) | scale.kept
        canvas[kept] = np.broadcast_to(start, canvas.shape)[kept]
    return canvas


def _content(stage: ScanRequest) -> Codes | Level:
    """The bank's codes or latents at the stage's only side."""
    (side,) = stage.plan.sides
    bank = stage.bank_at(side)
    return bank.codes if isinstance(bank, CodeBank) else bank.level(side)
