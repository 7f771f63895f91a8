"""`masked_topk`: the drop-in nearest-neighbour search, for the kinds of array people use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpkernel import checks
from lpkernel.arrays import check_dense, host_array
from lpkernel.backends import registry
from lpkernel.backends.base import TopK
from lpkernel.backends.pytorch import tensor
from lpkernel.errors import InputError, unknown_name
from lpkernel.search import double, measured, topk_op
from lpkernel.search.topk_op import cast, dtype_name

METRICS = ("l2", "sqrt", "cosine", "ip")
TAKEN = ("float32", "float64", "int16", *topk_op.WIDER)


def masked_topk(
    queries: Any,
    bank: Any,
    k: int,
    patch_mask: Any = None,
    candidate_mask: Any = None,
    backend: str = "auto",
    bank_weights: Any = None,
    return_weighted: bool = False,
    column_weights: Any = None,
    metric: str = "l2",
) -> TopK:
    """The k bank rows nearest to each query over the entries that the mask marks.

    Args:
        queries: (Q, D), or N sets of them (N, Q, D); a NumPy array, a torch tensor, or anything with `__dlpack__`.
            float32, float64, float16, bfloat16, int16, int8 or uint8.
        bank: (B, D), or one for each set (N, B, D); of the same kind and dtype (and device).
        k: slots per query, 1 <= k <= B.
        patch_mask: None, (D,), (Q, D) or (N, Q, D) bool; True entries are compared.
        candidate_mask: None, (B,) or (Q, B) bool, or for each set (N, Q, B); True rows are allowed. Queries with the
            same allowed rows are searched together; each different mask costs a search.
        backend: "auto" or a name of `lpkernel.info()`.
        bank_weights: None or (B,) float32 or float64, finite and above 0: rows are ranked by weight times distance.
        return_weighted: whether to return distances times their weights, then as float32 (float64 for float64).
        column_weights: None or (D,) float32 or float64, finite and at least 0: factors of the squared differences.
        metric: "l2", squared; "sqrt", its root; "cosine", 1 minus the cosine, 1 where a row is 0; "ip", the inner
            product, largest first. "cosine" and "ip" take only a patch_mask shared by all queries.

    Returns:
        (distances, indices), each (Q, k) or (N, Q, k), in the caller's kind of array. Distances are squared L2 (or the
        metric's), ascending: float32, float64 for float64 inputs, or int32 (exact) for integers by "l2"; indices are
        int64. Ties go to the lowest index. Slots beyond the allowed rows come last and hold (+inf or INT32_MAX, -1), by
        "ip" (-inf, -1).

    float32 distances are the float32 rounding of the direct sum in float64, float64 distances are that sum, and integer
    ones are exact, so they are the same on every backend and device. float16 and bfloat16 are searched as float32,
    which holds them. Infinities and NaN are values like any other: a sum beyond float32 is +inf, inf - inf is NaN.
    Distances that are equal after rounding tie, except that sums which underflow or overflow float32 are still ranked
    by their float64 values. NaN distances come after +inf, ties by index, and are all the one NaN of `numpy.nan`, so a
    query with a NaN that no mask hides gets the lowest allowed indices at distance NaN; empty slots come last.
    `torch.ops.lpkernel.masked_topk` is the same search of float32 and int16 rows, but it never inspects its results,
    nor waits for a GPU to do so: there, sums that underflow or overflow tie.

    With bank_weights w, rows are ranked by the float32 rounding of w * d, the float64 product of the weight and the
    direct sum d in float64 (for integers the exact sum). By "sqrt" they are ranked by w^2 * d, and its root is
    returned. Distances come in that order, so without return_weighted they need not be ascending.

    Other integers and floats are refused: int32, int64 and uint16 rows are converted by the caller, to float64 if they
    are large. Memory: float32 and int16 rows are searched where they are. Of other rows one copy is made, float32, or
    int16 for int8 and uint8; int16, int8 and uint8 become float32 with bank_weights or "sqrt".

    float64 inputs, column_weights, "cosine" and "ip" are searched in float32 and measured again in float64
    (`lpkernel.search.double`), which takes up to four float64 copies of both arrays. By "cosine", half the squared
    distance of the normalised rows is ranked, in float64.

    Not differentiable: tensors that require a gradient are detached, and the results have none.

    Raises:
        InputError: wrong shapes, dtypes, weights, metric or k; integer inputs whose D * (max - min)^2 reaches 2^31.
        BackendUnavailable: the named backend cannot run here.
    """
    if type(backend) is not str:
        backend = checks.text("backend", backend)
    plain = patch_mask is None and candidate_mask is None and bank_weights is None and column_weights is None
    plain = plain and type(queries) is type(bank) is np.ndarray and type(metric) is str and metric == "l2"
    if plain and (found := plain_topk(queries, bank, k, backend)) is not None:
        return found
    if type(k) is not int and not torch.compiler.is_compiling():
        k = checks.integer("k", k)
    if type(return_weighted) is not bool:
        return_weighted = checks.flag("return_weighted", return_weighted)
    if not isinstance(metric, str) or metric not in METRICS:
        raise unknown_name("metric", str(metric), METRICS)
    back: Callable[[Any], Any] = _as_it_is
    arrays = {
        "queries": queries,
        "bank": bank,
        "patch_mask": patch_mask,
        "candidate_mask": candidate_mask,
        "bank_weights": bank_weights,
        "column_weights": column_weights,
    }
    if bank is None:
        raise InputError("bank: got None, expected an array of the queries' kind")
    if isinstance(queries, np.ndarray):
        given: list[Any] = [None if array is None else host_array(name, array) for name, array in arrays.items()]
    elif isinstance(queries, Tensor) or hasattr(queries, "__dlpack__"):
        if not isinstance(queries, Tensor):
            back = _from_dlpack(queries)
        given = [None if array is None else _tensor(name, array) for name, array in arrays.items()]
    else:
        kind = type(queries).__name__
        raise InputError(f"queries: got {kind}, expected a NumPy array, a torch tensor or a DLPack array")
    q, b, patch, allowed, weights, columns = given
    distances, indices = _sets(_Search(q, b, patch, allowed, weights, columns, k, backend, return_weighted, metric))
    return TopK(back(distances), back(indices))


def plain_topk(queries: np.ndarray, bank: np.ndarray, k: Any, backend: str, here: bool = False) -> TopK | None:
    """The search of plain float32 rows where one call is enough; None where masked_topk has to look closer.

    here: "auto" may not take a GPU, since the rows come from tensors on the CPU.
    """
    if (
        type(k) is not int
        or not 1 <= k < 1 << 31
        or queries.dtype != np.float32
        or (found := registry.plain_topk(backend, queries, bank, k, here)) is None
    ):
        return None
    distances, indices, odd = found
    if odd:
        _mend(_Search(queries, bank, None, None, None, None, k, backend, False, "l2"), distances, indices)
    return TopK(distances, indices)


def _tensor(name: str, array: Any) -> Tensor:
    if type(array) is not Tensor and not isinstance(array, Tensor):
        if not hasattr(array, "__dlpack__"):
            raise InputError(f"{name}: got a {type(array).__name__}, expected a tensor, as the queries are")
        return torch.from_dlpack(array)
    # without a call where all is well: calls are counted in tests/test_gpu_host_time.py
    if array.layout is not torch.strided or array.is_meta or array.is_nested or array.is_quantized:
        check_dense(name, array)
    return array


def _as_it_is(array: Any) -> Any:
    return array


def _from_dlpack(queries: Any) -> Callable[[Any], Any]:
    owner = sys.modules[type(queries).__module__.partition(".")[0]]
    if not hasattr(owner, "from_dlpack"):
        raise InputError(f"queries: {owner.__name__} has no from_dlpack to return its kind with; pass NumPy or torch")
    convert: Callable[[Any], Any] = owner.from_dlpack
    return convert


@dataclass(frozen=True)
class _Search:
    """The arguments of masked_topk, all NumPy arrays or all tensors."""

    queries: Any
    bank: Any
    patch_mask: Any
    candidate_mask: Any
    bank_weights: Any
    column_weights: Any
    k: int
    backend: str
    return_weighted: bool
    metric: str


def _sets(search: _Search) -> tuple[Any, Any]:
    """N sets of queries, or one."""
    queries, bank = search.queries, search.bank
    if queries.ndim != 3:
        if bank.ndim != 2 or queries.ndim != 2:
            shapes = f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)}"
            raise InputError(f"{shapes}: expected (Q, D) and (B, D), or queries (N, Q, D) and (B, D) or (N, B, D)")
        return _by_candidates(search)
    own = {name for name in ("bank", "patch_mask", "candidate_mask") if getattr(getattr(search, name), "ndim", 0) == 3}
    for name in own:
        if len(getattr(search, name)) != len(queries):
            got, front = tuple(getattr(search, name).shape), tuple(queries.shape)
            raise InputError(f"{name}: got {got}, expected {len(queries)} in front, as in queries {front}")
    return _set_by_set(search, own) if own & {"bank", "candidate_mask"} else _all_sets(search)


def _set_by_set(search: _Search, own: set[str]) -> tuple[Any, Any]:
    """Each set separately. own: the arguments that have a part for each."""
    queries = search.queries
    if not len(queries):  # of the right types
        alone: dict[str, Any] = {"patch_mask": None, "candidate_mask": None, "bank_weights": None}
        return _all_sets(replace(search, bank=_rows(queries, search.k), **alone))
    parts = [
        _by_candidates(replace(search, queries=one, **{name: getattr(search, name)[i] for name in own}))
        for i, one in enumerate(queries)
    ]
    stack = np.stack if isinstance(queries, np.ndarray) else torch.stack
    return stack([part[0] for part in parts]), stack([part[1] for part in parts])


def _all_sets(search: _Search) -> tuple[Any, Any]:
    """Sets compared with the same rows, as one search; what belongs to a set's queries is repeated for every set."""
    count, size, width = search.queries.shape
    masks = {"patch_mask": search.patch_mask, "candidate_mask": search.candidate_mask}
    for name, mask in masks.items():
        if mask is not None and mask.ndim == 3:
            masks[name] = mask.reshape(count * size, mask.shape[2])
        elif mask is not None and mask.ndim == 2:
            masks[name] = np.tile(mask, (count, 1)) if isinstance(mask, np.ndarray) else mask.repeat(count, 1)
    flat = replace(search, queries=search.queries.reshape(count * size, width), **masks)
    distances, indices = _by_candidates(flat)
    return distances.reshape(count, size, search.k), indices.reshape(count, size, search.k)


