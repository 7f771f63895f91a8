"""Attribute tables of face data sets, in the text format of CelebA and CelebAMask-HQ."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lpkernel.errors import InputError
from lpkernel.files import open_regular

LONGEST = 1 << 27  # bytes of a table; CelebA's has 2^24.6


def read_attributes(path: str | Path, files: Sequence[str]) -> dict[str, np.ndarray]:
    """Attributes of the images named `files`: attribute name -> (len(files),) bool.

    The table (`list_attr_celeba.txt`, `CelebAMask-HQ-attribute-anno.txt`): line 1 the number of images,
    line 2 the attribute names, then a line an image, its file name and 1 or -1 for each attribute, with
    any white space between. Rows are found by the whole relative name or else by the file name alone.
    Raises InputError for a malformed table, wrong counts, repeated rows, and images without a row.
    """
    names, rows = _parse(Path(path))
    base_names = [PurePosixPath(file).name for file in files]
    repeated = {name for name, count in Counter(base_names).items() if count > 1}
    by_base = (None if base in repeated else rows.get(base) for base in base_names)
    found = [rows.get(file, row) for file, row in zip(files, by_base, strict=True)]
    missing = [file for file, row in zip(files, found, strict=True) if row is None]
    if missing:
        count = f"{len(missing)} of {len(files)} images"
        raise InputError(f"{path}: no row for {count}, first {missing[0]!r}; rows are joined by file name")
    table = np.stack([row for row in found if row is not None]).T
    return {name: np.ascontiguousarray(values) for name, values in zip(names, table, strict=True)}


def _parse(path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LONGEST:
                raise InputError(f"{path}: {size} bytes, expected a table of at most {LONGEST}")
            lines = file.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"cannot read attributes from {path}: {reason}") from error
    content = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    first = content[0][1] if content else []
    if len(content) < 2 or len(first) != 1 or not (first[0].isascii() and first[0].isdigit()):
        raise InputError(f"{path}: expected the number of images on line 1 and the attribute names on line 2")
    names = content[1][1]
    if len(set(names)) != len(names):
        raise InputError(f"{path}: an attribute name appears twice on line {content[1][0]}")
    rows: dict[str, np.ndarray] = {}
    for number, fields in content[2:]:
        values = np.array(fields[1:])
        positive = values == "1"
        if len(values) != len(names) or not (positive | (values == "-1")).all():
            raise InputError(f"{path}, line {number}: expected a file name and {len(names)} values 1 or -1")
        if fields[0] in rows:
            raise InputError(f"{path}, line {number}: a second row for {fields[0]!r}")
        rows[fields[0]] = positive
    if first[0] != str(len(rows)):
        raise InputError(f"{path}: line 1 says {first[0][:20]} images, {len(rows)} rows follow; is the file cut short?")
    return names, rows
