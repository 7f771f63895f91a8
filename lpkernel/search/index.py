"""Searches as objects, with the methods of familiar libraries: a flat index, and neighbours of a fitted set."""

from __future__ import annotations

from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lpkernel import checks, tensor_file
from lpkernel.arrays import check_dense, host_array
from lpkernel.backends import registry
from lpkernel.backends.base import TopK
from lpkernel.backends.pytorch import tensor
from lpkernel.errors import InputError, short, unknown_name
from lpkernel.files import atomic_path, check_place
from lpkernel.search.ops import masked_topk, plain_topk
from lpkernel.search.topk_op import dtype_name

FORMAT = "lpkernel index"
VERSION = "1"
HELD = ("float32", "float16", "bfloat16", "int16", "uint16", "int8", "uint8", "bool")  # by float32, whatever the values
WHOLE = 1 << 24  # the end of the integers that float32 holds


class IndexFlatL2:
    """An index of rows searched by squared L2, with `add`, `search`, `reconstruct`, `reset` and `train` of faiss's.

    It lives where its first rows do: on the CPU, or on the GPU of a tensor. Results are of the queries' kind of array
    and on their device. Differences from faiss: ties go to the lowest index, distances are the float32 rounding of a
    direct sum in float64, slots beyond `ntotal` hold (+inf, -1), and files are safetensors, from which nothing is
    executed.

    Args:
        d: D, the width of its rows.
        backend: "auto" or a name of `lpkernel.info()`.
    """

    is_trained = True

    def __init__(self, d: int, backend: str = "auto") -> None:
        self.d = checks.integer("d", d)
        if self.d < 1:
            raise InputError(f"d: got {d}, expected at least 1")
        self.backend = checks.text("backend", backend)
        self._parts: list[Tensor] = []

    def __repr__(self) -> str:
        return f"IndexFlatL2(d={self.d}, ntotal={self.ntotal}, backend={self.backend!r})"

    @property
    def ntotal(self) -> int:
        """B, the number of rows."""
        return sum(map(len, self._parts))

    def train(self, x: Any) -> None:
        """Does nothing: there is nothing to learn."""

    def add(self, x: Any) -> None:
        """Adds a copy of rows (n, D), as float32: the only copy that is made.

        Raises InputError for anything but bools, floats within float32's range and integers below 2^24 in magnitude,
        which float32 holds.
        """
        self._parts.append(self._rows("x", x, self._parts[0].device if self._parts else None, copy=True))

    def reset(self) -> None:
        """Removes all rows."""
        self._parts = []

    def search(self, x: Any, k: int) -> TopK:
        """(distances, indices), each (Q, k), of the k rows nearest to each of x (Q, D); see `lpkernel.masked_topk`.

        x: of any dtype that `add` takes; searched as float32, so all but float32 rows are copied once.
        """
        if isinstance(x, Tensor):
            check_dense("x", x)
        if (found := self._search_here(x, k)) is not None:
            return found
        wanted, queries = checks.integer("k", k), self._rows("x", x)
        if wanted < 1:
            raise InputError(f"k: got {k}, expected at least 1")
        bank, home = self._bank(queries.device), queries.device
        count = min(wanted, len(bank))
        asked: Any = queries.to(bank.device)
        rows: Any = bank
        if not isinstance(x, Tensor) and bank.device.type == "cpu" and registry.named(self.backend) != "auto":
            asked, rows = asked.numpy(), bank.numpy()  # which a backend of GPUs takes; "auto" would take one
        distances, indices = torch.empty((len(queries), 0)), torch.empty((len(queries), 0), dtype=torch.int64)
        if count:
            found = masked_topk(asked, rows, count, backend=self.backend)
            distances, indices = map(torch.as_tensor, found)
        if count < wanted:
            empty = 0, wanted - count
            distances = torch.nn.functional.pad(distances, empty, value=torch.inf)
            indices = torch.nn.functional.pad(indices, empty, value=-1)
        if isinstance(x, Tensor):
            return TopK(distances.to(home), indices.to(home))
        return TopK(distances.numpy(force=True), indices.numpy(force=True))

    def _search_here(self, x: Any, k: Any) -> TopK | None:
        """The search with little overhead, where rows on the CPU and queries are ready for it; else None."""
        if len(self._parts) != 1 or self._parts[0].device.type != "cpu":
            return None
        rows = self._parts[0].numpy()
        if type(x) is np.ndarray:
            return plain_topk(x, rows, k, self.backend, here=True)
        if (
            type(x) is Tensor
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and not x.is_neg()
            and not torch.compiler.is_compiling()
        ):
            found = plain_topk(x.detach().numpy(), rows, k, self.backend, here=True)
            return found and TopK(torch.from_numpy(found.distances), torch.from_numpy(found.indices))
        return None

    def reconstruct(self, key: int) -> np.ndarray:
        """(D,) float32: the row at an index. Raises InputError where there is none."""
        return self.reconstruct_n(key, 1)[0]

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> np.ndarray:
        """(ni, D) float32: rows n0, n0 + 1, ...; all from n0 on if ni is -1."""
        first, count = checks.integer("n0", n0), checks.integer("ni", ni)
        count = self.ntotal - first if count == -1 else count
        if first < 0 or count < 0 or first + count > self.ntotal:
            last = self.ntotal - 1
            raise InputError(f"rows: got {count} from {first} on, of an index whose rows are numbered 0 to {last}")
        return self._bank()[first : first + count].numpy(force=True).copy()

    def write(self, path: str | Path) -> None:
        """Writes the index to a file, whole or not at all.

        Raises InputError when the folder does not exist, OSError (disk full) as the system reports it.
        """
        place = checks.path("path", path)
        check_place(place)
        tensors = {"rows": self._bank().numpy(force=True)} if self.ntotal else {}
        with atomic_path(place) as partial:
            tensor_file.write(partial, tensors, {"format": FORMAT, "version": VERSION, "d": str(self.d)})

    @classmethod
    def read(cls, path: str | Path, backend: str = "auto") -> Self:
        """The index of a file that `write` made. Raises InputError, one line, for any other."""
        tensors, metadata = tensor_file.read(checks.path("path", path))
        width = metadata.get("d", "")
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION or not width.isdecimal():
            raise InputError(f"{path}: not an index that this lpkernel wrote")
        if set(tensors) - {"rows"} or len(width) > 9:
            raise InputError(f"{path}: damaged index: its tensors are not those of one; write it again")
        index = cls(int(width), backend)
        for rows in tensors.values():
            if rows.dtype != np.float32:
                raise InputError(f"{path}: damaged index: rows of {rows.dtype}, expected float32; write it again")
            index.add(rows)
        return index

    def _rows(self, name: str, x: Any, device: torch.device | None = None, copy: bool = False) -> Tensor:
        """(n, D) float32, contiguous, on the device (None: where x is), in memory of its own if `copy`."""
        if isinstance(x, Tensor):
            check_dense(name, x)
            given: Any = x.detach()
        else:
            given = _numbers(name, x)
        if given.ndim != 2 or given.shape[1] != self.d:
            raise InputError(f"{name}: got {tuple(given.shape)}, expected (n, {self.d})")
        if isinstance(given, Tensor):
            if given.is_complex():
                raise InputError(f"{name}: got {given.dtype}, expected real numbers")
            target = given.device if device is None else device
            rows = given.to(target, torch.float32, copy=copy, memory_format=torch.contiguous_format).resolve_neg()
        else:
            with np.errstate(over="ignore"):  # refused below
                array = np.array(given, np.float32, order="C") if copy else np.asarray(given, np.float32, order="C")
            rows = tensor(array).to(device)
        _check_held(name, given, rows)
        return rows

    def _bank(self, device: torch.device | None = None) -> Tensor:
        """(B, D), joined into one piece for good; for an empty index, on the device."""
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts)]
        return self._parts[0] if self._parts else torch.empty((0, self.d), device=device)