def _rows(queries: Any, count: int) -> Any:
    """`count` rows of zeros, of the queries' kind, type and width."""
    shape = (count, queries.shape[-1])
    return np.zeros(shape, queries.dtype) if isinstance(queries, np.ndarray) else queries.new_zeros(shape)


def _by_candidates(search: _Search) -> tuple[Any, Any]:
    """Queries with the same allowed rows, searched together."""
    allowed, queries = search.candidate_mask, search.queries
    if allowed is None or allowed.ndim != 2:
        return _search(search)
    if tuple(allowed.shape) != (len(queries), len(search.bank)) or dtype_name(allowed) != "bool":
        raise InputError(
            f"candidate_mask: got {tuple(allowed.shape)} {dtype_name(allowed)}, expected ({len(search.bank)},) or "
            f"{(len(queries), len(search.bank))} bool"
        )
    bits = np.packbits(allowed if isinstance(allowed, np.ndarray) else allowed.cpu().numpy(), axis=1)
    _, first, group = np.unique(bits, axis=0, return_index=True, return_inverse=True)
    if not len(first):
        return _search(replace(search, candidate_mask=None))
    order, groups = np.argsort(group.ravel(), kind="stable"), np.bincount(group.ravel())
    parts = []
    for i, members in zip(first, np.split(order, np.cumsum(groups)[:-1]), strict=True):
        patch, chosen = search.patch_mask, _positions(members, queries)
        if patch is not None and patch.ndim == 2:
            patch = patch[chosen]
        parts.append(_search(replace(search, queries=queries[chosen], patch_mask=patch, candidate_mask=allowed[i])))
    together = np.concatenate if isinstance(queries, np.ndarray) else torch.cat
    back = _positions(np.argsort(order, kind="stable"), queries)
    return together([part[0] for part in parts])[back], together([part[1] for part in parts])[back]


