"""The folder of a run: what an earlier run left in it, what this one has written so far, and where it goes on.

A run lists its files in NAME.unfinished.json before it writes them, and in NAME.json, its record, when all are there.
So a folder is cleaned of exactly what its record lists, a killed run goes on where it stopped, and no record lists
files that are lost. Source maps and facts are appended image by image to SOURCES and FACTS, so memory stays at what a
batch needs.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpkernel.commands.common import json_text, write_json
from lpkernel.commands.tar_shard import TarShard
from lpkernel.errors import InputError
from lpkernel.files import content_stamp, open_regular
from lpkernel.tensor_file import json_object

if TYPE_CHECKING:
    import argparse

    import numpy as np
    from numpy.typing import NDArray

COMMANDS = ("generate", "edit", "inpaint", "harmonize")
FACTS, SOURCES = "images.jsonl", "sources.npy"
PART = ".part"  # at the end of the names of these two while they grow
LONGEST = 1 << 23  # bytes of a record
_NAME = re.compile(r"\w[\w.-]*")
_OF_IMAGE = re.compile(r"[a-z][a-z-]*-\{index:06d\}\.png")
# Arguments that may differ when a run is repeated, whatever their effect on its bytes; all others identify the run.
_NOT_OF_THE_RUN = {"out", "json", "quiet", "overwrite", "backend", "version"}


def of_image(kind: str) -> str:
    """The format of the file names of a kind of picture that every image has."""
    return f"{kind}-{{index:06d}}.png"


def identity(args: argparse.Namespace, name: str, *facts: object) -> str:
    """A hash of what determines the files of a run: its arguments, the content of files they name, and `facts`."""
    chosen = [
        (key, _content(value))
        for key, value in sorted(vars(args).items())
        if key not in _NOT_OF_THE_RUN and not callable(value)
    ]
    return hashlib.sha256(repr([name, chosen, facts]).encode("utf-8", "surrogateescape")).hexdigest()


def _content(value: object) -> object:
    if not isinstance(value, Path):
        return value
    try:
        if not value.is_dir():
            return str(value), content_stamp(value)
        return [(str(one), content_stamp(one)) for one in sorted(value.rglob("*")) if one.is_file()]
    except OSError:  # the code that reads it reports what is wrong
        return str(value)


@dataclass(frozen=True)
class Record:
    """What a file NAME.json or NAME.unfinished.json in `folder` says about the run that wrote it."""

    folder: Path
    file: str
    data: dict[str, Any]

    @property
    def finished(self) -> bool:
        return not self.file.endswith(".unfinished.json")

    @property
    def command(self) -> str:
        return self.file.partition(".")[0]

    def listed(self) -> Iterator[str]:
        """The names of listed files that are in the folder now."""
        files, formats = set(self.data["files"]), self.data.get("files_per_image", [])
        first, count = self.data.get("first_image", 0), self.data.get("count", 0)
        for name in sorted(os.listdir(self.folder)):
            number = re.search(r"-(\d{6,10})\.png$", name)
            if name in files or (
                number is not None
                and first <= int(number[1]) < first + count
                and any(name == text.format(index=int(number[1])) for text in formats)
            ):
                yield name

    def complete(self) -> bool:
        """Whether all the files that it lists are there."""
        per_image = len(self.data.get("files_per_image", [])) * int(self.data.get("count", 0))
        return sum(1 for _ in self.listed()) == len(set(self.data["files"])) + per_image

    def __str__(self) -> str:
        seed = self.data.get("settings", {}).get("seed", self.data.get("seed"))
        what = "" if seed is None else f" with seed {seed}"
        return f"{'the' if self.finished else 'an unfinished'} run of lpkernel {self.command}{what} ({self.file})"


def _read(folder: Path, file: str) -> Record:
    """Read a record. Raises InputError for a file that is not one of ours, which could name any file at all."""
    path = folder / file
    try:
        with open_regular(path) as opened:
            text = opened.read(LONGEST + 1)
        data = (json_object(text) if len(text) <= LONGEST else None) or {}
        names, formats = data["files"], data.get("files_per_image", [])
        numbers = [data.get("first_image", 0), data.get("count", 0)]
        sound = (
            all(_NAME.fullmatch(name) for name in names)
            and all(_OF_IMAGE.fullmatch(text) for text in formats)
            and all(type(number) is int and 0 <= number <= 2**32 for number in numbers)
            and isinstance(data.get("settings", {}), dict)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise InputError(f"{path} exists and is not a record of a run; move it, or give another --out")
    return Record(folder, file, data)


@dataclass
class Folder:
    """The folder `path` for the run `identity` of the command `name`.

    It has `count` images from `first_image` on, in groups of `group` images, made `batch` at a time.
    """

    path: Path
    name: str
    identity: str
    seed: int
    first_image: int
    count: int
    group: int
    batch: int
    overwrite: bool
    files: list[str] = field(default_factory=list)
    files_per_image: list[str] = field(default_factory=list)
    shard: str | None = None  # the tar file that pictures, facts and maps are appended to
    endings: Sequence[str] = ()  # of the members that each image has in it

    @property
    def unfinished(self) -> str:
        return f"{self.name}.unfinished.json"

    def earlier(self) -> list[Record]:
        """The records of runs in the folder."""
        names = [name for command in COMMANDS for name in (f"{command}.json", f"{command}.unfinished.json")]
        return [_read(self.path, name) for name in names if (self.path / name).exists()]

    def finished(self) -> dict[str, Any] | None:
        """The record of this very run if the folder holds all of it.

        Raises InputError for a folder that holds another run, unless that is to be overwritten.
        """
        records = self.earlier()
        if self.overwrite or not records:
            return None
        if all(record.data.get("run") == self.identity for record in records):
            record = records[0]
            if not record.finished or not record.complete():
                return None
            (self.path / self.unfinished).unlink(missing_ok=True)  # left by a run killed just before removing it
            return record.data
        other = next(record for record in records if record.data.get("run") != self.identity)
        go_on = "" if other.finished else " its own arguments resume it;"
        raise InputError(
            f"--out {self.path}: holds {other};{go_on} --overwrite replaces exactly its files, another --out keeps them"
        )

    def alone(self) -> AbstractContextManager[int]:
        """Make the folder and hold it as the only process that writes a run in it. Raises InputError if one does."""
        from lpkernel.bank.shards import owned

        return owned(self.path, "another run")

    def start(self, grid: int) -> Stream:
        """Make the folder ready and find where this run goes on. Raises InputError as `finished`, and for files of
        other origin that have the names of this run's."""
        self.finished()
        records = self.earlier()
        same = [record for record in records if record.data.get("run") == self.identity]
        go_on = bool(same) and not same[0].finished and not self.overwrite
        listed = {name for record in records for name in (*record.listed(), record.file)}
        ours = Record(self.path, "", self._facts([*self.files, *self._parts()]))
        if others := [name for name in ours.listed() if name not in listed]:
            raise InputError(
                f"{self.path / others[0]} exists and no record of a run lists it; move it, or give another --out"
            )
        if not go_on:
            for name in sorted(listed, key=lambda name: name.endswith(".json")):  # the records last
                (self.path / name).unlink(missing_ok=True)
            write_json(self.path / self.unfinished, self._facts([*self.files, *self._parts()]))
        return Stream(self, grid)

    def _facts(self, files: Sequence[str]) -> dict[str, Any]:
        return {
            "command": self.name,
            "run": self.identity,
            "seed": self.seed,
            "first_image": self.first_image,
            "count": self.count,
            "files": [*files, self.unfinished],
            "files_per_image": self.files_per_image,
        }

    def whole_batches(self, images: int) -> int:
        """How many of `images` are in whole batches; one batch less if that is all, since a run makes one to report."""
        groups, rest = divmod(min(images, self.count - 1), self.group)
        return groups * self.group + rest // self.batch * self.batch

    def pictures(self) -> int:
        """How many images, from the first on, have all their pictures."""
        there = set(os.listdir(self.path))
        for number in range(self.count):
            if any(text.format(index=self.first_image + number) not in there for text in self.files_per_image):
                return number
        return self.count

    def _parts(self) -> list[str]:
        return [name + PART for name in (FACTS, SOURCES, *([self.shard] if self.shard else []))]

    def finish(self, record: dict[str, Any]) -> None:
        write_json(self.path / f"{self.name}.json", record)
        (self.path / self.unfinished).unlink()


