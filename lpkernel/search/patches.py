"""Nearest neighbours as patch-based image synthesis needs them: normalised distances, patches of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpkernel import checks
from lpkernel.arrays import check_dense, host_array
from lpkernel.backends.base import TopK
from lpkernel.backends.pytorch import tensor
from lpkernel.errors import InputError
from lpkernel.search import double, measured, topk_op
from lpkernel.search.ops import TAKEN, masked_topk, unlike
from lpkernel.search.topk_op import cast, dtype_name

ROWS_BYTES = 8 << 20  # of patch rows written at a time, for the image and for the source each
MOST_STRIDE = (1 << 31) - 1
LEAST_ALPHA = 1e-100  # so that weights stay within float64's range


def normalised_nearest(
    X: Any,  # noqa: N803  (the letters of the papers)
    Y: Any,  # noqa: N803
    alpha: float,
    rooted: bool = False,
    k: int = 1,
    backend: str = "auto",
) -> TopK:
    """The k rows of Y with the least normalised distance to each row of X (Granot et al. 2022, "Drop the GAN").

        score(x, y) = |x - y|^2 / D / (alpha + min over x' of |x' - y|^2 / D)
        score(x, y) = |x - y| / (alpha + min over x' of |x' - y|)                  if rooted

    A row of Y that is near some row of X is costly for all others, so that every part of Y is used. Both passes are
    searches; no (X, Y) matrix is formed.

    Args:
        X: (Q, D) float32, the queries; a NumPy array or a torch tensor. At least one row.
        Y: (B, D), of the same kind.
        alpha: above 0, finite; small for completeness, large for the plain nearest.
        rooted: whether distances are lengths, of rows that are compared whole.
        k: slots per query, 1 <= k <= B.
        backend: "auto" or a name of `lpkernel.info()`.

    Returns:
        (scores, indices), each (Q, k): scores float32, ascending; indices into Y, int64. Ties of scores (of their
        squares, if rooted) after float32 rounding go to the lowest index; see `masked_topk` and its bank_weights.

    Raises:
        InputError: wrong shapes, dtypes, k or alpha; values of which no distance is finite.
    """
    scale = _scale(alpha)
    for name, array in {"X": X, "Y": Y}.items():
        if isinstance(array, Tensor):
            check_dense(name, array)
    shapes = [tuple(getattr(rows, "shape", ())) for rows in (X, Y)]
    if [len(shape) for shape in shapes] != [2, 2]:
        raise InputError(f"X {shapes[0]} and Y {shapes[1]}: expected (Q, D) and (B, D)")
    rooted = checks.flag("rooted", rooted)
    found = masked_topk(Y, X, 1, backend=backend)

    def measure(rows: Any) -> Any:
        queries, bank = topk_op.detached(Y)[rows], topk_op.detached(X)
        return measured.exact(queries, bank, found.indices[rows], None, None)[:, 0]

    least = _least("Y", "row", found.distances[:, 0], measure)
    weights = 1 / (scale + measured.root(least)) ** 2 if rooted else 1 / (scale * X.shape[1] + least)
    scores, indices = masked_topk(X, Y, k, backend=backend, bank_weights=weights, return_weighted=True)
    return TopK(measured.root(scores) if rooted else scores, indices)


def _least(name: str, what: str, found: Any, measure: Callable[[Any], Any]) -> Any:
    """Least distances as float64, of rows or patches, from those that a search has found.

    measure: returns the float64 sums of some of them, by their places; those beyond float32 are measured, and rounded
    to as many bits. Raises InputError for other infinities and NaN, but not while torch compiles.
    """
    least = cast(found, "float64")
    if torch.compiler.is_compiling():
        return least
    beyond = (least == np.inf).nonzero()
    rows = beyond[0] if isinstance(least, np.ndarray) else beyond[:, 0]
    if len(rows) and dtype_name(found) == "float32":
        least[rows] = cast(cast(measure(rows) * 2.0**-160, "float32"), "float64") * 2.0**160
    wrong = (~(least < np.inf)).nonzero()
    first = wrong[0] if isinstance(least, np.ndarray) else wrong[:, 0]
    if len(first):
        raise InputError(
            f"{name}: the least distance of {what} {int(first[0])} is {float(least[int(first[0])])}, of which no score "
            "can be made; take out what is not finite, or scale the values down"
        )
    return least


def _scale(alpha: float) -> float:
    scale = checks.real("alpha", alpha)
    if not LEAST_ALPHA <= scale <= 1 / LEAST_ALPHA:
        raise InputError(f"alpha: got {alpha}, expected above 0, from {LEAST_ALPHA} to {1 / LEAST_ALPHA}")
    return scale


def patch_nearest(
    image: Any,
    source: Any,
    patch: int,
    k: int = 1,
    alpha: float | None = None,
    stride: int = 1,
    search_radius: int | None = None,
    backend: str = "auto",
) -> TopK:
    """The k patches of a source image nearest to each patch of an image, without storing the rows of all patches.

    Patches begin at every `stride`-th pixel from 0 on, on both axes of both images, and lie inside the image. An index
    counts the source's patches in raster order: divmod(index, columns), columns = (source width - patch) // stride + 1.

    Args:
        image: (C, H, W), a NumPy array or a torch tensor, of a dtype that `masked_topk` takes.
        source: (C, H', W'), of the same kind and dtype.
        patch: the side of a patch, in pixels.
        k: slots per patch, at most the number of source patches.
        alpha: None, or as in `normalised_nearest`: d / D / (alpha + least d / D over the image's patches) is ranked.
        stride: in pixels.
        search_radius: None, or only source patches that begin within this many pixels of where the image's patch
            begins, on both axes; slots beyond them hold (+inf or INT32_MAX, -1). With alpha, the least is over all
            patches.
        backend: "auto" or a name of `lpkernel.info()`; not used with search_radius.

    Returns:
        (distances, indices), each (rows, columns, k): as `masked_topk` and `normalised_nearest` of all patches give
        them, bit for bit; ties to the lowest index. With search_radius, squares of floats are added up in another
        order, in float64, so that their last bit may differ, and with it the order of patches that are nearly as far.

    Memory: the results and, at any time, up to ROWS_BYTES of patches of each image, twice that again inside a search.
    With search_radius, a few float64 copies of the image; the time is that of comparing the images at every shift.

    Raises:
        InputError: shapes, dtypes, sizes or k that do not fit; with alpha, a patch whose least distance is NaN or
            beyond float32.
    """
    side, step, count = (checks.integer(*pair) for pair in (("patch", patch), ("stride", stride), ("k", k)))
    of_numpy, pair = isinstance(image, np.ndarray), {"image": image, "source": source}
    for name, array in pair.items():
        if not isinstance(array, np.ndarray | Tensor) or array.ndim != 3 or array.shape[0] != image.shape[0]:
            got = tuple(array.shape) if isinstance(array, np.ndarray | Tensor) else type(array).__name__
            raise InputError(f"{name}: got {got}, expected (C, H, W), C as in the image")
        if isinstance(array, Tensor):
            check_dense(name, array)
        else:
            pair[name] = host_array(name, array)
        if not 1 <= side <= min(array.shape[1:]) or not 1 <= step <= MOST_STRIDE:
            raise InputError(
                f"patch {side} and stride {step}: expected at least 1, the patch within {name} {tuple(array.shape)}, "
                f"the stride at most {MOST_STRIDE}"
            )
    dtypes = {name: dtype_name(array) for name, array in pair.items()}
    if len(set(dtypes.values())) > 1 or dtypes["image"] not in TAKEN:
        raise unlike(dtypes)
    ours, theirs = (
        _Patches(array.detach() if isinstance(array, Tensor) else tensor(array), side, step, of_numpy)
        for array in pair.values()
    )
    if not 1 <= count <= len(theirs):
        raise InputError(f"k: got {k}, expected 1 to the {len(theirs)} patches of the source")
    weights = None if alpha is None else _weights(ours, theirs, alpha, backend)
    if search_radius is None:
        found = _of_all(ours, theirs, count, weights, backend)
    else:
        radius = checks.integer("search_radius", search_radius)
        if radius < 0:
            raise InputError(f"search_radius: got {radius}, expected at least 0")
        found = _near(ours, theirs, count, weights, radius)
    distances, indices = (array.reshape(ours.rows, ours.columns, count) for array in found)
    return TopK(distances.numpy(), indices.numpy()) if of_numpy else TopK(distances, indices)


@dataclass(frozen=True)
class _Patches:
    """All patches of an image (C, H, W), in raster order. of_numpy: whether the caller gave NumPy arrays."""

    image: Tensor
    side: int
    stride: int
    of_numpy: bool

    @property
    def rows(self) -> int:
        return (self.image.shape[1] - self.side) // self.stride + 1

    @property
    def columns(self) -> int:
        return (self.image.shape[2] - self.side) // self.stride + 1

    @property
    def width(self) -> int:
        return self.image.shape[0] * self.side**2

    def __len__(self) -> int:
        return self.rows * self.columns

    @property
    def _view(self) -> Tensor:
        """(rows, columns, C, side, side), without a copy."""
        return self.image.unfold(1, self.side, self.stride).unfold(2, self.side, self.stride).permute(1, 2, 0, 3, 4)

    def at(self, indices: Tensor) -> Tensor:
        """(n, C * side * side): the patches of these numbers."""
        return self._view[indices // self.columns, indices % self.columns].reshape(-1, self.width)

    def parts(self) -> Iterator[tuple[slice, Tensor]]:
        """Positions and rows (n, C * side * side) of some whole lines of patches, at least one, at a time."""
        view = self._view
        lines = max(1, ROWS_BYTES // (4 * self.width * self.columns))
        for first in range(0, self.rows, lines):
            rows = view[first : first + lines].reshape(-1, self.width)
            yield slice(first * self.columns, first * self.columns + len(rows)), rows


def _of_all(ours: _Patches, theirs: _Patches, k: int, weights: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """(Q, k) of all source patches."""
    found = [_of_rows(rows, theirs, k, weights, backend) for _, rows in ours.parts()]
    return torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found])


def _of_rows(rows: Tensor, theirs: _Patches, k: int, weights: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """The neighbours of some rows, kept over the parts of the source; a stable sort leaves ties to the earlier part."""
    best: tuple[Tensor, Tensor] | None = None
    for at, bank in theirs.parts():
        own = None if weights is None else weights[at]
        given = (array.numpy() if theirs.of_numpy and array is not None else array for array in (rows, bank, own))
        queries, among, weighted = given
        found = masked_topk(
            queries, among, min(k, len(bank)), backend=backend, bank_weights=weighted, return_weighted=own is not None
        )
        distances, indices = map(torch.as_tensor, found)
        dtype = distances.dtype
        if len(bank) < len(theirs):
            distances = _ranks(rows, bank, distances, indices, own)
        indices += at.start
        if best is not None:
            distances, indices = torch.cat([best[0], distances], 1), torch.cat([best[1], indices], 1)
            distances, order = distances.sort(dim=1, stable=True)
            distances, indices = distances[:, :k], indices.gather(1, order)[:, :k]
        best = distances, indices
    assert best is not None
    return best[0].to(dtype), best[1]


def _ranks(rows: Tensor, bank: Tensor, distances: Tensor, indices: Tensor, weights: Tensor | None) -> Tensor:
    """What neighbours in a part of a source are ranked by: beyond float32's range not what masked_topk returns."""
    if distances.dtype != torch.float32 or not rows.dtype.is_floating_point:
        return distances
    ranks = distances.double()
    odd = ((distances < double.NORMAL) | (distances == torch.inf)).any(1)
    if odd.any():
        ranks[odd] = double.to_float32_in_range(measured.exact(rows[odd], bank, indices[odd], None, weights))
    return ranks


def _weights(ours: _Patches, theirs: _Patches, alpha: float, backend: str) -> Tensor:
    """(B,) float64 of the source's patches, as `normalised_nearest` has them."""
    found, nearest = _of_all(theirs, ours, 1, None, backend)
    least: Tensor = _least("source", "patch", found[:, 0], lambda some: _sums(theirs, ours, some, nearest[some, 0]))
    return 1 / (_scale(alpha) * ours.width + least)


def _sums(ours: _Patches, theirs: _Patches, some: Tensor, nearest: Tensor) -> Tensor:
    """Squared distances, float64, of some of our patches to one of theirs each."""
    step = max(1, measured.TILE // ours.width)
    pairs = zip(some.split(step), nearest.split(step), strict=True)
    return torch.cat([(ours.at(mine).double() - theirs.at(other).double()).square_().sum(1) for mine, other in pairs])


_NAN = 0x7FF8 << 48  # the bits of a float64 NaN, above those of +inf
_EMPTY = 2**63 - 1


def _near(ours: _Patches, theirs: _Patches, k: int, weights: Tensor | None, radius: int) -> tuple[Tensor, Tensor]:
    """(Q, k) of the source patches within a radius: one shift of the images after another, in the order of indices.

    Numbers are ordered by their bits, which as integers have the order of the numbers from 0 to +inf; NaN comes next,
    and empty slots last.
    """
    reach, dtype = radius // ours.stride, ours.image.dtype
    best = torch.full((ours.rows, ours.columns, k), _EMPTY, dtype=torch.int64, device=ours.image.device)
    indices = torch.full(best.shape, -1, dtype=torch.int64, device=best.device)
    for down in range(-min(reach, ours.rows - 1), min(reach, theirs.rows - 1) + 1):
        for right in range(-min(reach, ours.columns - 1), min(reach, theirs.columns - 1) + 1):
            rows = slice(max(0, -down), min(ours.rows, theirs.rows - down))
            columns = slice(max(0, -right), min(ours.columns, theirs.columns - right))
            sums = _shifted_sums(ours, theirs, down, right, rows, columns)
            index = torch.arange(len(theirs), device=best.device).view(theirs.rows, theirs.columns)
            index = index[rows.start + down : rows.stop + down, columns.start + right : columns.stop + right]
            if weights is not None:
                sums = sums * weights[index]
            if dtype.is_floating_point and dtype != torch.float64:
                sums = double.to_float32_in_range(sums)
            elif dtype != torch.float64 and weights is not None:
                sums = double.to_float32(sums)
            numbers = torch.where(sums.isnan(), _NAN, sums.view(torch.int64))[..., None]
            both = torch.cat([best[rows, columns], numbers], 2)
            which = torch.cat([indices[rows, columns], index[..., None]], 2)
            both, order = both.sort(dim=2, stable=True)
            best[rows, columns], indices[rows, columns] = both[..., :k], which.gather(2, order)[..., :k]
    return _distances(best, indices, dtype, weights is not None), indices


def _distances(best: Tensor, indices: Tensor, dtype: torch.dtype, weighted: bool) -> Tensor:
    """The numbers of `_near` as masked_topk returns them."""
    found = torch.where(indices < 0, torch.inf, best.view(torch.float64))
    if not dtype.is_floating_point and not weighted:
        return found.clamp(max=2.0**31 - 1).to(torch.int32)
    return found if dtype == torch.float64 else found.float()


def _shifted_sums(ours: _Patches, theirs: _Patches, down: int, right: int, rows: slice, columns: slice) -> Tensor:
    """Squared distances, float64, of our patches at some lines and columns to theirs, `down` and `right` further."""
    step, side = ours.stride, ours.side

    def window(image: Tensor, first: int, last: int, left: int, end: int) -> Tensor:
        return image[:, first * step : (last - 1) * step + side, left * step : (end - 1) * step + side].double()

    mine = window(ours.image, rows.start, rows.stop, columns.start, columns.stop)
    other = window(theirs.image, rows.start + down, rows.stop + down, columns.start + right, columns.stop + right)
    squares = (mine - other).square_().sum(0)
    return squares.unfold(0, side, step).sum(2).unfold(1, side, step).sum(2)
