"""What a bank holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lpkernel import tensor_file
from lpkernel.bank.pca import PCA
from lpkernel.content import ByContent

FLIPPED = " (flipped)"  # appended to an image's name in that of its mirror image


@dataclass(eq=False, repr=False)
class BankFields(ByContent):
    """The arrays and facts of B encoded images, unchecked; `Bank` adds what can be done with them.

    codes             (B, M, M) int16 (V <= 32768) or int32 in [0, V); None for a continuous autoencoder
    codebook          (V, L) float32, or None
    fixed_codebook    (V, C) int16 within +-limit, or None
    latents           (B, M, M, L) float16, what is decoded; None for codes
    fixed_latents     (B, M, M, C) int16 within +-limit, or None
    pca, scale, limit fixed value = rint(scale * projection), clipped to +-limit
    colours           (B, M, M, 3) uint8, the mean colours of the cells of the pictures that were encoded, or None
    names             B file names relative to the folder they came from
    labels            B class names (the first-level folder), or None
    attributes        name -> (B,) bool
    source_size       width and height of the images it was built from, if all have one size; else None
    skipped           (name, reason) of the files and folders that `build` could not use; not saved
    left_out          names of the files in the folder whose extension is not a picture's; not saved
    """

    pca: PCA
    scale: float
    limit: int
    max_patch: int
    names: list[str]
    codes: np.ndarray | None = None
    codebook: np.ndarray | None = None
    fixed_codebook: np.ndarray | None = None
    latents: np.ndarray | None = None
    fixed_latents: np.ndarray | None = None
    colours: np.ndarray | None = None
    labels: list[str] | None = None
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    autoencoder_name: str = ""
    autoencoder_fingerprint: str = ""
    image_size: int = 0  # 0: unknown
    crop: tuple[int, int, int, int] | None = None
    resize_filter: str = ""
    sources_hash: str = ""
    source_size: tuple[int, int] | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list, compare=False)
    left_out: list[str] = field(default_factory=list, compare=False)

    @property
    def is_discrete(self) -> bool:
        """Whether the bank holds codes (VQ autoencoder), not latents."""
        return self.codes is not None

    @property
    def cells(self) -> np.ndarray:
        """The codes, or else the latents."""
        cells = self.codes if self.codes is not None else self.latents
        assert cells is not None  # `check_bank` refuses a bank with neither
        return cells

    @property
    def size(self) -> int:
        """B, the number of images."""
        return len(self.cells)

    @property
    def grid(self) -> int:
        """M, cells a side."""
        return int(self.cells.shape[1])

    @property
    def channels(self) -> int:
        """C, channels after PCA."""
        return len(self.pca.components)

    @property
    def width(self) -> int:
        """L, numbers in a latent vector before PCA."""
        return int(self.pca.components.shape[1])

    def check_file(self) -> None:
        """Raise InputError if the file that cells are mapped from was cut short: touching them kills the process."""
        tensor_file.check_mapped(self.codes, self.latents, self.fixed_latents, self.colours)


def default_names(count: int) -> list[str]:
    """Names of images that came from no file: image-000000, image-000001, ..."""
    return [f"image-{i:06d}" for i in range(count)]
