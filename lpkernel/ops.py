"""`masked_topk`: the drop-in nearest-neighbour op; checks, dispatch and its registration with torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpkernel import measure
from lpkernel.backends import registry
from lpkernel.backends.base import TopK, TopkRequest
from lpkernel.errors import InputError

_library = torch.library.Library("lpkernel", "DEF")
_library.define(
    "masked_topk(Tensor queries, Tensor bank, int k, Tensor? patch_mask=None, Tensor? candidate_mask=None, "
    'str backend="auto", Tensor? bank_weights=None, bool return_weighted=False) -> (Tensor, Tensor)'
)


def masked_topk(
    queries: Any,
    bank: Any,
    k: int,
    patch_mask: Any = None,
    candidate_mask: Any = None,
    backend: str = "auto",
    bank_weights: Any = None,
    return_weighted: bool = False,
) -> TopK:
    """The k bank rows nearest to each query over the entries that the mask marks.

    Args:
        queries: (Q, D) float32 or int16; a NumPy array, a torch tensor, or anything with `__dlpack__`.
        bank: (B, D), of the same kind and dtype (and device).
        k: slots a row, 1 <= k <= B.
        patch_mask: None, (D,) or (Q, D) bool; True entries are compared.
        candidate_mask: None or (B,) bool; True rows are allowed.
        backend: "auto" or a name of `lpkernel.info()`.
        bank_weights: None or (B,) float32 or float64, finite and above 0: rows are ranked by weight times distance.
        return_weighted: whether distances come back times their weights; they are float32 then.

    Returns:
        (distances, indices), each (Q, k), in the caller's kind of array. Distances are squared L2,
        ascending: float32, or int32 (exact) for int16 inputs; indices are int64. Ties go to the
        lowest index. Slots beyond the allowed rows come last and hold (+inf or INT32_MAX, -1).

    float32 distances are the float32 rounding of the direct sum in float64; int16 ones are exact, so
    the same on every backend and device. Infinities and NaN are values like others: a sum beyond float32 is +inf,
    inf - inf is NaN, and equal after rounding is a tie, so of sums that all round to 0 or to +inf the lowest indices
    win. NaN distances come after +inf, ties by index, and are all the one NaN of `numpy.nan`; empty slots come after
    both.

    With bank_weights w the number that is ranked is the float32 rounding of w * d, a product in float64 of the weight
    and the direct sum d in float64 (of int16 rows the exact integer). Ties of that number go to the lowest index, and
    the rest of the above holds for it. Distances come in that order, so without return_weighted they need not rise.

    Not differentiable: tensors that require a gradient are taken without it, and none comes back.

    Raises:
        InputError: wrong shapes, dtypes, weights or k; int16 inputs whose D * (max - min)^2 reaches 2^31.
        BackendUnavailable: the named backend cannot run here.
    """
    arrays = (queries, bank, patch_mask, candidate_mask, bank_weights)
    if isinstance(queries, np.ndarray):
        q, b, p, c, w = _each(np.asarray, arrays)
        return _run(q, b, k, p, c, backend, w, return_weighted)
    if isinstance(queries, Tensor):
        q, b, p, c, w = _each(lambda a: a if isinstance(a, Tensor) else torch.from_dlpack(a), arrays)
        return TopK(*torch.ops.lpkernel.masked_topk(q, b, k, p, c, backend, w, return_weighted))
    if not hasattr(queries, "__dlpack__"):
        kind = type(queries).__name__
        raise InputError(f"queries: got {kind}, expected a NumPy array, a torch tensor or a DLPack array")
    owner = sys.modules[type(queries).__module__.partition(".")[0]]
    if not hasattr(owner, "from_dlpack"):
        raise InputError(f"queries: {owner.__name__} has no from_dlpack to return its kind with; pass NumPy or torch")
    q, b, p, c, w = _each(torch.from_dlpack, arrays)
    found = torch.ops.lpkernel.masked_topk(q, b, k, p, c, backend, w, return_weighted)
    return TopK(*map(owner.from_dlpack, found))


def _each(convert: Callable[[Any], Any], arrays: Iterable[Any]) -> list[Any]:
    return [None if array is None else convert(array) for array in arrays]


def _run(
    queries: Any,
    bank: Any,
    k: int,
    patch_mask: Any,
    candidate_mask: Any,
    backend: str,
    bank_weights: Any,
    return_weighted: bool,
) -> TopK:
    _check_shapes(queries, bank, k, patch_mask, candidate_mask)
    _check_range(queries, bank)
    if bank_weights is None:
        request = TopkRequest(queries, bank, k, patch_mask, candidate_mask)
        found = registry.choose(backend, request).masked_topk(request)
        return TopK(_floats(found.distances), found.indices) if return_weighted else found
    # float32 holds every int16, and float64 their exact distances.
    weights = _checked_weights(bank, bank_weights)
    request = TopkRequest(_as(queries, "float32"), _as(bank, "float32"), k, patch_mask, candidate_mask, weights)
    found = registry.choose(backend, request).masked_topk(request)
    if return_weighted:
        return found
    return TopK(measure.distances(queries, bank, found.indices, patch_mask), found.indices)


def _floats(distances: Any) -> Any:
    """Distances as float32; int32 ones have +inf where slots are empty."""
    if _dtype(distances) == "float32":
        return distances
    empty = distances == np.iinfo(np.int32).max
    floats = _as(distances, "float32")
    floats[empty] = np.inf
    return floats


def _as(array: Any, dtype: str) -> Any:
    """The array with another dtype, by its name."""
    if isinstance(array, Tensor):
        return array.to(getattr(torch, dtype))
    return array.astype(dtype, copy=False)


def _checked_weights(bank: Any, weights: Any) -> Any:
    if tuple(weights.shape) != bank.shape[:1] or _dtype(weights) not in ("float32", "float64"):
        got = f"{tuple(weights.shape)} {_dtype(weights)}"
        raise InputError(f"bank_weights: got {got}, expected ({len(bank)},) float32 or float64")
    if isinstance(weights, Tensor) and weights.device != bank.device:
        raise InputError(f"bank_weights: got a tensor on {weights.device}, expected {bank.device} as the bank")
    if not bool(((weights > 0) & (weights < np.inf)).all()):
        raise InputError("bank_weights: got values that are not, expected all finite and above 0")
    return _as(weights.detach() if isinstance(weights, Tensor) else weights, "float64")


def _dtype(array: Any) -> str:
    """The same name for NumPy's and torch's dtype."""
    return str(array.dtype).removeprefix("torch.")


def _check_shapes(queries: Any, bank: Any, k: int, patch_mask: Any, candidate_mask: Any) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise InputError(f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)}: expected (Q, D) and (B, D)")
    names = [_dtype(array) for array in (queries, bank)]
    if names[0] != names[1] or names[0] not in ("float32", "int16"):
        raise InputError(f"queries {names[0]} and bank {names[1]}: expected both float32 or both int16")
    if not 1 <= k <= bank.shape[0]:
        raise InputError(f"k: got {k}, expected 1 to the {bank.shape[0]} bank rows")
    for name, mask, shapes in (
        ("patch_mask", patch_mask, ((queries.shape[1],), tuple(queries.shape))),
        ("candidate_mask", candidate_mask, ((bank.shape[0],),)),
    ):
        if mask is None:
            continue
        if _dtype(mask) != "bool" or tuple(mask.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise InputError(f"{name}: got {tuple(mask.shape)} {mask.dtype}, expected {expected} bool")
    if isinstance(bank, Tensor):
        devices = {str(a.device) for a in (queries, bank, patch_mask, candidate_mask) if a is not None}
        if len(devices) > 1:
            raise InputError(f"devices: got {', '.join(sorted(devices))}, expected all arrays on one")


def _check_range(queries: Any, bank: Any) -> None:
    """int16 distances must fit int32."""
    if _dtype(bank) != "int16" or bank.shape[1] == 0 or queries.shape[0] == 0:
        return
    spread = _spread(queries, bank)
    if bank.shape[1] * spread**2 >= 2**31:
        raise InputError(
            f"int16 values span {spread} over D = {bank.shape[1]}: D * span^2 reaches 2^31 and would overflow; "
            "scale them down"
        )


def _spread(queries: Any, bank: Any) -> int:
    """The largest of all values less the smallest. A GPU is waited for once."""
    if isinstance(bank, Tensor):
        ends = torch.stack([*queries.aminmax(), *bank.aminmax()]).tolist()
        return int(max(ends) - min(ends))
    return max(int(queries.max()), int(bank.max())) - min(int(queries.min()), int(bank.min()))


def _dense(
    queries: Tensor,
    bank: Tensor,
    k: int,
    patch_mask: Tensor | None = None,
    candidate_mask: Tensor | None = None,
    backend: str = "auto",
    bank_weights: Tensor | None = None,
    return_weighted: bool = False,
) -> tuple[Tensor, Tensor]:
    """The op on tensors. Backends that speak NumPy get CPU tensors as arrays, and give tensors back."""
    queries, bank = (array.detach() if array.requires_grad else array for array in (queries, bank))
    distances, indices = _run(queries, bank, k, patch_mask, candidate_mask, backend, bank_weights, return_weighted)
    return torch.as_tensor(distances), torch.as_tensor(indices)


def _fake(
    queries: Tensor,
    bank: Tensor,
    k: int,
    patch_mask: Tensor | None = None,
    candidate_mask: Tensor | None = None,
    backend: str = "auto",
    bank_weights: Tensor | None = None,
    return_weighted: bool = False,
) -> tuple[Tensor, Tensor]:
    distance = torch.int32 if bank.dtype == torch.int16 and not return_weighted else torch.float32
    shape = (queries.shape[0], k)
    return bank.new_empty(shape, dtype=distance), bank.new_empty(shape, dtype=torch.int64)


_library.impl("masked_topk", torch.library.fallthrough_kernel, "Autograd")  # results have no gradient
_library.impl("masked_topk", _dense, "CPU")
_library.impl("masked_topk", _dense, "CUDA")
torch.library.register_fake("lpkernel::masked_topk", _fake, lib=_library)
