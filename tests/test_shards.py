"""The cache of a build: one owner at a time, taken over from the dead, and nothing deleted but its own shards."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeVQ
from test_ingest import folder_of, picture

from lpkernel import tensor_file
from lpkernel.bank import Bank, ingest, shards
from lpkernel.errors import InputError
from lpkernel.files import content_stamp

SHARD = "a" * 64 + ".shard"


def test_the_first_to_end_leaves_the_other_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SHARD", 2)
    folder, cache, ae = folder_of(tmp_path / "in", 6), tmp_path / "x.cache", FakeVQ()
    kept: list[int] = []

    def another_ends(done: int, _: int) -> None:
        shards.discard_cache(cache)
        kept.append(len(list(cache.glob("*.shard"))))

    Bank.build(folder, ae, 3, cache=cache, progress=another_ends)
    assert kept == [1, 2, 3] and sorted(path.suffix for path in cache.iterdir()) == [".shard"] * 3
    shards.discard_cache(cache)
    assert not cache.exists()


def test_a_second_build_is_told_who_is_at_it(tmp_path: Path) -> None:
    folder, cache = folder_of(tmp_path / "in", 3), tmp_path / "x.cache"
    said: list[str] = []

    def build_again(done: int, _: int) -> None:
        with pytest.raises(InputError) as caught:
            Bank.build(folder, FakeVQ(), 3, cache=cache)
        said.append(str(caught.value))

    Bank.build(folder, FakeVQ(), 3, cache=cache, progress=build_again)
    assert len(said) == 1 and f"another build of this bank is running (process {os.getpid()} on " in said[0]
    Bank.build(folder, FakeVQ(), 3, cache=cache)  # the first has ended


BUILD = """
    import sys, time
    import numpy as np
    from fakes import FakeVQ
    from lpkernel.bank import ingest
    from lpkernel.bank import Bank
    ingest.SHARD = 2
    def wait(done, total):
        if done == 4:
            print("half", flush=True)
            time.sleep(600)
    Bank.build(sys.argv[1], FakeVQ(), 3, cache=sys.argv[2], progress=wait)
