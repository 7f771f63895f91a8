"""Philox 4x32-10, the one random stream (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

A draw is a pure function of (seed, image index, step index), so image i is the same whatever the
batch size, device, thread or number of processes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lpkernel.errors import InputError

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
ROUNDS = 10


def philox4x32(counter: ArrayLike, key: ArrayLike) -> NDArray[np.uint32]:
    """Ten rounds of Philox: counter (..., 4) and key (2,) of 32-bit words -> (..., 4) uint32."""
    c0, c1, c2, c3 = np.moveaxis(np.asarray(counter, dtype=np.uint64), -1, 0)
    k0, k1 = (int(word) for word in np.asarray(key, dtype=np.uint64))
    for _ in range(ROUNDS):
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2  # 32 x 32 -> 64 bits
        c0, c1, c2, c3 = (
            (right >> _SHIFT) ^ c1 ^ np.uint64(k0),
            right & _MASK,
            (left >> _SHIFT) ^ c3 ^ np.uint64(k1),
            left & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def check_seed(seed: int) -> None:
    """Raises InputError for a seed outside [0, 2^64)."""
    if not 0 <= seed < 2**64:
        raise InputError(f"seed: got {seed}, expected an integer in [0, 2^64)")


def draws(seed: int, images: ArrayLike, steps: ArrayLike) -> NDArray[np.uint32]:
    """First word u of each draw: key = the seed's two halves, counter = (image, step, 0, 0).

    `images` and `steps` are integers in [0, 2^32), broadcast together; the result has their shape.
    Raises InputError for a seed outside [0, 2^64).
    """
    check_seed(seed)
    image, step = np.broadcast_arrays(np.asarray(images, np.uint64), np.asarray(steps, np.uint64))
    zero = np.zeros_like(image)
    return philox4x32(np.stack([image, step, zero, zero], axis=-1), (seed & 0xFFFFFFFF, seed >> 32))[..., 0]


def pick(u: ArrayLike, count: ArrayLike) -> NDArray[np.int64]:
    """Index in [0, count) that the word u draws: (u * count) >> 32, for counts below 2^31."""
    return ((np.asarray(u, np.uint64) * np.asarray(count, np.uint64)) >> _SHIFT).astype(np.int64)
