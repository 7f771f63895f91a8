"""What must hold for every bank, built or loaded: shapes, types and values that kernels rely on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lpkernel import tensor_file
from lpkernel.arrays import host_array
from lpkernel.bank.fields import BankFields
from lpkernel.checks import check_codes, text
from lpkernel.errors import InputError, short
from lpkernel.limits import INT16_CODES

ROUNDING = 1e-6  # by which an orthonormal row's entries, or shares of a variance, may exceed 1
LARGEST = float(np.finfo(np.float32).max)  # of a latent, and so of their mean
FINEST = 1023  # magnitude of the largest fixed-point value, when patches are small enough


def fixed_limit(channels: int, max_patch: int) -> int:
    """Largest fixed-point magnitude: min(1023, floor(sqrt((2^31 - 1) / D) / 2)), D = channels * max_patch^2."""
    return min(FINEST, math.isqrt((2**31 - 1) // (4 * channels * max_patch**2)))


def within_limit(values: np.ndarray, limit: int) -> bool:
    """Whether all integers lie within +-limit."""
    return bool(values.min() >= -limit and values.max() <= limit)


def check_bank(bank: BankFields) -> None:
    """Raise InputError, one line, unless `bank` is sound.

    Reads all codes, which kernels use as indices, but of a mapped file only shapes and types, so that opening it stays
    lazy: whoever uses its content must copy it and check the copy, since another process may write into the file.
    """
    _check_numbers(bank)
    arrays = (bank.codes, bank.codebook, bank.fixed_codebook), (bank.latents, bank.fixed_latents)
    missing = [[array is None for array in part] for part in arrays]
    if missing == [[False] * 3, [True] * 2]:
        _check_codes(bank)
    elif missing == [[True] * 3, [False] * 2]:
        _check_latents(bank)
    else:
        raise InputError("a bank holds codes, codebook and fixed codebook, or latents and fixed latents")
    _check_colours(bank)
    if len(bank.names) != bank.size:
        raise InputError(f"{len(bank.names)} names for a bank of {bank.size} images")
    if bank.labels is not None and len(bank.labels) != bank.size:
        raise InputError(f"{len(bank.labels)} labels for a bank of {bank.size} images")


def bool_arrays(attributes: Any, size: int) -> dict[str, np.ndarray]:
    """Attributes given in any form as name -> (size,) bool. Raises InputError for anything else."""
    if not isinstance(attributes, Mapping):
        got = short(repr(attributes))
        raise InputError(f'attributes: got {got}, expected names with a bool for each image: {{"Hat": [True, False]}}')
    found = {}
    for key, values in attributes.items():
        name = text("attributes: a name", key)
        given = host_array(f"attribute {name!r}", values)
        if given.shape != (size,) or given.dtype != np.bool_:
            got = f"{given.dtype} {given.shape}"
            raise InputError(f"attribute {name!r} is {got}, expected ({size},) bool, one for each image")
        found[name] = given
    return found


def _check_colours(bank: BankFields) -> None:
    colours, cells = bank.colours, (bank.size, bank.grid, bank.grid, 3)
    if colours is not None and (colours.shape != cells or colours.dtype != np.uint8):
        raise InputError(f"colours are {colours.dtype} {colours.shape}, expected uint8 {cells}")


def _check_numbers(bank: BankFields) -> None:
    pca = bank.pca
    channels, width = pca.components.shape
    if pca.mean.shape != (width,) or pca.explained.shape != (channels,) or channels > width:
        raise InputError(f"PCA mean {pca.mean.shape} and components {pca.components.shape} do not fit together")
    finite = all(np.isfinite(part).all() for part in (pca.mean, pca.components, pca.explained))
    if not finite or not math.isfinite(bank.scale) or bank.scale <= 0:
        raise InputError("the PCA or the scale holds NaN, infinity or a scale that is not positive")
    unit = max(np.abs(part).max(initial=0) for part in (pca.components, pca.explained))
    if unit > 1 + ROUNDING or np.abs(pca.mean).max(initial=0) > LARGEST:
        raise InputError(
            f"the PCA has components or shares beyond 1, or a mean beyond {LARGEST:.3g}, the range of float32; "
            "its projections could overflow"
        )
    if bank.max_patch < 1 or bank.limit < 1 or bank.limit != fixed_limit(channels, bank.max_patch):
        got = f"limit {bank.limit} for {channels} channels and max_patch={bank.max_patch}"
        raise InputError(f"{got}: expected the largest one whose distances fit int32, at least 1; lower max_patch")


def _check_codes(bank: BankFields) -> None:
    codes, book, fixed = bank.codes, bank.codebook, bank.fixed_codebook
    assert codes is not None and book is not None and fixed is not None
    channels, width = bank.pca.components.shape
    rows = len(book)
    kind = np.int16 if rows <= INT16_CODES else np.int32
    if codes.ndim != 3 or codes.shape[1] != codes.shape[2] or codes.dtype != kind:
        raise InputError(f"codes are {codes.dtype} {codes.shape}, expected {kind.__name__} (B, M, M)")
    if book.shape != (rows, width) or book.dtype != np.float32 or not np.isfinite(book).all():
        raise InputError(f"codebook is {book.dtype} {book.shape}, expected finite float32 (V, {width})")
    if fixed.shape != (rows, channels) or fixed.dtype != np.int16 or not within_limit(fixed, bank.limit):
        expected = f"int16 ({rows}, {channels}) within +-{bank.limit}"
        raise InputError(f"fixed codebook is {fixed.dtype} {fixed.shape}, expected {expected}")
    if not tensor_file.is_mapped(codes):
        check_codes(codes, rows)


def _check_latents(bank: BankFields) -> None:
    latents, fixed = bank.latents, bank.fixed_latents
    assert latents is not None and fixed is not None
    channels, width = bank.pca.components.shape
    square = latents.ndim == 4 and latents.shape[1] == latents.shape[2]
    if not square or latents.shape[3] != width or latents.dtype != np.float16:
        raise InputError(f"latents are {latents.dtype} {latents.shape}, expected float16 (B, M, M, {width})")
    if not tensor_file.is_mapped(latents) and not all(np.isfinite(part).all() for part in latents):
        raise InputError("latents hold NaN or infinity")
    if fixed.shape != (*latents.shape[:3], channels) or fixed.dtype != np.int16:
        expected = f"int16 {(*latents.shape[:3], channels)}"
        raise InputError(f"fixed latents are {fixed.dtype} {fixed.shape}, expected {expected}")
