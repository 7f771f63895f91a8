"""Checkpoints are data: what is refused, and that nothing in a refused file is run."""

from __future__ import annotations

import argparse
import builtins
import collections
import io
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lpkernel.autoencoder.safe_pickle import load_arrays, load_checkpoint, load_script_weights
from lpkernel.errors import InputError


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.function, self.arguments


class Named:
    """Pickles as a call of a function by name, whether it exists or not (protocol 0 opcodes)."""

    def __init__(self, module: str, name: str, arguments: bytes = b"(t") -> None:
        self.code = b"c" + f"{module}\n{name}\n".encode() + arguments + b"R."


def save_zip(path: Path, code: bytes) -> None:
    """A torch zip checkpoint whose pickle is `code`."""
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("data.pkl", code, len(code))
    writer.write_end_of_file()


def attacks(marker: Path) -> dict[str, Any]:
    """Objects that create `marker` when unpickled as Python would."""
    shell = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Call(os.system, shell))
    return {
        "os.system": Call(os.system, shell),
        "subprocess": Call(subprocess.call, ["touch", str(marker)]),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "builtins.open": Call(open, str(marker), "w"),
        "builtins.getattr": Call(getattr, "x", "upper"),
        "builtins.__import__": Call(builtins.__import__, "os"),
        "pickle.loads": Call(pickle.loads, inner),
        "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, inner),
        "torch.load": Call(torch.load, str(marker)),
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", list(attacks(Path("x"))))
def test_calls_are_refused_and_do_not_run(tmp_path: Path, name: str, legacy: bool) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "last.ckpt"
    content = {"state_dict": {"a": torch.zeros(2)}, "extra": attacks(marker)[name]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="is refused: it names") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(attacks(marker)["os.system"], tmp_path / "last.ckpt")
    torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("position", range(4))
def test_every_pickle_of_a_legacy_file_is_guarded(tmp_path: Path, position: int) -> None:
    """A legacy file is a chain of pickles: magic number, protocol, system, content, storage keys."""
    marker = tmp_path / "marker"
    parts: list[Any] = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, []]
    parts[position] = Call(os.system, f"touch {marker}")
    (tmp_path / "x.pt").write_bytes(b"".join(pickle.dumps(part, 2) for part in parts))
    with pytest.raises(InputError, match=r"it names (posix|nt)\.system"):
        load_checkpoint(tmp_path / "x.pt")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("pytorch_lightning_evil", "run"),
        ("torch", "load"),
        ("torch.hub", "load"),
        ("torch.optimizers", "run"),
        ("collections", "OrderedDict.__init__"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("numpy", "load"),
        ("numpy.f2py.diagnose", "run"),
        ("functools", "partial"),
        ("operator", "attrgetter"),
        ("builtins", "type"),
        ("__main__", "Thing"),
        ("lpkernel.autoencoder.safe_pickle", "load_arrays"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, module: str, name: str) -> None:
    save_zip(tmp_path / "x.pt", Named(module, name).code)
    with pytest.raises(InputError, match="it names"):
        load_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "code",
    [
        b"cpytorch_lightning.x\nY\n(N}S'append'\nI1\nstb.",  # sets an attribute of a placeholder class
        b"ctorch._utils\n_rebuild_tensor_v2\n(N}S'_call'\nI1\nstb.",  # and an attribute of a function
        b"ccopyreg\n_reconstructor\n(c__builtin__\ndict\nc__builtin__\nobject\nNtR.",  # builds some other object
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",  # runs a codec
        b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(S'O'\ntRS'x'\ntR.",  # a scalar of Python objects
    ],
)
def test_allowed_names_cannot_be_bent(tmp_path: Path, code: bytes) -> None:
    # The first opcodes name something that weights_only refuses, so that the reader with placeholders gets the rest.
    save_zip(tmp_path / "x.pt", b"cpytorch_lightning.x\nZ\n0" + code)
    with pytest.raises(InputError, match=r"is refused|not a readable"):
        load_checkpoint(tmp_path / "x.pt")
    torch.save({"a": torch.ones(2)}, tmp_path / "good.pt")
    assert load_checkpoint(tmp_path / "good.pt")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_harmless_objects_come_back(tmp_path: Path, legacy: bool) -> None:
    weight = torch.arange(12.0).view(3, 4)
    content = {
        "state_dict": collections.OrderedDict(a=weight, b=weight.t(), c=nn_parameter(weight[1]), d=weight.half()),
        "hparams": argparse.Namespace(rate=0.1),  # refused by weights_only: becomes an inert placeholder
        "milestones": collections.Counter([3, 3]),
        "array": np.arange(3),
        "scalar": np.float64(1.5),
        "plain": [1, "x", (2.5, None), {True}, b"bytes", torch.float16, torch.Size([3])],
    }
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
    data = load_checkpoint(tmp_path / "x.ckpt")
    for key, value in content["state_dict"].items():  # type: ignore[attr-defined]
        assert torch.equal(data["state_dict"][key], value)
        assert data["state_dict"][key].dtype == value.dtype
    assert not hasattr(data["hparams"], "rate")
    assert not hasattr(data["hparams"], "__dict__")
    assert data["array"].tolist() == [0, 1, 2]
    assert data["scalar"] == 1.5
    assert data["plain"] == content["plain"]


def nn_parameter(values: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(values.clone())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_files_are_told(tmp_path: Path, legacy: bool) -> None:
    torch.save({"a": torch.arange(4000.0)}, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
    whole = (tmp_path / "x.pt").read_bytes()
    for length in (0, 1, 3, 40, 200, len(whole) // 2, len(whole) - 30):
        (tmp_path / "x.pt").write_bytes(whole[:length])
        with pytest.raises(InputError, match="not a readable torch checkpoint") as caught:
            load_checkpoint(tmp_path / "x.pt")
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_other_containers_are_told(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "x.pt")
    with pytest.raises(InputError, match="TorchScript"):
        load_checkpoint(tmp_path / "x.pt")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path)
    (tmp_path / "x.pt").write_text("# just a text file\n")
    with pytest.raises(InputError, match="not a readable torch checkpoint"):
        load_checkpoint(tmp_path / "x.pt")


def test_load_arrays(tmp_path: Path) -> None:
    arrays = {"a": {"kernel": np.arange(6.0).reshape(2, 3)}}
    buffer = io.BytesIO()
    pickle.dump(arrays, buffer)
    (tmp_path / "x.pkl").write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(load_arrays(tmp_path / "x.pkl")["a"]["kernel"], arrays["a"]["kernel"])
    marker = tmp_path / "marker"
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(Call(os.system, f"touch {marker}")))
    with pytest.raises(InputError, match="system"):
        load_arrays(tmp_path / "x.pkl")
    assert not marker.exists()


def same(got: Any, expected: Any) -> bool:
    """Equal content: containers of either kind of dict, values and dtypes of tensors and arrays."""
    if isinstance(expected, dict):
        return got.keys() == expected.keys() and all(same(got[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(got) == len(expected) and all(map(same, got, expected))
    if isinstance(expected, torch.Tensor):
        return got.dtype == expected.dtype and got.shape == expected.shape and torch.equal(got, expected)
    if isinstance(expected, np.ndarray | np.generic):
        return got.dtype == expected.dtype and got.shape == expected.shape and np.array_equal(got, expected)
    return bool(got == expected)


def arrays() -> list[Any]:
    kinds = ["?", *(f"{order}{kind}" for order in "<>" for kind in ("i2", "u4", "i8", "f2", "f4", "f8", "c8", "c16"))]
    made: list[Any] = [np.arange(6).reshape(2, 3).astype(kind) for kind in kinds]
    made += [np.asfortranarray(made[3]), made[4][:, ::2], np.zeros((0, 3)), np.array(2.5), np.arange(3, dtype="i1")]
    return [*made, np.float32(1.5), np.int64(-3), np.bool_(True), np.complex64(1j)]


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_every_plain_kind_come_back(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": arrays(), "twice": [made := np.arange(3), made]}, protocol))
    got = load_arrays(tmp_path / "x.pkl")
    assert same(got["a"], arrays())
    assert got["twice"][0] is got["twice"][1]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", range(2, 6))
def test_what_training_writes_comes_back(tmp_path: Path, protocol: int, legacy: bool) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    base = torch.arange(60).view(3, 4, 5)
    kinds = [torch.float64, torch.bfloat16, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
    content = {
        "state_dict": network.state_dict(),  # an OrderedDict with attributes
        "optimizer_states": [optimiser.state_dict()],
        "views": [base, base[1:, ::2].permute(2, 0, 1), base[2, 3, 4], torch.ones(()).expand(5, 2), torch.zeros(0, 3)],
        "kinds": [torch.arange(-2, 3).to(kind) for kind in (*kinds, torch.complex64)],
        "counts": collections.defaultdict(list, {"a": [1]}),
        "numpy": arrays(),
        "random": torch.get_rng_state(),
        "plain": [frozenset({1}), b"ab", b"", 2j, -(10**30), float("inf"), "\u00e9", torch.Size([1, 2])],
    }
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy, pickle_protocol=protocol)
    got = load_checkpoint(tmp_path / "x.pt")
    assert same(got, content)
    assert got["views"][0].untyped_storage().data_ptr() == got["views"][1].untyped_storage().data_ptr()
    network.load_state_dict(got["state_dict"])
    optimiser.load_state_dict(got["optimizer_states"][0])


def test_an_array_cannot_be_bent_into_pointers(tmp_path: Path) -> None:
    """An object dtype that claims to hold no objects would turn eight bytes of the file into an address."""
    honest = pickle.dumps(np.array([b"x"], object), 2)
    bent = honest.replace(b"K?t", b"K\0t")
    assert bent != honest
    for content in (honest, bent):
        (tmp_path / "x.pkl").write_bytes(content)
        with pytest.raises(InputError, match="is refused: it has a NumPy dtype that is not for plain numbers"):
            load_arrays(tmp_path / "x.pkl")


def test_a_storage_that_is_not_written_is_never_seen(tmp_path: Path) -> None:
    """The memory of a legacy file's storage is filled from the file, or the file is refused."""
    torch.save({"a": torch.ones(1000)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "x.pt").read_bytes()
    at = len(whole) - 4000 - 8
    for end in (whole[:at], whole[:-1], whole[:at] + bytes(4008)):
        (tmp_path / "x.pt").write_bytes(end)
        with pytest.raises(InputError, match="storage"):
            load_checkpoint(tmp_path / "x.pt")


class Scripted(torch.nn.Module):
    """Modules in a module, with tensors, integers and a program."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
        self.sizes = [1, 2, 3]
        self.register_buffer("numbers", torch.arange(6).view(2, 3).t().half())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x) + self.sizes[0]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_weights_of_torchscript_without_its_program(tmp_path: Path) -> None:
    module = Scripted()
    torch.jit.save(torch.jit.script(module), tmp_path / "x.pt")
    found = load_script_weights(tmp_path / "x.pt")
    expected = module.state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.save(expected, tmp_path / "y.pt")  # a checkpoint holds tensors by name as well
    assert set(load_script_weights(tmp_path / "y.pt")) == set(expected)


@pytest.mark.parametrize(
    "rest",
    [
        b")\x81Nb.",
        b")\x81](K\1eb.",
        b")\x81)b.",
        b")\x81.",
        b".",
        b"K\1\x85\x81}b.",
        b")\x81}X\1\0\0\0acos\nsystem\nsb.",
        b")\x81}X\1\0\0\0actorch.jit._pickle\nbuild_intlist\n](cos\nsystem\netRsb.",
    ],
    ids=["None", "a list", "a tuple", "no state", "a class", "arguments", "a name", "names for integers"],
)
def test_objects_of_torchscript_are_their_attributes_or_refused(tmp_path: Path, rest: bytes) -> None:
    pickled = b"\x80\x02c__torch__.net\nNet\n" + rest
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/constants.pkl", b"N.")
    with pytest.raises(InputError, match=r"x.pt is (refused|not a readable)"):
        load_script_weights(tmp_path / "x.pt")


def test_names_of_torchscript_mean_nothing_in_a_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02c__torch__.net\nNet\n)\x81}b.")
    with pytest.raises(InputError, match=r"refused: it names __torch__.net.Net"):
        load_checkpoint(tmp_path / "x.pt")
