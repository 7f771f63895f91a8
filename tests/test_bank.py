"""The bank's number system, levels, table, gathering and checks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fakes import FakeContinuous, FakeVQ

from lpkernel.bank import Bank
from lpkernel.bank import bank as bank_module
from lpkernel.bank.checks import fixed_limit
from lpkernel.errors import InputError
from lpkernel.levels import resize_level


def codes_bank(size: int = 20, grid: int = 8, rows: int = 32, channels: int = 4, **options: object) -> Bank:
    random = np.random.default_rng(3)
    codes = random.integers(0, rows - 4, (size, grid, grid))  # the last rows never occur
    book = random.normal(size=(rows, 6))
    book[-4:] *= 9  # far beyond the others, to be clipped
    return Bank.from_codes(codes, book, channels, **options)  # type: ignore[arg-type]


def latents_bank(size: int = 20, grid: int = 8, channels: int = 4, **options: object) -> Bank:
    latents = np.random.default_rng(4).normal(size=(size, grid, grid, 6)).astype(np.float32)
    return Bank.from_latents(latents, channels, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 3, 4, 16, 32, 512])
@pytest.mark.parametrize("max_patch", [1, 5, 8, 16])
def test_limit_formula_and_no_overflow(channels: int, max_patch: int) -> None:
    d = channels * max_patch**2
    limit = fixed_limit(channels, max_patch)
    assert limit == min(1023, math.floor(math.sqrt((2**31 - 1) / d) / 2))
    assert d * (2 * limit) ** 2 <= 2**31 - 1


def test_codes_become_fixed_point_as_specified() -> None:
    bank = codes_bank()
    assert bank.codes is not None and bank.codebook is not None and bank.fixed_codebook is not None
    assert bank.codes.dtype == bank.fixed_codebook.dtype == np.int16 and bank.codebook.dtype == np.float32
    assert (bank.size, len(bank), bank.grid, bank.channels, bank.width, bank.is_discrete) == (20, 20, 8, 4, 6, True)
    projected = bank.pca.project(bank.codebook)
    occur = np.isin(np.arange(32), bank.codes)
    assert bank.scale == bank.limit / np.abs(projected[occur]).max()
    assert np.array_equal(bank.fixed_codebook, np.clip(np.rint(projected * bank.scale), -bank.limit, bank.limit))
    assert np.abs(bank.fixed_codebook[occur]).max() == bank.limit == 1023
    assert np.abs(projected[~occur] * bank.scale).max() > bank.limit  # so clipping was tested
    assert np.array_equal(bank.project(bank.codebook[5:9]), bank.fixed_codebook[5:9])
    assert bank.names[:2] == ["image-000000", "image-000001"]


def test_latents_become_fixed_point_as_specified(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = latents_bank()
    monkeypatch.setattr(bank_module, "_CHUNK", 3)
    bank = latents_bank()
    assert bank.latents is not None and bank.fixed_latents is not None and whole.fixed_latents is not None
    assert bank.latents.dtype == np.float16 and bank.fixed_latents.dtype == np.int16
    projected = bank.pca.project(bank.latents)
    assert bank.scale == bank.limit / np.abs(projected).max()
    assert np.array_equal(bank.fixed_latents, np.rint(projected * bank.scale))
    assert np.array_equal(bank.fixed_latents, whole.fixed_latents)
    assert np.array_equal(bank.project(bank.latents[2]), bank.level(8)[2])
    assert not bank.is_discrete


def test_project_clips() -> None:
    bank = latents_bank()
    assert np.abs(bank.project(np.full((2, 6), 1e4))).max() == bank.limit
    with pytest.raises(InputError, match="NaN"):
        bank.project(np.full(6, np.nan))


def resize_by_hand(full: np.ndarray, m: int) -> np.ndarray:
    """The definition, a number at a time, in Python's float64."""
    count, side, _, channels = full.shape

    def axis(o: int) -> tuple[int, int, float]:
        c = min(max((o + 0.5) * side / m - 0.5, 0.0), side - 1.0)
        low = math.floor(c)
        return low, min(low + 1, side - 1), c - low

    result = np.empty((count, m, m, channels), np.int16)
    for b, y, x, k in np.ndindex(*result.shape):
        (y0, y1, fy), (x0, x1, fx) = axis(y), axis(x)
        left = float(full[b, y0, x0, k]) * (1 - fy) + float(full[b, y1, x0, k]) * fy
        right = float(full[b, y0, x1, k]) * (1 - fy) + float(full[b, y1, x1, k]) * fy
        result[b, y, x, k] = round(left * (1 - fx) + right * fx)  # Python rounds ties to even
    return result


