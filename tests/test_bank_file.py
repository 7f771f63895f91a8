"""Saving and loading banks: equality, mapping, atomic writes, and refusal of every other file."""

from __future__ import annotations

import errno
import json
import mmap
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import lpkernel
from lpkernel import generate, load_autoencoder, tensor_file
from lpkernel.bank import Bank
from lpkernel.bank.file import read_fields
from lpkernel.errors import InputError

ARRAYS = ("codes", "codebook", "fixed_codebook", "latents", "fixed_latents", "colours")
PLAIN = [
    *("size", "grid", "channels", "scale", "limit", "max_patch", "names", "labels", "image_size", "crop"),
    *("resize_filter", "autoencoder_name", "autoencoder_fingerprint", "sources_hash"),
]


def make(kind: str, size: int = 11) -> Bank:
    random = np.random.default_rng(0)
    options: dict[str, Any] = {
        "names": [f"köpfe/{i}.jpg" for i in range(size - 1)] + ["\udcff.png"],  # a file name that is not UTF-8
        "labels": ["a"] * size,
        "attributes": {"Hat": random.random(size) < 0.5, "Smiling": np.ones(size, bool)},
    }
    if kind == "codes":
        bank = Bank.from_codes(random.integers(0, 9, (size, 4, 4)), random.normal(size=(9, 5)), 3, **options)
    else:
        bank = Bank.from_latents(random.normal(size=(size, 4, 4, 5)), 3, **options)
    bank.colours = random.integers(0, 256, (size, 4, 4, 3)).astype(np.uint8)
    bank.crop, bank.resize_filter, bank.image_size = (1, 2, 33, 34), "bicubic", 32
    return bank


def assert_equal(a: Bank, b: Bank) -> None:
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None)
        if x is not None:
            assert x.dtype == y.dtype and np.array_equal(x, y)
    for name in ("mean", "components", "explained"):
        assert np.array_equal(getattr(a.pca, name), getattr(b.pca, name))
    for name in PLAIN:
        assert getattr(a, name) == getattr(b, name), name
    assert list(a.attributes) == list(b.attributes)
    for name, values in a.attributes.items():
        assert b.attributes[name].dtype == np.bool_ and np.array_equal(values, b.attributes[name])


def first_owner(array: np.ndarray) -> object:
    """The object that owns an array's memory."""
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner.obj if isinstance(owner, memoryview) else owner


@pytest.mark.parametrize("kind", ["codes", "latents"])
@pytest.mark.parametrize("mapped_from", [0, tensor_file.MAPPED_FROM])
def test_round_trip_is_exact_and_repeatable(
    kind: str, mapped_from: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_file, "MAPPED_FROM", mapped_from)
    bank = make(kind)
    bank.save(tmp_path / "a.lpbank")
    loaded = Bank.load(tmp_path / "a.lpbank", verify=True)
    assert_equal(bank, loaded)
    for m in (2, 3, 4):
        assert np.array_equal(bank.level(m), loaded.level(m))
    sources = np.random.default_rng(1).integers(0, 11, (2, 4, 4))
    assert np.array_equal(bank.gather(sources), loaded.gather(sources))
    for name in ARRAYS:
        array = getattr(loaded, name)
        if array is not None:
            assert isinstance(first_owner(array), mmap.mmap) == (
                ("latents" in name or name in ("codes", "colours")) and mapped_from == 0
            )
            assert not array.flags.writeable and array.flags.aligned
    loaded.save(tmp_path / "b.lpbank")
    assert (tmp_path / "a.lpbank").read_bytes() == (tmp_path / "b.lpbank").read_bytes()
    loaded.save(tmp_path / "a.lpbank")  # over the file that is mapped
    assert_equal(bank, loaded)


def test_plain_bank_and_the_safetensors_package(tmp_path: Path) -> None:
    bank = Bank.from_codes(np.zeros((1, 2, 2), int), np.eye(3), 2)
    bank.save(tmp_path / "x")
    loaded = Bank.load(tmp_path / "x", verify=True)
    assert_equal(bank, loaded)
    assert loaded.attributes == {} and loaded.labels is None and loaded.crop is None
    foreign = load_file(tmp_path / "x")
    assert bank.codes is not None and np.array_equal(foreign["codes"], bank.codes)