"""


def test_the_cache_of_a_dead_build_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SHARD", 2)
    folder, cache = folder_of(tmp_path / "in", 6), tmp_path / "x.cache"
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), *sys.path)))
    command = [sys.executable, "-c", textwrap.dedent(BUILD), str(folder), str(cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == "half\n"
            with pytest.raises(InputError, match=rf"\(process {first.pid} on "):
                Bank.build(folder, FakeVQ(), 3, cache=cache)
            shards.discard_cache(cache)
        finally:
            first.kill()
    assert (cache / "lock").exists()
    ae = FakeVQ()
    Bank.build(folder, ae, 3, cache=cache)
    assert ae.encoded == 2 and not (cache / "lock").exists()


def test_many_at_once_never_share(tmp_path: Path) -> None:
    cache, inside, most = tmp_path / "c", [0], [0]
    counted, failures = threading.Lock(), []

    def work() -> None:
        try:
            for _ in range(200):
                try:
                    with shards.owned(cache):
                        with counted:
                            inside[0] += 1
                            most[0] = max(most[0], inside[0])
                        (cache / SHARD).write_text("x")
                        with counted:
                            inside[0] -= 1
                    shards.discard_cache(cache)
                except shards.Busy:
                    pass
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and most == [1]
    shards.discard_cache(cache)
    assert not cache.exists()


def test_nothing_is_deleted_or_written_through_a_link(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / SHARD).write_text("not yours")
    cache = tmp_path / "x.cache"
    cache.symlink_to(theirs)
    shards.discard_cache(cache)
    with pytest.raises(InputError, match="is a link, expected a folder"):
        Bank.build(folder_of(tmp_path / "in", 2), FakeVQ(), 3, cache=cache)
    assert [path.name for path in theirs.iterdir()] == [SHARD] and cache.is_symlink()


def test_only_shards_are_deleted(tmp_path: Path) -> None:
    cache, outside = tmp_path / "c", tmp_path / "outside"
    (cache / ("b" * 64 + ".shard")).mkdir(parents=True)
    outside.write_text("outside")
    (cache / ("c" * 64 + ".shard")).symlink_to(outside)
    for name in ("photos.shard", "lock.shard", ".x.shard.y.part", "0.shard", SHARD + ".bak"):
        (cache / name).write_text("mine")
    (cache / SHARD).write_text("a shard")
    shards.discard_cache(cache)
    left = {path.name for path in cache.iterdir()}
    assert left == {"b" * 64 + ".shard", "photos.shard", "lock.shard", ".x.shard.y.part", "0.shard", SHARD + ".bak"}
    assert outside.read_text() == "outside"
    shards.discard_cache(tmp_path / "missing")
    shards.discard_cache(outside)
    assert outside.exists()


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder"])
def test_a_lock_that_leads_elsewhere_is_refused(kind: str, tmp_path: Path) -> None:
    cache, theirs = tmp_path / "c", tmp_path / "theirs"
    cache.mkdir()
    theirs.write_text("theirs")
    lock = cache / "lock"
    if kind == "link":
        lock.symlink_to(theirs)
    elif kind == "hard link":
        lock.hardlink_to(theirs)
    elif kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.mkdir()
    with pytest.raises(InputError) as caught:
        Bank.build(folder_of(tmp_path / "in", 2), FakeVQ(), 3, cache=cache)
    assert "\n" not in str(caught.value) and str(cache) in str(caught.value)
    assert theirs.read_text() == "theirs" and lock.is_symlink() == (kind == "link")


def test_a_shard_that_is_a_pipe_is_passed_over(tmp_path: Path) -> None:
    folder, cache = folder_of(tmp_path / "in", 2), tmp_path / "c"
    Bank.build(folder, FakeVQ(), 3, cache=cache)
    (shard,) = cache.glob("*.shard")
    shard.unlink()
    os.mkfifo(shard)
    ae = FakeVQ()
    Bank.build(folder, ae, 3, cache=cache)
    assert ae.encoded == 2 and shard.is_file()


@pytest.mark.parametrize("text", ["[" * 100_000, "[[], []]", "[[], null]", "[[], 7]", "{}", '[[], {"a": 7}]'])
def test_a_shard_of_other_facts_is_passed_over(text: str, tmp_path: Path) -> None:
    """Its hash may be right: anyone can compute one."""
    tensor_file.write(tmp_path / f"{'0' * 64}.shard", {}, {"sources": text, "sha256": tensor_file.digest({}, text)})
    assert shards.read_shards(tmp_path) == {}


def rewrite(path: Path, content: bytes) -> None:
    """Writes other content of the same size, keeping the old modification time."""
    status = path.stat()
    assert len(content) == status.st_size
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_photograph_swapped_for_another_of_its_size_and_time_is_encoded_again(tmp_path: Path) -> None:
    folder, cache = tmp_path / "in", tmp_path / "c"
    for i in range(4):
        picture(folder / f"{i}.bmp", i)
    first = Bank.build(folder, FakeVQ(), 3, cache=cache)
    rewrite(folder / "2.bmp", picture(tmp_path / "other.bmp", 9).read_bytes())
    again = Bank.build(folder, FakeVQ(), 3, cache=cache)
    fresh = Bank.build(folder, FakeVQ(), 3)
    assert first.codes is not None and again.codes is not None and fresh.codes is not None
    assert np.array_equal(again.codes, fresh.codes) and not np.array_equal(again.codes, first.codes)


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 131_072, 200_000])
def test_the_stamp_sees_both_ends(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\0" * size)
    stamp = content_stamp(path)
    assert content_stamp(path) == stamp
    for place in {0, size - 1, min(size, 65_536) - 1, max(0, size - 65_536)} if size else ():
        rewrite(path, b"\0" * place + b"\1" + b"\0" * (size - place - 1))
        assert content_stamp(path) != stamp
    os.utime(path, ns=(0, 0))
    assert content_stamp(path) != stamp
