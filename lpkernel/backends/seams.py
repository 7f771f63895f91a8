"""Source maps as `Backend.scan` promises them, for backends that refine no seams themselves, or not these."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lpkernel import refine
from lpkernel.backends.base import CodeBank, ScanRequest
from lpkernel.views import Views, looked_up


def refined(request: ScanRequest, maps: NDArray[np.int32]) -> NDArray[np.int32]:
    """The maps (N, M, M) of a request, with their seams refined on the host where it asks for that.

    Raises InputError for damaged codes.
    """
    if not request.refine:
        return maps
    bank = request.bank_at(request.plan.sides[-1])
    vectors: NDArray[np.int16] | None = None
    cells: Any
    if isinstance(bank, CodeBank):
        cells, vectors = bank.codes, bank.vectors
    elif bank.cells is not None:
        cells, vectors = bank.cells
    else:
        cells = bank.level(request.plan.sides[-1])
    if isinstance(cells, Views) or cells.dtype != np.int16:

        def read(numbers: NDArray[np.int32]) -> NDArray[np.int16]:
            return cells[numbers] if vectors is None else looked_up(vectors, cells[numbers])

        return refine.gathered(maps, read)
    return refine.refined(maps, cells, vectors)
