"""A tar file that grows image by image, in the layout that WebDataset reads: the files of an image are adjacent and
named by its number, KEY.png, KEY.json and KEY.npy.

Equal images give equal bytes: a member records only its name, size and content. A truncated file is continued after
its last complete image.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence

BLOCK = tarfile.BLOCKSIZE


def shard_name(number: int) -> str:
    """The file of one process of a run: images-{000000..000003}.tar for four."""
    return f"images-{number:06d}.tar"


class TarShard:
    """A shard in a file that is open to read and to append: images from `first` on, each with a member per ending.

    Memory: eight bytes per image.
    """

    def __init__(self, file: io.BufferedRandom, first: int, endings: Sequence[str]) -> None:
        self._file, self._first, self._endings = file, first, list(endings)
        self._ends = list(self._whole_images())

    def __len__(self) -> int:
        """The number of complete images."""
        return len(self._ends)

    def cut(self, images: int) -> None:
        """Keep the first `images` images and nothing else."""
        del self._ends[images:]
        self._file.truncate(self._ends[-1] if self._ends else 0)
        self._file.seek(0, os.SEEK_END)

    def append(self, members: Mapping[str, bytes]) -> None:
        """Append the next image: the content of its members, by ending."""
        key = self._first + len(self)
        self._file.seek(0, os.SEEK_END)
        for ending in self._endings:
            entry = tarfile.TarInfo(f"{key:06d}.{ending}")
            entry.size = len(members[ending])
            self._file.write(entry.tobuf(tarfile.USTAR_FORMAT))
            self._file.write(members[ending])
            self._file.write(bytes(-entry.size % BLOCK))
        self._ends.append(self._file.tell())

    def read(self, number: int) -> bytes:
        """The content of the first member of image `number`, counted from 0."""
        self._file.seek(self._ends[number - 1] if number else 0)
        entry = tarfile.TarInfo.frombuf(self._file.read(BLOCK), "ascii", "strict")
        return self._file.read(entry.size)

    def finish(self) -> None:
        """Write the end of a tar file."""
        self._file.seek(0, os.SEEK_END)
        self._file.write(bytes(2 * BLOCK))
        self._file.write(bytes(-self._file.tell() % tarfile.RECORDSIZE))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _whole_images(self) -> Iterator[int]:
        """Where each complete image ends."""
        length, place, key = self._file.seek(0, os.SEEK_END), 0, self._first
        while True:
            for ending in self._endings:
                self._file.seek(place)
                try:
                    entry = tarfile.TarInfo.frombuf(self._file.read(BLOCK), "ascii", "strict")
                except (tarfile.HeaderError, UnicodeDecodeError):  # cut, damaged, or the end of the file
                    return
                if entry.size < 0:
                    return
                place += BLOCK + entry.size + -entry.size % BLOCK
                if entry.name != f"{key:06d}.{ending}" or place > length:
                    return
            yield place
            key += 1
