"""Every argument of every command: numbers that are too large, empty texts, and arguments that stand apart."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lpkernel import Bank, load_autoencoder
from lpkernel.benchmarks.suite import Options
from lpkernel.cli import build_parser, main
from lpkernel.commands.common import nonempty, path_of, seed, whole
from lpkernel.errors import InputError
from lpkernel.pictures.render import save_png

LARGE = {"10^30": "1" + "0" * 30, "-10^30": "-1" + "0" * 30, "2^64": str(2**64), "5000 digits": "9" * 5000}


def leaves(parser: argparse.ArgumentParser, *words: str) -> Iterator[tuple[tuple[str, ...], list[argparse.Action]]]:
    """The commands and what each takes."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield words, parser._actions
    for name, one in below[0].choices.items() if below else ():
        yield from leaves(one, *words, name)


ALL = [(words, action) for words, actions in leaves(build_parser()) for action in actions]
NUMBERS = [
    [*words, f"{action.option_strings[-1]}={{}}"]
    for words, action in ALL
    if action.option_strings and (action.type in (whole, seed) or getattr(action.type, "__name__", "") == "parse")
]
NUMBERS += [["generate", "--copy-limit=area={}"], ["generate", "--copy-limit=share=0.5,tries={}"]]
NUMBERS += [["evaluate", f"--preset=balanced,{name}={{}}"] for name in ("k", "patch", "scales", "search_radius")]


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """The one line with which a command is refused."""
    assert main([*map(str, argv)]) == 2
    said, error = capsys.readouterr()
    assert said == "" and error.count("\n") == 1 and error.startswith("lpkernel: error: ") and len(error) < 500
    return error


def test_each_number_and_path_is_parsed_by_the_shared_parsers() -> None:
    assert len(NUMBERS) > 60
    assert [(words, action.dest) for words, action in ALL if action.type in (int, Path)] == []


@pytest.mark.parametrize("argv", NUMBERS, ids=" ".join)
@pytest.mark.parametrize("value", LARGE.values(), ids=LARGE)
def test_a_number_that_64_bits_do_not_hold(argv: list[str], value: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = argv[-1].partition("=")[0]
    error = refused(capsys, *argv[:-1], argv[-1].format(value))
    assert option in error and "got " in error and "expected " in error


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["generate", "-n", 2**32 + 1], "n: got 4294967297, expected at most 4294967296 images"),
        (["generate", "-n", 2**31, "--where", "a", "--where", "b", "--where", "c"], "n: got 6442450944, expected at"),
        (["generate", "-n", 2, "--first-image", 2**32 - 1], "first_image: got 4294967295 with n = 2"),
        (["generate", "-n", 0], "n: got 0, expected at least 1 image"),
        (["inpaint", "x.png", "-n", 2**33], "expected at most 4294967296 images"),
        (["evaluate", "x", "y", "-n", 10**6 + 1], "-n: got 1000001, expected at least 4 images and at most 1000000"),
        (["evaluate", "x", "y", "-n", 3], "-n: got 3, expected at least 4 images"),
        (["evaluate", "x", "y", "--seed", -1], "seed: got -1"),
    ],
)
def test_counts_have_limits_and_nothing_is_begun_beyond_them(
    argv: list[object], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert said in refused(capsys, *argv, "--out", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        *(({name: (1, 2**31)}, f"--{name}: got 2147483648, expected numbers of at least 1 and at") for name in "nbdpk"),
        *(({name: (0, 1)}, f"--{name}: got 0, expected numbers of at least 1") for name in "nbdpk"),
        *(({"threads": count}, f"--threads: got {count}, expected 1 to 1024") for count in (0, 10**6)),
        *(({"budget": time}, f"--budget: got {time}, expected more") for time in (0.0, float("nan"), float("inf"))),
        *(({"longest": time}, f"--longest: got {time}, expected more") for time in (-1.0, float("nan"), 1e9)),
        *(({"seed": number}, f"seed: got {number}, expected") for number in (-1, 2**64)),
    ],
)
def test_options_of_bench_have_limits(options: dict[str, object], said: str) -> None:
    Options().check()
    with pytest.raises(InputError) as refusal:
        Options(**options).check()  # type: ignore[arg-type]
    assert str(refusal.value).startswith(said)


def test_too_little_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("Unable to allocate 4.00 TiB")

    monkeypatch.setattr(sys.modules["lpkernel.info"], "info", fail)
    assert "not enough memory for this (Unable to allocate 4.00 TiB)" in refused(capsys, "info")


