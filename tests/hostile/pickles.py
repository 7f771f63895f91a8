"""Hostile pickles of every protocol, bare and in both of torch's containers, for load_checkpoint and load_arrays."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hostile.sandbox import Case
from lpkernel.autoencoder.safe_pickle import load_arrays, load_checkpoint

PROTOCOLS = range(6)
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
STORAGE = b"ctorch\nFloatStorage\n"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Any, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def bare(code: bytes, path: Path) -> None:
    path.write_bytes(code)


def legacy(code: bytes, path: Path) -> None:
    head = b"".join(pickle.dumps(part, 2) for part in (MAGIC, VERSION, {"little_endian": True}))
    path.write_bytes(head + code + pickle.dumps([], 2))


def zipped(code: bytes, path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", code)
        for name, data in members.items():
            archive.writestr(f"x/{name.replace('_', '/')}", data)


CONTAINERS: dict[str, tuple[Callable[[bytes, Path], None], Callable[[Path], Any]]] = {
    "bare": (bare, load_arrays),
    "legacy": (legacy, load_checkpoint),
    "zip": (zipped, load_checkpoint),
}


def case(write: Callable[[Path], object], read: Callable[[Path], Any]) -> Case:
    return Case(lambda folder: write(folder / "x.ckpt"), lambda folder: read(folder / "x.ckpt"))


def within(container: str, name: str, code: Callable[[], bytes] | bytes) -> tuple[str, Case]:
    """A pickle in a container."""
    write, read = CONTAINERS[container]
    return f"{name}, {container}", case(lambda path: write(code if isinstance(code, bytes) else code(), path), read)


# Objects that do something when unpickled as Python would.


def attacks() -> dict[str, Any]:
    marker = "marker"
    inner = pickle.dumps(Call(os.system, "touch marker"))
    return {
        "os.system": Call(os.system, "touch marker"),
        "eval": Call(eval, f"open({marker!r}, 'w').close()"),
        "open": Call(open, marker, "w"),
        "getattr": Call(getattr, "x", "upper"),
        "pickle.loads": Call(pickle.loads, inner),
        "torch.load": Call(torch.load, marker),
        "_load_from_bytes": Call(torch.storage._load_from_bytes, inner),
        "np.load": Call(np.load, marker),
        "rmtree": Call(shutil.rmtree, "."),
        "a class": Call(type, "X", (), {}),
        "bytes of a size": Call(bytes, 600_000_000),
        "list of a range": Call(list, range(10**9)),
        "an array of a shape": Call(np.zeros, 1 << 33),
        "an object array": np.array([None], object),
        "a structured array": np.zeros(2, "i4,O"),
        "a scalar of dates": np.datetime64(3, "s"),
        "a memory map": Call(np.memmap, marker, "u1", "w+", 0, 1 << 33),
        "a generator": np.random.default_rng(0),
    }


def by_objects() -> Iterator[tuple[str, Case]]:
    for number, (name, value) in enumerate(attacks().items()):
        for protocol in PROTOCOLS:  # over the attacks, each protocol occurs in each container
            container = tuple(CONTAINERS)[(number + protocol) % 3]
            yield within(container, f"{name}, protocol {protocol}", partial(pickle.dumps, {"a": value}, protocol))


# Programs that no pickler would write (text opcodes are read under every protocol).

DTYPE = b"cnumpy\ndtype\n(S'%s'\nI00\nI01\ntR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def dtype(code: bytes, state: bytes = b"(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb") -> bytes:
    return DTYPE % code + state


def array(shape: bytes, kind: bytes, data: bytes) -> bytes:
    return ARRAY + b"(I1\n" + shape + kind + b"I00\n" + data + b"tb."


def data(size: int) -> bytes:
    return b"B" + struct.pack("<I", size) + bytes(size)


def laughs(opening: bytes, closing: bytes) -> bytes:
    """Thirty nested containers, each holding the previous one ten times."""
    code = opening + b"I1\n" + closing + b"q\0"
    for level in range(30):
        code += b"0" + opening + (b"h" + bytes([level])) * 10 + closing + b"q" + bytes([level + 1])
    return code + b"."


PROGRAMS: dict[str, Callable[[], bytes] | bytes] = {
    # dtypes and arrays whose state lies
    "object dtype without objects": dtype(b"O8", b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb") + b".",
    "object array by pointer": array(b"(I1\nt", dtype(b"O8", b"(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"), data(8)),
    "flags on a float dtype": dtype(b"f8", b"(I3\nS'<'\nNNNI-1\nI-1\nI63\ntb") + b".",
    "sizes on a float dtype": dtype(b"f8", b"(I3\nS'<'\nNNNI4096\nI64\nI0\ntb") + b".",
    "fields on a float dtype": dtype(b"f8", b"(I3\nS'<'\nN(S'a'\nt(dI-1\nI-1\nI0\ntb") + b".",
    "metadata on a float dtype": dtype(b"f8", b"(I4\nS'<'\nNNNI-1\nI-1\nI0\n(dtb") + b".",
    "byte order of a word": dtype(b"f8", b"(I3\nS'<f8'\nNNNI-1\nI-1\nI0\ntb") + b".",
    "dtype built twice": dtype(b"f8") + b"(I3\nS'>'\nNNNI-1\nI-1\nI0\ntb.",
    "dtype without state": DTYPE % b"f8" + b".",
    "dtype of void": dtype(b"V1000000000") + b".",
    "dtype of text": dtype(b"U1000000000") + b".",
    "dtype of a list": b"cnumpy\ndtype\n((lS'a'\natR.",
    "dtype by a name": dtype(b"float64") + b".",
    "array without state": ARRAY + b".",
    "array built twice": array(b"(I1\nt", dtype(b"f8"), data(8))[:-1] + b"(I1\n(I1\nt" + dtype(b"f8") + b"I00\nNtb.",
    "array of another class": ARRAY.replace(b"ndarray", b"dtype") + b".",
    "array with little data": array(b"(I1000000\nt", dtype(b"f8"), data(8)),
    "array with much data": array(b"(I1\nt", dtype(b"f8"), data(800)),
    "array of a negative side": array(b"(I-1\nt", dtype(b"f8"), data(8)),
    "array of two negative sides": array(b"(I-1\nI-1\nt", dtype(b"f8"), data(8)),
    "array whose size overflows": array(b"(I4294967296\nI4294967296\nt", dtype(b"f8"), data(0)),
    "array of nothing and a huge side": array(b"(I0\nI4611686018427387904\nt", dtype(b"f8"), data(0)),
    "array of true sides": array(b"(I01\nt", dtype(b"f8"), data(8)),
    "array of float sides": array(b"(F1.0\nt", dtype(b"f8"), data(8)),
    "array of a huge side": array(b"(L" + b"9" * 4000 + b"L\nt", dtype(b"f8"), data(8)),
    "array of 100 axes": array(b"(" + b"I1\n" * 100 + b"t", dtype(b"f8"), data(8)),
    "array on text": array(b"(I1\nt", dtype(b"f8"), b"S'12345678'\n"),
    "array on a list": array(b"(I1\nt", dtype(b"f8"), b"(lNa"),
    "array in itself": ARRAY + b"p1\n(I1\n(I1\nt" + dtype(b"f8") + b"I00\ng1\ntb.",
    "array used before its state": b"(l" + ARRAY + b"a.",
    "buffer with little data": b"cnumpy._core.numeric\n_frombuffer\n(" + data(8) + dtype(b"f8") + b"(I99\ntS'C'\ntR.",
    "buffer from outside": b"\x80\x05cnumpy._core.numeric\n_frombuffer\n(\x97" + dtype(b"f8") + b"(I1\ntS'C'\ntR.",
    "scalar of little data": b"cnumpy.core.multiarray\nscalar\n(" + dtype(b"f8") + data(4) + b"tR.",
    "scalar of objects": b"cnumpy.core.multiarray\nscalar\n(" + DTYPE % b"O8" + data(8) + b"tR.",
    # BUILD, SETITEM, APPEND and calls on objects that are not data of the file
    "state of a dtype class": b"cnumpy\ndtype\n(dS'a'\nI1\nsb.",
    "state of a function": TENSOR + b"(dS'__code__'\nNsb.",
    "state of a torch dtype": b"ctorch\nfloat32\n(dS'a'\nI1\nsb.",
    "state of a storage class": STORAGE + b"(dS'dtype'\nNsb.",
    "state of a list": b"(l(dS'a'\nI1\nsb.",
    "state of text": b"S'a'\n(dS'a'\nI1\nsb.",
    "state of a number": b"I1\nI2\nb.",
    "slots of a class": b"cpathlib\nPath\n(N(dS'a'\nI1\nstb.",
    "an item of a class": b"ccollections\nOrderedDict\nS'a'\nI1\ns.",
    "an item of a tuple": b"(tS'a'\nI1\ns.",
    "an item of a list": b"(lI0\nI1\ns.",
    "append to a function": TENSOR + b"I1\na.",
    "append to a dict": b"(dI1\na.",
    "add to a frozenset": b"\x80\x04(\x91(I1\n\x90.",
    "call of a number": b"I1\n(tR.",
    "call of a dict": b"(d(tR.",
    "call of a type": b"c__builtin__\nobject\n(tR.",
    "call with a list": b"ccollections\nOrderedDict\n(lR.",
    "call with too much": b"ctorch\ndevice\n(I1\nI2\nI3\nI4\ntR.",
    "a new int": b"\x80\x02c__builtin__\nint\n(S'9'\nt\x81.",
    "a new list of a million": b"\x80\x02c__builtin__\nlist\n(S'aaaaaaaa'\nt\x81.",
    "an instance of dict": b"(i__builtin__\ndict\n.",
    "keywords": b"\x80\x04ctorch\ndevice\n(tS'kind'\nI1\n0(dS'kind'\nI1\ns\x92.",
    "a set of pairs of numbers": b"c__builtin__\nset\n((l(I1\nI2\ntatR.",
    "a dict of a text": b"ccollections\nOrderedDict\n(S'abcdef'\ntR.",
    "a dict of triples": b"ccollections\nOrderedDict\n((l(I1\nI2\nI3\ntatR.",
    "a key of a list": b"((lI1\nd.",
    "a key without a value": b"(I1\nd.",
    "bytes of a number": b"c__builtin__\nbytes\n(I600000000\ntR.",
    "bytearray of a number": b"c__builtin__\nbytearray\n(I600000000\ntR.",
    "complex of text": b"c__builtin__\ncomplex\n(S'1'\nS'2'\ntR.",
    "another codec": b"c_codecs\nencode\n(S'x'\nS'bz2'\ntR.",
    "a reconstructed dict": b"ccopyreg\n_reconstructor\n(c__builtin__\ndict\nc__builtin__\nobject\nNtR.",
    "dots in a name": b"\x80\x04\x8c\x05torch\x8c\x0c_utils.torch\x93.",
    "a name of a number": b"\x80\x04I1\nI2\n\x93.",
    "a long name": lambda: b"\x80\x04X\0\0\1\0" + b"x" * 65536 + b"\x8c\1y\x93.",
    "a name of two lines": b"\x80\x04\x8c\4os\n\x1b\x8c\6system\x93.",
    # the machine itself
    "an extension": b"\x82\1.",
    "an extension of four bytes": b"\x84\1\2\3\4.",
    "an unknown opcode": b"\xff.",
    "an empty stack": b".",
    "only a mark": b"(.",
    "a mark as an item": b"(l(a.",
    "no mark": b"I1\nt.",
    "pops too often": b"I1\n000.",
    "duplicates nothing": b"2.",
    "no such value": b"g7\n.",
    "a negative place": b"I1\np-1\ng-2\n.",
    "no end": b"I1\n",
    "a number of no digits": b"Ixyz\n.",
    "a number of many digits": lambda: b"L" + b"9" * 60000 + b"L\n.",
    "a reference outside": b"P1\n.",
    "a reference to a list": b"(lI1\naQ.",
    # false lengths
    "long text, 4 bytes": b"X\xff\xff\xff\x7fab.",
    "long text, 8 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"ab.",
    "long bytes, 8 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"ab.",
    "longer bytes than there can be": b"\x80\x04\x8e" + b"\xff" * 8 + b"ab.",
    "long bytearray": b"\x80\x05\x96" + struct.pack("<Q", 3 << 30) + b"ab.",
    "long number": b"\x80\x02\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"ab.",
    "a number of a negative length": b"\x80\x02\x8b" + struct.pack("<i", -5) + b"ab.",
    "text of a negative length": b"T" + struct.pack("<i", -5) + b"ab.",
    "a frame beyond the end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N",
    "a line without an end": lambda: b"S'" + b"a" * (8 << 20),
    # depth and repetition
    "tuples in tuples": lambda: b")" + b"\x85" * 100_000 + b".",
    "lists in lists": lambda: b"]" * 100_000 + b"a" * 99_999 + b".",
    "dicts in dicts": lambda: b"}" + b"N}" * 50_000 + b"s" * 50_000 + b".",
    "tuples by marks": lambda: b"(" * 100_000 + b"t" * 100_000 + b".",
    "placeholders of deep tuples": lambda: b")" + b"\x85" * 400_000 + b"cpathlib\nPath\n0.",
    "ten of ten of ten, tuples": laughs(b"(", b"t"),
    "ten of ten of ten, lists": laughs(b"(", b"l"),
    "ten of ten of ten, empty": laughs(b"(", b"t").replace(b"(I1\nt", b"(t", 1),
    "a list in itself": b"]q\0h\0a.",
    "a dict in itself": b"}q\0S'a'\nh\0s.",
    "a tuple in its list": b"]q\0h\0\x85a.",
    "a million steps": lambda: b"N0" * 500_000 + b"N.",
    "steps without end": lambda: b"(" + b"N" * 5_000_000 + b"t.",
    "the same text encoded often": lambda: (
        b"X\0\0\x10\0"
        + b"a" * (1 << 20)
        + b"q\0"
        + b"c_codecs\nencode\nq\1"
        + b"0h\1h\0X\6\0\0\0latin1\x86R" * 50_000
        + b"."
    ),
    "the same arguments often": lambda: (
        b"(" + b"N" * 100_000 + b"tq\0cpathlib\nPath\nq\1" + b"0h\1h\0R" * 100_000 + b"."
    ),
    "the same set often": lambda: (
        b"("
        + b"".join(b"J" + struct.pack("<i", i) for i in range(100_000))
        + b"l\x85q\0c__builtin__\nset\nq\1"
        + b"0h\1h\0R" * 50_000
        + b"."
    ),
    "the same array often": lambda: (
        b"(" + array(b"(I131072\nt", dtype(b"f8"), data(1 << 20))[:-1] + b"q\0" + b"h\0" * 100_000 + b"l."
    ),
    "keys of one hash": lambda: (
        b"}(" + b"".join(b"\x8a\x0b" + (i * (2**61 - 1)).to_bytes(11, "little") + b"N" for i in range(60_000)) + b"u."
    ),
    "keys of deep tuples": b"}" + b"N\x85" + b"2\x86" * 60 + b"Ns.",
    "long keys that are equal": lambda: b"}X\0\0\x10\0" + b"a" * (1 << 20) + b"Ns.",
}


def by_programs() -> Iterator[tuple[str, Case]]:
    for number, (name, code) in enumerate(PROGRAMS.items()):
        yield within("bare", name, code)
        yield within(("legacy", "zip")[number % 2], name, code)


# Tensors, storages and the containers themselves.


def reference(key: bytes = b"S'0'\n", kind: bytes = STORAGE, count: bytes = b"I16\n", rest: bytes = b"") -> bytes:
    return b"(S'storage'\n" + kind + key + b"S'cpu'\n" + count + rest + b"tQ"


def tensor(offset: bytes, size: bytes, stride: bytes, storage: bytes = reference()) -> bytes:
    return TENSOR + b"(" + storage + offset + size + stride + b"I00\n(dtR."


TENSORS = {
    "offset beyond": tensor(b"I16\n", b"(I1\nt", b"(I1\nt"),
    "offset negative": tensor(b"I-4\n", b"(I1\nt", b"(I1\nt"),
    "offset that overflows": tensor(b"I9223372036854775807\n", b"(I2\nt", b"(I1\nt"),
    "size beyond": tensor(b"I0\n", b"(I17\nt", b"(I1\nt"),
    "size negative": tensor(b"I0\n", b"(I-1\nt", b"(I1\nt"),
    "sizes whose product overflows": tensor(b"I0\n", b"(I4294967296\nI4294967296\nt", b"(I0\nI0\nt"),
    "stride beyond": tensor(b"I0\n", b"(I2\nt", b"(I16\nt"),
    "stride negative": tensor(b"I15\n", b"(I2\nt", b"(I-1\nt"),
    "stride that overflows": tensor(b"I0\n", b"(I3\nt", b"(I4611686018427387904\nt"),
    "2^62 elements of one": tensor(b"I0\n", b"(I4611686018427387904\nt", b"(I0\nt"),
    "2^33 elements of one": tensor(b"I0\n", b"(I8589934592\nt", b"(I0\nt"),
    "strides missing": tensor(b"I0\n", b"(I1\nI1\nt", b"(I1\nt"),
    "sizes of text": tensor(b"I0\n", b"S'abc'\n", b"(I1\nt"),
    "sizes that are true": tensor(b"I0\n", b"(I01\nt", b"(I01\nt"),
    "100 axes": tensor(b"I0\n", b"(" + b"I1\n" * 100 + b"t", b"(" + b"I1\n" * 100 + b"t"),
    "nothing, with a huge side": tensor(b"I0\n", b"(I0\nI4611686018427387904\nt", b"(I1\nI1\nt"),
    "no storage": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", b"I1\n"),
    "a conjugate view": TENSOR + b"(" + reference() + b"I0\n(I1\nt(I1\nt" + b"I00\n(d(dS'conj'\nI01\nstR.",
    "a parameter of text": b"ctorch._utils\n_rebuild_parameter\n(S'a'\nI00\n(dtR.",
    "a storage as a value": reference() + b".",
    "a storage longer than it is": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(count=b"I17\n")),
    "a storage of 2^40": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(count=b"I1099511627776\n")),
    "a storage of a negative length": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(count=b"I-1\n")),
    "a storage of no length": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(count=b"N")),
    "a storage that is missing": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(key=b"S'1'\n")),
    "a storage by a path": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(key=b"S'../../../../etc/passwd'\n")),
    "a storage of another kind": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(kind=b"ctorch\nDoubleStorage\n")),
    "a storage of no kind": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(kind=b"ctorch\nfloat32\n")),
    "a storage with a view": tensor(b"I0\n", b"(I1\nt", b"(I1\nt", reference(rest=b"(S'v'\nI0\nI9\nt")),
    "a sparse tensor": b"ctorch._utils\n_rebuild_sparse_tensor\n(I1\ntR.",
    "a quantised tensor": b"ctorch._utils\n_rebuild_qtensor\n(I1\ntR.",
    "a module to compare": b"(S'module'\ncpathlib\nPath\nS'a'\nS'b'\ntQ.",
}


def legacy_storage(code: bytes, path: Path, keys: object = ("0",), length: int = 16, body: bytes = bytes(64)) -> None:
    """A legacy file with one storage, whose reference also has the field for a view."""
    head = pickle.dumps(MAGIC, 2) + pickle.dumps(VERSION, 2) + pickle.dumps({}, 2)
    listed = pickle.dumps(list(keys) if isinstance(keys, tuple) else keys, 2)
    six = code if b"'v'" in code else code.replace(b"tQ", b"NtQ")
    path.write_bytes(head + six + listed + struct.pack("<q", length) + body)


def by_tensors() -> Iterator[tuple[str, Case]]:
    for name, code in TENSORS.items():
        yield f"{name}, zip", case(partial(zipped, code, data_0=bytes(64)), load_checkpoint)
        yield f"{name}, legacy", case(partial(legacy_storage, code), load_checkpoint)
    good = tensor(b"I0\n", b"(I16\nt", b"(I1\nt")
    lies: dict[str, dict[str, Any]] = {
        "a length that lies": {"length": 1 << 40},
        "a negative length": {"length": -1},
        "too few bytes": {"body": bytes(3)},
        "a storage not listed": {"keys": ()},
        "a storage listed twice": {"keys": ("0", "0")},
        "a storage listed that is not there": {"keys": ("0", "1")},
        "storages listed in a dict": {"keys": {"0": 1}},
    }
    for name, changes in lies.items():
        yield f"legacy, {name}", case(partial(legacy_storage, good, **changes), load_checkpoint)


def patched(path: Path, change: Callable[[bytearray], bytes | bytearray | None]) -> None:
    """A good zip checkpoint, modified."""
    zipped(tensor(b"I0\n", b"(I16\nt", b"(I1\nt"), path, data_0=bytes(64))
    whole = bytearray(path.read_bytes())
    changed = change(whole)
    path.write_bytes(whole if changed is None else changed)


def put(signature: bytes, offset: int, value: bytes) -> Callable[[bytearray], None]:
    """Write bytes into the last record of a zip file with this signature."""

    def change(whole: bytearray) -> None:
        at = whole.rindex(signature) + offset
        whole[at : at + len(value)] = value

    return change


def bomb(path: Path) -> None:
    """2 MB that decompress to 2 GB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", tensor(b"I0\n", b"(I16\nt", b"(I1\nt"))
        with archive.open("x/data/0", "w", force_zip64=True) as member:
            for _ in range(2048):
                member.write(bytes(1 << 20))


def inflating_pickle(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"N0" * 50_000_000 + b"N.")


def many_members(path: Path) -> None:
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", *(0,) * 6, *(0,) * 3, 7, *(0,) * 4, 0, 0)
    listed = b"".join(entry + b"%07d" % i for i in range(400_000))
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, len(listed), 4, 0)
    path.write_bytes(b"PK\3\4" + listed + end)


def twice(path: Path) -> None:
    import warnings

    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("x/data.pkl", b"N.")
        archive.writestr("x/data.pkl", b"I1\n.")


def same_bytes(path: Path) -> None:
    """A thousand storages that are all the same megabyte of the file."""
    first = 1 << 20
    code = b"(" + b"".join(
        tensor(b"I0\n", b"(I%d\nt" % (first // 4), b"(I1\nt", reference(b"S'%d'\n" % i, count=b"I%d\n" % (first // 4)))[
            :-1
        ]
        for i in range(1000)
    )
    names = [b"x/data.pkl", *(b"x/data/%d" % i for i in range(1000))]
    code += b"l."
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    body, listed = local + code, b""
    places = [(0, len(code))] + [(len(body), first)] * 1000
    body += local + bytes(first)
    for name, (at, size) in zip(names, places, strict=True):
        listed += struct.pack("<4s6H3L5H2L", b"PK\1\2", *(0,) * 6, 0, size, size, len(name), *(0,) * 4, 0, at) + name
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(names), len(names), len(listed), len(body), 0)
    path.write_bytes(body + listed + end)


def script(path: Path) -> None:
    zipped(b"N.", path, constants=b"")
    path.write_bytes(path.read_bytes().replace(b"x/constants", b"x/constant2"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/constants.pkl", b"N.")


CENTRAL, LOCAL, END = b"PK\1\2", b"PK\3\4", b"PK\5\6"
ZIPS: dict[str, Callable[[Path], object]] = {
    "2 MB that become 2 GB": bomb,
    "a pickle that inflates": inflating_pickle,
    "400,000 members": many_members,
    "a member twice": twice,
    "one storage a thousand times": same_bytes,
    "TorchScript": script,
    "no pickle": lambda path: zipfile.ZipFile(path, "w").writestr("x/data/0", b""),
    "two pickles": lambda path: patched(path, lambda whole: whole.replace(b"x/data/0", b"data.pkl")),
    "big-endian": lambda path: zipped(b"N.", path, byteorder=b"big"),
    "a directory beyond the end": lambda path: patched(path, put(END, 16, b"\xf0\xff\xff\x7f")),
    "a directory of 4 GB": lambda path: patched(path, put(END, 12, b"\xf0\xff\xff\xff")),
    "a directory elsewhere": lambda path: patched(path, put(END, 16, bytes(4))),
    "no end": lambda path: patched(path, put(END, 0, bytes(4))),
    "a member beyond the end": lambda path: patched(path, put(CENTRAL, 42, b"\xf0\xff\xff\x7f")),
    "a member inside another": lambda path: patched(path, put(CENTRAL, 42, b"\1\0\0\0")),
    "a member of 4 GB": lambda path: patched(path, put(CENTRAL, 20, b"\xf0\xff\xff\xff" * 2)),
    "a member of a size that is elsewhere": lambda path: patched(path, put(CENTRAL, 20, b"\xff\xff\xff\xff" * 2)),
    "a name of 64 KB": lambda path: patched(path, put(CENTRAL, 28, b"\xff\xff")),
    "a name that is no text": lambda path: patched(path, put(CENTRAL, 46, b"\xff\xfe")),
    "an encrypted member": lambda path: patched(path, put(CENTRAL, 8, b"\1")),
    "a packed member": lambda path: patched(path, put(CENTRAL, 10, b"\x08")),
    "sizes that differ": lambda path: patched(path, put(CENTRAL, 20, b"\1")),
    "a long local name": lambda path: patched(path, put(LOCAL, 26, b"\xff\xff")),
    "nothing but a beginning": lambda path: path.write_bytes(b"PK\3\4"),
    "nothing but an end": lambda path: path.write_bytes(b"PK\3\4" + END + bytes(18)),
}


# Good files with bytes changed: the result may be loaded, and must do no harm.


def good(protocol: int) -> bytes:
    """A checkpoint with a little of everything."""
    state = collections.OrderedDict(a=torch.arange(12.0).view(3, 4).t(), b=torch.ones(3, dtype=torch.float16))
    scalars = [np.float64(1.5), np.int32(3), np.arange(6, dtype=">i2").reshape(2, 3)]
    content = {"state_dict": state, "numbers": scalars, "set": {1, 2}, "path": Path("x"), "bytes": bytearray(b"ab")}
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=protocol % 2 == 0, pickle_protocol=max(2, protocol))
    return buffer.getvalue()


def mutated(path: Path, seed: int) -> None:
    """Some bytes flipped, set, removed or doubled, mostly within the pickle."""
    chance = random.Random(seed)
    code = bytearray(pickle.dumps([np.arange(3), np.float64(1), {"a": (1, "b", b"c")}], seed % 6))
    whole = code if seed % 3 == 0 else bytearray(good(seed % 6))
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(whole))
        length = chance.choice((1, 1, 1, 4, 30))
        kind = chance.randrange(4)
        if kind == 0:
            whole[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            whole[at : at + length] = chance.randbytes(length)
        elif kind == 2:
            del whole[at : at + length]
        else:
            whole[at:at] = whole[at : at + length]
    path.write_bytes(whole)


def by_chance() -> Iterator[tuple[str, Case]]:
    for seed in range(90):
        yield f"mutated {seed}", case(partial(mutated, seed=seed), load_arrays if seed % 3 == 0 else load_checkpoint)


CASES = {
    **dict(by_programs()),
    **dict(by_tensors()),
    **{f"zip: {name}": case(make, load_checkpoint) for name, make in ZIPS.items()},
    **dict(by_objects()),
    **dict(by_chance()),
}