def test_loading_reads_no_latents(tmp_path: Path) -> None:
    """The resident memory of a process grows by much less than the 32 MB of latents that it maps."""
    path = tmp_path / "big.lpbank"
    Bank.from_latents(np.random.default_rng(0).random((4096, 8, 8, 64), np.float32), 1).save(path)
    script = """
        import sys
        from lpkernel.bank import Bank
        def resident():
            pages = [line for line in open("/proc/self/status") if line.startswith("VmRSS")][0]
            return int(pages.split()[1]) // 1024
        Bank.from_codes([[[0]]], [[0.0, 1.0]], 1).save(sys.argv[1] + ".warm")
        Bank.load(sys.argv[1] + ".warm")
        before = resident()
        bank = Bank.load(sys.argv[1])
        after = resident()
        bank.latents.sum(), bank.level(8).sum()
        print(after - before, resident() - before)
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], check=True, capture_output=True, text=True
    ).stdout
    opened, touched = map(int, output.split())
    assert opened < 8 and touched >= 24


def test_disk_full_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.lpbank"
    make("codes").save(path)
    before = path.read_bytes()

    def full(_: np.ndarray) -> memoryview:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_file, "_bytes", full)
        patch.setattr(tensor_file, "digest", lambda *_: "")
        with pytest.raises(OSError, match="No space"):
            make("latents").save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_real_write_limit_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    make("codes").save(path)
    before = path.read_bytes()
    script = """
        import resource, sys
        import numpy as np
        from lpkernel.bank import Bank
        bank = Bank.from_latents(np.random.default_rng(0).normal(size=(64, 8, 8, 8)), 4)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        try:
            bank.save(sys.argv[1])
        except OSError as error:
            print(error.strerror)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and "large" in done.stdout, done
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_save_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        make("codes").save(tmp_path / "missing" / "x")
    with pytest.raises(InputError, match="is a folder"):
        make("codes").save(tmp_path)


def refused(path: Path) -> str:
    """The message with which a file is refused."""
    with pytest.raises(InputError) as caught:
        Bank.load(path)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400 and str(path) in message
    return message


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    assert "No such file" in refused(path)
    assert "directory" in refused(tmp_path)
    for content in (b"", b"abc", b"\x00" * 64, b"\xff" * 64, b"\x08" + b"\0" * 7 + b"{       ", b"hello world " * 99):
        path.write_bytes(content)
        refused(path)
    Image.new("RGB", (64, 64)).save(path, "PNG")
    assert "not a safetensors file" in refused(path)
    save_file({"weight": np.ones((3, 4))}, path)
    assert "not a bank" in refused(path)
    deep = b'{"a":' * 100_000
    path.write_bytes(len(deep).to_bytes(8, "little") + deep)
    assert "JSON" in refused(path)


