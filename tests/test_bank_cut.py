"""A bank whose file is cut short or overwritten while open: a one-line error or no effect, never a signal."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lpkernel import generate, tensor_file
from lpkernel.bank import Bank
from lpkernel.bank import file as bank_file
from lpkernel.errors import InputError

SCRIPT = """
    import os, sys
    import numpy as np
    from lpkernel import generate, tensor_file
    from lpkernel.bank import Bank
    tensor_file.MAPPED_FROM = int(sys.argv[3])
    bank = Bank.load(sys.argv[1])
    if sys.argv[2] == "used":
        bank.level(bank.grid)
    os.truncate(sys.argv[1], 4096)
    sources = np.zeros((1, bank.grid, bank.grid), int)
    uses = [
        lambda: generate(bank, 1, patch=2, backend="numpy"),
        lambda: generate(bank, 1, patch=2, scales=(4,), backend="numpy"),
        lambda: bank.level(3),
        lambda: bank.level(bank.grid),
        lambda: bank.gather(sources),
        lambda: bank.whole([0]),
        lambda: bank.fixed_values(slice(0, 2)),
        lambda: bank.save(sys.argv[1] + ".copy"),
    ]
    for use in uses:
        try:
            use()
            print("made")
        except ValueError as error:
            print(type(error).__name__, error)
"""


def cut(path: Path, when: str, mapped_from: int = tensor_file.MAPPED_FROM) -> list[str]:
    """The output of a process that uses a bank after its file was cut short."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), when, str(mapped_from)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.splitlines()


@pytest.mark.parametrize("when", ["unused", "used"])
@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_small_banks_do_not_depend_on_their_file(kind: str, when: str, tmp_path: Path) -> None:
    path, random = tmp_path / "x.lpbank", np.random.default_rng(0)
    if kind == "codes":
        Bank.from_codes(random.integers(0, 9, (2000, 4, 4)), random.normal(size=(9, 5)), 3).save(path)
    else:
        Bank.from_latents(random.normal(size=(2000, 4, 4, 5)), 3).save(path)
    assert cut(path, when) == ["made"] * 8


@pytest.mark.parametrize("when", ["unused", "used"])
@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_a_mapped_bank_says_that_its_file_was_cut_short(kind: str, when: str, tmp_path: Path) -> None:
    path, random = tmp_path / "x.lpbank", np.random.default_rng(0)
    if kind == "codes":
        Bank.from_codes(random.integers(0, 9, (2000, 4, 4)), random.normal(size=(9, 5)), 3).save(path)
    else:
        Bank.from_latents(random.normal(size=(2000, 4, 4, 5)), 3).save(path)
    said = cut(path, when, mapped_from=0)
    assert path.with_name("x.lpbank.copy").exists() is False
    assert said == [said[0]] * 8 and said[0].startswith("InputError the file was cut short while it was open: 4096 of ")


def test_codes_are_checked_as_they_are_used(tmp_path: Path) -> None:
    """Kernels use codes as indices, so what is written into the file after the check must not matter."""
    path = tmp_path / "x.lpbank"
    random = np.random.default_rng(0)
    Bank.from_codes(random.integers(0, 9, (3, 4, 4)), random.normal(size=(9, 5)), 3).save(path)
    bank = Bank.load(path)
    before = generate(bank, 2, patch=2, backend="numpy").sources
    with path.open("r+b") as file:
        file.write(b"\x7f" * path.stat().st_size)
    again = generate(bank, 2, patch=2, backend="numpy").sources
    assert np.array_equal(before, again) and bank.codes is not None and bank.codes.max() < 9


USES: dict[str, Callable[[Bank], object]] = {
    "gather": lambda bank: bank.gather(np.zeros((1, 4, 4), int)),
    "whole": lambda bank: bank.whole(np.array([0])),
    "values": lambda bank: bank.fixed_values(slice(0, 2)),
    "level": lambda bank: bank.level(3),
    "codes": lambda bank: bank.sound_codes(),
    "cpp": lambda bank: generate(bank, 1, patch=2, scales=(4,), backend="cpp"),
    "torch": lambda bank: generate(bank, 1, patch=2, scales=(4,), backend="torch"),
    "cpp, two scales": lambda bank: generate(bank, 1, patch=2, scales=(2, 4), backend="cpp"),
    "torch, two scales": lambda bank: generate(bank, 1, patch=2, scales=(2, 4), backend="torch"),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("wrong", [-1, 9, 32767])
def test_mapped_codes_are_checked_wherever_they_are_used(
    wrong: int, use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile file, or one overwritten while open, gives a one-line error, whatever reads it first."""
    monkeypatch.setattr(tensor_file, "MAPPED_FROM", 0)
    path, random = tmp_path / "x.lpbank", np.random.default_rng(0)
    Bank.from_codes(random.integers(0, 9, (50, 4, 4)), random.normal(size=(9, 5)), 3).save(path)
    opened = Bank.load(path)
    assert opened.codes is not None and tensor_file.is_mapped(opened.codes)
    content = path.read_bytes()
    begin = content.index(opened.codes.tobytes())
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(np.full(16, wrong, np.int16).tobytes())
    for bank in (opened, Bank.load(path)):
        with pytest.raises(InputError, match="codes"):
            USES[use](bank)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    tensor_file.write(path, {"a": np.arange(10_000.0)}, {})
    place = tensor_file._place

    def shrink(*arguments: object) -> object:
        os.truncate(path, 4096)
        return place(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tensor_file, "_place", shrink)
    with pytest.raises(InputError, match="cut short while it was read"):
        tensor_file.read(path)


def test_more_names_than_a_header_holds(tmp_path: Path) -> None:
    names = [f"{'x' * 900}/\udcff{i}.png" for i in range(20_000)]
    labels = ["y" * 900] * 20_000
    bank = Bank.from_codes(np.zeros((20_000, 1, 1), int), np.eye(3), 2, names=names, labels=labels)
    bank.save(tmp_path / "x.lpbank")
    assert Bank.load(tmp_path / "x.lpbank", verify=True) == bank
    bank = replace(bank, names=[f"{name}\0" for name in names])
    with pytest.raises(InputError, match="names and labels take"):
        bank.save(tmp_path / "y.lpbank")
    assert [path.name for path in tmp_path.iterdir()] == ["x.lpbank"]


@pytest.mark.parametrize("wrong", [b"\xff", b"\0"])
def test_a_table_of_names_that_does_not_fit(wrong: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank_file, "MOST_TEXT", 0)
    bank = Bank.from_codes(np.zeros((3, 1, 1), int), np.eye(3), 2, names=["one", "two", "six"])
    bank.save(tmp_path / "x.lpbank")
    content = (tmp_path / "x.lpbank").read_bytes()
    (tmp_path / "x.lpbank").write_bytes(content.replace(b"one\0two\0six", b"one\0" + wrong.ljust(7, wrong[-1:])))
    with pytest.raises(InputError, match="names"):
        Bank.load(tmp_path / "x.lpbank")