def _positions(positions: Any, like: Any) -> Any:
    return positions if isinstance(like, np.ndarray) else torch.from_numpy(positions).to(like.device)


def _search(search: _Search) -> tuple[Any, Any]:
    """One set, rows allowed for all queries: as the op takes it, or in float64."""
    names = [dtype_name(array) for array in (search.queries, search.bank)]
    if names[0] != names[1] or names[0] not in TAKEN:
        raise unlike({"queries": names[0], "bank": names[1]})
    if search.metric == "sqrt" and search.bank_weights is not None:
        weights = topk_op.checked_weights(search.bank, search.bank_weights)
        search = replace(search, bank_weights=weights * weights)
    special = names[0] == "float64" or search.column_weights is not None or search.metric in ("cosine", "ip")
    distances, indices = _wide(search) if special else _narrow(search, topk_op.WIDER.get(names[0], names[0]))
    if search.metric == "sqrt":
        distances = measured.root(distances)
    return distances, indices


def unlike(dtypes: dict[str, str]) -> InputError:
    """The error for arrays, by their names, that are not of one dtype that masked_topk takes."""
    got = " and ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
    return InputError(f"{got}: expected both to be one of {', '.join(TAKEN)}; convert them")


def _narrow(search: _Search, wider: str) -> tuple[Any, Any]:
    """Rows searched as float32 or int16; what float32 cannot rank is searched again, in float64."""
    given, patch, weights = search, search.patch_mask, search.bank_weights
    compiled = torch.compiler.is_compiling()
    if wider == "int16" and search.metric == "l2" and weights is not None and not compiled:
        topk_op.check_shapes(search.queries, search.bank, search.k, patch, search.candidate_mask)
        topk_op.check_range(search.queries, search.bank)
    if search.metric != "l2" or (weights is not None and not compiled):
        wider = "float32"  # which holds every int16, and ranks by the products with the weights
    queries, bank = (topk_op.detached(cast(array, wider)) for array in (search.queries, search.bank))
    search = replace(search, queries=queries, bank=bank)
    run = topk_op.run if isinstance(queries, np.ndarray) else torch.ops.lpkernel.masked_topk
    arguments = (queries, bank, search.k, patch, search.candidate_mask, search.backend, weights)
    if compiled:
        return TopK(*run(*arguments, search.return_weighted))
    distances, indices = run(*arguments, search.return_weighted or weights is not None)
    if wider == "float32":
        _mend(search, distances, indices)
    if weights is not None and not search.return_weighted:
        exact = given if search.metric == "l2" else search
        distances = measured.distances(exact.queries, exact.bank, indices, patch)
    return distances, indices