def rewrite(path: Path, tensors: dict[str, np.ndarray] | None = None, **fields: Any) -> None:
    """Change tensors (None as a value drops one) and fields of the description, checksums left stale."""
    old, metadata = tensor_file.read(path)
    content = {name: array.copy() for name, array in old.items()}
    description = json.loads(metadata["bank"])
    for name, value in fields.items():
        if name in metadata:
            metadata[name] = value
        else:
            description[name] = value
    metadata["bank"] = json.dumps(description)
    content |= tensors or {}
    tensor_file.write(path, {name: array for name, array in content.items() if array is not None}, metadata)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": "3"}, "upgrade lpkernel"),
        ({"version": "1"}, "list of tensors"),
        ({"version": "0"}, "build it again"),
        ({"version": "9" * 5000}, "build it again"),
        ({"format": "other"}, "not a bank"),
        ({"kind": "latents"}, "list of tensors"),
        ({"kind": 3}, "'kind'"),
        ({"size": 12}, "size"),
        ({"channels": 2}, "size"),
        ({"limit": 1022}, "limit 1022"),
        ({"limit": 10**400}, "'limit'"),
        ({"max_patch": 0}, "max_patch=0"),
        ({"max_patch": 10**9}, "max_patch=1000000000"),
        ({"max_patch": 4.0}, "'max_patch'"),
        ({"scale": 0.0}, "not positive"),
        ({"scale": float("nan")}, "NaN"),
        ({"scale": "1"}, "'scale'"),
        ({"names": ["a"]}, "1 names"),
        ({"names": [1] * 11}, "'names'"),
        ({"names": None}, "'names'"),
        ({"labels": ["a"]}, "1 labels"),
        ({"labels": {}}, "'labels'"),
        ({"attributes": ["Hat"]}, "attribute table"),
        ({"attributes": []}, "attribute list"),
        ({"attributes": ["Hat", "Hat"]}, "attribute list"),
        ({"codebook_sha256": "0"}, "codebook hash"),
        ({"crop": [1, 2, 3]}, "'crop'"),
        ({"image_size": -1}, "'image_size'"),
        ({"image_size": True}, "'image_size'"),
    ],
)
def test_lying_headers_are_refused(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    make("codes").save(path)
    rewrite(path, **fields)
    assert message in refused(path)


def test_bad_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    bank = make("codes")
    assert bank.codes is not None and bank.codebook is not None and bank.fixed_codebook is not None
    nan = np.full_like(bank.codebook, np.nan)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"codes": bank.codes - 1}, "codes run from -1"),
        ({"codes": bank.codes + 1}, "expected 0 to 8"),
        ({"codes": bank.codes.astype(np.int32)}, "expected int16"),
        ({"codes": bank.codes[0]}, "the size"),
        ({"codes": bank.codes[:, :, :2]}, "(B, M, M)"),
        ({"codes": None}, "list of tensors"),
        ({"extra": bank.codes}, "list of tensors"),
        ({"fixed_codebook": bank.fixed_codebook[:5]}, "fixed codebook"),
        ({"fixed_codebook": bank.fixed_codebook + np.int16(5)}, "within +-1023"),
        ({"pca_mean": np.zeros(4)}, "PCA mean"),
        ({"pca_mean": np.full(5, np.inf)}, "infinity"),
        ({"pca_mean": np.zeros(5, np.float32)}, "the PCA"),
        ({"pca_components": np.zeros(5)}, "the PCA"),
        ({"attributes": np.zeros((2, 3), np.uint8)}, "attribute table"),
        ({"attributes": None}, "attribute list"),
        ({"codebook": nan}, "codebook hash"),
    ]
    for tensors, message in cases:
        bank.save(path)
        rewrite(path, tensors)
        assert message in refused(path)
    hashed = make("codes")
    assert hashed.codebook is not None
    hashed.codebook[0, 0] = np.nan
    hashed.save(path)
    assert "finite" in refused(path)


