"""Bank files: lies about sizes, overlaps, nesting, damage, values beyond their limits, and paths that are no file."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from hostile.sandbox import Case
from lpkernel import generate, tensor_file
from lpkernel.bank import Bank

SIZE, GRID = 11, 4
REFUSED: dict[str, Case] = {}
ANY: dict[str, Case] = {}  # damage that may leave a sound bank

Tensors = dict[str, np.ndarray]
Change = Callable[[Tensors, dict[str, str], dict[str, Any]], object]


def _load(folder: Path) -> Bank:
    return Bank.load(folder / "x.lpbank")


def _use(folder: Path) -> None:
    """Use the bank in every way; what it makes must stay within its stated limits."""
    bank = _load(folder)
    made = generate(bank, 1, patch=min(2, bank.max_patch), k=2, scales=(bank.grid,), backend="numpy")
    bank.level(max(1, bank.grid - 1))
    if made.sources.min() < 0 or made.sources.max() >= bank.size:
        raise RuntimeError("sources beyond the bank")
    repr(bank), bank.whole(np.array([0])), bank.where("~Hat") if bank.attributes else None


def _verify(folder: Path) -> None:
    Bank.load(folder / "x.lpbank", verify=True)


USES = {"load": _load, "use": _use, "verify": _verify}


@cache
def parts(kind: str) -> tuple[Tensors, dict[str, str], dict[str, Any]]:
    """Tensors, metadata and description of a sound bank."""
    source = np.random.default_rng(0)
    options: dict[str, Any] = {
        "names": [f"{i}.jpg" for i in range(SIZE)],
        "labels": ["a"] * SIZE,
        "attributes": {"Hat": source.random(SIZE) < 0.5, "Smiling": np.ones(SIZE, bool)},
    }
    if kind == "codes":
        bank = Bank.from_codes(source.integers(0, 9, (SIZE, GRID, GRID)), source.normal(size=(9, 5)), 3, **options)
    else:
        bank = Bank.from_latents(source.normal(size=(SIZE, GRID, GRID, 5)), 3, **options)
    bank.colours = source.integers(0, 256, (SIZE, GRID, GRID, 3)).astype(np.uint8)
    path = Path("sound.lpbank")
    bank.save(path)
    tensors, metadata = tensor_file.read(path)
    path.unlink()
    return {name: array.copy() for name, array in tensors.items()}, metadata, json.loads(metadata["bank"])


def whole(kind: str, folder: Path) -> bytes:
    """The bytes of a sound bank."""
    os.chdir(folder)
    tensors, metadata, _ = deepcopy(parts(kind))
    tensor_file.write(folder / "x.lpbank", tensors, metadata)
    return (folder / "x.lpbank").read_bytes()


def _changed(kind: str, change: Change, folder: Path) -> None:
    """A bank whose parts were changed, with checksums to match."""
    os.chdir(folder)
    tensors, metadata, description = deepcopy(parts(kind))
    change(tensors, metadata, description)
    metadata["bank"] = json.dumps(description)
    metadata["sha256"] = tensor_file.digest(tensors, metadata["bank"])
    tensor_file.write(folder / "x.lpbank", tensors, metadata)


def add(into: dict[str, Case], name: str, kind: str, change: Change, use: str = "load") -> None:
    into[f"{kind}: {name}"] = Case(partial(_changed, kind, change), USES[use])


def add_bytes(into: dict[str, Case], name: str, content: Callable[[Path], bytes], use: str = "load") -> None:
    into[name] = Case(lambda folder: (folder / "x.lpbank").write_bytes(content(folder)), USES[use])


def setting(name: str, value: object) -> Change:
    return lambda _tensors, _metadata, description: description.__setitem__(name, value)


def tensor(name: str, make: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda tensors, _metadata, _description: tensors.__setitem__(name, make(tensors[name]))


def without(name: str) -> Change:
    return lambda tensors, _metadata, _description: tensors.pop(name)


def beside(name: str) -> Change:
    return lambda tensors, _metadata, _description: tensors.__setitem__(name, np.ones((11, 4, 4, 5)))


# --- the description ---------------------------------------------------------------------------------------------

NESTED: Any = [[[[[[[[]]]]]]]]
WRONG: dict[str, list[Any]] = {
    "kind": ["latent", "", None, 7, ["codes"], {"codes": 1}],
    "size": [0, 1, 12, -1, 2**31, 2**63, 11.0, "11", None, True, [11], 10**400],
    "grid": [0, 1, 5, 2**31 - 1, -4, 4.0, "4", None],
    "channels": [0, 1, 2, 4, 16, 2**30, -3, None],
    "max_patch": [0, -1, 10**6, 500, 2**31 - 1, 2.0, "2", None, 10**400],
    "limit": [0, 1, 1022, 1024, 32_767, 2**31 - 1, -1023, 1023.0, None],
    "scale": [0.0, -1.0, float("nan"), float("inf"), float("-inf"), 1, "1", None, [1.0], 10**400],
    "image_size": [-1, 2**31, 1.5, "64", True, None],
    "crop": [
        [],
        [1, 2, 3],
        [1, 2, 3, 4.0],
        [True] * 4,
        {"a": 1},
        "1,2,3,4",
        7,
        [0, 0, 2**31, 9],
        [-1, 0, 9, 9],
        [0, 0, 9, 10**4000],
    ],
    "source_size": [[0, 0], [7, 0], [-1, 9], [7, 10**400], [65_536, 9], [1], [9.0, 9], "9,9"],
    "names": [None, [], ["a"], ["a"] * 12, [1] * 11, [None] * 11, [["a"]] * 11, "abcdefghijk", {"a": 1}, NESTED],
    "labels": [["a"], ["a"] * 12, [1] * 11, [None] * 11, "abcdefghijk", {"a": 1}, 7, NESTED],
    "attributes": [None, [], ["Hat"], ["Hat", "Hat"], ["Hat", 7], ["a", "b", "c"], "Hat", {"Hat": 1}, NESTED],
    "codebook_sha256": ["", "0" * 64, None, 7],
    "autoencoder_name": [None, 7, ["a"]],
    "autoencoder_fingerprint": [None, 7],
    "sources_hash": [None, {}],
    "resize_filter": [None, 7],
}
for name, values in WRONG.items():
    for number, value in enumerate(values):
        add(
            REFUSED,
            f"{name} number {number}",
            "codes" if number % 2 or name == "codebook_sha256" else "latents",
            setting(name, value),
        )
for kind in ("codes", "latents"):
    add(REFUSED, "no description", kind, lambda t, m, d: d.clear())
    add(REFUSED, "another format", kind, lambda t, m, d: m.__setitem__("format", "other"))
    add(REFUSED, "a later version", kind, lambda t, m, d: m.__setitem__("version", "3"))
    add(REFUSED, "an earlier version", kind, lambda t, m, d: m.__setitem__("version", "1"))
    add(REFUSED, "a version of 5,000 digits", kind, lambda t, m, d: m.__setitem__("version", "9" * 5000))
    add(REFUSED, "a version that is odd", kind, lambda t, m, d: m.__setitem__("version", "²\n\x1b[2J"))
    add(REFUSED, "no version", kind, lambda t, m, d: m.pop("version"))
    add(REFUSED, "no format", kind, lambda t, m, d: m.clear())


def packed_names(count: int) -> Change:
    return lambda t, m, d: t.__setitem__("names", np.frombuffer(b"ab\0" * count, np.uint8))


for count in (1, 9, 11, 50_000_000):  # the last would take gigabytes as Python's texts
    add(REFUSED, f"{count + 1} packed names", "codes", packed_names(count))

TEXTS = {
    "controls": "\x1b]0;x\x07\x1b[2J",
    "line breaks": "a\nb\r\nlpkernel: error: c",
    "null bytes": "a\0b",
    "no UTF-8": "\udcff\ud800",
    "directions": "\u202egpj.x\u2066",
    "paths": "../../../../etc/passwd",
    "length": "x" * 100_000,
}
for name, text in TEXTS.items():
    add(ANY, f"names with {name}", "codes", setting("names", [text] * SIZE), "use")
    add(ANY, f"labels with {name}", "latents", setting("labels", [text] * SIZE), "use")
    add(ANY, f"an attribute with {name}", "codes", setting("attributes", ["Hat", text]), "use")
    add(REFUSED, f"too few names with {name}", "codes", setting("names", [text]))

# --- tensors -----------------------------------------------------------------------------------------------------

BAD: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "codes": {
        "below zero": lambda x: x - 1,
        "one too high": lambda x: x + 1,
        "of 32,767": lambda x: np.full_like(x, 32_767),
        "of 32 bits": lambda x: x.astype(np.int32),
        "of float": lambda x: x.astype(np.float32),
        "of one image": lambda x: x[:1],
        "of no square": lambda x: x[:, :, :2],
        "of two axes": lambda x: x[0],
        "of eight axes": lambda x: x.reshape(11, 4, 4, 1, 1, 1, 1, 1),
    },
    "codebook": {
        "of NaN": lambda x: np.full_like(x, np.nan),
        "of infinity": lambda x: np.full_like(x, np.inf),
        "of 64 bits": lambda x: x.astype(np.float64),
        "cut": lambda x: x[:5],
        "of another width": lambda x: x[:, :4],
        "of one axis": lambda x: x.reshape(-1),
    },
    "fixed_codebook": {
        "beyond the limit": lambda x: np.full_like(x, 1024),
        "of the lowest": lambda x: np.full_like(x, -32_768),
        "cut": lambda x: x[:5],
        "of another width": lambda x: x[:, :2],
        "of 32 bits": lambda x: x.astype(np.int32),
    },
    "latents": {
        "of 32 bits": lambda x: x.astype(np.float32),
        "of no square": lambda x: x[:, :, :2],
        "of another width": lambda x: x[..., :4],
        "of three axes": lambda x: x[0],
        "of NaN": lambda x: np.full_like(x, np.nan),
        "of one NaN": lambda x: np.where(np.arange(x.size).reshape(x.shape) == x.size - 1, np.float16(np.nan), x),
        "of infinity": lambda x: np.full_like(x, -np.inf),
    },
    "fixed_latents": {
        "of fewer images": lambda x: x[:5],
        "of another width": lambda x: x[..., :2],
        "of 32 bits": lambda x: x.astype(np.int32),
        "of bytes": lambda x: x.astype(np.uint8),
    },
    "colours": {
        "of fewer images": lambda x: x[:5],
        "of two channels": lambda x: x[..., :2],
        "of 16 bits": lambda x: x.astype(np.int16),
        "of one axis": lambda x: x.reshape(-1),
    },
    "pca_mean": {
        "of NaN": lambda x: x * np.nan,
        "of huge numbers": lambda x: x * 0 - 1e300,
        "too short": lambda x: x[:4],
        "of 32 bits": lambda x: x.astype(np.float32),
        "of two axes": lambda x: x[None],
    },
    "pca_components": {
        "of infinity": lambda x: x + np.inf,
        "of huge numbers": lambda x: x * 1e300,
        "of numbers beyond 1": lambda x: x - 2,
        "of one axis": lambda x: x[0],
        "of more than its width": lambda x: np.ones((6, 5)),
        "turned": lambda x: np.ascontiguousarray(x.T),
    },
    "pca_explained": {
        "of NaN": lambda x: x * np.nan,
        "of huge numbers": lambda x: x + 1e300,
        "too long": lambda x: np.ones(9),
    },
    "attributes": {
        "too few": lambda x: x[:1],
        "too narrow": lambda x: x[:, :1],
        "too wide": lambda x: np.zeros((2, 9), np.uint8),
        "of 16 bits": lambda x: x.astype(np.int16),
        "of one axis": lambda x: x.reshape(-1),
    },
}
for name, changes in BAD.items():
    for what, make in changes.items():
        kind = "codes" if "code" in name or name in ("pca_mean", "attributes") else "latents"
        add(REFUSED, f"{name} {what}", kind, tensor(name, make))
for name in ("codes", "codebook", "fixed_codebook", "pca_mean", "pca_components", "pca_explained", "attributes"):
    add(REFUSED, f"no {name}", "codes", without(name))
for name in ("latents", "fixed_latents", "colours"):
    add(REFUSED, f"no {name}", "latents", without(name))
    if name != "colours":
        add(REFUSED, f"{name} beside codes", "codes", beside(name))
add(
    REFUSED,
    "fixed_latents beyond the limit",
    "latents",
    tensor("fixed_latents", lambda x: np.full_like(x, -32_768)),
    "use",
)
add(ANY, "fixed_latents at the limit", "latents", tensor("fixed_latents", lambda x: np.full_like(x, 1023)), "use")
add(ANY, "a scale of almost nothing", "latents", setting("scale", 5e-324), "use")
add(ANY, "a scale of almost infinity", "codes", setting("scale", 1.7e308), "use")

# --- the header --------------------------------------------------------------------------------------------------


def file(header: bytes, data: bytes = b"", claimed: int | None = None) -> bytes:
    header += b" " * (-len(header) % 8)
    return (len(header) if claimed is None else claimed).to_bytes(8, "little") + header + data


def described(header: dict[str, Any]) -> bytes:
    """A file with this header and 64 bytes of data."""
    return file(json.dumps(header).encode(), b"\1" * 64)


def unfolded(header: Callable[[], bytes]) -> Callable[[Path], bytes]:
    return lambda _: file(header())


def made(content: Callable[[], bytes]) -> Callable[[Path], bytes]:
    return lambda _: content()


def entry(shape: list[Any], begin: Any, end: Any, dtype: Any = "F64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ENTRIES: dict[str, dict[str, Any]] = {
    "a shape of 2^80": {"t": entry([2**40, 2**40], 0, 64)},
    "an end of 2^70": {"t": entry([8], 0, 2**70)},
    "a shape of 10^30 and 0": {"t": entry([10**30, 0], 0, 0)},
    "a shape below zero": {"t": entry([-8, -8], 0, 512)},
    "a shape of nothing": {"t": entry([], 0, 8)},
    "a shape of 999 axes": {"t": entry([1] * 999, 0, 8)},
    "a shape of fractions": {"t": entry([8.0], 0, 64)},
    "an end before the beginning": {"t": entry([8], 64, 0)},
    "a beginning below zero": {"t": entry([8], -64, 0)},
    "three offsets": {"t": {"dtype": "F64", "shape": [8], "data_offsets": [0, 64, 64]}},
    "offsets of no integers": {"t": entry([8], "0", [64])},
    "objects": {"t": entry([8], 0, 64, "O")},
    "a dtype of its own": {"t": entry([8], 0, 64, {"a": 1})},
    "a dtype that is not read": {"t": entry([8], 0, 64, "I64")},
    "the same bytes twice": {"t": entry([8], 0, 64), "u": entry([8], 0, 64)},
    "half the same bytes": {"t": entry([8], 0, 64), "u": entry([8], 32, 96)},
    "a hole": {"t": entry([4], 0, 32), "u": entry([3], 40, 64)},
    "a tensor that lies within another": {"t": entry([8], 0, 64), "u": entry([1], 8, 16)},
    "less than the file": {"t": entry([4], 0, 32)},
    "no shape": {"t": {"dtype": "F64", "data_offsets": [0, 64]}},
    "a tensor of no object": {"t": [1, 2, 3]},
    "metadata of numbers": {"t": entry([8], 0, 64), "__metadata__": {"a": 1}},
    "metadata of a list": {"t": entry([8], 0, 64), "__metadata__": []},
    "a hundred thousand tensors": {str(i): entry([1], 0, 8) for i in range(100_000)},
    "a name of a million": {"x" * 1_000_000: entry([1], 0, 64)},
    "a name of escapes": {"\x1b[2J\n\0": entry([1], 0, 64)},
}
for name, entries in ENTRIES.items():
    add_bytes(REFUSED, f"header with {name}", made(partial(described, entries)))
NESTS = {
    "lists": b"[" * 200_000,
    "objects": b'{"a":' * 200_000,
    "objects that close": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "a list in an object": b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}",
}
for name, nest in NESTS.items():
    add_bytes(REFUSED, f"header nested in {name}", made(partial(file, nest)))
    add_bytes(
        REFUSED,
        f"description nested in {name}",
        made(partial(described, {"__metadata__": {"format": "lpbank", "version": "1", "bank": nest.decode()}})),
    )
LONG: dict[str, Callable[[], bytes]] = {
    "empty lists": lambda: b'{"a":[' + b"[]," * 5_000_000 + b"0]}",
    "small lists": lambda: b'{"a":[' + b"[[]]," * 3_000_000 + b"0]}",
    "small objects": lambda: b'{"a":[' + b'{"a":0},' * 2_000_000 + b"0]}",
    "floats": lambda: b'{"a":[' + b"1e9," * 4_000_000 + b"0]}",
    "spaces": lambda: b"{" + b" " * 16_000_000 + b"}",
    "digits": lambda: b'{"a":' + b"9" * 10_000_000 + b"}",
    "escapes": lambda: b'{"a":"' + b"\\u0041" * 2_500_000 + b'"}',
    "what is too long": lambda: b'{"a":"' + b"a" * (17 << 20) + b'"}',
}


def escaped() -> bytes:
    """A description of many lists, with every bracket written as an escape in the header."""
    text = '{"a":[' + "[]," * 1_000_000 + "0]}"
    head = json.dumps({"__metadata__": {"format": "lpbank", "version": "1", "bank": "@"}})
    return head.replace("@", json.dumps(text)[1:-1].replace("[", "\\u005b")).encode()


LONG["escaped lists"] = escaped
for name, long in LONG.items():
    add_bytes(REFUSED, f"header of many {name}", unfolded(long))
for name, head in {"no JSON": b"{nonsense}", "no UTF-8": b'{"\xff":1}', "a list": b"[]", "NaN": b'{"t":NaN}'}.items():
    add_bytes(REFUSED, f"header of {name}", made(partial(file, head, b"\0" * 64)))
for claimed in (0, 1, 7, 9, 2**31, 2**32, 2**63, 2**64 - 1):
    add_bytes(REFUSED, f"header that claims {claimed} bytes", made(partial(file, b'{"t":1}', b"\0" * 64, claimed)))
for name, content in {
    "nothing": b"",
    "7 bytes": b"\0" * 7,
    "zeros": b"\0" * 999_999,
    "ones": b"\xff" * 9999,
    "text": b"hello world\n" * 99,
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch x'\ntR.",
    "an archive": b"PK\3\4" + b"\0" * 99,
    "noise": random.Random(0).randbytes(99_999),
}.items():
    add_bytes(REFUSED, f"file of {name}", made(partial(bytes, content)))

# --- damage ------------------------------------------------------------------------------------------------------


def cut(kind: str, part: int, folder: Path) -> bytes:
    """The first `part` percent of a bank."""
    content = whole(kind, folder)
    return content[: len(content) * part // 100]


def shorter(kind: str, folder: Path) -> bytes:
    return whole(kind, folder)[:-1]


def longer(kind: str, folder: Path) -> bytes:
    return whole(kind, folder) + b"\0"


def flipped(kind: str, seed: int, head: bool, folder: Path) -> bytes:
    content = bytearray(whole(kind, folder))
    source, start = random.Random(seed), 8 + int.from_bytes(content[:8], "little")
    for _ in range(source.randint(1, 4)):
        place = source.randrange(start) if head else source.randrange(start, len(content))
        content[place] = source.choice([content[place] ^ 1 << source.randrange(8), ord(source.choice('09-{}[],:"'))])
    return bytes(content)


for kind in ("codes", "latents"):
    for part in (0, 1, 5, 20, 40, 60, 80, 95, 99):
        add_bytes(
            REFUSED,
            f"{kind} of which {part} % are left",
            partial(cut, kind, part),
        )
    add_bytes(REFUSED, f"{kind} without the last byte", partial(shorter, kind))
    add_bytes(REFUSED, f"{kind} and a byte more", partial(longer, kind))
    for seed in range(12):
        add_bytes(ANY, f"{kind} with a changed header, {seed}", partial(flipped, kind, seed, True), "use")
        add_bytes(ANY, f"{kind} with changed data, {seed}", partial(flipped, kind, seed, False), "use")
        if seed % 3 == 0:
            add_bytes(
                REFUSED, f"{kind} with changed data, verified, {seed}", partial(flipped, kind, seed, False), "verify"
            )

# --- paths that are no file, and files larger than they look -----------------------------------------------------


def sparse(header: dict[str, Any], size: int, folder: Path) -> None:
    (folder / "x.lpbank").write_bytes(file(json.dumps(header).encode()))
    os.truncate(folder / "x.lpbank", size)


def endless(kind: str, size: int, folder: Path) -> None:
    """A bank of one image whose cells are a hole of `size` bytes."""
    os.chdir(folder)
    tensors, metadata, description = deepcopy(parts(kind))
    side = int((size / 2) ** 0.5) // 64 * 64
    description |= {"size": 1, "grid": side, "names": ["a"], "labels": None}
    metadata["bank"] = json.dumps(description)
    names = [name for name in tensors if name not in (kind, "attributes")]
    header: dict[str, Any] = {"__metadata__": metadata}
    place = 0
    for name in names:
        end = place + tensors[name].nbytes
        header[name] = entry(list(tensors[name].shape), place, end, tensor_file._NAMES[tensors[name].dtype])
        place = end
    header[kind] = entry([1, side, side], place, place + side * side * 2, "I16")
    text = file(json.dumps(header).encode())
    with (folder / "x.lpbank").open("wb") as out:
        out.write(text)
        for name in names:
            out.write(tensors[name].tobytes())
    os.truncate(folder / "x.lpbank", len(text) + place + side * side * 2)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": lambda folder: os.mkfifo(folder / "x.lpbank"),
    "a folder": lambda folder: (folder / "x.lpbank").mkdir(),
    "a loop of links": lambda folder: (folder / "x.lpbank").symlink_to(folder / "x.lpbank"),
    "a link to nothing": lambda folder: (folder / "x.lpbank").symlink_to(folder / "nothing"),
    "a link to zeros": lambda folder: (folder / "x.lpbank").symlink_to("/dev/zero"),
    "a link to nothing at all": lambda folder: (folder / "x.lpbank").symlink_to("/dev/null"),
    "a link to memory": lambda folder: (folder / "x.lpbank").symlink_to("/proc/self/mem"),
    "a link to a terminal": lambda folder: (folder / "x.lpbank").symlink_to("/dev/tty"),
    "1 TB of nothing": partial(sparse, {}, 1 << 40),
    "1 TB in one tensor": partial(sparse, {"t": entry([(1 << 37) - 8], 0, (1 << 40) - 64)}, 1 << 40),
    "1 TB of codes": partial(endless, "codes", 1 << 40),
}
for name, make_it in NO_FILES.items():
    REFUSED[name] = Case(make_it, _load)
REFUSED["a name with a null byte"] = Case(lambda _: None, lambda folder: Bank.load(folder / "x\0"))
REFUSED["a name that is too long"] = Case(lambda _: None, lambda folder: Bank.load(folder / ("x" * 300)))

CASES = REFUSED | ANY
