"""For scripts/dropin_times.py: a search of each project of docs/dropin.md, its inputs, and what takes its place.

No code of the projects is here. Their files are imported from the reader's clones, one by one.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import sys
import textwrap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import lpkernel as lp
from lpkernel.errors import InputError

PATCH, ALPHA, TOGETHER = 7, 0.005, 256  # the projects' defaults; rows of a part in Efficient-GPNN
EXAMPLE = Path(__file__).parents[1] / "examples" / "dropin_psin.py"
TRAINING, CORESET = 209, 0.1  # images of MVTec AD's "bottle", the share of their patches that a memory bank keeps

Call = Callable[[], Any]


@dataclass(frozen=True)
class Inputs:
    """Queries (Q, D) and keys (B, D) of a search; images: (C, H, W), that of the queries and that of the keys."""

    queries: Tensor
    keys: Tensor
    images: tuple[Tensor, ...] = ()

    def work(self) -> str:
        rows = f"{len(self.queries):,} x {len(self.keys):,} x {self.keys.shape[1]:,}"
        return f"{rows}, {str(self.keys.dtype).removeprefix('torch.')}"


Prepared = Callable[[Inputs], Call]  # what is done once, such as building an index; it returns the search


class StandIn:
    """For any name of a module that is not installed: a base class, a function or a decorator that does nothing."""

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __call__(self, decorated: Any) -> Any:
        return decorated


class StandInModule(ModuleType):
    """A module, or a package without files, that has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> type[StandIn]:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn


class Clone:
    """The source tree of a project, whose files are imported one by one, in a process of their own.

    stood_in: modules that its files import and the search does not use; missing: those of them not installed here.
    """

    def __init__(self, root: Path, stood_in: tuple[str, ...], threads: int) -> None:
        self.root, self.stood_in, self.threads = root, stood_in, threads
        self.missing: list[str] = []

    def module(self, file: str, name: str) -> ModuleType:
        """A file, imported as `name`, whose parents are taken to be empty packages."""
        parts = name.split(".")
        for end in range(1, len(parts)):
            parent = ".".join(parts[:end])
            sys.modules.setdefault(parent, StandInModule(parent))
        for other in self.stood_in:
            if not _installed(other):
                sys.modules[other] = StandInModule(other)
                self.missing.append(other)
        return imported(self.root / file, name)

    def lines(self, function: Any, names: tuple[str, ...], arguments: str) -> Any:
        """The first statements of a function that assign each of some names, as a function that returns the last."""
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(tree, ast.FunctionDef)
        kept = []
        for name in names:
            found = [statement for statement in tree.body if name in _assigned(statement)]
            if not found:
                raise InputError(f"{function.__qualname__} assigns no {name}: this clone is not the version described")
            kept.append(ast.unparse(found[0]))
        body = textwrap.indent("\n".join([*kept, f"return {names[-1]}"]), "    ")
        namespace = dict(vars(sys.modules[function.__module__]))
        exec(compile(f"def search({arguments}):\n{body}\n", function.__qualname__, "exec"), namespace)
        return namespace["search"]


def _installed(name: str) -> bool:
    with suppress(ImportError, ValueError):
        return name in sys.modules or importlib.util.find_spec(name) is not None
    return False


