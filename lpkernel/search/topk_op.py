"""`torch.ops.lpkernel.masked_topk`: the op on float32 and int16 rows; checks, dispatch and its registration with torch.

`lpkernel.masked_topk` takes more kinds of input and converts them for this op.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpkernel import _native
from lpkernel.backends import registry
from lpkernel.backends.base import TopK, TopkRequest
from lpkernel.errors import InputError
from lpkernel.search import measured

WIDER = {"float16": "float32", "bfloat16": "float32", "uint8": "int16", "int8": "int16"}  # as what these are ranked
MANY = 1 << 16  # values, from which NumPy takes longer than a call of native code

_library = torch.library.Library("lpkernel", "DEF")
_library.define(
    "masked_topk(Tensor queries, Tensor bank, int k, Tensor? patch_mask=None, Tensor? candidate_mask=None, "
    'str backend="auto", Tensor? bank_weights=None, bool return_weighted=False) -> (Tensor, Tensor)'
)


def run(
    queries: Any,
    bank: Any,
    k: int,
    patch_mask: Any,
    candidate_mask: Any,
    backend: str,
    bank_weights: Any,
    return_weighted: bool,
) -> TopK:
    """The op on arrays of one kind, after its checks."""
    check_shapes(queries, bank, k, patch_mask, candidate_mask)
    _check_types(queries, bank)
    if bank_weights is None:
        request = TopkRequest(queries, bank, k, patch_mask, candidate_mask)
        chosen = registry.choose(backend, request)
        late = isinstance(bank, Tensor) and bank.device.type != "cpu"  # or GPU and host would wait for each other
        if not late:
            check_range(queries, bank)
        found = chosen.masked_topk(request)
        if late:
            check_range(queries, bank)
        return TopK(_floats(found.distances), found.indices) if return_weighted else found
    check_range(queries, bank)
    # float32 holds every int16, and float64 their exact distances.
    weights = checked_weights(bank, bank_weights)
    request = TopkRequest(cast(queries, "float32"), cast(bank, "float32"), k, patch_mask, candidate_mask, weights)
    found = registry.choose(backend, request).masked_topk(request)
    if return_weighted:
        return found
    return TopK(measured.distances(queries, bank, found.indices, patch_mask), found.indices)


def _floats(distances: Any) -> Any:
    """Distances as float32; int32 ones have +inf where slots are empty."""
    if dtype_name(distances) == "float32":
        return distances
    empty = distances == np.iinfo(np.int32).max
    floats = cast(distances, "float32")
    floats[empty] = np.inf
    return floats


def cast(array: Any, dtype: str) -> Any:
    """The array with another dtype, by its name."""
    name = dtype_name(array)
    if name == dtype:
        return array
    wide = _widened(array) if WIDER.get(name) == dtype else None
    if wide is not None:
        return wide
    return array.to(getattr(torch, dtype)) if isinstance(array, Tensor) else array.astype(dtype)


def _widened(array: Any) -> Any:
    """Many small numbers by native code, else None: NumPy takes 25 ms for 17 million float16, and torch 15."""
    rows = array
    if isinstance(array, Tensor):
        if type(array) is not Tensor or array.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        rows = array.detach()
        rows = (rows.view(torch.uint16) if array.dtype == torch.bfloat16 else rows).numpy()
    if rows.size < MANY or not (rows.flags.c_contiguous and rows.flags.aligned) or _native.cpu_reasons():
        return None
    wide = _native.cpu().widened(rows, torch.get_num_threads())
    return torch.from_numpy(wide) if isinstance(array, Tensor) else wide


def detached(array: Any) -> Any:
    """A tensor without its gradient; other arrays as they are."""
    return array.detach() if isinstance(array, Tensor) and array.requires_grad else array


def checked_weights(bank: Any, weights: Any) -> Any:
    """(B,) float64: masked_topk's bank_weights, checked."""
    if tuple(weights.shape) != bank.shape[:1] or dtype_name(weights) not in ("float32", "float64"):
        got = f"{tuple(weights.shape)} {dtype_name(weights)}"
        raise InputError(f"bank_weights: got {got}, expected ({len(bank)},) float32 or float64")
    if isinstance(weights, Tensor) and weights.device != bank.device:
        raise InputError(f"bank_weights: got a tensor on {weights.device}, expected {bank.device}, the bank's device")
    if not bool(((weights > 0) & (weights < np.inf)).all()):
        raise InputError("bank_weights: expected all values finite and above 0, got some that are not")
    return cast(detached(weights), "float64")


