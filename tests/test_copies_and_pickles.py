"""What lpkernel returns can be copied and pickled, as torch.multiprocessing and DataLoader workers do."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_same_bits import MODELS
from torch import nn

import lpkernel as lp
from lpkernel import tensor_file
from lpkernel.autoencoder.base import TorchAutoencoder
from lpkernel.autoencoder.fused import NormSiLU, fuse
from lpkernel.autoencoder.layers import settle
from lpkernel.autoencoder.upsampling import fold


def by_torch(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "an old pickle": lambda thing: pickle.loads(pickle.dumps(thing, 2)),
    "torch.save": by_torch,
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("used", [False, True])
def test_an_autoencoder(way: str, used: bool) -> None:
    """Also one that has encoded and decoded, and so keeps what it made for that."""
    given, fresh = lp.load_autoencoder(device="cpu"), lp.load_autoencoder(device="cpu")
    assert isinstance(given, TorchAutoencoder) and isinstance(fresh, TorchAutoencoder)
    codes = np.random.default_rng(0).integers(0, 2048, (2, 16, 16))
    pictures = fresh.decode(codes)
    if used:
        given.encode(given.decode(codes))
        given.decode_recorded(codes[0])
    made = WAYS[way](given)
    assert [type(layer) for layer in made.network.modules()] == [type(layer) for layer in given.network.modules()]
    assert made.fingerprint == given.fingerprint and repr(made) == repr(given)
    np.testing.assert_array_equal(made.decode(codes), pictures)
    np.testing.assert_array_equal(made.encode(pictures), fresh.encode(pictures))


@pytest.mark.parametrize("name", ["_together", "encoder_dtype", "compiling", "network"])
def test_an_autoencoder_of_a_version_that_lacked_something(name: str) -> None:
    given = lp.load_autoencoder(device="cpu")
    del vars(given)[name]
    with pytest.raises(lp.InputError, match=f"another version of lpkernel .it lacks {name}.; load it from its files"):
        pickle.loads(pickle.dumps(given))


@pytest.mark.parametrize("name", ["silu", "follows", "grid"])
def test_one_whose_layers_lack_something(name: str) -> None:
    given: Any = lp.load_autoencoder(device="cpu")
    layer = next(layer for layer in given.network.modules() if isinstance(layer, NormSiLU))
    delattr(layer, name)
    with pytest.raises(lp.InputError, match=f"it lacks {name}"):
        pickle.loads(pickle.dumps(given))


def test_all_that_an_autoencoder_holds_is_declared() -> None:
    given = lp.load_autoencoder(device="cpu")
    assert set(vars(given)) <= {name for kind in type(given).__mro__ for name in inspect.get_annotations(kind)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["VQModel", "taming", "KL", "Tiny"])
def test_the_networks_of_others(name: str, way: str) -> None:
    network: Any = MODELS[name]().eval().requires_grad_(False)
    fold(network)
    settle(network, 4)
    fuse(network)
    made = WAYS[way](network)
    assert [type(layer) for layer in made.modules()] == [type(layer) for layer in network.modules()]
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(encoded(made, x), encoded(network, x))


def encoded(network: Any, x: torch.Tensor) -> torch.Tensor:
    found = network.encoder(x)
    assert isinstance(found, torch.Tensor) and isinstance(network, nn.Module)
    return found


def test_another_process_needs_nothing_more(tmp_path: Path) -> None:
    given, codes = lp.load_autoencoder(device="cpu"), np.random.default_rng(0).integers(0, 2048, (1, 16, 16))
    (tmp_path / "x.pickle").write_bytes(pickle.dumps((given, codes, given.decode(codes))))
    program = (
        "import pickle, sys\n"
        "autoencoder, codes, want = pickle.load(open(sys.argv[1], 'rb'))\n"
        "sys.exit(not (autoencoder.decode(codes) == want).all())"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "x.pickle")], check=True, timeout=120)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mapped_from", [0, tensor_file.MAPPED_FROM])
def test_banks_and_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, mapped_from: int) -> None:
    monkeypatch.setattr(tensor_file, "MAPPED_FROM", mapped_from)
    lp.Bank.default().save(tmp_path / "x.lpbank")
    bank = lp.Bank.load(tmp_path / "x.lpbank")
    result = lp.generate(bank, 2)  # after which the bank keeps more than its file holds
    again, repeated = WAYS[way](bank), WAYS[way](result)
    assert again == bank and repeated == result
    assert lp.generate(again, 2) == result


@pytest.mark.parametrize("way", [WAYS["pickle"], WAYS["deepcopy"]])
@pytest.mark.parametrize(
    "error",
    [
        lp.LpkernelError("a"),
        lp.InputError("a\nb"),
        lp.BackendUnavailable("a"),
        lp.MissingExtra("dlib", "align", "finding faces"),
    ],
)
def test_errors(error: lp.LpkernelError, way: Callable[[Any], Any]) -> None:
    """An error that cannot be pickled ends a pool of workers without a word of what was wrong."""
    made = way(error)
    assert type(made) is type(error) and str(made) == str(error)


@pytest.mark.parametrize("way", WAYS)
def test_searches(way: str) -> None:
    rows = np.random.default_rng(0).random((9, 4), np.float32)
    index = lp.IndexFlatL2(4)
    index.add(rows)
    neighbours = lp.NearestNeighbors(3).fit(rows)
    found = WAYS[way](lp.masked_topk(rows, rows, 2))
    assert type(found) is lp.TopK
    for made, want in (
        (WAYS[way](index).search(rows, 2), index.search(rows, 2)),
        (WAYS[way](neighbours).kneighbors(rows), neighbours.kneighbors(rows)),
    ):
        assert all(np.array_equal(*pair) for pair in zip(made, want, strict=True))
