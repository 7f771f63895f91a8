"""The main job, end to end: real face photographs in, new faces and their source maps out, under out/.

    make demo            # or: python scripts/demo.py

Fetches 999 aligned photographs (their licence is printed), encodes them with the embedded autoencoder
and generates from 16 of them and from all, beside the baseline of cells drawn at random. Every step
is a command that is printed and can be typed as it stands.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

import console
import packages

from lpkernel.cli import main as lpkernel

CROP = ",".join(map(str, packages.FACE_CROP))


def run(command: str, seconds: dict[str, float]) -> None:
    """One lpkernel command; stops the demo with its exit code if it fails."""
    print(f"\n$ lpkernel {command}", flush=True)
    started = time.perf_counter()
    if code := lpkernel(shlex.split(command)):
        sys.exit(code)
    seconds[command] = time.perf_counter() - started


def main() -> int:
    photographs = packages.face_files()[0].parent
    Path("out").mkdir(exist_ok=True)
    seconds: dict[str, float] = {}
    run(f"bank build {shlex.quote(str(_short(photographs)))} --crop {CROP} -o out/faces.lpbank --overwrite", seconds)
    run("generate --bank out/faces.lpbank --sources 16 -n 16 --baseline --out out/faces-16 --overwrite", seconds)
    run("generate --bank out/faces.lpbank -n 16 --baseline --out out/faces-all --overwrite", seconds)
    run("generate -n 16 --baseline --out out/avatars --overwrite", seconds)
    print("\nSeconds a command:")
    for command, spent in seconds.items():
        print(f"{spent:8.1f}  lpkernel {command}")
    print("\nLook at out/faces-16/sheet.png, out/faces-all/sheet.png and out/avatars/sheet.png:")
    print("sources in the first rows, each result above the map of where its pieces come from, the baseline last.")
    return 0


def _short(path: Path) -> Path:
    """`path` as it can be typed from the current folder."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    console.no_options(__doc__)
    console.run(main)