def test_latents_beyond_the_limit_are_refused_when_read(tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    bank = make("latents")
    bank.save(path)
    assert bank.fixed_latents is not None
    rewrite(path, {"fixed_latents": np.full_like(bank.fixed_latents, -32768)})
    loaded = Bank.load(path)
    for m in (4, 3):
        with pytest.raises(InputError, match="exceed the bank's limit"):
            loaded.level(m)


def test_verify_finds_any_change_of_the_data(tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    make("latents").save(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for offset in range(start, len(content), 97):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        with pytest.raises(InputError, match="SHA-256"):
            Bank.load(path, verify=True)


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_every_truncation_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    make(kind).save(path)
    content = path.read_bytes()
    for length in [*range(0, 200), *range(200, len(content), 31)]:
        path.write_bytes(content[:length])
        refused(path)
    path.write_bytes(content + b"\0")
    refused(path)


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_damaged_headers_give_a_sound_bank_or_one_error(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.lpbank"
    make(kind).save(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    random = np.random.default_rng(0)
    sound = 0
    messages: list[str] = []
    for _ in range(600):
        damaged = bytearray(content)
        for offset in random.integers(0, start, random.integers(1, 4)):
            damaged[offset] = (
                random.integers(0, 256) if random.random() < 0.5 else ord(random.choice(list('09-{}[],:"')))
            )
        path.write_bytes(damaged)
        try:
            bank = Bank.load(path)
        except InputError as error:
            messages.append(str(error))
            continue
        sound += 1
        assert (bank.size, bank.grid, bank.channels) == (11, 4, 3) and bank.level(3).shape == (11, 3, 3, 3)
    assert sound > 0 and len(messages) > 0 and not any("\n" in message for message in messages)


def raw(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F64", "shape": [2**40, 2**40], "data_offsets": [0, 64]},
        {"dtype": "F64", "shape": [8], "data_offsets": [0, 2**70]},
        {"dtype": "F64", "shape": [10**30, 0], "data_offsets": [0, 0]},
        {"dtype": "F64", "shape": [-8], "data_offsets": [0, 64]},
        {"dtype": "F64", "shape": [8.0], "data_offsets": [0, 64]},
        {"dtype": "F64", "shape": [True], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [], "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [1] * 9, "data_offsets": [0, 8]},
        {"dtype": "F64", "shape": [8], "data_offsets": [64, 0]},
        {"dtype": "F64", "shape": [7], "data_offsets": [1, 57]},
        {"dtype": "F64", "shape": [7], "data_offsets": [8, 64]},
        {"dtype": "O", "shape": [8], "data_offsets": [0, 64]},
        {"dtype": ["F64"], "shape": [8], "data_offsets": [0, 64]},
        {"dtype": "F64", "shape": 8, "data_offsets": [0, 64]},
        {"dtype": "F64", "shape": [8], "data_offsets": [0]},
        {"dtype": "F64"},
        [],
        None,
    ],
)
def test_impossible_tensors_are_refused(entry: Any, tmp_path: Path) -> None:
    path = tmp_path / "x"
    raw(path, {"t": entry}, b"\0" * 64)
    with pytest.raises(InputError, match=r"damaged|describes"):
        tensor_file.read(path)


def test_overlapping_tensors_and_odd_metadata_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    whole = {"dtype": "U8", "shape": [64], "data_offsets": [0, 64]}
    raw(path, {"t": whole}, b"\1" * 64)
    assert tensor_file.read(path)[0]["t"].sum() == 64
    raw(path, {"t": whole, "u": whole}, b"\0" * 64)
    with pytest.raises(InputError, match="overlaps"):
        tensor_file.read(path)
    odd: list[Any] = [[], {"a": 1}]
    for metadata in odd:
        raw(path, {"t": whole, "__metadata__": metadata}, b"\0" * 64)
        with pytest.raises(InputError, match="metadata"):
            tensor_file.read(path)


def test_description_that_is_no_object(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for text in ("[]", "{", '{"a":' * 50_000):
        tensor_file.write(path, {"t": np.ones(1)}, {"format": "lpbank", "version": "1", "bank": text})
        with pytest.raises(InputError, match="description"):
            read_fields(path, verify=False)


def test_the_bank_of_the_package_fits_the_embedded_autoencoder() -> None:
    bank = Bank.default()
    bank.check_autoencoder(load_autoencoder("default", device="cpu"))
    assert (bank.size, bank.grid, bank.channels, bank.image_size) == (1200, 16, 16, 128)
    assert bank.names[123] == "avatar-000123" and 0 < bank.attributes["Eyeglasses"].sum() < 1200
    assert_equal(bank, Bank.load(Path(lpkernel.__file__).parent / "data" / "avatars.lpbank", verify=True))


@pytest.mark.parametrize("mapped_from", [0, tensor_file.MAPPED_FROM])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_latents_that_are_not_finite_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped_from: int, value: float
) -> None:
    """At once, or where the file is mapped, and so read when it is used, as soon as they would come into a result."""
    monkeypatch.setattr(tensor_file, "MAPPED_FROM", mapped_from)
    path, bank = tmp_path / "x.lpbank", Bank.from_latents(np.random.default_rng(0).normal(size=(3, 4, 4, 5)))
    assert bank.latents is not None
    bank.latents[2, 3, 1, 4] = value
    bank.save(path)
    with pytest.raises(InputError, match="NaN or infinity"):
        generate(Bank.load(path), 8, patch=2, k=1, candidates=[2])