@pytest.mark.parametrize("make", [codes_bank, latents_bank])
@pytest.mark.parametrize("m", [1, 4, 5, 7, 8])
def test_levels_match_the_definition(make: object, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_module, "_CHUNK", 7)
    bank = make()  # type: ignore[operator]
    level = bank.level(m)
    assert level.dtype == np.int16 and level.shape == (20, m, m, 4) and level.flags.c_contiguous
    assert np.array_equal(level, resize_by_hand(bank.level(8), m))
    assert bank.level(m) is level


def test_resize_of_a_canvas_up_and_ties_to_even() -> None:
    full = np.array([[0, 1], [2, 5]], np.int16).reshape(1, 2, 2, 1)
    assert np.array_equal(resize_level(full, 1).ravel(), [2])  # mean 2.0
    ties = np.array([[0, 1], [0, 1]], np.int16).reshape(1, 2, 2, 1)
    assert resize_level(ties, 1).item() == 0 and resize_level(ties + 1, 1).item() == 2  # 0.5 and 1.5
    assert np.array_equal(resize_level(full, 3), resize_by_hand(full, 3))
    with pytest.raises(InputError, match="side 0"):
        resize_level(full, 0)


def test_level_refuses_other_sides() -> None:
    for m in (0, 9):
        with pytest.raises(InputError, match="expected 1 to 8"):
            codes_bank().level(m)


def test_table_is_exact_and_equals_cell_distances() -> None:
    bank = codes_bank()
    assert bank.fixed_codebook is not None and bank.codes is not None
    table = bank.table()
    wide = bank.fixed_codebook.astype(np.int64)
    assert table.dtype == np.int32 and table.flags.c_contiguous and bank.table() is table
    assert np.array_equal(table, ((wide[:, None] - wide) ** 2).sum(axis=-1))
    full = bank.level(8).astype(np.int64)
    assert np.array_equal(table[bank.codes[0], bank.codes[1]], ((full[0] - full[1]) ** 2).sum(axis=-1))


def test_table_needs_a_codebook_of_moderate_size() -> None:
    with pytest.raises(InputError, match="no codebook"):
        latents_bank().table()
    big = Bank.from_codes(np.zeros((1, 2, 2), int), np.random.default_rng(0).normal(size=(4097, 2)), 1)
    with pytest.raises(InputError, match="4097 codebook rows"):
        big.table()


def test_large_codebooks_have_wide_codes() -> None:
    book = np.random.default_rng(0).normal(size=(32769, 2))
    bank = Bank.from_codes(np.full((1, 2, 2), 32768), book, 1)
    assert bank.codes is not None and bank.codes.dtype == np.int32 and (bank.codes == 32768).all()
    small = Bank.from_codes(np.full((1, 2, 2), 32767), book[:32768], 1)
    assert small.codes is not None and small.codes.dtype == np.int16


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7])
def test_constant_banks(value: float) -> None:
    latents = Bank.from_latents(np.full((3, 4, 4, 5), value), 2)
    codes = Bank.from_codes(np.ones((3, 4, 4), int), np.array([[0.0, 1.0], [value, 0.3]]), 2)
    for bank in (latents, codes):
        assert bank.scale == 1 and not bank.level(4).any() and not bank.level(3).any()


def test_max_patch_beyond_the_grid_means_the_grid() -> None:
    assert codes_bank(grid=4).max_patch == 4
    assert codes_bank(max_patch=5).max_patch == 5


