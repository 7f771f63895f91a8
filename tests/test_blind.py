"""scripts/blind.py: sheets whose order says nothing, and the counts by preset."""

from __future__ import annotations

import json
from pathlib import Path

import blind
import fakes
import numpy as np
import pytest
from test_cli import FAKE

from lpkernel import Bank
from lpkernel.errors import InputError


def run(monkeypatch: pytest.MonkeyPatch, *argv: object) -> int:
    monkeypatch.setattr("sys.argv", ["blind.py", *map(str, argv)])
    return blind.main()


def test_what_observers_saw_is_counted_by_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bank, out, notes = tmp_path / "small.lpbank", tmp_path / "out", tmp_path / "notes.jsonl"
    images = np.random.default_rng(3).integers(0, 256, (9, 64, 64, 3), np.uint8)
    Bank.build(images, fakes.FakeVQ(), channels=3).save(bank)
    presets = ("--preset", "paper,patch=3", "--preset", "balanced,patch=3")
    made = ("make", "--bank", bank, "--autoencoder", FAKE, *presets, "-n", 5, "--seeds", 1, 2, "--out", out)
    assert run(monkeypatch, *made) == 0
    key = json.loads((out / "key.json").read_text())["pictures"]
    assert len(key) == 20 and len({tuple(one.values()) for one in key}) == 20
    assert [one["preset"] for one in key[:10]] != ["paper,patch=3"] * 10
    assert {path.name for path in out.iterdir()} == {"key.json", "sheet-00.png", "sheet-01.png"}
    with pytest.raises(InputError, match="holds files already"):
        run(monkeypatch, *made)
    seen = [["eyes"] if one["preset"].startswith("paper") else ["eyes", "smear"] * (one["seed"] == 2) for one in key]
    lines = [json.dumps({"n": n, "faults": faults}) for n, faults in enumerate(seen)]
    notes.write_text("\n".join(lines[::-1]))
    capsys.readouterr()
    assert run(monkeypatch, "count", out, notes) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert said[1:] == [["eyes", "10", "5"], ["smear", "0", "5"], ["nothing", "0", "5"]]
    for wrong, match in (
        ("\n".join(lines[1:]), "got none for 0"),
        ("\n".join([*lines, lines[3]]), "line 21: picture 3 a second time"),
        ('{"n": 20, "faults": []}', "line 1: expected"),
        *((f'{{"n": {n}, "faults": []}}', "line 1: expected") for n in ("0.9", "true", "Infinity", "null")),
        *((f'{{"n": 0, "faults": {faults}}}', "line 1: expected") for faults in ('"eyes"', "[null]", "{}")),
        ("[]", "expected"),
        ("no", "expected"),
    ):
        notes.write_text(wrong)
        with pytest.raises(InputError, match=match):
            run(monkeypatch, "count", out, notes)
    for text in (None, "{}", "[", "[1]"):
        (out / "key.json").unlink() if text is None else (out / "key.json").write_text(text)
        with pytest.raises(InputError, match=r"expected what `make` wrote"):
            run(monkeypatch, "count", out, notes)
