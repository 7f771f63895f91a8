"""Writes docs/api.md from the docstrings of everything public.

python scripts/api_page.py           # tests/test_docs.py says when it is out of date
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import console

import lpkernel
from lpkernel import plan
from lpkernel.files import atomic_path

PAGE = Path(__file__).parents[1] / "docs/api.md"
HEAD = """# The library

Made from the docstrings by `python scripts/api_page.py`. `import lpkernel as lp`; errors are `lp.InputError`,
`lp.MissingExtra` and `lp.BackendUnavailable`, all of them `lp.LpkernelError`.
"""
PLANS = ("random", "reference", "edit")
MADE_BY_OTHERS = ("Aligned", "Autoencoder", "Bank", "Synthesis", "TopK")  # not called by users
LONGEST = 80  # columns of a signature on one line


def text() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in sorted(lpkernel.__all__, key=str.lower):
        thing = getattr(lpkernel, name)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            parts += [_entry(f"lp.{name}", thing, "##"), *_members(name, thing)]
        elif inspect.isfunction(thing):
            parts.append(_entry(f"lp.{name}", thing, "##"))
    parts += [_entry(f"lp.plan.{name}", getattr(plan, name), "##") for name in PLANS]
    return "\n".join(parts)


def _members(name: str, cls: type) -> Iterator[str]:
    """The documented public methods of a class, including those of its bases."""
    for member in sorted(dir(cls)):
        found = inspect.getattr_static(cls, member)
        found = found.__func__ if isinstance(found, classmethod | staticmethod) else found
        if member.startswith("_") or not inspect.isfunction(found) or not found.__doc__:
            continue
        yield _entry(f"lp.{name}.{member}", found, "###")


def _entry(name: str, thing: Callable[..., Any], level: str) -> str:
    call = "" if inspect.isclass(thing) and thing.__name__ in MADE_BY_OTHERS else _signature(thing)
    shown = f"```python\n{name}{call}\n```\n\n" if call else ""
    return f"{level} `{name}`\n\n{shown}{_described(thing)}\n"


def _signature(thing: Callable[..., Any]) -> str:
    """The signature as written; one argument per line where it is long."""
    signature = inspect.signature(thing)
    given = [one for one in signature.parameters.values() if one.name not in ("self", "cls")]
    arguments = [_argument(one) for one in given]
    named = [one.kind is one.KEYWORD_ONLY for one in given]
    if True in named and not any(one.kind is one.VAR_POSITIONAL for one in given):
        arguments.insert(named.index(True), "*")
    answer = signature.return_annotation
    result = "" if inspect.isclass(thing) or answer is inspect.Signature.empty else f" -> {answer}"
    line = f"({', '.join(arguments)}){result}"
    return line if len(line) <= LONGEST else "(\n" + "".join(f"    {one},\n" for one in arguments) + f"){result}"


def _argument(one: inspect.Parameter) -> str:
    stars = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
    default = getattr(one.default, "__name__", repr(one.default))
    given = "" if one.default is one.empty else f" = {default}"
    return f"{stars}{one.name}: {one.annotation}{given}"


def _described(thing: Callable[..., Any]) -> str:
    return "\n\n".join(_paragraph(one) for one in (inspect.getdoc(thing) or "").split("\n\n"))


def _paragraph(text: str) -> str:
    """A paragraph; lists of fields and arguments are kept verbatim."""
    fields = len(re.findall(r"^[\w, ]+: ", text, re.M)) > 1
    return f"```text\n{text}\n```" if fields or re.search(r"^\s", text, re.M) else text


def main() -> int:
    with atomic_path(PAGE) as partial:
        partial.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    console.no_options(__doc__)
    console.run(main)
