"""How well `lpkernel align` undoes a turn, a scale and a shift: 100 photographs of .cache, misplaced and aligned back.

    python scripts/alignment.py [SHEET.png]

Each photograph is turned by up to 25 degrees, scaled by 0.4 to 1.5 and shifted on a larger canvas, with its edge
repeated beyond it, and aligned to the cut that `make demo` uses. The eyes found in the photograph itself are the truth;
errors are in pixels of a result of 256. SHEET.png shows the misplaced photograph, the result and the cut for some of
them: pictures of real people, not to be published.
"""

from __future__ import annotations

import argparse
import cmath

import console
import numpy as np
import packages
from numpy.typing import NDArray
from PIL import Image

from lpkernel import Bank, Framing, InputError, align, load_autoencoder
from lpkernel.alignment.faces import find_faces
from lpkernel.modes import likeness
from lpkernel.modes.inputs import read_input
from lpkernel.pictures.images import load_pixels
from lpkernel.pictures.warp import Similarity, resample

PHOTOGRAPHS = range(0, 999, 10)
SIZE, CANVAS = 256, 640
SHOWN = 12
FACE = slice(SIZE // 4, 3 * SIZE // 4)  # rows and columns of a result that contain eyes, nose and mouth


def misplaced(photograph: NDArray[np.uint8], random: np.random.Generator) -> tuple[NDArray[np.uint8], Similarity]:
    """A canvas with the photograph somewhere on it, and where each of its points is in the photograph."""
    angle, scale = np.radians(random.uniform(-25, 25)), random.uniform(0.4, 1.5) * SIZE / 140  # the cut's side
    turn = cmath.rect(1 / scale, -angle)
    height, width, _ = photograph.shape
    middle = complex(width, height) / 2
    shift = complex(*random.uniform(-60, 60, 2))
    where = Similarity(turn, middle - turn * (complex(CANVAS, CANVAS) / 2 + shift))
    margin = 1200  # repeated edge, so that the canvas mirrors nothing
    padded = np.pad(photograph, ((margin, margin), (margin, margin), (0, 0)), "edge")
    return resample(padded, Similarity(where.scale, where.shift + complex(margin, margin)), CANVAS)[0], where


def eyes_of(pixels: NDArray[np.uint8]) -> NDArray[np.complex128] | None:
    faces = find_faces(pixels)
    return np.array([faces[0].left, faces[0].right]) if faces else None


def report(what: str, values: list[float]) -> None:
    print(f"{what}: median {np.median(values):.2f}, 95th percentile {np.percentile(values, 95):.2f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sheet", nargs="?", metavar="SHEET.png")
    sheet = parser.parse_args().sheet
    files = packages.face_files()
    photographs = [load_pixels(files[number]) for number in PHOTOGRAPHS]
    left, top, right, _ = packages.FACE_CROP
    zoom, corner = SIZE / (right - left), complex(left, top)
    truths = [eyes_of(photograph) for photograph in photographs]
    places = np.array([(truth - corner) / (right - left) for truth in truths if truth is not None])
    lx, ly, rx, ry = np.median(places.view(float), axis=0)
    framing, mean = Framing(SIZE, (lx, ly, rx, ry)), np.array([complex(lx, ly), complex(rx, ry)])
    wanted = mean * SIZE
    print(f"eyes of the photographs: {np.round(mean, 4)} of the side, found in {sum(t is not None for t in truths)}")
    random = np.random.default_rng(0)
    others = [file for number, file in enumerate(files) if number not in PHOTOGRAPHS]
    autoencoder = load_autoencoder()
    bank = Bank.build(others, autoencoder, crop=packages.FACE_CROP)
    found, errors, spread, pixels, undisturbed, unaligned = 0, [], [], [], [], []
    warned = {"misplaced": 0, "aligned": 0, "the cuts themselves": 0}
    rows: list[NDArray[np.uint8]] = []
    for photograph, truth in zip(photographs, truths, strict=True):
        canvas, where = misplaced(photograph, random)
        cut = np.asarray(
            Image.fromarray(photograph).crop(packages.FACE_CROP).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        )
        try:
            result = align(canvas, framing)[0]
        except InputError:
            continue
        found += 1
        if truth is not None:
            placed = np.array(result.eyes).reshape(2, 2) @ [
                1,
                1j,
            ]  # found on the canvas; the result has them at `wanted`
            back = Similarity.of_points((wanted[0], wanted[1]), (placed[0], placed[1]))
            there = [(((eye - where.shift) / where.scale) - back.shift) / back.scale for eye in truth]
            errors += [float(abs(a - b)) for a, b in zip(there, wanted, strict=True)]
            spread += [float(abs(a - b)) for a, b in zip((truth - corner) * zoom, wanted, strict=True)]
        for what, picture in zip(warned, (canvas, result.pixels, cut), strict=True):
            warned[what] += bool(likeness.warnings(bank, read_input(bank, picture, autoencoder), autoencoder))
        if truth is not None:
            straight = align(photograph, framing)[0].pixels
            undisturbed.append(float(np.abs(result.pixels[FACE, FACE].astype(float) - straight[FACE, FACE]).mean()))
        pixels.append(float(np.abs(result.pixels[FACE, FACE].astype(float) - cut[FACE, FACE]).mean()))
        centre = (CANVAS - SIZE) // 2
        middle = canvas[centre : centre + SIZE, centre : centre + SIZE]
        unaligned.append(float(np.abs(middle[FACE, FACE].astype(float) - cut[FACE, FACE]).mean()))
        if len(rows) < SHOWN:
            rows.append(np.hstack([np.asarray(Image.fromarray(canvas).resize((SIZE, SIZE))), result.pixels, cut]))
    print(f"faces found: {found} of {len(photographs)}")
    report("eye position error, pixels of 256", errors)
    report("for comparison, how the photographs' own eyes scatter", spread)
    report("mean absolute difference inside the face, of 255, to the photograph aligned", undisturbed)
    report("to the cut, which has its eyes a little elsewhere", pixels)
    report("of the canvas's middle, not aligned, to the cut", unaligned)
    print(f"unlike a bank of the other {bank.size} photographs: " + ", ".join(f"{n} {k}" for k, n in warned.items()))
    lying = [photograph for photograph, truth in zip(photographs, truths, strict=True) if truth is not None]
    for quarters in (1, 2, 3):
        right_way_up = 0
        for photograph in lying:
            try:
                turned = align(np.rot90(photograph, quarters), framing)[0]
            except InputError:
                continue
            right_way_up += abs((turned.rotation - 90 * quarters + 180) % 360 - 180) < 30
        print(f"turned by {90 * quarters} degrees: {right_way_up} of {len(lying)} set upright")
    if sheet is not None:
        half = len(rows) // 2
        Image.fromarray(np.hstack([np.vstack(rows[:half]), np.vstack(rows[half:])])).save(sheet)
    return 0


if __name__ == "__main__":
    console.run(main)