def _mend(search: _Search, distances: Any, indices: Any) -> None:
    """Searches again, in float64, the queries that float32 cannot rank."""
    again = _out_of_range(search, distances, indices)
    if not len(again):
        return
    patch = search.patch_mask
    patch = patch[again] if patch is not None and patch.ndim == 2 else patch
    part = replace(search, queries=search.queries[again], patch_mask=patch, return_weighted=True)
    distances[again], indices[again] = _wide(part, double.to_float32_in_range)


def _out_of_range(search: _Search, distances: Any, indices: Any) -> Any:
    """Positions of the queries with a neighbour whose number underflows or overflows float32."""
    if isinstance(distances, torch.Tensor) and distances.numel() and _all_in_range(distances):
        return indices[:0, 0]
    odd = ((distances < double.NORMAL) | (distances == np.inf)) & (indices >= 0)
    rows = np.flatnonzero(odd.any(1)) if isinstance(odd, np.ndarray) else odd.any(1).nonzero()[:, 0]
    if not len(rows):
        return rows
    patch = search.patch_mask
    if patch is not None and patch.ndim == 2:
        patch = patch[rows]
    exact = measured.exact(search.queries[rows], search.bank, indices[rows], patch, search.bank_weights)
    # An infinite row may have come before a finite one beyond float32, as if they were at one distance.
    beyond = ((exact > 0) & (exact < double.NORMAL)) | (exact >= double.BEYOND)
    return rows[(beyond & (indices[rows] >= 0)).any(1)]


def _all_in_range(distances: Any) -> bool:
    """Whether float32 ranks all of them, NaN apart: checked first, since it waits for a GPU only once."""
    least, largest = torch.stack(torch.aminmax(distances)).tolist()
    return bool(least >= double.NORMAL and largest < np.inf)


def _wide(search: _Search, rounded: Callable[[Tensor], Tensor] | None = None) -> tuple[Any, Any]:
    """In float64 (see `lpkernel.search.double`), and back in the kind and type of the rows."""
    topk_op.check_shapes(search.queries, search.bank, search.k, search.patch_mask, search.candidate_mask)
    weights, columns = search.bank_weights, search.column_weights
    if weights is not None:
        weights = topk_op.checked_weights(search.bank, weights)
    if columns is not None:
        columns = topk_op.checked_columns(search.bank, columns)
    q, b, patch, allowed, weights, columns = (
        tensor(array) if isinstance(array, np.ndarray) else topk_op.detached(array)
        for array in (search.queries, search.bank, search.patch_mask, search.candidate_mask, weights, columns)
    )
    if patch is not None and patch.ndim == 1:
        q, b, columns, patch = q[:, patch], b[:, patch], None if columns is None else columns[patch], None
    narrow, in_numpy = dtype_name(search.bank) != "float64", isinstance(search.queries, np.ndarray)
    rows = double.Rows(q.double(), b.double(), patch, allowed, columns)
    with torch.no_grad():
        problem = double.problem(
            search.metric, rows, weights, rounded or (double.to_float32 if narrow else double.same)
        )
        numbers, indices = double.search(problem, search.k, search.backend, in_numpy)
        if weights is not None and not search.return_weighted:
            numbers = double.problem(search.metric, rows, None, problem.rounded).numbers(indices)
        if search.metric == "ip":
            numbers = -numbers
        distances = numbers.float() if narrow else numbers
        distances[distances.isnan()] = torch.nan
    return (distances.numpy(), indices.numpy()) if in_numpy else (distances, indices)
