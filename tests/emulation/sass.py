"""Machine code: the instructions of a kernel's inner loop, counted in nvdisasm's listing."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

from .shipped import tool

_LABEL = re.compile(r"^(\.L_\w+):")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);")
_BACK = re.compile(r"`\((\.L_\w+)\)")


def listing(cubin: Path) -> str:
    """The machine code of all kernels of a file, with labels. Raises FileNotFoundError without nvdisasm."""
    command = tool("nvdisasm")
    if command is None:
        raise FileNotFoundError("there is no nvdisasm")
    return subprocess.run([command, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout


def inner_loop(text: str, kernel: str, opcode: str, count: int) -> Counter[str]:
    """Instructions by opcode of the shortest loop of a kernel that holds `opcode` `count` times.

    kernel: a part of the mangled name that only it has. A loop is what lies between a label and a branch back to it.
    Raises ValueError when there is no such kernel or loop.
    """
    functions = re.findall(rf"^\.text\.\S*{re.escape(kernel)}\S*:\n(.*?)(?=^\.section|\Z)", text, re.S | re.M)
    if len(functions) != 1:
        raise ValueError(f"{len(functions)} kernels are called {kernel}, expected one")
    labels: dict[str, int] = {}
    code: list[str] = []
    loops: list[Counter[str]] = []
    for line in functions[0].splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif instruction := _INSTRUCTION.match(line):
            code.append(instruction[1])
            back = _BACK.search(instruction[2]) if instruction[1].startswith("BRA") else None
            if back and back[1] in labels:
                loops.append(Counter(code[labels[back[1]] :]))
    fitting = [loop for loop in loops if loop[opcode] == count]
    if not fitting:
        raise ValueError(f"{kernel}: no loop has {count} {opcode}")
    return min(fitting, key=Counter.total)
