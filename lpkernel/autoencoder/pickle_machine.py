"""A machine for pickles that makes data and runs nothing.

A pickle is a program for a stack machine. This one has no way to import, to call what a file names or to set an
attribute: each name that a file may use stands for a function of this module, and these make only plain values, NumPy
arrays of plain numbers, tensors within their storage, and empty placeholders for objects of training frameworks.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import IO, Any, BinaryIO, cast

import numpy as np
import torch

from lpkernel.errors import short

MAX_STEPS = 300_000  # opcodes of a pickle; a checkpoint has some 30 for each tensor
MAX_DEPTH = 100  # of nested containers
MAX_AXES = 32
MAX_KEY = 4096  # characters
MAX_NAME = 256  # characters of a module, and of a name in it
MAX_LINE = 1 << 16  # bytes of a line in the old text protocol
SPARE = 16 << 20  # bytes that a small file may stand for beyond its size

# Objects that checkpoints carry besides the weights and that are not needed here.
INERT_MODULES = (
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "torch.optim",
    "torchmetrics",
    "taming",
    "ldm",
    "pathlib",
)
INERT_NAMES = {("argparse", "Namespace"), ("typing", "Any"), ("typing", "Union")}
# Types that are only mentioned (a defaultdict's factory, a config's field), never called.
MENTIONED = {"object", "int", "float", "bool", "str", "list", "dict", "tuple"}
BUILTINS = ("builtins", "__builtin__")

# Objects of a TorchScript archive, whose code is elsewhere in it and never read.
SCRIPTED = "__torch__."

NDARRAY = "numpy.ndarray"
_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
KINDS = {code: np.dtype(code) for code in _CODES}
TORCH_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class Refused(Exception):
    """The pickle asks for more than data."""


class Placeholder:
    """Stands for an object of a training framework: nothing of what the pickle gives it is kept."""

    __slots__ = ()


class Name:
    """Stands for a class or function that a pickle names; `make` is what a call of it does."""

    __slots__ = ("make", "text")

    def __init__(self, text: str, make: Callable[..., Any] | None) -> None:
        self.text, self.make = text, make


class _Unfinished:
    """What BUILD completes: `finish` takes the state and returns the value that replaces this object."""

    __slots__ = ("finish", "value")

    def __init__(self, finish: Callable[[Any], Any]) -> None:
        self.finish = finish
        self.value: Any = None


_MARK = object()


def as_count(value: object) -> int:
    """A size, offset or stride."""
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise Refused("it has a size that is not a count")
    return value


def _counts(value: object) -> tuple[int, ...]:
    if type(value) not in (tuple, list) or len(value) > MAX_AXES:  # type: ignore[arg-type]
        raise Refused("it has a shape that is not a short tuple")
    return tuple(map(as_count, value))  # type: ignore[call-overload]


def _short_text(value: object) -> bool:
    return type(value) is str and len(value) <= MAX_KEY


def as_key(value: Any) -> Any:
    """A key of a dict or set, of a kind whose hash is quick and cannot be chosen to collide with many others."""
    plain = value is None or type(value) in (bool, float, Name, Placeholder, torch.dtype)
    plain = plain or (type(value) is int and -(1 << 60) < value < 1 << 60)
    plain = plain or (type(value) in (str, bytes) and len(value) <= MAX_KEY)
    plain = plain or (type(value) is tuple and len(value) <= 16 and all(_short_text(part) for part in value))
    if not plain:
        raise Refused(f"it has a key of kind {type(value).__name__}")
    return value


def _find(module: str, name: str, scripted: bool) -> Name | torch.dtype:
    """What a name stands for."""
    text = f"{module}.{name}"
    if scripted and module.startswith(SCRIPTED):
        return Name(text, _attributes)
    if scripted and (module, name) == ("torch.jit._pickle", "build_intlist"):
        return Name(text, _integers)
    if (module, name) in _FUNCTIONS:
        return Name(text, _FUNCTIONS[module, name])
    if module == "torch" and name in TORCH_DTYPES:
        return TORCH_DTYPES[name]
    if (module in BUILTINS and name in MENTIONED) or (module == "torch" and name in STORAGES) or text == NDARRAY:
        return Name(text, None)
    inert = any(module == known or module.startswith(known + ".") for known in INERT_MODULES)
    if inert or (module, name) in INERT_NAMES:
        return Name(text, _placeholder)
    raise Refused(f"it names {short(text)}, which is not a tensor, array or plain container")


class Machine:
    """Executes pickles from `file`, of `size` bytes; `persistent` returns what a torch file keeps beside them.

    scripted: the pickle is that of a TorchScript archive, whose objects become dicts of their attributes.
    """

    def __init__(
        self, file: BinaryIO, size: int, persistent: Callable[[Any], Any] | None = None, scripted: bool = False
    ) -> None:
        self.file, self.size = file, size
        self.persistent, self.scripted = persistent, scripted
        self.room = limit(size)
        self.names: dict[tuple[str, str], Name | torch.dtype] = {}
        self.steps = 0

    # pickletools reads through these three: lengths that a file claims are cut to what it has.
    def read(self, count: int) -> bytes:
        return self.file.read(count if count < MAX_LINE else min(count, max(0, self.size - self.file.tell())))

    def readline(self) -> bytes:
        return self.file.readline(MAX_LINE)

    def tell(self) -> int:
        return self.file.tell()

    def load(self) -> Any:
        """The value of the pickle at the file's position, which moves past it."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(cast(IO[bytes], self)):
            self.steps += 1
            if self.steps > MAX_STEPS:
                raise Refused(f"it has more than {MAX_STEPS} steps")
            if opcode.name == "STOP":
                break
            _STEPS[opcode.name](self, argument)
        value = self.pop()
        check_value(value, self.size)
        return value

    def spend(self, size: int) -> None:
        """Count bytes that the file expands to, so that a small file cannot expand to much."""
        self.room -= size
        if self.room < 0:
            raise Refused("it stands for much more than the file holds")

    def pop(self) -> Any:
        if not self.stack or (value := self.stack.pop()) is _MARK:
            raise Refused("its stack is empty where a value is needed")
        return value

    def pop_mark(self) -> list[Any]:
        """The values above the last mark."""
        items: list[Any] = []
        while self.stack:
            if (value := self.stack.pop()) is _MARK:
                items.reverse()
                return items
            items.append(value)
        raise Refused("a mark is missing on its stack")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def put(self, index: int | None) -> None:
        value = self.pop()
        self.push(value)
        self.memo[len(self.memo) if index is None else index] = value

    def get(self, index: int) -> None:
        value = self.memo.get(index, _MARK)
        if value is _MARK:
            raise Refused("it uses a value before it is there")
        self.push(value.value if type(value) is _Unfinished and value.value is not None else value)

    def duplicate(self) -> None:
        value = self.pop()
        self.stack += [value, value]

    def add(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is list:
            target += items
        elif type(target) is set:
            target.update(map(as_key, items))
        elif type(target) is not Placeholder:
            raise Refused(f"it adds to {type(target).__name__}")
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is dict:
            target |= _pairs(items)
        elif type(target) is not Placeholder:
            raise Refused(f"it sets items of {type(target).__name__}")
        self.push(target)

    def name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str or max(len(module), len(name)) > MAX_NAME:
            raise Refused("it names something by other than a short text")
        key = (module, name)
        if key not in self.names:
            self.names[key] = _find(module, name, self.scripted)
        self.push(self.names[key])

    def call(self, function: object, arguments: object) -> None:
        if type(function) is not Name or function.make is None or type(arguments) is not tuple:
            what = short(function.text) if type(function) is Name else type(function).__name__
            raise Refused(f"it calls {what}")
        self.spend(8 * len(arguments))
        try:
            self.push(function.make(self, *arguments))
        except TypeError as error:  # a wrong number of arguments
            raise Refused(f"it calls {short(function.text)} with wrong arguments") from error

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if type(target) is _Unfinished:
            target.value = target.finish(state)
            target = target.value
        elif type(target) not in (dict, Placeholder):  # which ignore attributes
            raise Refused(f"it sets the state of {type(target).__name__}")
        self.push(target)

    def persist(self, key: object) -> None:
        if self.persistent is None:
            raise Refused("it refers to data outside the pickle")
        self.push(self.persistent(key))


def limit(size: int) -> int:
    """Bytes that a file of `size` bytes may stand for."""
    return 4 * size + SPARE


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise Refused("it has a key without a value")
    return {as_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}


# The functions that a pickle may call. Each takes the machine as its first argument.


def _placeholder(_machine: Machine, *_arguments: object) -> Placeholder:
    return Placeholder()


def _attributes(machine: Machine) -> _Unfinished:
    """An object of a TorchScript archive: a dict of its attributes."""
    machine.spend(64)

    def finish(state: Any) -> dict[Any, Any]:
        if type(state) is not dict:
            raise Refused("it has a module without attributes")
        return state

    return _Unfinished(finish)


def _integers(machine: Machine, values: object) -> list[Any]:
    machine.spend(8 * len(values) if type(values) is list else 0)
    if type(values) is not list or not all(type(value) is int for value in values):
        raise Refused("it has a list of integers that holds other things")
    return values


def _reconstructor(_machine: Machine, cls: object, _base: object, _state: object) -> Placeholder:
    if type(cls) is not Name or cls.make is not _placeholder:
        raise Refused("it builds an object of a class that it does not name or that is not inert")
    return Placeholder()


def _copied(machine: Machine, items: object, *kinds: type) -> Any:
    """`items`, of one of these kinds, whose copy is counted."""
    if type(items) not in kinds:
        raise Refused(f"it makes a container from {type(items).__name__}")
    machine.spend(64 * len(items))  # type: ignore[arg-type]
    return items


def _set(machine: Machine, items: object) -> set[Any]:
    return set(map(as_key, _copied(machine, items, list, tuple)))


def _frozenset(machine: Machine, items: object) -> frozenset[Any]:
    return frozenset(_set(machine, items))


def _dict(machine: Machine, items: object = ()) -> dict[Any, Any]:
    """An OrderedDict or Counter."""
    pairs = _copied(machine, items, list, tuple, dict)
    if type(pairs) is dict:
        return dict(pairs)
    return {as_key(key): value for key, value in (_pair(pair) for pair in pairs)}


def _pair(value: Any) -> Any:
    if type(value) not in (list, tuple) or len(value) != 2:
        raise Refused("it has a dict not made of pairs")
    return value


def _defaultdict(_machine: Machine, _factory: object = None) -> dict[Any, Any]:
    return {}


def _size(_machine: Machine, sizes: object = ()) -> tuple[int, ...]:
    return _counts(sizes)


def _device(_machine: Machine, kind: object, _index: object = None) -> str:
    """The kind of a device; where a tensor was does not matter."""
    if type(kind) is not str:
        raise Refused("it has a device without a name")
    return short(kind)


def _complex(_machine: Machine, real: object, imaginary: object) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise Refused("it has a complex number not made of numbers")
    return complex(real, imaginary)


def _bytes(machine: Machine, data: object = b"", encoding: object = None) -> bytes:
    """bytes() and bytearray(...) of bytes or Latin-1 text."""
    if type(data) is str:
        return _encode(machine, data, encoding)
    if type(data) is not bytes or encoding is not None:
        raise Refused(f"it makes bytes from {type(data).__name__}")
    return data


def _encode(machine: Machine, text: object, encoding: object = "latin1") -> bytes:
    latin = type(encoding) is str and encoding in ("latin1", "latin-1")  # what pickle itself writes, for bytes
    if not latin or type(text) is not str:
        raise Refused("it encodes other than text as Latin-1")
    machine.spend(len(text))
    return text.encode("latin1")


def _numpy_dtype(_machine: Machine, code: object, _align: object = False, _copy: object = True) -> _Unfinished:
    if type(code) is not str or code not in KINDS:
        raise Refused("it has a NumPy dtype that is not for plain numbers")
    kind = KINDS[code]

    def finish(state: Any) -> np.dtype[Any]:
        order = state[1] if type(state) is tuple and len(state) == 8 else None
        rest = [None, None, None, -1, -1, 0]  # no parts, no shape of parts, sizes as usual, no flags
        usual = order is not None and all(type(a) is type(b) and a == b for a, b in zip(state[2:], rest, strict=True))
        if not usual or order not in ("<", ">", "|", "="):
            raise Refused("it has a NumPy dtype with more than a byte order")
        return kind.newbyteorder(order)

    return _Unfinished(finish)


def _array(machine: Machine, shape: object, dtype: object, order: str, data: object) -> np.ndarray:
    """An array on `data`, whose size must match to the byte."""
    sizes = _counts(shape)
    if not isinstance(dtype, np.dtype) or type(data) is not bytes:
        raise Refused("it has a NumPy array not made of plain numbers")
    machine.spend(math.prod(max(1, size) for size in sizes) * dtype.itemsize)
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise Refused(f"it has an array of shape {sizes} on {len(data)} bytes")
    flat = np.frombuffer(data, np.uint8) != 0 if dtype.kind == "b" else np.frombuffer(data, dtype)
    return flat.reshape(sizes, order="F" if order == "F" else "C")


def _reconstruct(machine: Machine, cls: object, _shape: object, _code: object) -> _Unfinished:
    if type(cls) is not Name or cls.text != NDARRAY:
        raise Refused("it has a NumPy array of another class")

    def finish(state: Any) -> np.ndarray:
        if type(state) is not tuple or len(state) != 5:
            raise Refused("it has a NumPy array without shape, dtype and data")
        _version, shape, dtype, fortran, data = state
        return _array(machine, shape, dtype, "F" if fortran is True else "C", data)

    return _Unfinished(finish)


def _frombuffer(machine: Machine, data: object, dtype: object, shape: object, order: object) -> np.ndarray:
    return _array(machine, shape, dtype, "F" if type(order) is str and order == "F" else "C", data)


def _scalar(machine: Machine, dtype: object, data: object) -> Any:
    return _array(machine, (), dtype, "C", data)[()]


def _tensor(
    machine: Machine,
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object = False,
    _hooks: object = None,
    metadata: object = None,
) -> torch.Tensor:
    """A view of a storage that stays within it."""
    if type(storage) is not Storage:
        raise Refused("it has a tensor without a storage")
    start, sizes, strides = as_count(offset), _counts(size), _counts(stride)
    empty = 0 in sizes
    last = start + sum((length - 1) * step for length, step in zip(sizes, strides, strict=False))
    if len(sizes) != len(strides) or (not empty and last >= len(storage.values)):
        raise Refused("it has a tensor that reaches beyond its storage")
    if metadata:
        raise Refused("it has a tensor with metadata (a conjugate or negative view)")
    machine.spend(math.prod(max(1, length) for length in sizes) * storage.values.element_size())
    return storage.values.as_strided(sizes, (0,) * len(sizes) if empty else strides, 0 if empty else start)


def _parameter(_machine: Machine, data: object, *_grad_hooks_state: object) -> torch.Tensor:
    if type(data) is not torch.Tensor:
        raise Refused("it has a parameter that is not a tensor")
    return data


class Storage:
    """The numbers that tensors are views of."""

    __slots__ = ("values",)

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values


_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch", "device"): _device,
    ("torch", "Size"): _size,
    ("numpy", "dtype"): _numpy_dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): _dict,
    ("collections", "Counter"): _dict,
    ("collections", "defaultdict"): _defaultdict,
    **{(module, "_reconstructor"): _reconstructor for module in ("copyreg", "copy_reg")},
    **{
        (module, name): function
        for module in BUILTINS
        for name, function in (
            ("set", _set),
            ("frozenset", _frozenset),
            ("complex", _complex),
            ("bytes", _bytes),
            ("bytearray", _bytes),
        )
    },
}