def checked_columns(bank: Any, columns: Any) -> Any:
    """(D,) float64: masked_topk's column_weights, checked."""
    if tuple(columns.shape) != bank.shape[1:] or dtype_name(columns) not in ("float32", "float64"):
        got = f"{tuple(columns.shape)} {dtype_name(columns)}"
        raise InputError(f"column_weights: got {got}, expected ({bank.shape[1]},) float32 or float64")
    if not bool(((columns >= 0) & (columns < np.inf)).all()):
        raise InputError("column_weights: expected all values finite and at least 0, got some that are not")
    return cast(detached(columns), "float64")


def dtype_name(array: Any) -> str:
    """The same name for NumPy's and torch's dtype."""
    return _NAMES.get(array.dtype) or str(array.dtype).removeprefix("torch.")


# Asking a dtype for its name takes 4 µs; torch.compile would warn about a function with a cache.
_NAMES: dict[Any, str] = {
    kind(name): name
    for name in ("float32", "float64", "float16", "int16", "int32", "int64", "bool")
    for kind in (np.dtype, lambda name: getattr(torch, name))
}


def check_shapes(queries: Any, bank: Any, k: int, patch_mask: Any, candidate_mask: Any) -> None:
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise InputError(f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)}: expected (Q, D) and (B, D)")
    if not 1 <= k <= bank.shape[0]:
        raise InputError(f"k: got {k}, expected 1 to the {bank.shape[0]} bank rows")
    for name, mask, shapes in (
        ("patch_mask", patch_mask, ((queries.shape[1],), tuple(queries.shape))),
        ("candidate_mask", candidate_mask, ((bank.shape[0],),)),
    ):
        if mask is None:
            continue
        if dtype_name(mask) != "bool" or tuple(mask.shape) not in shapes:
            expected = " or ".join(map(str, shapes))
            raise InputError(f"{name}: got {tuple(mask.shape)} {mask.dtype}, expected {expected} bool")
    if isinstance(bank, Tensor):
        devices = {str(a.device) for a in (queries, bank, patch_mask, candidate_mask) if a is not None}
        if len(devices) > 1:
            raise InputError(f"devices: got {', '.join(sorted(devices))}, expected all arrays on one")


def _check_types(queries: Any, bank: Any) -> None:
    names = [dtype_name(array) for array in (queries, bank)]
    if names[0] != names[1] or names[0] not in ("float32", "int16"):
        raise InputError(f"queries {names[0]} and bank {names[1]}: expected both float32 or both int16")


def check_range(queries: Any, bank: Any) -> None:
    """int16 distances must fit int32."""
    if dtype_name(bank) != "int16" or bank.shape[1] == 0 or queries.shape[0] == 0:
        return
    spread = _spread(queries, bank)
    if bank.shape[1] * spread**2 >= 2**31:
        raise InputError(
            f"int16 values span {spread} over D = {bank.shape[1]}: D * span^2 reaches 2^31 and would overflow; "
            "scale them down"
        )


def _spread(queries: Any, bank: Any) -> int:
    """The largest of all values minus the smallest. Waits for a GPU once."""
    if isinstance(bank, Tensor):
        ends = torch.stack([*queries.aminmax(), *bank.aminmax()]).tolist()
    else:
        ends = [int(end) for rows in (queries, bank) for end in _ends(rows)]
    return int(max(ends) - min(ends))


def _ends(rows: np.ndarray) -> tuple[Any, Any]:
    """The smallest and the largest value."""
    if rows.size < MANY or not (rows.flags.c_contiguous and rows.flags.aligned) or _native.cpu_reasons():
        return rows.min(), rows.max()
    found: tuple[int, int] = _native.cpu().ends(rows, torch.get_num_threads())
    return found


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
    queries, bank = (detached(array) for array in (queries, bank))
    distances, indices = run(queries, bank, k, patch_mask, candidate_mask, backend, bank_weights, return_weighted)
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
