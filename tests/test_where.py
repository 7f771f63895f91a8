"""Bank.where: the grammar against Python's own operators, and one short line for every malformed expression."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpkernel as lp
from lpkernel.cli import main
from lpkernel.errors import InputError

SIZE = 40
NAMES = ("Male", "Blond_Hair", "5_o_Clock_Shadow", "no-beard", "wavy hair", "it's")


def small_bank() -> lp.Bank:
    random = np.random.default_rng(0)
    return lp.Bank.from_codes(
        random.integers(0, 9, (SIZE, 4, 4)),
        random.normal(size=(9, 5)).astype(np.float32),
        channels=3,
        labels=["cats" if i % 3 else "big dogs" if i % 2 else "" for i in range(SIZE)],
        attributes={name: random.random(SIZE) < 0.4 for name in NAMES},
    )


BANK = small_bank()
Node = tuple[str, np.ndarray]  # an expression as text, and its value


def quoted(name: str) -> str:
    return f'"{name}"' if "'" in name else f"'{name}'"


def _joined(sign: str, left: Node, right: Node) -> Node:
    value = left[1] & right[1] if sign == "&" else left[1] | right[1]
    return f"({left[0]} {sign} {right[0]})", value


LEAVES = st.sampled_from(NAMES).map(lambda name: (quoted(name), BANK.attributes[name]))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        inner.map(lambda node: (f"~{node[0]}", ~node[1])),
        st.builds(_joined, st.sampled_from("&|"), inner, inner),
    ),
    max_leaves=12,
)


@given(TREES)
def test_expressions_are_what_they_say(node: Node) -> None:
    assert np.array_equal(BANK.where(node[0]), node[1])


def test_not_binds_before_and_before_or() -> None:
    male, blond, beard = (BANK.attributes[name] for name in ("Male", "Blond_Hair", "no-beard"))
    assert np.array_equal(BANK.where("Male|Blond_Hair&~no-beard"), male | (blond & ~beard))
    assert np.array_equal(BANK.where(" ~~Male & Blond_Hair "), male & blond)
    assert np.array_equal(BANK.where("~(Male | 5_o_Clock_Shadow)"), ~(male | BANK.attributes["5_o_Clock_Shadow"]))


def test_labels_are_names_too() -> None:
    assert BANK.labels is not None
    assert np.array_equal(BANK.where("'big dogs' | cats"), np.array(BANK.labels) != "")
    assert BANK.where("cats & 'big dogs'").sum() == 0


def test_the_result_is_the_callers_own() -> None:
    found = BANK.where("Male")
    found[:] = False
    assert BANK.attributes["Male"].any()


@pytest.mark.parametrize(
    ("expression", "word"),
    [
        ("", "got the end"),
        ("   ", "got the end"),
        ("Male &", "got the end"),
        ("& Male", "'&' at character 1"),
        ("Male Blond_Hair", "'Blond_Hair' at character 6"),
        ("(Male", "expected &, | or \\), got the end"),
        ("Male)", "'\\)' at character 5"),
        ("()", "expected a name"),
        ("Male && ~Male", "'&' at character 7"),
        ("not Male", "'not' is unknown"),
        ("Mael", "nearest: Male"),
        ("blond", "nearest: Blond_Hair"),
        ("zzzz", "expected one of Male, Blond_Hair, 5_o_Clock_Shadow, no-beard, wavy hair and 3 more"),
        ("''", "'' is unknown"),
        ("'Male", "a quote that is not closed at character 1"),
        ("Male == 1", "'=' at character 6"),
        ("__import__('os').system('true')", "unknown"),
        ("Male;Male", "';' at character 5"),
        ("(" * 5000, "deeper than 100"),
        ("~" * 9999, "got the end"),
        ("M" * 10_001, "10001 characters"),
        ("M" * 9_999, "is unknown"),
        ("Male\x00", "character 5"),
    ],
)
def test_malformed_expressions_are_one_short_line(expression: str, word: str) -> None:
    with pytest.raises(InputError, match=word) as raised:
        BANK.where(expression)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_too_few_images_left() -> None:
    with pytest.raises(InputError, match="no image is left, expected at least 3"):
        BANK.where("Male & ~Male", at_least=3)
    both = int(BANK.where("Male & Blond_Hair").sum())
    with pytest.raises(InputError, match=f"only {both} of 40 images are left"):
        BANK.where("Male & Blond_Hair", at_least=both + 1)
    assert BANK.where("Male & Blond_Hair", at_least=both).sum() == both


def test_a_bank_without_attributes_says_so() -> None:
    plain = lp.Bank.from_codes(np.zeros((2, 4, 4), int), np.eye(4, dtype=np.float32), channels=2)
    with pytest.raises(InputError, match="'Male' is unknown; there are none"):
        plain.where("Male")


def test_bank_show_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.lpbank"
    BANK.save(path)
    assert main(["bank", "show", str(path), "--where", "Male & ~'wavy hair'", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    expected = np.flatnonzero(BANK.attributes["Male"] & ~BANK.attributes["wavy hair"])
    assert (shown["images"], shown["matching"]) == (SIZE, len(expected))
    assert shown["first_names"] == [BANK.names[i] for i in expected][:20]
    assert main(["bank", "show", str(path), "--where", "Male & ~Male"]) == 0
    assert "matching" in capsys.readouterr().out
    assert main(["bank", "show", str(path), "--where", "Mael"]) == 2
    assert "nearest: Male" in capsys.readouterr().err


def test_images_of_others_share_the_number_system() -> None:
    other = np.random.default_rng(1).integers(0, 9, (3, 4, 4))
    made = BANK.with_images(other, ["a", "b", "c"])
    assert made.codes is not None and BANK.fixed_codebook is not None
    assert np.array_equal(made.codes, other) and made.scale == BANK.scale and made.names == ["a", "b", "c"]
    assert np.array_equal(made.level(4), BANK.fixed_codebook[other])
    assert not made.attributes and made.labels is None
    for wrong, message in (
        (np.zeros((1, 3, 3), int), "expected a grid of 4x4"),
        (np.full((1, 4, 4), 9), "codes run from 9 to 9, expected 0 to 8"),
        (np.zeros((1, 4, 4)), "codes are float64, expected integers"),
    ):
        with pytest.raises(InputError, match=message):
            BANK.with_images(wrong, ["a"])