class NearestNeighbors:
    """Neighbours of a fitted set of rows, with `fit`, `kneighbors`, `get_params` and `set_params` of scikit-learn.

    float32 rows are searched as such and have float32 distances, anything else becomes float64, as in scikit-learn:
    integers beyond 2^53 are rounded. A DataFrame is converted by its `to_numpy()`.

    Args:
        n_neighbors: the default k of `kneighbors`.
        metric: "euclidean" (also "minkowski", "l2"), "sqeuclidean" or "cosine".
        backend: "auto" or a name of `lpkernel.info()`.
        algorithm, leaf_size, p, metric_params, n_jobs, radius: of scikit-learn's, taken where they leave the answer as
            it is: "auto" or "brute", any leaf_size, 2, None or {}, None or an integer (threads: torch's), any radius.

    As in scikit-learn, arguments are stored as they are and checked when they are used.
    """

    _METRICS = {  # noqa: RUF012  (never changed)
        "euclidean": "sqrt",
        "minkowski": "sqrt",
        "l2": "sqrt",
        "sqeuclidean": "l2",
        "cosine": "cosine",
    }

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        metric: str = "euclidean",
        backend: str = "auto",
        algorithm: str = "auto",
        leaf_size: int = 30,
        p: float = 2,
        metric_params: dict[str, Any] | None = None,
        n_jobs: int | None = None,
        radius: float = 1.0,
    ) -> None:
        self.n_neighbors, self.metric, self.backend = n_neighbors, metric, backend
        self.algorithm, self.leaf_size, self.p, self.metric_params = algorithm, leaf_size, p, metric_params
        self.n_jobs, self.radius = n_jobs, radius

    def __repr__(self) -> str:
        ours = ("n_neighbors", "metric", "backend")
        shown = [f"{name}={value!r}" for name, value in self.get_params().items() if name in ours]
        return f"NearestNeighbors({', '.join(shown)})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Its arguments, as scikit-learn's `clone` needs them."""
        names = "n_neighbors metric backend algorithm leaf_size p metric_params n_jobs radius"
        return {name: getattr(self, name) for name in names.split()}

    def set_params(self, **params: Any) -> Self:
        """Changes arguments. Raises InputError for an unknown one."""
        for name, value in params.items():
            if name not in self.get_params():
                raise unknown_name("parameter", name, self.get_params())
            setattr(self, name, value)
        return self

    def fit(self, X: Any, y: object = None) -> Self:  # noqa: N803  (scikit-learn's letter)
        """Stores the rows X (B, D) to search.

        Raises InputError unless there are some and all are finite, and for arguments that would change the answer.
        """
        self._searched_by()
        rows = _finite("X", X)
        if not len(rows):
            raise InputError("X: got 0 rows, expected at least 1")
        self._fit_X, self.n_samples_fit_, self.n_features_in_ = rows, *rows.shape
        return self

    def kneighbors(
        self,
        X: Any = None,  # noqa: N803
        n_neighbors: int | None = None,
        return_distance: bool = True,
    ) -> Any:
        """(distances, indices), each (Q, k), of the fitted rows nearest to X (Q, D); or only indices, as asked.

        X = None: for each fitted row, itself left out. Raises InputError before `fit`, and for too large a k.
        """
        if not hasattr(self, "_fit_X"):
            raise InputError("kneighbors: this NearestNeighbors is not fitted; call fit(X) first")
        with_distances = checks.flag("return_distance", return_distance)
        k = checks.integer("n_neighbors", self.n_neighbors if n_neighbors is None else n_neighbors)
        most = self.n_samples_fit_ - (X is None)
        if not 1 <= k <= most:
            raise InputError(f"n_neighbors: got {k}, expected 1 to {most}, the rows to choose from")
        queries = self._fit_X if X is None else _finite("X", X)
        if queries.shape[1] != self.n_features_in_:
            raise InputError(f"X: got {queries.shape[1]} columns, expected {self.n_features_in_} as fitted")
        wide = np.result_type(queries, self._fit_X)
        queries, bank = queries.astype(wide, copy=False), self._fit_X.astype(wide, copy=False)
        metric = self._searched_by()
        distances, indices = masked_topk(queries, bank, k + (X is None), backend=self.backend, metric=metric)
        if X is None:
            distances, indices = _others(distances, indices)
        return (distances, indices) if with_distances else indices

    def _searched_by(self) -> str:
        """The metric, as masked_topk names it. Raises InputError for arguments that would change the answer."""
        if not isinstance(self.metric, str) or self.metric not in self._METRICS:
            raise unknown_name("metric", str(self.metric), self._METRICS)
        if not isinstance(self.algorithm, str) or self.algorithm not in ("auto", "brute"):
            got = short(repr(self.algorithm))
            raise InputError(f'algorithm: got {got}, expected "auto" or "brute": all rows are compared')
        if self.metric == "minkowski" and not (isinstance(self.p, Real) and self.p == 2):
            raise InputError(
                f"p: got {short(repr(self.p))}, expected 2, the Euclidean distance; other powers are not searched"
            )
        if self.metric_params is not None and not (isinstance(self.metric_params, dict) and not self.metric_params):
            raise InputError(f"metric_params: got {short(repr(self.metric_params))}, expected None: no metric has any")
        if self.n_jobs is not None:
            checks.integer("n_jobs", self.n_jobs)
        checks.text("backend", self.backend)
        return self._METRICS[self.metric]