class Stream:
    """The source maps (count, M, M) int32 and the facts of a run, and its shard if it has one, appended batch by batch;
    a context manager.

    done: the images that an earlier process finished.
    """

    def __init__(self, folder: Folder, grid: int) -> None:
        import numpy as np

        self._folder = folder
        header = io.BytesIO()
        shape = (folder.count, grid, grid)
        np.lib.format.write_array_header_1_0(header, {"descr": "<i4", "fortran_order": False, "shape": shape})
        self._start, self._row = len(header.getvalue()), 4 * grid * grid
        self._shape = shape
        self._maps, self._facts = (_appendable(folder.path, name) for name in (SOURCES, FACTS))
        ends = list(_line_ends(self._facts))
        rows = (self._maps.seek(0, os.SEEK_END) - self._start) // self._row
        there = min(rows, len(ends), folder.pictures() if rows > 0 else 0)
        self._shards: list[TarShard] = []  # in the order of their images
        if folder.shard:
            self._shards = [TarShard(_appendable(folder.path, folder.shard), folder.first_image, folder.endings)]
            there = min(there, len(self._shards[0]))
        self.done = folder.whole_batches(max(0, there))
        for shard in self._shards:
            shard.cut(self.done)
        self._facts.truncate(ends[self.done - 1] if self.done else 0)
        self._maps.truncate(self._start + self.done * self._row if self.done else 0)
        if not self.done:
            self._maps.seek(0)
            self._maps.write(header.getvalue())
        for file in (self._maps, self._facts):
            file.seek(0, os.SEEK_END)

    def append(
        self, maps: NDArray[np.int32], facts: Sequence[dict[str, Any]], pictures: Sequence[dict[str, bytes]] = ()
    ) -> None:
        """Append a batch whose pictures are written already or, with a shard, given: each image's, by ending."""
        import numpy as np

        if self._folder.shard:
            for one, fact, members in zip(maps, facts, pictures or [{}] * len(maps), strict=True):
                array = io.BytesIO()
                np.save(array, one.astype("<i4"))
                text = (json_text(fact, indent=None) + "\n").encode()
                self._shards[0].append({**members, "json": text, "npy": array.getvalue()})
            self._shards[0].flush()
        self._maps.write(maps.astype("<i4").tobytes())
        self._facts.write("".join(json_text(one, indent=None) + "\n" for one in facts).encode())
        for file in (self._maps, self._facts):
            file.flush()

    def take(self, shards: Sequence[Path]) -> None:
        """Take over all the images that other processes have made in the folders `shards`, in order.

        Their pictures are moved here. Raises InputError where an image is missing.
        """
        import numpy as np

        if not shards:
            return
        most, row, tars = self._folder.whole_batches(self._folder.count), 0, []
        for shard in shards:
            tars += [(shard, path.name, self._folder.first_image + row) for path in sorted(shard.glob("*.tar" + PART))]
            maps = np.load(shard / (SOURCES + PART), mmap_mode="r")
            with (shard / (FACTS + PART)).open("rb") as facts:
                for one, line in zip(maps, facts, strict=True):
                    for text in self._folder.files_per_image:
                        name = text.format(index=self._folder.first_image + row)
                        if (shard / name).exists():
                            os.replace(shard / name, self._folder.path / name)
                    if self.done <= row < most:
                        self._maps.write(one.tobytes())
                        self._facts.write(line)
                    row += 1
        if row != self._folder.count or self._folder.pictures() != row:
            raise InputError(f"--out {self._folder.path}: {row} of {self._folder.count} images are there; run it again")
        self.done = max(self.done, most)
        for shard, name, first in tars:
            tar = TarShard(_appendable(shard, name.removesuffix(PART)), first, self._folder.endings)
            tar.finish()
            tar.flush()
            os.replace(shard / name, self._folder.path / name.removesuffix(PART))
            self._shards.append(tar)

    def picture(self, number: int) -> bytes:
        """The PNG of an image that is in a shard, counted from the run's first."""
        for shard in self._shards:
            if number < len(shard):
                return shard.read(number)
            number -= len(shard)
        raise IndexError(number)

    def maps(self, rows: slice) -> NDArray[np.int32]:
        """The source maps of these rows, which must have been appended."""
        import numpy as np

        self._maps.flush()
        path = self._folder.path / (SOURCES + PART)
        return np.array(np.memmap(path, "<i4", "r", self._start, self._shape)[rows])

    def finish(self) -> None:
        """Give the files their final names."""
        if self._folder.shard:
            self._shards[0].finish()
            self._shards[0].close()
            _whole(self._folder.path, self._folder.shard)
        for name, file in ((SOURCES, self._maps), (FACTS, self._facts)):
            file.close()
            _whole(self._folder.path, name)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._maps.close()
        self._facts.close()
        for shard in self._shards:
            shard.close()


def _whole(folder: Path, name: str) -> None:
    """Give a grown file its final name, once it is on disk."""
    with (folder / (name + PART)).open("rb") as file:
        os.fsync(file.fileno())
    os.replace(folder / (name + PART), folder / name)


def _appendable(folder: Path, name: str) -> io.BufferedRandom:
    """A file to read and to append to. Links are not followed: their targets are not files of a run."""
    path = folder / (name + PART)
    if (folder / name).exists():  # of a run that was killed after it had all its images
        os.replace(folder / name, path)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:  # a pipe, or a file that has another name as well
        os.close(handle)
        raise InputError(f"{path} is not a file of a run; move it, or give another --out")
    return os.fdopen(handle, "r+b")


def _line_ends(file: io.BufferedRandom) -> Iterator[int]:
    file.seek(0)
    place = 0
    for line in file:
        place += len(line)
        if line.endswith(b"\n"):
            yield place
