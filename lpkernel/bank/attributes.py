"""Attribute tables of face data sets: the text format of CelebA and CelebAMask-HQ, and CSV as on Kaggle."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lpkernel.errors import InputError, short
from lpkernel.files import open_regular

LONGEST = 1 << 27  # bytes of a table; CelebA's has 2^24.6
# How an image's name and a row's are compared, the strictest first.
_KEYS: tuple[Callable[[PurePosixPath], str], ...] = (
    str,
    lambda path: str(path.parent / path.stem),
    lambda path: path.name,
    lambda path: path.stem,
)
_Row = tuple[str, np.ndarray]  # the name it begins with, and its values


def read_attributes(path: str | Path, files: Sequence[str], mapping: str | Path | None = None) -> dict[str, np.ndarray]:
    """Attributes of the images named `files`: attribute name -> (len(files),) bool.

    Two forms of table: line 1 the number of images, line 2 the attribute names, then a line per image, with fields
    separated by any white space (`list_attr_celeba.txt`, `CelebAMask-HQ-attribute-anno.txt`); or CSV, a header row with
    the names after the first column, then a row per image (`list_attr_celeba.csv`). Values are 1 for yes and -1 or 0
    (the same one throughout) for no.

    A row belongs to an image if their whole relative names are equal, or else those without their extensions, their
    file names, or their file names without extensions: `align` writes PNG. Each row is for one image, and each image
    has one row.

    mapping: `CelebA-HQ-to-CelebA-mapping.txt`, for images that are named by their number in CelebA-HQ and a table of
    CelebA. Raises InputError for a malformed table, wrong counts, repeated rows, images without a row, and names that
    could be joined in two ways.
    """
    table, missing = attribute_rows(path, files, mapping)
    if missing:
        raise missing_rows(path, [files[i] for i in missing], len(files))
    return table


def attribute_rows(
    path: str | Path, files: Sequence[str], mapping: str | Path | None = None
) -> tuple[dict[str, np.ndarray], list[int]]:
    """As `read_attributes`, with the places of the images without a row, whose values are False. Raises InputError."""
    names, rows = _table(Path(path))
    wanted = list(files) if mapping is None else _original_names(Path(mapping), files)
    found = _joined(Path(path), rows, files, wanted)
    table = np.stack([np.zeros(len(names), bool) if row is None else rows[row][1] for row in found]).T
    columns = {name: np.ascontiguousarray(values) for name, values in zip(names, table, strict=True)}
    return columns, [image for image, row in enumerate(found) if row is None]


def missing_rows(path: object, missing: list[str], count: int) -> InputError:
    """The error for images that a table has no row for, `count` being the number of all images."""
    return InputError(
        f"{path}: no row for {len(missing)} of {count} images, first {missing[0]!r}; rows are joined by file name, "
        "with or without its ending; --missing-attributes skip leaves such images out"
    )


def _joined(path: Path, rows: list[_Row], files: Sequence[str], wanted: list[str]) -> list[int | None]:
    """Which row belongs to each of `files`, which are looked up under the names `wanted`."""
    places = [PurePosixPath(name) for name in wanted]
    found: list[int | None] = [None] * len(files)
    of_row: dict[int, int] = {}
    named = [PurePosixPath(name) for name, _ in rows]
    for key in _KEYS:
        if None not in found:
            break
        by_key: dict[str, list[int]] = defaultdict(list)
        for number, name in enumerate(named):
            by_key[key(name)].append(number)
        for image, place in enumerate(places):
            candidates = [] if found[image] is not None else by_key.get(key(place), [])
            if len(candidates) > 1:
                both = " and ".join(repr(short(rows[number][0])) for number in candidates[:2])
                raise InputError(f"{path}: {files[image]!r} could have the row {both}; give rows with the whole names")
            for number in candidates:
                if number in of_row:
                    both = f"{files[of_row[number]]!r} and {files[image]!r}"
                    raise InputError(
                        f"{path}: the row {rows[number][0]!r} could be that of {both}; give rows with their names "
                        "from the folder on, or leave one out"
                    )
                found[image], of_row[number] = number, image
    return found


def _original_names(path: Path, files: Sequence[str]) -> list[str]:
    """The names in CelebA of images of CelebA-HQ, whose file names are their numbers, as 7.jpg or 00007.png."""
    original: dict[int, str] = {}
    for number, line in enumerate(_lines(path, "the mapping"), 1):
        fields = line.split()
        if not fields or (number == 1 and fields[0] == "idx"):
            continue
        if len(fields) != 3 or not (fields[0].isascii() and fields[0].isdigit() and len(fields[0]) < 10):
            raise InputError(f"{path}, line {number}: expected three columns, idx orig_idx orig_file")
        if int(fields[0]) in original:
            raise InputError(f"{path}, line {number}: a second line for {fields[0]}")
        original[int(fields[0])] = fields[2]
    names = []
    for file in files:
        stem = PurePosixPath(file).stem
        numbered = stem.isascii() and stem.isdigit() and len(stem) < 10
        if not numbered or int(stem) not in original:
            raise InputError(f"{path}: no line for {file!r}; a mapping is for images named by their CelebA-HQ number")
        names.append(original[int(stem)])
    return names


def _lines(path: Path, what: str) -> list[str]:
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > LONGEST:
                raise InputError(f"{path}: {size} bytes, expected a table of at most {LONGEST}")
            return file.read().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"cannot read {what} from {path}: {reason}") from error


def _table(path: Path) -> tuple[list[str], list[_Row]]:
    """The attribute names, and the rows in order."""
    lines = _lines(path, "attributes")
    first = next((line for line in lines if line.strip()), "")
    if "," in first:
        names, content = _csv(path, lines)
        count = None
    else:
        names, content, count = _text(path, lines)
    if not names or "" in names or len(set(names)) != len(names):
        wrong = "an attribute name appears twice" if len(set(names)) != len(names) else "an attribute has no name"
        raise InputError(f"{path}: {wrong if names else 'no attribute is named'}")
    rows: list[_Row] = []
    seen: set[str] = set()
    absent = ""  # the value for no: 0 or -1, the same in a whole table
    for number, fields in content:
        values = fields[1:]  # counted and looked at as texts: NumPy would make all as long as the longest
        absent = absent or next((value for value in values if value in ("-1", "0")), "")
        if len(values) != len(names) or not {"1", absent or "-1"}.issuperset(values):
            kinds = f"1 or {absent}, as in the rest of the table" if absent else "1 or -1, or 1 or 0"
            raise InputError(f"{path}, line {number}: expected a file name and {len(names)} values {kinds}")
        if fields[0] in seen:
            raise InputError(f"{path}, line {number}: a second row for {fields[0]!r}")
        seen.add(fields[0])
        rows.append((fields[0], np.array([value == "1" for value in values], bool)))
    if not rows or (count is not None and count != str(len(rows))):
        says = f"line 1 says {count[:20]} images, " if count is not None else ""
        raise InputError(f"{path}: {says}{len(rows)} rows follow; is the file cut short?")
    return names, rows


_Content = Iterable[tuple[int, list[str]]]  # line numbers and the fields of rows


def _text(path: Path, lines: list[str]) -> tuple[list[str], _Content, str]:
    content = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    first = content[0][1] if content else []
    if len(content) < 2 or len(first) != 1 or not (first[0].isascii() and first[0].isdigit()):
        raise InputError(
            f"{path}: expected the number of images on line 1 and the attribute names on line 2, or a CSV with a "
            "header row"
        )
    return content[1][1], content[2:], first[0]


def _csv(path: Path, lines: list[str]) -> tuple[list[str], _Content]:
    reader = csv.reader(lines, skipinitialspace=True)

    def rows() -> Iterator[tuple[int, list[str]]]:
        try:
            for fields in reader:
                if any(field.strip() for field in fields):
                    yield reader.line_num, [field.strip() for field in fields]
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: not a CSV ({error})") from error

    content = rows()
    _, header = next(content)
    return header[1:], content
