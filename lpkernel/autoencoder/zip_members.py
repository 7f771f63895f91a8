"""The members of a zip file as torch writes it: uncompressed, so that none is larger than the file.

Layout (PKWARE APPNOTE 4.3): members, each after a local header; the central directory; the end record, preceded
by a zip64 record and its locator where 32 bits are too few.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

MAX_DIRECTORY = 8 << 20  # bytes: some 80,000 members
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Member:
    """A member: where its local header starts, its size in bytes, and whether it is stored plainly."""

    start: int
    size: int
    stored: bool


def _unpack(layout: struct.Struct, data: bytes, at: int, signature: bytes) -> tuple[int, ...]:
    """The fields after the signature. Raises ValueError if they are not there."""
    if at < 0 or len(data) < at + layout.size or data[at : at + 4] != signature:
        raise ValueError("a record of the zip file is missing; it is damaged or cut short")
    return layout.unpack_from(data, at)[1:]


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)


def _directory(file: BinaryIO, size: int) -> bytes:
    tail = _read(file, max(0, size - 65557), 65557)  # the end record and its longest comment
    at = tail.rfind(b"PK\5\6")
    length, start = _unpack(_END, tail, at, b"PK\5\6")[4:6]
    before = at - _LOCATOR.size
    if before >= 0 and tail[before : before + 4] == b"PK\6\7":
        where = _unpack(_LOCATOR, tail, before, b"PK\6\7")[1]
        length, start = _unpack(_END64, _read(file, min(where, size), _END64.size), 0, b"PK\6\6")[7:9]
    if length > MAX_DIRECTORY or start + length > size:
        raise ValueError(f"its directory of {length} bytes is too long")
    return _read(file, start, length)


def _wide(values: list[int], extra: bytes) -> list[int]:
    """Sizes and position; those that do not fit 32 bits are taken from the zip64 field."""
    while len(extra) >= 4 and 0xFFFFFFFF in values:
        kind, length = struct.unpack_from("<2H", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == 1:
            for index in [index for index, value in enumerate(values) if value == 0xFFFFFFFF]:
                (values[index],), field = struct.unpack("<Q", field[:8]), field[8:]
    return values


def members(file: BinaryIO, size: int) -> dict[str, Member]:
    """Every member of a zip file of `size` bytes by its name. Raises ValueError or struct.error if the file is damaged
    or names a member twice."""
    directory, found = _directory(file, size), dict[str, Member]()
    at = 0
    while at < len(directory):
        fields = _unpack(_ENTRY, directory, at, b"PK\1\2")
        flags, method = fields[2], fields[3]
        at += _ENTRY.size
        ends = [at]
        for length in fields[9:12]:  # name, extra fields, comment
            ends.append(ends[-1] + length)
        if ends[3] > len(directory):
            raise ValueError("its directory is cut short")
        name = directory[at : ends[1]].decode()
        plain, packed, start = _wide([fields[8], fields[7], fields[15]], directory[ends[1] : ends[2]])
        at = ends[3]
        if name in found:
            raise ValueError(f"its member {name} is there twice")
        found[name] = Member(start, plain, not method and not flags & 1 and packed == plain)
    return found


def seek_member(file: BinaryIO, size: int, member: Member) -> None:
    """Move `file`, of `size` bytes, to the first byte of the member.

    Raises ValueError if it is not in the file, or compressed or encrypted, which torch never does.
    """
    if not member.stored:
        raise ValueError("a member is compressed or encrypted, which torch never does; save it again with torch.save")
    local = _unpack(_LOCAL, _read(file, min(member.start, size), _LOCAL.size), 0, b"PK\3\4")
    start = member.start + _LOCAL.size + local[8] + local[9]
    if start + member.size > size:
        raise ValueError("a member reaches beyond the end of the file")
    file.seek(start)