def _empty() -> Iterator[list[str]]:
    for words, actions in leaves(build_parser()):
        positions = [action for action in actions if not action.option_strings]
        for action in actions:
            if action.type in (path_of, nonempty):
                before = ["x"] * positions.index(action) if action in positions else [action.option_strings[-1]]
                needed = [f"{one.option_strings[-1]}=x" for one in actions if one.required and one.option_strings]
                yield [*words, *needed, *before, ""]


@pytest.mark.parametrize("argv", list(_empty()), ids=" ".join)
def test_an_empty_text_is_no_path_or_name(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pathlib takes "" as the current folder, and a socket as every address of the machine."""
    monkeypatch.chdir(tmp_path)
    assert "got an empty " in refused(capsys, *argv)
    assert list(tmp_path.iterdir()) == []


def test_the_file_in_the_place_of_a_folder_is_named_by_its_argument(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert f"OUT {tmp_path / 'file'}: " in refused(capsys, "align", tmp_path, tmp_path / "file")
    assert f"--out {tmp_path / 'file'}: " in refused(capsys, "generate", "--out", tmp_path / "file")


@pytest.mark.parametrize(
    ("together", "apart"),
    [
        (["evaluate", "-n", "5", "real", "made", "more"], ["evaluate", "real", "-n", "5", "made", "more"]),
        (["evaluate", "real", "made", "--json"], ["evaluate", "real", "--json", "made"]),
        (["bench", "topk", "step", "--n", "1"], ["bench", "topk", "--n", "1", "step"]),
        (["bank", "merge", "a", "b", "-o", "c"], ["bank", "merge", "a", "-o", "c", "b"]),
        (["align", "in", "out", "--size", "64"], ["align", "in", "--size", "64", "out"]),
        (["evaluate", "--preset", "paper", "--", "A", "-C"], ["evaluate", "A", "--preset", "paper", "--", "-C"]),
        (["evaluate", "-n", "5", "--", "A", "B", "-n", "6"], ["evaluate", "A", "-n", "5", "B", "--", "-n", "6"]),
        (["bank", "merge", "-o", "c", "--", "a", "-b"], ["bank", "merge", "a", "-o", "c", "--", "-b"]),
    ],
)
def test_options_may_stand_between_arguments(together: list[str], apart: list[str]) -> None:
    first, second = (vars(build_parser().parse_args(argv)) for argv in (together, apart))
    assert {key: value for key, value in first.items() if not callable(value)} == {
        key: value for key, value in second.items() if not callable(value)
    }


def test_all_that_is_missing_is_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    for command, names in (("build", "FOLDER, -o/--out"), ("append", "BANK, FOLDER, -o/--out"), ("merge", "-o/--out")):
        assert main(["bank", command]) == 2
        assert names in capsys.readouterr().err


def test_arguments_that_stand_apart_are_still_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --bogus b; see lpkernel evaluate" in refused(
        capsys, "evaluate", "a", "--bogus", "b"
    )
    assert "unrecognized arguments: stray; see lpkernel generate" in refused(capsys, "generate", "-n", 1, "stray")
    assert "unrecognized arguments: -x; see lpkernel generate" in refused(capsys, "generate", "-n", 1, "--", "-x")
    assert "argument --preset: expected one" in refused(capsys, "evaluate", "a", "--preset", "--", "paper")
    assert "arguments are required: OUT" in refused(capsys, "align", "a", "--size", 8)
    assert "not allowed with" in refused(capsys, "edit", "a", "--box", "1,2,3,4", "--mask", "b")
    assert build_parser().parse_args(["evaluate", "--json", "--", "-a", "-b"]).made == [Path("-b")]
    assert build_parser().parse_args(["evaluate", "a", "--json", "b", "--", "--"]).made == [Path("b"), Path("--")]


@pytest.mark.parametrize("names", ["mouth", "mouth,eyes", "Male", " "])
def test_a_bank_without_a_crop_has_no_regions_by_name(
    names: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 128, 128, 3), np.uint8)
    attributes = {"Male": np.arange(6) % 2 == 0}
    Bank.build(images, load_autoencoder("default"), attributes=attributes).save(tmp_path / "b.lpbank")
    save_png(tmp_path / "a.png", images[0])
    edit = ["edit", tmp_path / "a.png", "--out", tmp_path / "out", "-n", 1, "--quiet", "--region", names]
    assert "this bank is neither; give a mask or a box" in refused(capsys, *edit, "--bank", tmp_path / "b.lpbank")
    assert not (tmp_path / "out").exists()
