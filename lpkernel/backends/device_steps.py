"""What a plan that runs step by step needs on a device: the bank's cells as float16, and constants added to products.

See csrc/cuda/steps.cuh; `slacks` is its bound on rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lpkernel.backends.base import CodeBank, ScanRequest
from lpkernel.backends.device_bank import DeviceBank, latent_channels, padded, settled
from lpkernel.backends.pytorch import tensor
from lpkernel.backends.store import Store

SLICE = 16  # channels come in multiples of this
PITCH = 128  # and images in multiples of this, the bank images of a tile
MOST_SLICED = 2048  # magnitude up to which whole numbers are exact in float16
NO_IMAGE = 3e38  # the constant of positions without an image
PIECE = 1 << 27  # bytes of a bank that are made at a time


@dataclass(frozen=True)
class StepBank:
    """content: (cells of all sides, pitch, W) float16, the vectors of each cell of the allowed images, zeros beyond.

    book: (V, W) float16, the vectors of codes; None for latents. magnitude: the largest of all values. longest: the
    largest squared length of a cell, including those of a canvas resized from such cells.
    """

    content: torch.Tensor
    book: torch.Tensor | None
    magnitude: int
    longest: float

    @property
    def bytes(self) -> int:
        return self.content.nbytes


@dataclass(frozen=True)
class StepConstants:
    """content: (T, pitch) float32, |b|^2 over a step's compared cells less the offset. farthest: the largest offset."""

    content: torch.Tensor
    farthest: float


def step_width(channels: int) -> int:
    return padded(channels, SLICE)


def step_bytes(request: ScanRequest, channels: int) -> int:
    """Bytes that `StepBank` and `StepConstants` of a request take, including while they are made."""
    cells, pitch = sum(side * side for side in request.plan.sides), padded(len(request.candidates), PITCH)
    return cells * pitch * (step_width(channels) * 2 + 4) + request.plan.steps * pitch * 4 + 4 * PIECE


def make_step_bank(bank: DeviceBank, vectors: NDArray[np.int16] | None, channels: int) -> StepBank:
    """vectors: (V, C) for a bank of codes."""
    device, allowed = bank.content.device, len(bank.candidates)
    cells, width = len(bank.content), step_width(channels)
    content = torch.zeros((cells, padded(allowed, PITCH), width), dtype=torch.float16, device=device)
    book = None
    if vectors is not None:
        book = torch.zeros((len(vectors), width), dtype=torch.float16, device=device)
        book[:, :channels] = tensor(vectors).to(device)
    at_once = max(1, PIECE // (allowed * width * 2))
    magnitude = longest = torch.zeros((), device=device)
    for begin in range(0, cells, at_once):
        part = bank.content[begin : begin + at_once, :allowed]
        made = content[begin : begin + at_once, :allowed]
        if book is None:
            magnitude = torch.maximum(magnitude, part.float().abs().amax())
            made[..., : part.shape[2]] = part
        else:
            made[:] = book[(part.to(torch.int32) & 0xFFFF) >> bank.code_shift]
        longest = torch.maximum(longest, made.float().square().sum(-1).amax())
    if vectors is not None:
        magnitude = tensor(vectors).float().abs().amax()
    return StepBank(content, book, int(magnitude), resized_length(float(longest), width))


def resized_length(longest: float, width: int) -> float:
    """A bound on the squared length of a cell interpolated between cells of at most `longest`, rounded to integers."""
    return (longest**0.5 * 1.001 + width**0.5) ** 2


def make_constants(request: ScanRequest, bank: StepBank, offsets: torch.Tensor | None) -> StepConstants:
    """offsets: (T, A) int32, what isolation takes off distances, as `device_bank.make_offsets` gives them, or None."""
    allowed, pitch = len(request.candidates), bank.content.shape[1]
    device = bank.content.device
    constants = torch.full((request.plan.steps, pitch), NO_IMAGE, device=device)
    lengths = torch.empty(bank.content.shape[:2], dtype=torch.int32, device=device)
    for cell, content in enumerate(bank.content):
        lengths[cell] = content.double().square().sum(-1)
    step, first = 0, 0
    for scale in request.plan.scales:
        for compared in scale.compared:
            sums = lengths[torch.from_numpy(first + compared).to(device), :allowed].sum(0, dtype=torch.int64)
            constants[step, :allowed] = sums if offsets is None else sums - offsets[step]
            step += 1
        first += scale.side**2
    farthest = 0
    if offsets is not None and offsets.numel():
        farthest = max(abs(end) for end in torch.stack(torch.aminmax(offsets)).tolist())  # abs would copy them
    return StepConstants(constants, float(farthest))


def slacks(request: ScanRequest, width: int, longest: float, farthest: float) -> NDArray[np.float32]:
    """(T,): twice the largest error of a pair's score at a step, if no cell's squared length is above `longest`."""
    compared = np.array([len(cells) for scale in request.plan.scales for cells in scale.compared], np.float64)
    sums = 2 * (compared * width + 64) * 2.0**-22 + 2.0**-20
    off: NDArray[np.float64] = compared * longest * sums + farthest * 2.0**-22
    return (2.001 * off + 1e-30).astype(np.float32)


def starting_cells(bank: StepBank, start: torch.Tensor) -> torch.Tensor:
    """Starting canvases (cells, W') int16 on the device, codes or latents, as float16 (cells, W)."""
    if bank.book is not None:
        return bank.book[start[:, 0].to(torch.int64)]
    made = torch.zeros((len(start), bank.content.shape[2]), dtype=torch.float16, device=start.device)
    made[:, : start.shape[1]] = start
    return made


def extent(start: torch.Tensor) -> tuple[int, float]:
    """The largest magnitude and the largest squared length of a cell, of latents (cells, W') int16."""
    wide = start.float()
    found = torch.stack([wide.abs().amax(), wide.square().sum(1).amax()]).tolist()
    return int(found[0]), found[1]


def vectors_of(request: ScanRequest) -> NDArray[np.int16] | None:
    """(V, C), the vectors of a request's codes; None for latents."""
    bank = request.bank_at(request.plan.sides[-1])
    return bank.vectors if isinstance(bank, CodeBank) else None


def channels_of(request: ScanRequest) -> int:
    """C."""
    vectors = vectors_of(request)
    return latent_channels(request) if vectors is None else vectors.shape[1]


class StepStore:
    """Step banks and constants kept from recent calls; all read-only."""

    def __init__(self) -> None:
        self._banks: Store[StepBank] = Store()
        self._constants: Store[StepConstants] = Store()
        self.stores: tuple[Store[Any], ...] = self._banks, self._constants

    def bank(self, request: ScanRequest, bank: DeviceBank, budget: int) -> StepBank:
        return self._banks.get(
            (id(bank),),
            [bank],
            budget,
            lambda made: made.bytes,
            lambda: settled(make_step_bank(bank, vectors_of(request), channels_of(request)), bank.content.device),
        )

    def constants(
        self, request: ScanRequest, bank: StepBank, offsets: torch.Tensor | None, budget: int
    ) -> StepConstants:
        return self._constants.get(
            (id(request.plan), id(bank), request.hubness),
            [request.plan, bank],
            budget,
            lambda made: made.content.nbytes,
            lambda: settled(make_constants(request, bank, offsets), bank.content.device),
        )