def _assigned(statement: ast.stmt) -> set[str]:
    return {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def imported(path: Path, name: str) -> ModuleType:
    """A file as the module `name`, from now on."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# What is searched


def patches(side: int, low: float = 0.0, dtype: torch.dtype = torch.float32) -> Inputs:
    """All patches of an image of values from about `low` to 1 and of a noisy copy, which are the queries."""
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand((1, 3, -(-side // 4), -(-side // 4)), generator=generator)
    image = torch.nn.functional.interpolate(smooth, size=(side, side), mode="bicubic")[0].to(dtype)
    noisy = image + 0.1 * torch.randn(image.shape, generator=generator).to(dtype)
    pair = tuple(low + (1 - low) * one for one in (noisy, image))
    queries, keys = (torch.nn.functional.unfold(one[None], PATCH)[0].T.contiguous() for one in pair)
    return Inputs(queries, keys, pair)


def features(side: int, width: int) -> Inputs:
    """One image's features of side x side places, and as many as a coreset of those of TRAINING images keeps."""
    generator = torch.Generator().manual_seed(0)
    counts = side**2, int(TRAINING * side**2 * CORESET)
    queries, keys = (torch.randn((count, width), generator=generator) for count in counts)
    return Inputs(queries, keys)


def codes(side: int, count: int, width: int) -> Inputs:
    """side x side cells of an encoder, and a codebook."""
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn((count, width), generator=generator)
    near = codebook[torch.randint(count, (side**2,), generator=generator)]
    return Inputs(near + torch.randn(near.shape, generator=generator), codebook)


# What is compared: distances of chosen keys in float64


def plain(inputs: Inputs, rows: NDArray[np.int64], picks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Squared distances of some queries to one key each."""
    found: NDArray[np.float64] = (inputs.queries[rows].double() - inputs.keys[picks].double()).square().sum(1).numpy()
    return found


def normalised(rooted: bool) -> Callable[[Inputs, NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]:
    """The same by ALPHA and each key's least distance, as means of squares or, if `rooted`, as lengths."""

    def score(inputs: Inputs, rows: NDArray[np.int64], picks: NDArray[np.int64]) -> NDArray[np.float64]:
        keys, at = np.unique(picks, return_inverse=True)
        queries = inputs.queries.double()
        exact = "donot_use_mm_for_euclid_dist"
        lengths = [torch.cdist(inputs.keys[[key]].double(), queries, compute_mode=exact).amin() for key in keys]
        squares, least = plain(inputs, rows, picks), np.array(lengths)[at]
        if rooted:
            return np.sqrt(squares) / (ALPHA + least)
        width = inputs.keys.shape[1]
        return (squares / width) / (ALPHA + least**2 / width)

    return score


# The projects' searches, and those that take their place


def low_memory(clone: Clone) -> Prepared:
    search = clone.module("utils/NN.py", "utils.NN").get_NN_indices_low_memory
    return lambda inputs: lambda: search(inputs.queries, inputs.keys, ALPHA, TOGETHER)


def faiss_flat(clone: Clone) -> Prepared:
    clone.module("utils/NN.py", "utils.NN")
    module = clone.module("utils/NN_modules.py", "utils.NN_modules")

    def prepared(inputs: Inputs) -> Call:
        index = module.FaissFlat()
        index.init_index(inputs.keys)
        return lambda: index.search(inputs.queries)

    return prepared


def pnn(clone: Clone) -> Prepared:
    clone.module("model/utils.py", "model.utils")
    module = clone.module("model/gpnn.py", "model.gpnn")
    search = clone.lines(module.gpnn.PNN, ("dist", "norm_dist", "NNs"), "queries, keys, alpha, mask=None")

    def prepared(inputs: Inputs) -> Call:
        queries, keys = (rows.view(-1, 3, PATCH, PATCH) for rows in (inputs.queries, inputs.keys))
        return lambda: search(queries, keys, ALPHA)

    return prepared


def side_in_memory(side: int) -> int:
    """`side`, halved until three float64 matrices of all pairs of patches fit into the memory that is available."""
    available = math.inf  # where the system does not say
    with suppress(OSError):
        found = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        available = int(found["MemAvailable"].split()[0]) * 1024
    while 3 * 8 * (side - PATCH + 1) ** 4 > available:
        side //= 2
    return side


def patch_match(clone: Clone) -> Prepared:
    """With patches of PATCH pixels, as config.py has them changed, and the other settings of synthesis.py."""
    config = clone.module("config.py", "config")
    vars(config).update(PATCH_SIZE=PATCH, H_PATCH_SIZE=PATCH // 2)
    for name in ("utils", "patch_measure"):
        clone.module(f"{name}.py", name)
    search = clone.module("patchmatch.py", "patchmatch").patch_match

    def prepared(inputs: Inputs) -> Call:
        image, source = (np.ascontiguousarray(one.permute(1, 2, 0).numpy()) for one in inputs.images)
        options = {"n_iters": 10, "alpha": 0.5, "w": max(source.shape[:2])}
        guess = np.full((*image.shape[:2], 3), 10_000, np.float32)
        return lambda: places(search(image, source, guess.copy(), options))

    return prepared


def shift_map(inputs: Inputs) -> Call:
    example = imported(EXAMPLE, "dropin_psin")
    vars(example).update(PATCH=PATCH)
    image, source = (np.ascontiguousarray(one.permute(1, 2, 0).numpy()) for one in inputs.images)
    return lambda: places(example.shift_map(image, source))


def places(shifts: NDArray[np.float32]) -> NDArray[np.int64]:
    """Indices of the source's patches, of a source as large as the image, in a shift map."""
    rows, columns = (length - PATCH + 1 for length in shifts.shape[:2])
    inner = shifts[PATCH // 2 :, PATCH // 2 :][:rows, :columns, :2].astype(np.int64)
    down, right = (inner + np.indices((rows, columns)).transpose(1, 2, 0)).transpose(2, 0, 1)
    found: NDArray[np.int64] = down * columns + right
    return found


def faiss_nn(clone: Clone) -> Prepared:
    module = clone.module("src/patchcore/common.py", "patchcore.common")

    def prepared(inputs: Inputs) -> Call:
        queries, keys = inputs.queries.numpy(), inputs.keys.numpy()
        index = module.FaissNN(False, clone.threads)
        index.fit(keys)
        return lambda: index.run(1, queries)[1]

    return prepared


def nearest_neighbors(clone: Clone) -> Prepared:
    file = "src/anomalib/models/image/patchcore/torch_model.py"
    model = clone.module(file, "anomalib.models.image.patchcore.torch_model").PatchcoreModel

    def prepared(inputs: Inputs) -> Call:
        own = SimpleNamespace(memory_bank=inputs.keys, euclidean_dist=model.euclidean_dist)
        return lambda: model.nearest_neighbors(own, inputs.queries, 1)[1]

    return prepared


def vector_quantizer(clone: Clone) -> Prepared:
    module = clone.module("taming/modules/vqvae/quantize.py", "taming.modules.vqvae.quantize")
    names = "d", "min_encoding_indices"
    search = clone.lines(module.VectorQuantizer2.forward, names, "self, z_flattened")

    def prepared(inputs: Inputs) -> Call:
        quantizer = module.VectorQuantizer2(*inputs.keys.shape, beta=0.25)
        quantizer.embedding.weight.data = inputs.keys
        return lambda: search(quantizer, inputs.queries)

    return prepared


def index_flat(inputs: Inputs) -> Call:
    index = lp.IndexFlatL2(inputs.keys.shape[1])
    index.add(inputs.keys.numpy())
    return lambda: index.search(inputs.queries.numpy(), 1).indices


def topk(**options: Any) -> Prepared:
    return lambda inputs: lambda: lp.masked_topk(inputs.queries, inputs.keys, 1, **options).indices


def normalised_nearest(rooted: bool) -> Prepared:
    return lambda inputs: lambda: lp.normalised_nearest(inputs.queries, inputs.keys, ALPHA, rooted).indices


def patch_nearest(inputs: Inputs) -> Call:
    return lambda: lp.patch_nearest(inputs.images[0], inputs.images[1], PATCH, alpha=ALPHA).indices


@dataclass(frozen=True)
class Case:
    """A search of a project: what it is called, its inputs for an image of a side, and what takes its place.

    most: the largest side of at most the given one that fits into memory before; larger ones are run after only.
    """

    project: str
    theirs: str
    before: Callable[[Clone], Prepared]
    ours: dict[str, Prepared]
    inputs: Callable[[int], Inputs]
    score: Callable[[Inputs, NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]] = plain
    exact: bool = True
    stood_in: tuple[str, ...] = ()
    most: Callable[[int], int] = lambda side: side


def _quantiser(count: int) -> Case:
    return Case(
        "taming-transformers",
        f"lines of `VectorQuantizer2.forward` for `d` and `min_encoding_indices`, {count:,} codes",
        vector_quantizer,
        {"`lp.masked_topk`": topk()},
        lambda side: codes(side // 16, count, 256),
    )


CASES = {
    "efficient-gpnn": Case(
        "Efficient-GPNN",
        f"`get_NN_indices_low_memory`, parts of {TOGETHER} rows",
        low_memory,
        {"`lp.normalised_nearest`": normalised_nearest(False), "`lp.patch_nearest`, without rows": patch_nearest},
        lambda side: patches(side, -1.0),
        normalised(False),
    ),
    "efficient-gpnn-plain": Case(
        "Efficient-GPNN",
        "`FaissFlat`, without alpha",
        faiss_flat,
        {"`lp.IndexFlatL2`": index_flat, "`lp.masked_topk`": topk()},
        lambda side: patches(side, -1.0),
    ),
    "gpnn": Case(
        "GPNN",
        "lines of `PNN` for `dist`, `norm_dist` and `NNs`",
        pnn,
        {"`lp.normalised_nearest`, rooted": normalised_nearest(True)},
        lambda side: patches(side, dtype=torch.float64),  # as scikit-image's pyramid is
        normalised(True),
        stood_in=("skimage", "skimage.transform", "skimage.transform.pyramids", "skimage.util", "imageio"),
        most=side_in_memory,
    ),
    "psin": Case(
        "psin",
        "`patch_match`, 10 iterations, of 3 channels",
        patch_match,
        {"`shift_map` of `examples/dropin_psin.py`": shift_map},
        patches,
        exact=False,
        stood_in=("cv2", "scipy", "scipy.ndimage", "scipy.ndimage.filters"),
    ),
    "patchcore-inspection": Case(
        "patchcore-inspection",
        "`FaissNN.run`",
        faiss_nn,
        {"`lp.IndexFlatL2`": index_flat},
        lambda side: features(side * 7 // 8 // 8, 1024),  # cropped from 256 to 224; layers of stride 8
        stood_in=("scipy", "scipy.ndimage"),
    ),
    "anomalib": Case(
        "anomalib",
        "`PatchcoreModel.nearest_neighbors`",
        nearest_neighbors,
        {'`lp.masked_topk(metric="sqrt")`': topk(metric="sqrt")},
        lambda side: features(side // 8, 1536),  # wide_resnet50_2's layers 2 and 3
        stood_in=(
            "anomalib.data",
            "anomalib.models.components",
            "anomalib.utils",
            "anomalib.models.image.patchcore.anomaly_map",
        ),
    ),
    "taming": _quantiser(1024),  # of configs/imagenet_vqgan.yaml
    "taming-16384": _quantiser(16_384),  # of the larger model that is given out
}
PROJECTS = tuple(dict.fromkeys(case.project for case in CASES.values()))