@pytest.mark.parametrize("make", [codes_bank, latents_bank])
def test_gather(make: object) -> None:
    bank = make()  # type: ignore[operator]
    sources = np.random.default_rng(0).integers(0, 20, (5, 8, 8)).astype(np.int32)
    got = bank.gather(sources)
    assert got.dtype == (np.int64 if bank.is_discrete else np.float32)
    cells = bank.codes if bank.is_discrete else bank.latents
    for n, y, x in np.ndindex(5, 8, 8):
        assert np.array_equal(got[n, y, x], cells[sources[n, y, x], y, x])
    assert np.array_equal(bank.whole(np.array([7, 0])), cells[[7, 0]])
    for bad in (sources - 1 - sources.max(), sources + 20, sources[0], sources[:, :4], sources.astype(float)):
        with pytest.raises(InputError, match="sources"):
            bank.gather(bad)


def test_autoencoder_check() -> None:
    ae = FakeVQ()
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    assert ae.codebook is not None
    bank = Bank.from_codes(ae.encode(images), ae.codebook, 3, autoencoder=ae)
    assert (bank.autoencoder_name, bank.autoencoder_fingerprint, bank.image_size) == ("fake-vq", ae.fingerprint, 64)
    bank.check_autoencoder(ae)
    cases: list[tuple[FakeVQ | FakeContinuous, str]] = [
        (FakeVQ(grid=16), "grid is 16"),
        (FakeVQ(cell=4), "side 32"),
        (FakeVQ(seed=1), "codebook"),
        (FakeContinuous(), "makes latents, the bank holds codes"),
    ]
    other_weights = FakeVQ()
    other_weights.fingerprint = "0"
    for wrong, message in [*cases, (other_weights, "weights")]:
        with pytest.raises(InputError, match=message):
            bank.check_autoencoder(wrong)
    assert ae.codebook is not None
    with pytest.raises(InputError, match="codebook is a different one"):
        Bank.from_codes(ae.encode(images), ae.codebook + 1, 3, autoencoder=ae)


def test_unknown_autoencoder_is_compared_by_codebook_only() -> None:
    ae = FakeVQ()
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    assert ae.codebook is not None
    Bank.from_codes(ae.encode(images), ae.codebook, 3).check_autoencoder(ae)


BOOK = np.random.default_rng(0).normal(size=(5, 4))
CODES = np.zeros((2, 3, 3), int)
LATENTS = np.random.default_rng(0).normal(size=(2, 3, 3, 4))


@pytest.mark.parametrize(
    ("codes", "book", "options", "message"),
    [
        (CODES - 1, BOOK, {}, "codes run from -1"),
        (CODES + 5, BOOK, {}, "expected 0 to 4"),
        (CODES * 1.0, BOOK, {}, "float64"),
        (CODES[0], BOOK, {}, "expected 3 axes"),
        (CODES[:0], BOOK, {}, "none of them empty"),
        (CODES[:, :2], BOOK, {}, r"\(B, M, M\)"),
        (CODES, BOOK * np.nan, {}, "NaN"),
        (CODES, BOOK, {"channels": 5}, "channels=5, expected 1 to 4"),
        (CODES, BOOK, {"channels": 0}, "channels=0"),
        (CODES, BOOK, {"max_patch": 0}, "max_patch=0"),
        (CODES, BOOK, {"names": ["a"]}, "1 names for a bank of 2"),
        (CODES, BOOK, {"labels": ["a"]}, "1 labels"),
        (CODES, BOOK, {"attributes": {"Hat": np.ones(3, bool)}}, "'Hat'"),
        (CODES, BOOK, {"attributes": {"Hat": np.ones(2)}}, "float64"),
    ],
)
def test_from_codes_refuses(codes: np.ndarray, book: np.ndarray, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Bank.from_codes(codes, book, **{"channels": 3, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("latents", "channels", "message"),
    [
        (LATENTS * np.inf, 3, "infinity"),
        (LATENTS * 1e9, 3, "65504"),
        (LATENTS[0], 3, "4 axes"),
        (LATENTS.astype(int), 3, "int64"),
        (LATENTS[:, :2], 3, r"\(B, M, M, L\)"),
        (LATENTS, 5, "channels=5"),
    ],
)
def test_from_latents_refuses(latents: np.ndarray, channels: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Bank.from_latents(latents, channels)