def _others(distances: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbours without each row itself; without the last where equal rows have displaced it."""
    own = indices == np.arange(len(indices))[:, None]
    own[~own.any(axis=1), -1] = True
    shape = len(indices), indices.shape[1] - 1
    return distances[~own].reshape(shape), indices[~own].reshape(shape)


def _check_held(name: str, given: Any, rows: Tensor) -> None:
    """Raise InputError unless float32 rows hold what was given: floats rounded, integers exactly."""
    kind = dtype_name(given)
    if not rows.numel() or kind in HELD:
        return
    least, largest = (float(end) for end in torch.aminmax(rows))
    if "int" in kind and max(-least, largest) >= WHOLE:
        raise InputError(
            f"{name}: got {kind} from {int(least)} to {int(largest)}, expected integers below 2^24 in magnitude, which "
            "float32 holds; scale them, or search float64 rows by masked_topk"
        )
    if "float" in kind and not np.isfinite(largest - least):  # NaN may hide infinities
        infinities = int((given == np.inf).sum() + (given == -np.inf).sum())
        if int(torch.isinf(rows).sum()) != infinities:
            raise InputError(f"{name}: got {kind} values beyond float32's range; scale them down")


def _numbers(name: str, rows: Any) -> np.ndarray:
    """Any table of numbers as an array."""
    array = host_array(name, rows.to_numpy() if hasattr(rows, "to_numpy") else rows)
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{name}: got {array.dtype}, expected numbers alone: convert by astype(float), or select "
            "the columns that hold numbers"
        )
    return array


def _finite(name: str, rows: Any) -> np.ndarray:
    """(n, D) float32 or float64."""
    array = _numbers(name, rows)
    array = array if array.dtype == np.float32 else array.astype(np.float64)
    if array.ndim != 2:
        raise InputError(f"{name}: got {array.shape}, expected (rows, columns)")
    if not np.isfinite(array).all():
        raise InputError(f"{name}: got NaN or infinity, expected finite numbers; fill or drop these rows")
    return array
