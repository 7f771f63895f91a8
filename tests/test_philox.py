"""The random stream against the known answers published with Random123."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpkernel import philox
from lpkernel.errors import InputError

KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    assert philox.philox4x32(counter, key).tolist() == list(words)


def test_draws_are_first_words_of_their_counters() -> None:
    seed = 0x0123456789ABCDEF
    grid = philox.draws(seed, np.arange(5)[:, None], np.arange(7)[None])
    assert grid.shape == (5, 7)
    for image in range(5):
        for step in range(7):
            assert grid[image, step] == philox.philox4x32((image, step, 0, 0), (0x89ABCDEF, 0x01234567))[0]


def test_large_image_and_seed() -> None:
    last = philox.draws(2**64 - 1, 2**32 - 1, 0)
    assert last == philox.philox4x32((2**32 - 1, 0, 0, 0), (2**32 - 1, 2**32 - 1))[0]


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(InputError, match="seed"):
        philox.draws(seed, 0, 0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2**31 - 1))
def test_pick_is_the_exact_scaled_word(u: int, count: int) -> None:
    index = int(philox.pick(u, count))
    assert index == (u * count) >> 32
    assert 0 <= index < count


def test_pick_is_uniform() -> None:
    words = philox.draws(3, np.arange(60_000), 0)
    counts = np.bincount(philox.pick(words, 6), minlength=6)
    assert np.square(counts - 10_000).sum() / 10_000 < 20.5  # chi-square, 5 degrees of freedom, p = 0.001
