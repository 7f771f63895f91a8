"""Nearest neighbours as patch-based image synthesis asks for them: normalised distances."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lpkernel import checks, measured
from lpkernel.backends.base import TopK
from lpkernel.errors import InputError
from lpkernel.ops import masked_topk


def normalised_nearest(
    X: Any,  # noqa: N803  (the letters of the papers)
    Y: Any,  # noqa: N803
    alpha: float,
    rooted: bool = False,
    k: int = 1,
    backend: str = "auto",
) -> TopK:
    """The k rows of Y of the least normalised distance to each row of X (Granot et al. 2022, "Drop the GAN").

        score(x, y) = |x - y|^2 / D / (alpha + min over x' of |x' - y|^2 / D)
        score(x, y) = |x - y| / (alpha + min over x' of |x' - y|)                  if rooted

    A row of Y that is near some row of X is dear to all others, so that every part of Y is used. Both passes are
    searches; no (X, Y) matrix exists.

    Args:
        X: (Q, D) float32, the queries; a NumPy array or a torch tensor. At least one row.
        Y: (B, D), of the same kind.
        alpha: above 0, finite; small for completeness, large for the plain nearest.
        k: slots a row, 1 <= k <= B.
        backend: "auto" or a name of `lpkernel.info()`; with a GPU tensor, "torch" ranks by weights.

    Returns:
        (scores, indices), each (Q, k): scores float32, ascending; indices into Y, int64. Ties of scores (of their
        squares, if rooted) after float32 rounding go to the lowest index; see `masked_topk` and its bank_weights.

    Raises:
        InputError: wrong shapes, dtypes, k or alpha; values of which no distance is finite.
    """
    scale = checks.real("alpha", alpha)
    if scale <= 0:
        raise InputError(f"alpha: got {alpha}, expected above 0")
    nearest = masked_topk(Y, X, 1, backend=backend).distances[:, 0]
    nearest = nearest.double() if isinstance(nearest, Tensor) else nearest.astype(np.float64)
    weights = 1 / (scale + measured.root(nearest)) ** 2 if rooted else 1 / (scale * X.shape[1] + nearest)
    scores, indices = masked_topk(X, Y, k, backend=backend, bank_weights=weights, return_weighted=True)
    return TopK(measured.root(scores) if rooted else scores, indices)
