"""Reads PTX, as nvcc and Triton write it, into kernels with numbered instructions.

Known: .entry kernels with parameters, registers (also in nested scopes, as inline assembly makes them), labels,
.branchtargets, .shared, .local, .global and .const variables with plain initial values, .loc and .file. Not known:
functions (.func), since everything in the shipped code is inlined.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field


class PtxError(ValueError):
    """PTX that this reader does not understand; the message names the line."""


_FLOATS = {"f16", "f32", "f64", "bf16", "tf32"}
_PACKED = {"f16x2", "bf16x2", "u16x2", "s16x2"}


def type_bytes(name: str) -> int:
    """Bytes of a PTX type, such as u32 or bf16x2; 1 for pred."""
    if name == "pred":
        return 1
    if name in _PACKED:
        return 4
    if name == "tf32":
        return 4
    digits = re.fullmatch(r"(?:[busf]|bf)(\d+)", name)
    if digits is None:
        raise PtxError(f"no PTX type: {name}")
    return int(digits[1]) // 8


def is_float(name: str) -> bool:
    return name in _FLOATS


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment


@dataclass(frozen=True)
class Instruction:
    line: int
    opcode: str
    operands: list[str]
    predicate: str = ""  # a register, or ""
    negated: bool = False

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")


@dataclass(frozen=True)
class Label:
    name: str


@dataclass
class Kernel:
    """Registers are already renamed: unique in the kernel, each a C identifier."""

    name: str
    parameters: dict[str, int] = field(default_factory=dict)  # offset of each
    parameter_bytes: int = 0
    registers: dict[str, str] = field(default_factory=dict)  # C name -> PTX type
    local: dict[str, int] = field(default_factory=dict)  # bytes of each .local variable
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    body: list[Instruction | Label] = field(default_factory=list)


@dataclass(frozen=True)
class Variable:
    """A .global or .const variable: its first bytes; the rest is zero."""

    size: int
    alignment: int
    initial: bytes


@dataclass
class Program:
    kernels: list[Kernel] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)  # offset of each .shared variable
    shared_bytes: int = 0  # of the static ones; .extern variables begin here
    variables: dict[str, Variable] = field(default_factory=dict)
    sources: dict[int, tuple[str, int]] = field(default_factory=dict)  # PTX line -> source file and line


def c_name(name: str) -> str:
    return "r_" + re.sub(r"\W", "_", name.lstrip("%"))


def split_operands(text: str) -> list[str]:
    """Splits at commas outside brackets."""
    operands: list[str] = []
    depth, start = 0, 0
    for i, character in enumerate(text):
        if character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        elif character == "," and depth == 0:
            operands.append(text[start:i].strip())
            start = i + 1
    last = text[start:].strip()
    return [*operands, last] if last else operands


def _strip_comments(text: str) -> str:
    """Removes comments, keeping every line where it is."""
    text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match[0].count("\n"), text, flags=re.S)
    return re.sub(r"//[^\n]*", "", text)


def _statements(body: str, line: int) -> Iterator[tuple[int, str]]:
    """Statements of a kernel with their lines: 'instruction', 'label:', '{' and '}'."""
    start, depth = 0, 0

    newlines = [match.start() for match in re.finditer("\n", body)]

    def line_at(position: int) -> int:
        while position < len(body) and body[position].isspace():
            position += 1
        return line + bisect.bisect_left(newlines, position)

    for mark in re.finditer(r"[{};:\n]", body):
        i, character = mark.start(), mark[0]
        pending = body[start:i].strip()
        if character == "{" and not pending:
            yield line_at(i), "{"
            start = i + 1
        elif character == "{":
            depth += 1
        elif character == "}" and depth:
            depth -= 1
        elif character == "}":
            yield line_at(i), "}"
            start = i + 1
        elif character == ";" and not depth:
            if pending:
                yield line_at(start), re.sub(r"\s+", " ", pending)
            start = i + 1
        elif character == ":" and re.fullmatch(r"[\w$%.]+", pending) and body[i + 1 : i + 2] != ":":
            yield line_at(start), pending + ":"
            start = i + 1
        elif character == "\n" and re.match(r"\.(loc|file)\b", pending):
            yield line_at(start), re.sub(r"\s+", " ", pending)
            start = i + 1
    if body[start:].strip():
        raise PtxError(f"PTX line {line_at(start)}: unfinished statement {body[start:].strip()[:60]!r}")


_IGNORED = ("pragma", "reqntid", "maxntid", "minnctapersm", "maxnreg", "section", "callprototype")


class _KernelReader:
    """Names inside a kernel: registers by scope."""

    def __init__(self, kernel: Kernel, program: Program, files: dict[int, str]) -> None:
        self.kernel, self.program, self.files = kernel, program, files
        self.scopes: list[dict[str, str]] = [{}]
        self.source: tuple[str, int] | None = None
        self.last_label = ""

    def read(self, body: str, line: int) -> None:
        for at, statement in _statements(body, line):
            if statement == "{":
                self.scopes.append({})
            elif statement == "}":
                self.scopes.pop()
            elif statement.endswith(":"):
                self.last_label = statement[:-1]
                self.kernel.body.append(Label(self.label(self.last_label)))
            elif statement.startswith("."):
                self.directive(statement, at)
            else:
                self.instruction(statement, at)

    def label(self, name: str) -> str:
        return "L_" + re.sub(r"\W", "_", name)

    def declare(self, name: str, kind: str) -> None:
        unique = c_name(name)
        while unique in self.kernel.registers:
            unique += "_"
        self.kernel.registers[unique] = kind
        self.scopes[-1][name] = unique

    def directive(self, statement: str, line: int) -> None:
        kind = statement[1:].partition(" ")[0]
        if kind == "reg":
            match = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement)
            if match is None:
                raise PtxError(f"PTX line {line}: {statement}")
            for name in split_operands(match[2]):
                many = re.fullmatch(r"(.+)<(\d+)>", name)
                for register in [many[1] + str(i) for i in range(int(many[2]))] if many else [name]:
                    self.declare(register, match[1])
        elif kind == "local":
            match = re.match(r"\.local\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?", statement)
            if match is None:
                raise PtxError(f"PTX line {line}: {statement}")
            self.kernel.local[c_name(match[2])] = type_bytes(match[1]) * int(match[3] or 1)
            self.scopes[-1][match[2]] = c_name(match[2])
        elif kind == "branchtargets":
            names = statement.removeprefix(".branchtargets").split(",")
            self.kernel.branch_targets[self.last_label] = [self.label(name.strip()) for name in names]
        elif kind == "loc":
            numbers = statement.split()
            self.source = (self.files.get(int(numbers[1]), "?"), int(numbers[2]))
        elif kind not in (*_IGNORED, "shared", "extern", "file"):
            raise PtxError(f"PTX line {line}: unknown directive {statement[:60]}")

    def instruction(self, statement: str, line: int) -> None:
        match = re.match(r"(?:@(!?)(%?[\w$]+)\s+)?([\w.:]+)\s*(.*)$", statement)
        if match is None:
            raise PtxError(f"PTX line {line}: {statement[:80]}")
        negated, predicate, opcode, rest = match.groups()
        operands = [self.rename(operand) for operand in split_operands(rest)]
        guard = self.rename(predicate) if predicate else ""
        self.kernel.body.append(Instruction(line, opcode, operands, guard, bool(negated)))
        if self.source is not None:
            self.program.sources[line] = self.source

    def rename(self, operand: str) -> str:
        """Puts the C names of registers and .local variables in an operand, innermost scope first."""

        def replace(match: re.Match[str]) -> str:
            for scope in reversed(self.scopes):
                if match[0] in scope:
                    return scope[match[0]]
            return match[0]

        return re.sub(r"%?[A-Za-z_$][\w$]*|%\d+", replace, operand)


_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+)?(?:\.(?:global|shared|const|local)\s+)?"
    r"(?:\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?"
)
_SHARED = re.compile(r"(\.extern\s+)?\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$.]+)(?:\[(\d*)\])?")
_VARIABLE = re.compile(
    r"^\s*(?:\.visible\s+|\.weak\s+)?\.(?:global|const)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$.]+)(?:\[(\d*)\])?"
    r"(?:\s*=\s*(\{[^}]*\}|[^;]*))?\s*;",
    re.M,
)
_BRACE = re.compile("[{}]")
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", re.S)


def _variable(match: re.Match[str], line: int) -> Variable:
    size = type_bytes(match[2])
    words = re.findall(r"[^\s,{}]+", match[5] or "")
    try:
        initial = b"".join((int(word.rstrip("U"), 0) % (1 << 8 * size)).to_bytes(size, "little") for word in words)
    except ValueError:
        raise PtxError(f"PTX line {line}: initial value of {match[3]} is not made of integers") from None
    count = int(match[4]) if match[4] else (1 if match[4] is None else len(words))
    return Variable(max(size * count, len(initial)), int(match[1] or size), initial)


def parse(ptx: str) -> Program:
    """The kernels and variables of a PTX file. Raises PtxError where the text is not understood."""
    text = _strip_comments(ptx)
    program = Program()
    files = {int(m[1]): m[2] for m in re.finditer(r"^\s*\.file\s+(\d+)\s+\"([^\"]*)\"(?:\s*,.*)?$", text, re.M)}

    extern: list[str] = []
    for match in _SHARED.finditer(text):
        if match[1]:
            extern.append(match[4])
            continue
        program.shared[match[4]] = _align(program.shared_bytes, int(match[2] or type_bytes(match[3])))
        program.shared_bytes = program.shared[match[4]] + type_bytes(match[3]) * int(match[5] or 1)
    program.shared_bytes = _align(program.shared_bytes, 16)
    program.shared.update(dict.fromkeys(extern, program.shared_bytes))
    for match in _VARIABLE.finditer(text):
        program.variables[match[3]] = _variable(match, text.count("\n", 0, match.start()) + 1)

    for match in _ENTRY.finditer(text):
        depth, end = 1, match.end()
        while depth:
            brace = _BRACE.search(text, end)
            if brace is None:
                raise PtxError(f"{match[1]}: no end of it")
            depth += 1 if brace[0] == "{" else -1
            end = brace.end()
        kernel = Kernel(match[1])
        for parameter in split_operands(match[2]):
            found = _PARAMETER.search(parameter)
            if found is None:
                raise PtxError(f"{kernel.name}: parameter {parameter!r}")
            size = type_bytes(found[2])
            offset = _align(kernel.parameter_bytes, int(found[1] or size))
            kernel.parameters[found[3]] = offset
            kernel.parameter_bytes = offset + size * int(found[4] or 1)
        line = text.count("\n", 0, match.end()) + 1
        _KernelReader(kernel, program, files).read(text[match.end() : end - 1], line)
        program.kernels.append(kernel)
    if re.search(r"^\s*(?:\.visible\s+|\.weak\s+)?\.func\b", text, re.M):
        raise NotImplementedError("PTX with functions (.func): everything is expected to be inlined")
    return program
