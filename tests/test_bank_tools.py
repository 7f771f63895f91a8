"""Banks from banks: subsets, merged and appended banks; and what the command line says about them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeVQ
from test_ingest import folder_of

from lpkernel import generate
from lpkernel.bank import Bank
from lpkernel.cli import main
from lpkernel.commands import common
from lpkernel.errors import InputError

RANDOM = np.random.default_rng(5)
FAKE = f"{Path(__file__).parent / 'fakes.py'}:FakeVQ"


def latents(count: int, names: str) -> Bank:
    content = np.random.default_rng(count).normal(size=(count, 6, 6, 5))
    attributes = {"Smiling": np.arange(count) % 2 == 0}
    return Bank.from_latents(content, 3, names=[f"{names}{i}" for i in range(count)], attributes=attributes)


def codes(count: int, names: str) -> Bank:
    content = np.random.default_rng(count).integers(0, 9, (count, 6, 6))
    book = np.random.default_rng(0).normal(size=(9, 5))
    return Bank.from_codes(content, book, 3, names=[f"{names}{i}" for i in range(count)], labels=[names] * count)


@pytest.mark.parametrize("make", [codes, latents])
def test_a_subset_generates_as_the_bank_does_with_these_candidates(make: Any, tmp_path: Path) -> None:
    bank, chosen = make(20, "a"), np.array([3, 4, 7, 11, 19])
    part = bank.subset(chosen)
    part.save(tmp_path / "x.lpbank")
    part = Bank.load(tmp_path / "x.lpbank", verify=True)
    assert part.names == [bank.names[i] for i in chosen] and len(part) == 5
    for preset in ("paper", "balanced"):
        expected = generate(bank, 3, patch=2, preset=preset, candidates=chosen)
        made = generate(part, 3, patch=2, preset=preset)
        assert np.array_equal(chosen[made.sources], expected.sources)
    mask = np.zeros(20, bool)
    mask[chosen] = True
    assert bank.subset(mask) == bank.subset(chosen)
    with pytest.raises(InputError, match="no bank image is allowed"):
        bank.subset(np.zeros(20, bool))


@pytest.mark.parametrize("make", [codes, latents])
def test_merged_banks_are_as_built_at_once(make: Any) -> None:
    one, two = make(4, "a"), make(7, "b")
    made = Bank.merge([one, two])
    if make is codes:
        whole = Bank.from_codes(np.concatenate([one.codes, two.codes]), one.codebook, 3, names=one.names + two.names)
        assert made.labels == ["a"] * 4 + ["b"] * 7
    else:
        whole = Bank.from_latents(np.concatenate([one.latents, two.latents]), 3, names=one.names + two.names)
        assert made.attributes["Smiling"].tolist() == [*one.attributes["Smiling"], *two.attributes["Smiling"]]
    whole.labels, whole.attributes = made.labels, made.attributes
    assert made == whole


def test_what_does_not_merge() -> None:
    with pytest.raises(InputError, match=r"'a0' is in two banks"):
        Bank.merge([codes(4, "a"), codes(3, "a")])
    with pytest.raises(InputError, match="got is_discrete True and False"):
        Bank.merge([codes(4, "a"), latents(3, "b")])
    other = codes(3, "b")
    assert other.codebook is not None
    other.codebook = other.codebook + np.float32(1)
    with pytest.raises(InputError, match="different codebooks"):
        Bank.merge([codes(4, "a"), other])
    with pytest.raises(InputError, match="got no banks"):
        Bank.merge([])


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main([*map(str, argv), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder_of(tmp_path / "a", 5)
    more = folder_of(tmp_path / "b", 3)
    for path in more.glob("*.png"):
        path.rename(path.with_name(f"more-{path.name}"))
    table = tmp_path / "table.csv"
    table.write_text("image,Smiling\n" + "".join(f"{i}.png,{1 if i % 2 else -1}\n" for i in range(4)))
    with_table = ("--attributes", table, "--autoencoder", FAKE)
    build = ("bank", "build", tmp_path / "a", "-o", tmp_path / "a.lpbank", "--channels", 3)
    assert main([*map(str, (*build, *with_table))]) == 2
    assert "no row for 1 of 5 images, first '4.png'" in capsys.readouterr().err
    made = run(capsys, *build, *with_table, "--missing-attributes", "skip")
    assert made["images"] == 4 and made["skipped"] == [["4.png", "no row in table.csv"]]
    assert run(capsys, "bank", "verify", tmp_path / "a.lpbank") == {
        "bank": str(tmp_path / "a.lpbank"),
        "images": 4,
        "sound": True,
    }
    out = tmp_path / "all.lpbank"
    made = run(capsys, "bank", "append", tmp_path / "a.lpbank", more, "-o", out, "--autoencoder", FAKE)
    assert made["images"] == 7 and made["attributes"] == {} and made["dropped_attributes"] == ["Smiling"]
    made = run(capsys, "bank", "subset", tmp_path / "a.lpbank", "--where", "Smiling", "-o", tmp_path / "s.lpbank")
    assert made["images"] == 2 and made["first_names"] == ["1.png", "3.png"]
    alone = ("bank", "build", more, "-o", tmp_path / "b.lpbank", "--channels", 3, "--autoencoder", FAKE)
    run(capsys, *alone)
    both = run(capsys, *alone, "--overwrite", "--flip")
    assert both["images"] == 6 and both["first_names"][3] == "more-0.png (flipped)"
    run(capsys, *alone, "--overwrite")
    assert (
        main(["bank", "merge", *(str(tmp_path / f"{name}.lpbank") for name in "ab"), "-o", f"{tmp_path}/m.lpbank"]) == 0
    )
    said = capsys.readouterr()
    assert said.out == f"7 images in {tmp_path / 'm.lpbank'}\n"
    assert said.err.endswith("attributes that only some of the images have are left out: Smiling\n")
    assert Bank.load(tmp_path / "m.lpbank") == Bank.load(out)
    assert main(["bank", "merge", str(out), "-o", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    content = bytearray(out.read_bytes())
    content[-1] ^= 1
    out.write_bytes(content)
    assert main(["bank", "verify", str(out)]) == 2
    assert "damaged bank" in capsys.readouterr().err


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "EVERY", 0.0)
    argv = [
        "bank",
        "build",
        str(folder_of(tmp_path / "a", 5)),
        "--autoencoder",
        FAKE,
        "--channels",
        "3",
        "--batch",
        "2",
    ]
    assert main([*argv, "-o", str(tmp_path / "a.lpbank")]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if "a second" in line]
    assert [line.split(",")[0] for line in told] == [f"lpkernel: encoding: {n} of 5 images" for n in (2, 4, 5)]
    assert main([*argv, "-o", str(tmp_path / "b.lpbank"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_the_next_pictures_are_read_while_some_are_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lpkernel.bank import ingest

    order: list[str] = []
    read, encode = ingest._Source.read, FakeVQ.encode

    def reading(self: Any, *arguments: Any) -> Any:
        order.append(self.name)
        return read(self, *arguments)

    def encoding(self: FakeVQ, images: np.ndarray) -> np.ndarray:
        if len(order) < 6:
            for _ in range(1000):  # until another thread has begun with the next batch
                if len(order) > 2:
                    break
                time.sleep(0.01)
            assert len(order) > 2
        return encode(self, images)

    monkeypatch.setattr(ingest._Source, "read", reading)
    monkeypatch.setattr(FakeVQ, "encode", encoding)
    Bank.build(folder_of(tmp_path / "in", 6), FakeVQ(), 3, batch=2)
    assert sorted(order) == [f"{i}.png" for i in range(6)]
