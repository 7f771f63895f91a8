"""Translates parsed PTX to C++ on ptx.h: one function a kernel, one statement an instruction.

Registers are variables of the unsigned type of their width; an instruction's type says how it reads them. Each
family of instructions is one function of the table _FAMILIES; it returns C++ for the instruction without its
predicate. A modifier or type that a family does not know raises NotImplementedError with the PTX line, since a
modifier that is ignored would give a wrong answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

from .parse import Instruction, Kernel, Label, Program, is_float, parse, type_bytes

_SIGNED = {"s8", "s16", "s32", "s64"}
_SPECIAL = {
    "%tid": "threadIdx",
    "%ctaid": "blockIdx",
    "%ntid": "blockDim",
    "%nctaid": "gridDim",
}
_SPECIAL_WORDS = {
    "%laneid": "simt::lane()",
    "%warpid": "(simt::fiber->linear / 32)",
    "%nwarpid": "((simt::block->threads + 31) / 32)",
    "%clock": "0u",
    "%clock64": "0ull",
    "%globaltimer": "0ull",
    "%smid": "0u",
    "%total_smem_size": "u32(simt::block->shared_bytes)",
    "%lanemask_eq": "(1u << simt::lane())",
    "%lanemask_lt": "((1u << simt::lane()) - 1)",
    "%lanemask_le": "((2u << simt::lane()) - 1)",
    "%lanemask_gt": "~((2u << simt::lane()) - 1)",
    "%lanemask_ge": "~((1u << simt::lane()) - 1)",
}
_COMPARE = {
    **{"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="},
    **{"lo": "<", "ls": "<=", "hi": ">", "hs": ">="},
}
_BOOLEAN = {"and": "&&", "or": "||", "xor": "!="}
_CACHE = {
    *("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc", "weak", "volatile", "relaxed", "acquire", "release", "acq_rel"),
    *("cta", "gpu", "sys", "cluster"),
}
_ROUND = {"rni": "std::nearbyint", "rzi": "std::trunc", "rmi": "std::floor", "rpi": "std::ceil"}


def c_type(name: str) -> str:
    """The C++ type in which a value of a PTX type is kept or read."""
    if name == "pred":
        return "bool"
    bits = 8 * type_bytes(name)
    return f"s{bits}" if name in _SIGNED else f"u{bits}"


def _unsigned(name: str) -> str:
    return f"u{8 * type_bytes(name)}"


class _Writer:
    """What the families need to know about the current kernel."""

    def __init__(self, kernel: Kernel, program: Program) -> None:
        self.kernel, self.program = kernel, program

    def value(self, operand: str, kind: str) -> str:
        """C++ for a source operand read as `kind`, a PTX type."""
        if operand.startswith("!"):
            return f"!{self.value(operand[1:], kind)}"
        if operand in self.kernel.registers:
            return f"({c_type(kind)}){operand}" if self.kernel.registers[operand] != kind else operand
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}", operand):
            return f"0x{operand[2:]}u"
        if re.fullmatch(r"0[dD][0-9a-fA-F]{16}", operand):
            return f"0x{operand[2:]}ull"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?", operand):
            digits = operand.rstrip("U")
            octal = re.fullmatch(r"(-?)0(\d+)", digits)
            number = int(octal[1] + octal[2], 8) if octal else int(digits, 0)
            bits = 8 * type_bytes(kind)
            return f"({c_type(kind)}){number % (1 << bits)}ull"
        base, _, axis = operand.partition(".")
        if base in _SPECIAL and axis in ("x", "y", "z"):
            return f"({c_type(kind)}){_SPECIAL[base]}.{axis}"
        if operand in _SPECIAL_WORDS:
            return f"({c_type(kind)}){_SPECIAL_WORDS[operand]}"
        if operand in self.program.shared:
            return f"({c_type(kind)}){self.program.shared[operand]}u"
        if operand in self.kernel.local:
            return f"(u64){operand}"
        if operand in self.kernel.parameters:
            return f"(u64)(parameters + {self.kernel.parameters[operand]})"
        if operand in self.program.variables:
            return f"(u64)v_{_identifier(operand)}"
        if operand == "WARP_SZ":
            return "32u"
        if operand in ("%SP", "%SPL"):
            raise NotImplementedError("%SP without a register of that name")
        raise NotImplementedError(f"operand {operand}")

    def number(self, operand: str, kind: str) -> str:
        """C++ for a source operand as a number: floating point from its bits, integers with their sign."""
        if kind in ("f16", "bf16", "f32", "f64"):
            return f"from_{kind}({self.value(operand, 'b' + str(8 * type_bytes(kind)))})"
        return f"({c_type(kind)}){self.value(operand, kind)}"

    def address(self, operand: str, kind: str = "u64") -> str:
        """C++ for [register + offset], without checking the address."""
        match = re.fullmatch(r"\[\s*([^+\s\]]+)\s*(?:\+\s*(-?\w+))?\s*\]", operand)
        if match is None:
            raise NotImplementedError(f"address {operand}")
        base = match[1]
        if base in self.kernel.registers:
            value = f"(u64){base}"
        elif re.fullmatch(r"-?\d\w*", base):
            value = f"(u64){int(base, 0)}ull"
        else:
            value = self.value(base, kind)
        offset = int(match[2], 0) if match[2] else 0
        return f"{value} + {offset}" if offset >= 0 else f"{value} - {-offset}"


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)


def _vector(operand: str) -> list[str]:
    return [piece.strip() for piece in operand[1:-1].split(",")] if operand.startswith("{") else [operand]


MOST_CHARACTERS = 250_000  # per C++ file, roughly: few files, compiled side by side

Family = Callable[[_Writer, Instruction], str]
_FAMILIES: dict[str, Family] = {}


def _family(*names: str) -> Callable[[Family], Family]:
    def register(function: Family) -> Family:
        _FAMILIES.update(dict.fromkeys(names, function))
        return function

    return register


def _unknown(i: Instruction) -> NotImplementedError:
    return NotImplementedError(f"PTX line {i.line}: {i.opcode} {', '.join(i.operands)}")


def _modifiers(i: Instruction, known: Iterable[str], skip: int = 1) -> set[str]:
    """The parts of the opcode between name (`skip` parts) and type; each must be known."""
    found = i.parts[skip:-1]
    if not set(found) <= set(known):
        raise _unknown(i)
    return set(found)


def _store(w: _Writer, kind: str, target: str, expression: str) -> str:
    """Assigns a floating-point number to a register that holds its bits."""
    return f"{target} = to_{kind}({expression});"


# data movement


@_family("mov")
def _mov(w: _Writer, i: Instruction) -> str:
    kind, (target, source) = i.parts[-1], i.operands
    _modifiers(i, ())
    if target.startswith("{"):
        pieces = _vector(target)
        width = 8 * type_bytes(kind) // len(pieces)
        parts = [f"{piece} = (u{width})(whole >> {width * k});" for k, piece in enumerate(pieces) if piece != "_"]
        return f"{{ const {_unsigned(kind)} whole = {w.value(source, kind)}; {' '.join(parts)} }}"
    if source.startswith("{"):
        pieces = _vector(source)
        width = 8 * type_bytes(kind) // len(pieces)
        whole = _unsigned(kind)
        values = [w.value(piece, f"u{width}") for piece in pieces]
        joined = " | ".join(f"({whole})(u{width})({value}) << {width * k}" for k, value in enumerate(values))
        return f"{target} = {joined};"
    return f"{target} = {w.value(source, kind)};"


@_family("cvta")
def _cvta(w: _Writer, i: Instruction) -> str:
    parts = i.parts
    space = next((p for p in parts if p.partition("::")[0] in ("shared", "global", "local", "param", "const")), "")
    source = f"(u64){w.value(i.operands[1], parts[-1])}"
    if not space.startswith("shared"):
        return f"{i.operands[0]} = {source};"
    return f"{i.operands[0]} = {'generic_to_shared' if 'to' in parts else 'shared_to_generic'}({source});"


def _pointer(w: _Writer, i: Instruction, space: str, operand: str, size: int) -> str:
    """C++ for a checked pointer to `size` bytes."""
    if space == "param":
        name = operand[1:-1].partition("+")[0].strip()
        if name in w.kernel.parameters:
            return f"(char*)({w.address(operand)})"
        space = "generic"
    checks = {"global": "global", "const": "global", "shared": "shared", "local": "local", "generic": "generic"}
    return f"{checks[space]}({w.address(operand)}, {size}, {i.line})"


def _space(i: Instruction) -> str:
    for part in i.parts[1:]:
        if part.partition("::")[0] in ("param", "global", "shared", "local", "const"):
            return part.partition("::")[0]
    return "generic"


@_family("ld", "ldu", "st")
def _ld_st(w: _Writer, i: Instruction) -> str:
    kind, space, size = i.parts[-1], _space(i), type_bytes(i.parts[-1])
    rest = [p for p in i.parts[1:-1] if p.partition("::")[0] not in ("param", "global", "shared", "local", "const")]
    count = 1
    for part in rest:
        if part in ("v2", "v4", "v8"):
            count = int(part[1:])
        elif part not in _CACHE and not re.fullmatch(r"L[12]::(?:evict_\w+|cache_hint|\d+B|no_allocate)", part):
            raise _unknown(i)
    if i.parts[0] == "st":
        where, what = i.operands[0], _vector(i.operands[1])
    else:
        what, where = _vector(i.operands[0]), i.operands[1]
    if len(what) != count:
        raise _unknown(i)
    plain = c_type(kind)
    pointer = f"{plain}* at = ({plain}*){_pointer(w, i, space, where, count * size)};"
    if i.parts[0] == "st":
        moves = [f"at[{k}] = ({plain}){w.value(v, kind)};" for k, v in enumerate(what)]
    else:
        moves = [f"{v} = at[{k}];" for k, v in enumerate(what) if v != "_"]
    return f"{{ {pointer} {' '.join(moves)} }}"


@_family("atom", "red")
def _atom(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    operations = {"add", "min", "max", "cas", "exch", "or", "and", "xor", "inc", "dec"}
    found = [p for p in i.parts[1:-1] if p in operations]
    known = {*_CACHE, *operations, "global", "shared", "shared::cta"}
    if len(found) != 1 or not set(i.parts[1:-1]) <= known:
        raise _unknown(i)
    returns = i.parts[0] == "atom"
    where, values = i.operands[1 if returns else 0], i.operands[2 if returns else 1 :]
    word = _unsigned(kind)
    v = [f"({c_type(kind)}){w.value(value, kind)}" for value in values]
    if is_float(kind):
        if found[0] != "add" or kind not in ("f32", "f64"):
            raise _unknown(i)
        real = "float" if kind == "f32" else "double"
        change = f"to_{kind}(({real})(from_{kind}(old) + from_{kind}({v[0]})))"
    else:
        old = f"({c_type(kind)})old"
        change = {
            "add": f"old + ({word}){v[0]}",
            "min": f"{v[0]} < {old} ? ({word}){v[0]} : old",
            "max": f"{old} < {v[0]} ? ({word}){v[0]} : old",
            "or": f"old | {v[0]}",
            "and": f"old & {v[0]}",
            "xor": f"old ^ {v[0]}",
            "exch": f"({word}){v[0]}",
            "cas": f"old == ({word}){v[0]} ? ({word}){v[-1]} : old",
            "inc": f"old >= {v[0]} ? 0 : old + 1",
            "dec": f"old == 0 || old > {v[0]} ? ({word}){v[0]} : old - 1",
        }[found[0]]
    function = f"[&]({word} old) -> {word} {{ return {change}; }}"
    call = f"atomic<{word}>({_pointer(w, i, _space(i), where, type_bytes(kind))}, {function});"
    return f"{i.operands[0]} = {call}" if returns and i.operands[0] != "_" else call


@_family("cp")
def _cp(w: _Writer, i: Instruction) -> str:
    parts = i.parts
    if parts[1] != "async":
        raise _unknown(i)
    if parts[2] == "commit_group":
        return "simt::commit_copies();"
    if parts[2] == "wait_group":
        return f"simt::wait_for_copies((int){w.value(i.operands[0], 'u32')});"
    if parts[2] == "wait_all":
        return "simt::commit_copies(); simt::wait_for_copies(0);"
    if parts[2] not in ("ca", "cg") or not all(
        p in ("shared", "global", "shared::cta") or p.startswith("L2::") for p in parts[3:]
    ):
        raise _unknown(i)
    size = i.operands[2]
    read = w.value(i.operands[3], "u32") if len(i.operands) > 3 else size
    return f"copy_async({w.address(i.operands[0])}, {w.address(i.operands[1])}, {size}, (u32){read}, {i.line});"


# control flow and synchronisation


@_family("bra")
def _bra(w: _Writer, i: Instruction) -> str:
    return "goto L_" + re.sub(r"\W", "_", i.operands[0]) + ";"


@_family("brx")
def _brx(w: _Writer, i: Instruction) -> str:
    cases = [f"case {k}: goto {name};" for k, name in enumerate(w.kernel.branch_targets[i.operands[1]])]
    return f"switch ({w.value(i.operands[0], 'u32')}) {{ {' '.join(cases)} }}"


@_family("ret", "exit")
def _ret(w: _Writer, i: Instruction) -> str:
    return "return;"


@_family("trap")
def _trap(w: _Writer, i: Instruction) -> str:
    return f'bad("trap", 0, 0, {i.line});'


@_family("membar", "fence", "prefetch", "prefetchu", "discard", "applypriority", "griddepcontrol", "pragma")
def _nothing(w: _Writer, i: Instruction) -> str:
    return ";"  # threads run in turns, and each sees what others wrote


@_family("nanosleep")
def _nanosleep(w: _Writer, i: Instruction) -> str:
    return "simt::yield_to_others();"


@_family("bar", "barrier")
def _bar(w: _Writer, i: Instruction) -> str:
    parts = [p for p in i.parts if p not in ("cta", "aligned")]
    if parts[1:] == ["warp", "sync"]:
        return f"sync_warp({w.value(i.operands[0], 'u32')}, {i.line});"
    if parts[1] == "sync":
        threads = w.value(i.operands[1], "u32") if len(i.operands) > 1 else "0"
        return f"barrier({w.value(i.operands[0], 'u32')}, {threads}, false, {i.line});"
    if parts[1] == "red":
        vote = {"popc": "sum", "and": "all", "or": "any"}[parts[2]]
        threads = w.value(i.operands[2], "u32") if len(i.operands) > 3 else "0"
        predicate = w.value(i.operands[-1], "pred")
        return f"{i.operands[0]} = barrier({w.value(i.operands[1], 'u32')}, {threads}, {predicate}, {i.line}).{vote};"
    raise _unknown(i)


@_family("shfl")
def _shfl(w: _Writer, i: Instruction) -> str:
    if i.parts[1] != "sync" or i.parts[-1] != "b32":
        raise _unknown(i)
    mode = {"idx": "kIndex", "up": "kUp", "down": "kDown", "bfly": "kButterfly"}[i.parts[2]]
    target, _, valid = i.operands[0].partition("|")
    v = ", ".join(f"(u32){w.value(operand, 'u32')}" for operand in i.operands[1:])
    call = f"shuffle({mode}, {v}, {'&' + valid.strip() if valid else 'nullptr'}, {i.line})"
    return f"{target.strip()} = {call};"


@_family("vote")
def _vote(w: _Writer, i: Instruction) -> str:
    if i.parts[1] != "sync":
        raise _unknown(i)
    predicate, mask = w.value(i.operands[1], "pred"), w.value(i.operands[2], "u32")
    votes = f"ballot({predicate}, {mask}, {i.line})"
    against = f"ballot(!({predicate}), {mask}, {i.line})"
    expression = {"ballot": votes, "any": f"{votes} != 0", "all": f"{against} == 0"}.get(i.parts[2])
    if expression is None:
        raise _unknown(i)
    return f"{i.operands[0]} = {expression};"


@_family("match")
def _match(w: _Writer, i: Instruction) -> str:
    target, _, same = i.operands[0].partition("|")
    word, mask = _unsigned(i.parts[-1]), w.value(i.operands[2], "u32")
    v = f"({word}){w.value(i.operands[1], i.parts[-1])}, {mask}"
    if i.parts[1] == "any":
        return f"{target} = match_any<{word}>({v}, {i.line});"
    return f"{target.strip()} = match_all<{word}>({v}, {'&' + same.strip() if same else 'nullptr'}, {i.line});"


@_family("activemask")
def _activemask(w: _Writer, i: Instruction) -> str:
    return f"{i.operands[0]} = simt::warp().live;"


@_family("elect")
def _elect(w: _Writer, i: Instruction) -> str:
    target, _, elected = i.operands[0].partition("|")
    chosen = f"const u32 first = __builtin_ctz(present({w.value(i.operands[1], 'u32')}, {i.line}));"
    lane = "" if target.strip() == "_" else f"{target.strip()} = first;"
    return f"{{ {chosen} {lane} {elected.strip()} = first == simt::lane(); }}"


@_family("redux")
def _redux(w: _Writer, i: Instruction) -> str:
    plain = c_type(i.parts[-1])
    join = {
        **{"add": "x + y", "min": "x < y ? x : y", "max": "x > y ? x : y"},
        **{"and": "x & y", "or": "x | y", "xor": "x ^ y"},
    }.get(i.parts[2])
    if join is None or i.parts[1] != "sync" or len(i.parts) != 4 or is_float(i.parts[-1]):
        raise _unknown(i)
    value, mask = w.value(i.operands[1], i.parts[-1]), w.value(i.operands[2], "u32")
    function = f"[]({plain} x, {plain} y) -> {plain} {{ return {join}; }}"
    return f"{i.operands[0]} = reduce<{plain}>({value}, {mask}, {function}, {i.line});"


# predicates, logic, shifts


@_family("setp")
def _setp(w: _Writer, i: Instruction) -> str:
    kind, compare = i.parts[-1], i.parts[1]
    boolean = [p for p in i.parts[2:-1] if p in _BOOLEAN]
    if len(boolean) != len(i.parts) - 3:
        raise _unknown(i)
    a, b = w.number(i.operands[1], kind), w.number(i.operands[2], kind)
    unordered = f"({a} != {a} || {b} != {b})"
    if is_float(kind) and compare in ("num", "nan"):
        test = unordered if compare == "nan" else f"!{unordered}"
    elif is_float(kind) and compare.endswith("u") and compare[:-1] in _COMPARE:
        test = f"({unordered} || {a} {_COMPARE[compare[:-1]]} {b})"
    elif is_float(kind) and compare == "ne":
        test = f"({a} < {b} || {a} > {b})"
    elif compare in _COMPARE:
        test = f"({a} {_COMPARE[compare]} {b})"
    else:
        raise _unknown(i)
    with_third = f" {_BOOLEAN[boolean[0]]} ({w.value(i.operands[3], 'pred')})" if boolean else ""
    target, _, other = i.operands[0].partition("|")
    first = f"{target.strip()} = {test}{with_third};"
    if not other:
        return first
    second = f"{other.strip()} = !test{with_third};"
    return f"{{ const bool test = {test}; {target.strip()} = test{with_third}; {second} }}"


@_family("selp")
def _selp(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    a, b = (w.value(operand, kind) for operand in i.operands[1:3])
    return f"{i.operands[0]} = {w.value(i.operands[3], 'pred')} ? {a} : {b};"


@_family("and", "or", "xor")
def _logic(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    a, b = (w.value(operand, kind) for operand in i.operands[1:3])
    if kind == "pred":
        return f"{i.operands[0]} = {a} {_BOOLEAN[i.parts[0]]} {b};"
    return f"{i.operands[0]} = {a} { {'and': '&', 'or': '|', 'xor': '^'}[i.parts[0]] } {b};"


@_family("not")
def _not(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    return f"{i.operands[0]} = {'!' if kind == 'pred' else '~'}{w.value(i.operands[1], kind)};"


@_family("shl")
def _shl(w: _Writer, i: Instruction) -> str:
    word = _unsigned(i.parts[-1])
    return (
        f"{i.operands[0]} = shift_left<{word}>({w.value(i.operands[1], i.parts[-1])}, {w.value(i.operands[2], 'u32')});"
    )


@_family("shr")
def _shr(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    value, by = w.number(i.operands[1], kind), w.value(i.operands[2], "u32")
    return f"{i.operands[0]} = shift_right<{c_type(kind)}>({value}, {by});"


@_family("shf")
def _shf(w: _Writer, i: Instruction) -> str:
    a, b, c = (w.value(operand, "u32") for operand in i.operands[1:])
    if i.parts[1] not in ("l", "r") or i.parts[2] not in ("wrap", "clamp"):
        raise _unknown(i)
    left, clamp = str(i.parts[1] == "l").lower(), str(i.parts[2] == "clamp").lower()
    return f"{i.operands[0]} = funnel({left}, {clamp}, {a}, {b}, {c});"


@_family("lop3", "prmt")
def _three_words(w: _Writer, i: Instruction) -> str:
    name = {"lop3": "lop3", "prmt": "permute"}[i.parts[0]]
    if i.parts[1:] != ["b32"]:
        raise _unknown(i)
    return f"{i.operands[0]} = {name}({', '.join(w.value(operand, 'u32') for operand in i.operands[1:])});"


@_family("popc", "clz", "brev", "bfind")
def _bits(w: _Writer, i: Instruction) -> str:
    kind, target = i.parts[-1], i.operands[0]
    v = f"({_unsigned(kind)}){w.value(i.operands[1], kind)}"
    width = 8 * type_bytes(kind)
    if i.parts[0] == "popc":
        return f"{target} = __builtin_popcountll({v});"
    if i.parts[0] == "clz":
        return f"{{ const u64 v = {v}; {target} = v == 0 ? {width} : __builtin_clzll(v) - {64 - width}; }}"
    if i.parts[0] == "brev":
        return f"{target} = reverse_bits<{_unsigned(kind)}>({v});"
    if kind in _SIGNED:
        v = f"({_unsigned(kind)})({w.number(i.operands[1], kind)} < 0 ? ~{v} : {v})"
    return f"{target} = find_high({v}, {str('shiftamt' in i.parts).lower()}, {width});"


@_family("bfe", "bfi")
def _field(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    plain = c_type(kind)
    values = [w.number(o, kind) for o in i.operands[1:-2]]
    where = [w.value(o, "u32") for o in i.operands[-2:]]
    name = "field_extract" if i.parts[0] == "bfe" else "field_insert"
    return f"{i.operands[0]} = {name}<{plain}>({', '.join([*values, *where])});"


# arithmetic

_EXACT = ("rn",)
_REAL_UNARY = {
    **{"rcp": "1 / {}", "sqrt": "std::sqrt({})", "rsqrt": "1 / std::sqrt({})", "ex2": "std::exp2({})"},
    **{"lg2": "std::log2({})", "sin": "std::sin({})", "cos": "std::cos({})", "tanh": "std::tanh({})"},
}


def _real(w: _Writer, i: Instruction) -> str:
    """add, sub, mul, fma, div, min, max, neg, abs of floating point, or of two halves in a word."""
    name, kind = i.parts[0], i.parts[-1]
    known = {*_EXACT, "approx", "full", "ftz"} if name == "div" else {*_EXACT}
    _modifiers(i, known)
    packed = kind in ("f16x2", "bf16x2")
    one = kind.removesuffix("x2")
    if packed:
        operands = [f"from_{one}({letter})" for letter in "abc"[: len(i.operands) - 1]]
    else:
        operands = [w.number(operand, kind) for operand in i.operands[1:]]
    wide = operands if one in ("f32", "f64") else [f"(double){operand}" for operand in operands]
    symbol = {"add": "+", "sub": "-", "mul": "*", "div": "/"}.get(name)
    if symbol:
        expression = f"{wide[0]} {symbol} {wide[1]}"
    elif name in ("fma", "mad"):
        expression = f"std::fma({', '.join(wide)})"
    elif name in ("min", "max"):
        expression = f"float_{name}({operands[0]}, {operands[1]})"
    elif name in ("neg", "abs"):
        expression = f"-{operands[0]}" if name == "neg" else f"std::fabs({operands[0]})"
    else:
        raise _unknown(i)
    if not packed:
        return _store(w, kind, i.operands[0], expression)
    words = [*(w.value(operand, "b32") for operand in i.operands[1:]), "0", "0"][:3]
    function = f"[](u16 a, u16 b, u16 c) -> u16 {{ (void)b; (void)c; return to_{one}({expression}); }}"
    return f"{i.operands[0]} = halves({', '.join(words)}, {function});"


def _is_real(kind: str) -> bool:
    return is_float(kind) or kind in ("f16x2", "bf16x2")


@_family("add", "sub")
def _add(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    if _is_real(kind):
        return _real(w, i)
    symbol = "+" if i.parts[0] == "add" else "-"
    if _modifiers(i, ("sat",)):
        wide = [f"(s64){w.number(operand, kind)}" for operand in i.operands[1:]]
        return f"{i.operands[0]} = clamp<{c_type(kind)}>({wide[0]} {symbol} {wide[1]});"
    word = _unsigned(kind)
    a, b = (f"({word})({w.value(operand, kind)})" for operand in i.operands[1:])
    return f"{i.operands[0]} = ({word})({a} {symbol} {b});"


@_family("mul", "mad", "fma")
def _mul(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    if _is_real(kind):
        return _real(w, i)
    half = _modifiers(i, ("lo", "hi", "wide"))
    if len(half) != 1:
        raise _unknown(i)
    which, bits = half.pop(), 8 * type_bytes(kind)
    wide = f"{'s' if kind in _SIGNED else 'u'}{2 * bits}"
    word, product_word = f"u{bits}", f"u{2 * bits}"
    product = f"(({wide})({w.number(i.operands[1], kind)}) * ({wide})({w.number(i.operands[2], kind)}))"
    if which == "wide":
        word, product = product_word, f"({product_word}){product}"
    elif which == "hi":
        product = f"({word})({product} >> {bits})"
    else:
        product = f"({word}){product}"
    if i.parts[0] == "mad":
        third = w.value(i.operands[3], f"u{2 * bits}" if which == "wide" else kind)
        product = f"({word})({product} + ({word})({third}))"
    return f"{i.operands[0]} = {product};"


@_family("div", "rem")
def _div(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    if is_float(kind):
        return _real(w, i)
    _modifiers(i, ())
    a, b = (w.number(operand, kind) for operand in i.operands[1:])
    return f"{i.operands[0]} = {a} {'/' if i.parts[0] == 'div' else '%'} {b};"


@_family("min", "max")
def _min_max(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    if _is_real(kind):
        return _real(w, i)
    _modifiers(i, ())
    a, b = (w.number(operand, kind) for operand in i.operands[1:])
    return f"{i.operands[0]} = {a} {'<' if i.parts[0] == 'min' else '>'} {b} ? {a} : {b};"


@_family("neg", "abs")
def _neg(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    if _is_real(kind):
        return _real(w, i)
    _modifiers(i, ())
    word = _unsigned(kind)
    v = f"({word}){w.value(i.operands[1], kind)}"
    return (
        f"{i.operands[0]} = {f'-{v}' if i.parts[0] == 'neg' else f'{w.number(i.operands[1], kind)} < 0 ? -{v} : {v}'};"
    )


@_family("dp4a", "dp2a")
def _dot(w: _Writer, i: Instruction) -> str:
    parts = i.parts
    first, second = parts[-2:]
    wide = 8 if parts[0] == "dp4a" else 16
    a_type, b_type = f"{first[0]}{wide}", f"{second[0]}8"
    skip = 2 if parts[0] == "dp2a" and parts[1] == "hi" else 0
    a, b, c = (w.value(operand, "u32") for operand in i.operands[1:])
    return f"{i.operands[0]} = simt::dot<{a_type}, {b_type}>({a}, {b}, {c}, {4 if wide == 8 else 2}, {skip});"


@_family(*_REAL_UNARY)
def _unary(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    _modifiers(i, ("rn", "approx", "ftz"))
    return _store(w, kind, i.operands[0], _REAL_UNARY[i.parts[0]].format(w.number(i.operands[1], kind)))


@_family("copysign")
def _copysign(w: _Writer, i: Instruction) -> str:
    kind = i.parts[-1]
    sign, size = (w.number(operand, kind) for operand in i.operands[1:])
    return _store(w, kind, i.operands[0], f"std::copysign({size}, {sign})")


@_family("cvt")
def _cvt(w: _Writer, i: Instruction) -> str:
    to, source = i.parts[-2:]
    modifiers = i.parts[1:-2]
    target = i.operands[0]
    if not set(modifiers) <= {"rn", "rna", "sat", *_ROUND}:
        raise _unknown(i)
    if to in ("bf16x2", "f16x2") and modifiers == ["rn"]:
        one = to.removesuffix("x2")
        high, low = (w.number(operand, source) for operand in i.operands[1:])
        return f"{target} = pack(to_{one}({high}), to_{one}({low}));"
    value = w.number(i.operands[1], source)
    if to == "tf32":
        if modifiers != ["rna"]:
            raise _unknown(i)
        return f"{target} = to_tf32_rna({value});"
    if "rna" in modifiers:
        raise _unknown(i)
    rounding = next((_ROUND[m] for m in modifiers if m in _ROUND), "")
    if is_float(to):
        if "sat" in modifiers:
            raise _unknown(i)
        if not is_float(source) and to == "f32":
            value = f"(float){value}"  # from 64 bits in one rounding
        return _store(w, to, target, f"{rounding}({value})")
    if is_float(source):
        return f"{target} = saturate<{c_type(to)}>({rounding or 'std::trunc'}({value}));"
    if "sat" in modifiers:
        return f"{target} = clamp<{c_type(to)}>({value});"
    return f"{target} = ({c_type(to)}){value};"


# matrices


@_family("mma")
def _mma(w: _Writer, i: Instruction) -> str:
    parts = i.parts
    if parts[1] != "sync" or "row" not in parts or "col" not in parts:
        raise _unknown(i)
    shape = next((p for p in parts if re.fullmatch(r"m\d+n\d+k\d+", p)), "")
    depth = int(shape.removeprefix("m16n8k")) if shape.startswith("m16n8k") else 0
    result, a_kind, b_kind, c_kind = parts[-4:]
    per = {"tf32": 1, "bf16": 2, "f16": 2, "s8": 4, "u8": 4}.get(a_kind, 0)
    total = "s32" if per == 4 else "f32"
    if per == 0 or depth % (4 * per) or depth // (4 * per) not in (1, 2) or (result, c_kind) != (total, total):
        raise _unknown(i)
    if not set(parts) <= {"mma", "sync", "aligned", "row", "col", "satfinite", shape, *parts[-4:]}:
        raise _unknown(i)
    integer, saturate = str(per == 4).lower(), str("satfinite" in parts).lower()

    def words(operand: str) -> str:
        return "{" + ", ".join(w.value(piece, "b32") for piece in _vector(operand)) + "}"

    a, b, c = (words(operand) for operand in i.operands[1:])
    arrays = f"u32 d_[4]; const u32 a_[] = {a}, b_[] = {b}, c_[4] = {c};"
    shape, where = f"{depth}, {per}, {integer}, {saturate}", f"Site{{nullptr, {i.line}}}"
    call = f"simt::mma<{shape}>(d_, a_, b_, c_, element_{a_kind}, element_{b_kind}, {where});"
    moves = " ".join(f"{piece} = d_[{k}];" for k, piece in enumerate(_vector(i.operands[0])))
    return f"{{ {arrays} {call} {moves} }}"


@_family("ldmatrix", "stmatrix")
def _matrices(w: _Writer, i: Instruction) -> str:
    if "m8n8" not in i.parts or i.parts[-1] != "b16":
        raise _unknown(i)
    trans = str("trans" in i.parts).lower()
    if i.parts[0] == "stmatrix":
        pieces = _vector(i.operands[1])
        v = ", ".join(w.value(p, "b32") for p in pieces)
        call = f"store_matrices({len(pieces)}, {trans}, v_, {w.address(i.operands[0])}, {i.line});"
        return f"{{ const u32 v_[] = {{{v}}}; {call} }}"
    pieces = _vector(i.operands[0])
    moves = " ".join(f"{piece} = d_[{k}];" for k, piece in enumerate(pieces))
    return f"{{ u32 d_[4]; load_matrices({len(pieces)}, {trans}, d_, {w.address(i.operands[1])}, {i.line}); {moves} }}"


class Translator:
    """Translates PTX files for one library; with `counts`, executed instructions are counted by opcode."""

    def __init__(self, counts: bool = False) -> None:
        self.counts = counts
        self.counted: list[Counter[str]] = []  # opcodes of the instructions that each counter covers
        self.kernels: dict[str, Kernel] = {}

    def translate(self, ptx: str) -> list[str]:
        """C++ files with an exported function run_<kernel> for every kernel; each compiles by itself."""
        program = parse(ptx)
        pieces = ['#include "ptx.h"', "namespace {", "using namespace ptx;"]
        for name, variable in program.variables.items():
            initial = ", ".join(map(str, variable.initial)) or "0"
            pieces.append(f"alignas({variable.alignment}) u8 v_{_identifier(name)}[{variable.size}] = {{{initial}}};")
        names = [f"v_{_identifier(name)}" for name in program.variables]
        ranges = [f"{{(u64){n}, (u64){n} + sizeof {n}}}" for n in names]
        pieces.append(f"const Range kVariables[] = {{{', '.join([*ranges, '{0, 0}'])}}};")
        grouped: list[list[str]] = []
        size = MOST_CHARACTERS
        for kernel in program.kernels:
            self.kernels[kernel.name] = kernel
            code = self._kernel(kernel, program) + self._entry(kernel, program, len(ranges))
            if size + len(code) > MOST_CHARACTERS:
                grouped.append([*pieces])
                size = 0
            grouped[-1].append(code)
            size += len(code)
        return ["\n".join([*file, "}  // namespace", ""]) for file in grouped]

    def _entry(self, kernel: Kernel, program: Program, variables: int) -> str:
        name = _identifier(kernel.name)
        facts = f'"{kernel.name}", {kernel.parameter_bytes}, {program.shared_bytes}, k_{name}'
        tables = f"l_{name}, sizeof l_{name} / sizeof *l_{name}, kVariables, {variables}"
        return "\n".join(
            [
                "\n}  // namespace",
                f'extern "C" __attribute__((weak, visibility("default"))) void run_{kernel.name}(const void* args, '
                "std::size_t bytes, const u32* grid, const u32* shape, u32 shared, int cooperative, const simt::Range* "
                "ranges, std::size_t count) {",
                f"  static const ptx::KernelFacts facts = {{{facts}, {tables}}};",
                "  ptx::run(facts, args, bytes, grid, shape, shared, cooperative, ranges, count);",
                "}\nnamespace {",
            ]
        )

    def _counter(self) -> int:
        self.counted.append(Counter())
        return len(self.counted) - 1

    def _kernel(self, kernel: Kernel, program: Program) -> str:
        writer = _Writer(kernel, program)
        code: list[str] = []
        lines = ['{0, "", 0}']  # of what can go wrong
        block: int | None = None  # counter of the instructions since the last label or branch
        for item in kernel.body:
            if isinstance(item, Label):
                block = None
                code.append(f"{item.name}:;")
                continue
            family = _FAMILIES.get(item.parts[0])
            if family is None or item.parts[-1] in ("s16x2", "u16x2"):
                raise _unknown(item)
            try:
                statement = family(writer, item)
            except (NotImplementedError, IndexError, KeyError, ValueError) as error:
                raise NotImplementedError(
                    f"{kernel.name}: PTX line {item.line}: {item.opcode} {', '.join(item.operands)} ({error})"
                ) from error
            if item.line in program.sources and str(item.line) in statement:
                file, line = program.sources[item.line]
                lines.append(f'{{{item.line}, "{file.rpartition("/")[2]}", {line}}}')
            if self.counts and (item.predicate or block is None):
                counter = self._counter()
                statement = f"++counts[{counter}]; {statement}"
                block = block if item.predicate else counter
                self.counted[counter][item.opcode] += 1
            elif self.counts and block is not None:
                self.counted[block][item.opcode] += 1
            if item.parts[0] in ("bra", "brx", "ret", "exit"):
                block = None
            if item.predicate:
                statement = f"if ({'!' if item.negated else ''}{item.predicate}) {{ {statement} }}"
            code.append(statement)
        used = set(re.findall(r"\br_\w+", " ".join(code)))
        declared: dict[str, list[str]] = {}
        for name, kind in kernel.registers.items():
            if name in used:
                declared.setdefault(c_type(kind) if kind == "pred" else _unsigned(kind), []).append(f"{name} = 0")
        head = [f"  {plain} {', '.join(names)};" for plain, names in declared.items()]
        head += [f"  alignas(16) char {name}[{size}];" for name, size in kernel.local.items()]
        name, body = _identifier(kernel.name), "\n".join([*head, *("  " + line for line in code)])
        table = f"const SourceLine l_{name}[] = {{{', '.join(lines)}}};"
        return f"{table}\nvoid k_{name}([[maybe_unused]] const char* parameters) {{\n{body}\n}}"