def _cannot(_machine: Machine, _argument: object) -> None:
    raise Refused("it uses extensions or buffers that no file has")


def _call_named(machine: Machine, argument: str) -> None:
    arguments = tuple(machine.pop_mark())
    machine.name(*argument.split(" ", 1))
    machine.call(machine.pop(), arguments)


def _call_marked(machine: Machine, _argument: object) -> None:
    function, *arguments = machine.pop_mark() or [None]
    machine.call(function, tuple(arguments))


def _call_popped(machine: Machine, _argument: object) -> None:
    arguments = machine.pop()
    machine.call(machine.pop(), arguments)


def _call_with_keywords(machine: Machine, _argument: object) -> None:
    if machine.pop():
        raise Refused("it calls something with keywords")
    _call_popped(machine, None)


def _name_popped(machine: Machine, _argument: object) -> None:
    name = machine.pop()
    machine.name(machine.pop(), name)


def _last(machine: Machine, count: int) -> tuple[Any, ...]:
    items = tuple(machine.stack[-count:])
    if len(items) < count or any(item is _MARK for item in items):
        raise Refused("its stack is empty where a value is needed")
    del machine.stack[-count:]
    return items


_Step = Callable[[Machine, Any], object]
_PUSHED = "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT"
_PUSHED += " UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING"
_PUSHED += " BINBYTES SHORT_BINBYTES BINBYTES8"
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(_PUSHED.split(), Machine.push),
    "BYTEARRAY8": lambda machine, data: machine.push(bytes(data)),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    **{name: lambda _machine, _argument: None for name in ("PROTO", "FRAME")},
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.pop(),  # a mark as well
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.duplicate(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_SET": lambda machine, _: machine.push(set()),
    "LIST": lambda machine, _: machine.push(machine.pop_mark()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "DICT": lambda machine, _: machine.push(_pairs(machine.pop_mark())),
    "FROZENSET": lambda machine, _: machine.push(frozenset(map(as_key, machine.pop_mark()))),
    "TUPLE1": lambda machine, _: machine.push(_last(machine, 1)),
    "TUPLE2": lambda machine, _: machine.push(_last(machine, 2)),
    "TUPLE3": lambda machine, _: machine.push(_last(machine, 3)),
    "APPEND": lambda machine, _: machine.add([machine.pop()]),
    "APPENDS": lambda machine, _: machine.add(machine.pop_mark()),
    "ADDITEMS": lambda machine, _: machine.add(machine.pop_mark()),
    "SETITEM": lambda machine, _: machine.set_items([*_last(machine, 2)]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_mark()),
    "GLOBAL": lambda machine, text: machine.name(*text.split(" ", 1)),
    "STACK_GLOBAL": _name_popped,
    "REDUCE": _call_popped,
    "NEWOBJ": _call_popped,
    "NEWOBJ_EX": _call_with_keywords,
    "INST": _call_named,
    "OBJ": _call_marked,
    "BUILD": lambda machine, _: machine.build(),
    "PERSID": lambda machine, key: machine.persist(key),
    "BINPERSID": lambda machine, _: machine.persist(machine.pop()),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"), _cannot),
}


def check_value(root: Any, size: int) -> None:
    """Refuse a value that holds itself, nests deeply, is unfinished, or when written out would exceed what `size` bytes
    may stand for (a list of ten lists of ten lists, each the same)."""
    done: dict[int, tuple[int, int]] = {}  # containers: depth and bytes
    path = [_Visit(root)]
    inside = {id(root)}
    while True:
        top = path[-1]
        for child in top.children:
            if type(child) not in _CONTAINERS:
                top.add(0, _bytes_of(child))
            elif id(child) in done:
                top.add(*done[id(child)])
            elif id(child) in inside:
                raise Refused("it holds itself")
            else:
                inside.add(id(child))
                path.append(_Visit(child))
                break
        else:
            if top.size > limit(size):
                raise Refused("it stands for much more than the file holds")
            path.pop()
            inside.remove(id(top.value))
            done[id(top.value)] = (top.depth, top.size)
            if not path:
                return
            path[-1].add(top.depth, top.size)
        if len(path) + path[-1].depth > MAX_DEPTH:
            raise Refused(f"it nests more than {MAX_DEPTH} deep")


class _Visit:
    """A container whose content is being looked at."""

    __slots__ = ("children", "depth", "size", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        items: Iterable[Any] = chain(value.keys(), value.values()) if type(value) is dict else value
        self.children: Iterator[Any] = iter(items if type(value) in _CONTAINERS else (value,))
        self.depth, self.size = 1, 1

    def add(self, depth: int, size: int) -> None:
        self.depth, self.size = max(self.depth, depth + 1), self.size + size


_CONTAINERS = {dict, list, tuple, set, frozenset}
_LEAVES = (str, bytes, int, float, complex, type(None), torch.Tensor, torch.dtype, np.ndarray, np.generic, np.dtype)


def _bytes_of(leaf: Any) -> int:
    if isinstance(leaf, torch.Tensor | np.ndarray):
        return int(leaf.nbytes)
    if not isinstance(leaf, (*_LEAVES, Name, Placeholder)):
        raise Refused("it uses an object before it is whole")
    return 1 + (len(leaf) if isinstance(leaf, str | bytes) else 0)
