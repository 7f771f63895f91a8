"""The command line: what it writes, that it is repeatable, and one line for every mistake."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from PIL import Image

from lpkernel import Bank, load_autoencoder, reference
from lpkernel.cli import main
from lpkernel.commands.generate import random_cells
from lpkernel.pictures import seams

TESTS = Path(__file__).parent
FAKE = f"{TESTS / 'fakes.py'}:FakeVQ"
SMALL = ["-n", "3", "--patch", "3", "--autoencoder", FAKE, "--quiet"]


def save_images(folder: Path, count: int, size: int = 70) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    for i in range(count):
        image = random.integers(0, 256, (8, 8, 3), np.uint8).repeat(9, 0).repeat(9, 1)[:size, :size]
        Image.fromarray(image).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def bank_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "small.lpbank"
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (20, 64, 64, 3), np.uint8)
    attributes = {"Male": np.arange(20) % 2 == 0, "Eyeglasses": np.arange(20) % 3 == 0}
    Bank.build(images, fakes.FakeVQ(), channels=3, attributes=attributes).save(path)
    return path


def run_json(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    assert main([*map(str, argv), "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def facts(out: Path) -> list[dict[str, Any]]:
    """The lines of images.jsonl."""
    return [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]


def listed(record: dict[str, Any]) -> list[str]:
    """The files of a record, sorted."""
    numbers = range(record["first_image"], record["first_image"] + record["count"])
    of_images = [text.format(index=number) for text in record["files_per_image"] for number in numbers]
    return sorted([*record["files"], *of_images])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_json(capsys, "info")["backends"]["numpy"]["usable"]
    assert main(["info"]) == 0
    assert "backend numpy" in capsys.readouterr().out


def test_bank_build_and_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_images(tmp_path / "in" / "cats", 3)
    save_images(tmp_path / "in" / "dogs", 2)
    (tmp_path / "in" / "dogs" / "broken.png").write_text("no picture")
    attributes = tmp_path / "attributes.txt"
    names = [*(f"cats/{i}.png" for i in range(3)), *(f"dogs/{i}.png" for i in range(2)), "dogs/broken.png"]
    attributes.write_text("6\nSmiling\n" + "".join(f"{name} {1 if '0' in name else -1}\n" for name in names))
    out = tmp_path / "pets.lpbank"
    argv = [
        "bank",
        "build",
        tmp_path / "in",
        "-o",
        out,
        "--autoencoder",
        FAKE,
        "--channels",
        3,
        "--attributes",
        attributes,
    ]
    assert main([*map(str, argv), "--json"]) == 0
    captured = capsys.readouterr()
    built = json.loads(captured.out)
    assert built["images"] == 5 and [name for name, _ in built["skipped"]] == ["dogs/broken.png"]
    assert captured.err.startswith("lpkernel: skipped dogs/broken.png: ") and captured.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in", "attributes.txt", "pets.lpbank"}  # no cache left

    shown = run_json(capsys, "bank", "show", out)
    assert shown["labels"] == {"cats": 3, "dogs": 2} and shown["attributes"] == {"Smiling": 2}
    assert shown["autoencoder"] == "fake-vq" and shown["codebook_rows"] == 32 and 0 < shown["codes_used"] <= 32
    assert main(["bank", "show", str(out)]) == 0
    assert "cats 3, dogs 2" in capsys.readouterr().out


def test_a_killed_build_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = save_images(tmp_path / "in", 6), tmp_path / "b.lpbank"
    monkeypatch.setattr("lpkernel.bank.ingest.SHARD", 2)
    argv = ["bank", "build", str(folder), "-o", str(out), "--autoencoder", FAKE, "--channels", "3", "--quiet"]
    encode, calls = fakes.FakeVQ.encode, []

    def stop_at_third(self: fakes.FakeVQ, images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, images)

    # the plug-in file is loaded afresh each time, so the class that it defines cannot be patched from here
    monkeypatch.setattr("lpkernel.load_autoencoder", lambda *_: fakes.FakeVQ())
    monkeypatch.setattr(fakes.FakeVQ, "encode", stop_at_third)
    assert main(argv) == 130 and not out.exists()
    assert main(argv) == 0 and len(Bank.load(out)) == 6
    assert calls == [2, 2, 2, 2]  # the two finished shards were not encoded again


@pytest.mark.parametrize(("kind", "batches"), [("cpu", [32, 8]), ("cuda", [40])])
def test_a_gpu_decodes_more_at_once(
    kind: str, batches: list[int], tmp_path: Path, bank_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU batches have a fixed size and would otherwise be half empty."""
    decode, calls = fakes.FakeVQ.decode, []

    def noted(self: fakes.FakeVQ, latents: np.ndarray) -> np.ndarray:
        calls.append(len(latents))
        return decode(self, latents)

    monkeypatch.setattr("lpkernel.autoencoder.base.choose_device", lambda name: torch.device(kind))
    monkeypatch.setattr("lpkernel.load_autoencoder", lambda *_: fakes.FakeVQ())
    monkeypatch.setattr("lpkernel.autoencoder.once.Once", lambda inner: inner)
    monkeypatch.setattr(fakes.FakeVQ, "decode", noted)
    argv = ["generate", "--bank", bank_path, *SMALL, "-n", 40, "--quiet", "--out", tmp_path]
    assert main([str(word) for word in argv]) == 0 and calls[:-1] == batches  # the last call is for the sheet


def test_generate_writes_everything(tmp_path: Path, bank_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    result = run_json(capsys, "generate", "--bank", bank_path, *SMALL, "--sources", 16, "--baseline", "--out", out)
    assert result == json.loads((out / "generate.json").read_text())
    assert listed(result) == names(out)
    sources = np.load(out / "sources.npy")
    assert sources.shape == (3, 8, 8) and sources.max() < 16
    bank = Bank.load(bank_path)
    assert bank.colours is not None
    decoded = seams.matched(fakes.FakeVQ().decode(bank.gather(sources)), sources, None, bank.colours)
    for i, record in enumerate(facts(out)):
        np.testing.assert_array_equal(np.asarray(Image.open(out / f"image-{i:06d}.png")), decoded[i])
        shares = [used["share"] for used in record["sources"]]
        assert record["index"] == i and sum(shares) == pytest.approx(1, abs=1e-4)
        assert shares == sorted(shares, reverse=True)
        for used in record["sources"]:
            assert used["name"] == bank.names[used["index"]]
            assert used["share"] == pytest.approx((sources[i] == used["index"]).mean(), abs=1e-5)
    settings = result["settings"]
    assert settings["scales"] == [4, 8] and settings["stride"] == 1 and settings["candidates"] == 16
    assert settings["backend"] and settings["backend_why"]
    assert set(result["seconds"]) == {"load bank", "load autoencoder", "synthesis", "decode and write"}


def test_generate_without_pictures(tmp_path: Path, bank_path: Path) -> None:
    argv = ["generate", "--bank", str(bank_path), "-n", "2", "--patch", "3", "--no-decode", "--quiet"]
    assert main([*argv, "--out", str(tmp_path)]) == 0
    assert names(tmp_path) == ["generate.json", "images.jsonl", "sources.npy"]


def _content(folder: Path) -> dict[str, bytes]:
    """The content of every file; the record without its timings."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    record = json.loads(files["generate.json"])
    del record["seconds"]
    assert record["run"]
    return files | {"generate.json": json.dumps(record).encode()}


def test_same_seed_same_bytes(tmp_path: Path, bank_path: Path) -> None:
    argv = ["generate", "--bank", str(bank_path), *SMALL, "--baseline", "--seed", "9"]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    assert main([*argv, "--out", str(tmp_path / "b")]) == 0
    assert _content(tmp_path / "a") == _content(tmp_path / "b")
    assert main([*argv, "--seed", "10", "--out", str(tmp_path / "c")]) == 0
    assert (np.load(tmp_path / "a/sources.npy") != np.load(tmp_path / "c/sources.npy")).any()


def test_first_image_is_a_window_of_a_longer_run(
    tmp_path: Path, bank_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["generate", "--bank", str(bank_path), *SMALL]
    assert main([*argv, "-n", "5", "--out", str(tmp_path / "all")]) == 0
    monkeypatch.setattr("lpkernel.commands.results.DECODE_BATCH", 1)
    assert main([*argv, "-n", "2", "--first-image", "3", "--out", str(tmp_path / "part")]) == 0
    for name in ("image-000003.png", "image-000004.png"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    np.testing.assert_array_equal(np.load(tmp_path / "all/sources.npy")[3:], np.load(tmp_path / "part/sources.npy"))


def test_backends_agree(tmp_path: Path, bank_path: Path) -> None:
    for backend in ("numpy", "torch"):
        assert (
            main(["generate", "--bank", str(bank_path), *SMALL, "--backend", backend, "--out", str(tmp_path / backend)])
            == 0
        )
    assert (tmp_path / "numpy/sheet.png").read_bytes() == (tmp_path / "torch/sheet.png").read_bytes()


def test_where_makes_labelled_groups(tmp_path: Path, bank_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank = Bank.load(bank_path)
    wanted = ["Male", "Eyeglasses & ~Male"]
    argv = ["generate", "--bank", bank_path, *SMALL]
    result = run_json(capsys, *argv, "--where", wanted[0], "--where", wanted[1], "--out", tmp_path / "two")
    sources, images = np.load(tmp_path / "two" / "sources.npy"), facts(tmp_path / "two")
    assert sources.shape == (6, 8, 8) and [group["where"] for group in result["groups"]] == wanted
    for group in result["groups"]:
        rows = slice(group["first_image"], group["first_image"] + group["images"])
        assert bank.where(group["where"])[sources[rows]].all()
        assert {image["where"] for image in images[rows]} == {group["where"]}
        assert group["allowed"] == bank.where(group["where"]).sum()
    run_json(capsys, *argv, "--where", wanted[1], "--first-image", 3, "--out", tmp_path / "one")
    assert facts(tmp_path / "one")[0]["sources"] == images[3]["sources"]  # a group does not depend on the others


def test_reference_from_a_file(tmp_path: Path, bank_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = save_images(tmp_path / "in", 1) / "0.png"
    argv = ["generate", "--bank", bank_path, *SMALL, "--reference", photograph, "--strength", 2, "--provenance"]
    result = run_json(capsys, *argv, "--out", tmp_path / "out", "--copy-limit", "share=0.9,tries=3")
    assert result["settings"]["mode"] == "reference" and result["settings"]["strength"] == 2
    assert result["settings"]["copy_limit"]["share"] == 0.9
    assert listed(result) == names(tmp_path / "out")
    for kind in ("image", "map", "overlay", "provenance"):
        assert Image.open(tmp_path / "out" / f"{kind}-000002.png").width >= 64
    image = np.asarray(Image.open(photograph).resize((64, 64), Image.Resampling.BICUBIC))
    again = reference(Bank.load(bank_path), image, fakes.FakeVQ(), n=3, strength=2, patch=3)
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "sources.npy"), again.sources)


def _mask_file(path: Path, x0: int, y0: int, x1: int, y1: int, size: int = 70) -> Path:
    mask = np.zeros((size, size), np.uint8)
    mask[y0:y1, x0:x1] = 255
    Image.fromarray(mask).save(path)
    return path


@pytest.mark.parametrize("name", ["edit", "inpaint", "harmonize"])
def test_modes_from_files(name: str, tmp_path: Path, bank_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = save_images(tmp_path / "in", 1) / "0.png"
    mask = _mask_file(tmp_path / "mask.png", 20, 25, 50, 35)
    argv = [name, photograph, "--mask", mask, "--bank", bank_path, "--patch", 3, "--autoencoder", FAKE, "--quiet"]
    results = []
    for backend in ("numpy", "torch"):
        out = tmp_path / backend
        result = run_json(capsys, *argv, "-n", 2, "--keep-outside", "--backend", backend, "--out", out)
        assert listed(result) == names(out) and f"{name}.json" in result["files"]
        assert result["settings"]["mode"].startswith(name) and result["settings"]["keep_outside"]
        first = facts(out)[0]
        assert 0 < first["kept"] < 1 and first["kept"] + sum(used["share"] for used in first["sources"]) == 1
        results.append(np.load(out / "sources.npy"))
    np.testing.assert_array_equal(*results)
    seen = np.asarray(Image.open(tmp_path / "numpy" / "image-000000.png"))
    given = np.asarray(Image.open(photograph).resize((64, 64), Image.Resampling.BICUBIC))
    assert np.array_equal(seen[-8:], given[-8:])  # far from the mask
    if name == "inpaint":
        vandalised = np.asarray(Image.open(photograph)).copy()
        vandalised[25:35, 20:50] = 255
        Image.fromarray(vandalised).save(photograph)
        run_json(capsys, *argv, "-n", 2, "--out", tmp_path / "again")
        assert (tmp_path / "again" / "image-000001.png").read_bytes() == (
            tmp_path / "numpy" / "image-000001.png"
        ).read_bytes()


def test_edit_by_box_with_donors(tmp_path: Path, bank_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = save_images(tmp_path / "in", 1) / "0.png"
    save_images(tmp_path / "donors" / "deep", 3)
    argv = [
        "edit",
        photograph,
        "--bank",
        bank_path,
        "--box",
        "10,10,40,41",
        *SMALL,
        "--out",
        tmp_path / "o",
        "--overwrite",
    ]

    def used(result: dict[str, Any]) -> set[str]:
        return {used["name"] for image in facts(tmp_path / "o") for used in image["sources"]}

    by_name = run_json(capsys, *argv, "--donors", "image-000003, image-000007", "--k", 2)
    assert used(by_name) <= {"image-000003", "image-000007"} and by_name["settings"]["region"] == [10, 10, 40, 41]
    both = run_json(capsys, *argv, "--donors", "image-000003", "--where", "Male | ~Male")
    assert used(both) == {"image-000003"}
    folder = run_json(capsys, *argv, "--donors", tmp_path / "donors")
    assert used(folder) <= {f"deep/{i}.png" for i in range(3)} and folder["settings"]["candidates"] <= 3


def test_an_input_unlike_the_bank_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photograph = save_images(tmp_path / "in", 1) / "0.png"
    argv = ["edit", str(photograph), "--box", "0,0,20,20", "-n", "1", "--out", str(tmp_path / "o")]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("lpkernel: warning: the input may not suit the bank: it is ")
    record = json.loads((tmp_path / "o" / "edit.json").read_text())
    assert len(record["warnings"]) == captured.err.count("\n") > 0
    assert main([*argv, "--quiet", "--overwrite"]) == 0 and capsys.readouterr().err == ""


def test_edit_of_an_avatar_by_region(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank, autoencoder = Bank.default(), load_autoencoder()
    Image.fromarray(autoencoder.decode(bank.gather(np.full((1, 16, 16), 9)))[0]).save(tmp_path / "9.png")
    result = run_json(
        capsys,
        "edit",
        tmp_path / "9.png",
        "--region",
        "eyes",
        "--where",
        "Sunglasses",
        "-n",
        1,
        "--out",
        tmp_path / "o",
    )
    assert result["settings"]["region"] == "eyes" and result["settings"]["region_layout"] == "embedded avatars"
    sources = np.load(tmp_path / "o" / "sources.npy")
    assert bank.attributes["Sunglasses"][sources[sources >= 0]].all()
    assert (tmp_path / "o" / "sheet.png").is_file()


def test_baseline_draws_uniformly_whatever_the_window() -> None:
    drawn = random_cells(1, 0, 200, 8, 5)
    np.testing.assert_array_equal(random_cells(1, 3, 2, 8, 5), drawn[3:5])
    counts = np.bincount(drawn.reshape(-1), minlength=5)
    assert len(counts) == 5 and abs(counts / drawn.size - 0.2).max() < 0.02
    assert (random_cells(2, 0, 200, 8, 5) != drawn).any()


class Payload:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("pwned",)


def _prepare(folder: Path, bank: Path) -> None:
    """Everything that the wrong command lines below name, in the current folder."""
    (folder / "empty").mkdir()
    (folder / "text").mkdir()
    (folder / "text" / "a.png").write_text("no picture")
    save_images(folder / "tiny", 1, size=7)
    save_images(folder / "good", 2)
    (folder / "file").write_text("occupied")
    Image.fromarray(np.zeros((70, 70), np.uint8)).save(folder / "black.png")
    Image.fromarray(np.full((70, 70), 255, np.uint8)).save(folder / "white.png")
    _mask_file(folder / "mask.png", 10, 10, 40, 40)
    _mask_file(folder / "small-mask.png", 10, 10, 40, 40, size=50)
    (folder / "small.lpbank").write_bytes(bank.read_bytes())
    (folder / "cut.lpbank").write_bytes(bank.read_bytes()[:3000])
    torch.save({"state_dict": {"encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}}, folder / "keys.ckpt")
    (folder / "evil.ckpt").write_bytes(pickle.dumps({"state_dict": Payload()}))
    torch.save({"state_dict": Payload()}, folder / "evil-zip.ckpt")


BUILD = f"bank build {{}} -o x.lpbank --channels 3 --autoencoder {FAKE}"
GENERATE = f"generate --bank small.lpbank --patch 3 --autoencoder {FAKE} --out o"
EDIT = f"{{}} {{}} --bank small.lpbank --patch 3 --autoencoder {FAKE} --out o"
WRONG = {
    "no command": "",
    "unknown command": "paint",
    "no action": "bank",
    "missing folder": BUILD.format("nowhere"),
    "empty folder": BUILD.format("empty"),
    "only text": BUILD.format("text"),
    "text named png": BUILD.format("text") + " --strict",
    "tiny image": BUILD.format("tiny") + " --strict",
    "crop of three": BUILD.format("good") + " --crop 1,2,3",
    "crop inside out": BUILD.format("good") + " --crop 9,9,3,3",
    "no channels": BUILD.format("good") + " --channels 0",
    "too many channels": BUILD.format("good") + " --channels 99",
    "limit 0": BUILD.format("good") + " --limit 0",
    "batch 0": BUILD.format("good") + " --batch 0",
    "missing attributes": BUILD.format("good") + " --attributes nowhere.txt",
    "bank into a missing folder": BUILD.format("good") + " -o none/x.lpbank",
    "bank over a folder": BUILD.format("good") + " -o empty",
    "missing bank": "bank show nowhere.lpbank",
    "not a bank": "bank show file",
    "cut bank": "bank show cut.lpbank",
    "a folder as bank": "bank show empty",
    "generate from a missing bank": GENERATE + " --bank nowhere.lpbank",
    "generate from no bank": GENERATE + " --bank file",
    "no images": GENERATE + " -n 0",
    "n not a number": GENERATE + " -n many",
    "K = 0": GENERATE + " --k 0",
    "P = 0": GENERATE + " --patch 0",
    "P beyond the scale": GENERATE + " --patch 6 --scales 5,8",
    "stride 0": GENERATE + " --stride 0",
    "stride beyond P": GENERATE + " --stride 4",
    "scales end elsewhere": GENERATE + " --scales 5,7",
    "unsorted scales": GENERATE + " --scales 6,5,8",
    "scales not numbers": GENERATE + " --scales 5,x",
    "unknown overlap": GENERATE + " --overlap blend",
    "negative seed": GENERATE + " --seed -1",
    "negative first image": GENERATE + " --first-image -1",
    "no sources": GENERATE + " --sources 0",
    "too many sources": GENERATE + " --sources 21",
    "bank of another autoencoder": "generate --bank small.lpbank --patch 3 --out o",
    "unknown autoencoder": GENERATE + " --autoencoder nonsense",
    "missing plug-in": GENERATE + " --autoencoder nowhere.py:load",
    "out is a file": GENERATE + " --out file",
    "out below a file": GENERATE + " --out file/below",
    "unknown backend": GENERATE + " --backend quantum",
    "unknown device": "generate --device quantum --out o",
    "unknown dtype": "generate --dtype float7 --out o",
    "contradiction": GENERATE + " --baseline --no-decode",
    "unknown attribute": GENERATE + " --where Mael",
    "malformed where": GENERATE + " --where Male&",
    "hostile where": GENERATE + " --where __import__('os').mkdir('pwned')",
    "where leaves none": GENERATE + " --where Male&~Male",
    "where among no sources": GENERATE + " --where ~Male --sources 1",
    "seed not a number": GENERATE + " --seed lucky",
    "huge seed": GENERATE + " --seed 18446744073709551616",
    "where of show": "bank show small.lpbank --where (",
    "missing reference": GENERATE + " --reference nowhere.png",
    "text as reference": GENERATE + " --reference file",
    "tiny reference": GENERATE + " --reference tiny/0.png",
    "strength 0": GENERATE + " --reference good/0.png --strength 0",
    "strength without reference": GENERATE + " --strength 2",
    "crop without reference": GENERATE + " --crop 0,0,9,9",
    "baseline of a reference": GENERATE + " --reference good/0.png --baseline",
    "crop beyond the reference": GENERATE + " --reference good/0.png --crop 0,0,99,99",
    "copy limit of nothing": GENERATE + " --copy-limit tries=3",
    "copy limit unknown": GENERATE + " --copy-limit depth=3",
    "copy limit no number": GENERATE + " --copy-limit share=half",
    "copy limit twice": GENERATE + " --copy-limit area=3,area=4",
    "copy limit too high": GENERATE + " --copy-limit share=2",
    "edit nothing": EDIT.format("edit", "good/0.png"),
    "edit two regions": EDIT.format("edit", "good/0.png") + " --box 0,0,9,9 --mask mask.png",
    "edit a missing file": EDIT.format("edit", "nowhere.png") + " --box 0,0,9,9",
    "edit a folder": EDIT.format("edit", "good") + " --box 0,0,9,9",
    "unknown region": EDIT.format("edit", "good/0.png") + " --region ears",
    "box beyond": EDIT.format("edit", "good/0.png") + " --box 0,0,71,9",
    "box of three": EDIT.format("edit", "good/0.png") + " --box 0,0,71",
    "edit mode": EDIT.format("edit", "good/0.png") + " --box 0,0,9,9 --mode bold",
    "mask of another size": EDIT.format("edit", "good/0.png") + " --mask small-mask.png",
    "missing mask": EDIT.format("edit", "good/0.png") + " --mask nowhere.png",
    "unknown donor": EDIT.format("edit", "good/0.png") + " --box 0,0,9,9 --donors nobody",
    "donors in an empty folder": EDIT.format("edit", "good/0.png") + " --box 0,0,9,9 --donors empty",
    "unreadable donors": EDIT.format("edit", "good/0.png") + " --box 0,0,9,9 --donors text",
    "donors and where": EDIT.format("edit", "good/0.png") + " --box 0,0,9,9 --donors good --where Male",
    "inpaint without a mask": EDIT.format("inpaint", "good/0.png"),
    "inpaint with an empty mask": EDIT.format("inpaint", "good/0.png") + " --mask black.png",
    "inpaint everything": EDIT.format("inpaint", "good/0.png") + " --mask white.png",
    "harmonize everything": EDIT.format("harmonize", "good/0.png") + " --mask white.png",
    "harmonize with text": EDIT.format("harmonize", "good/0.png") + " --mask file",
    "harmonize with another autoencoder": "harmonize good/0.png --bank small.lpbank --mask mask.png --out o",
    "missing checkpoint": "autoencoder convert nowhere.ckpt o",
    "checkpoint without keys": "autoencoder convert keys.ckpt o",
    "pickle that runs code": "autoencoder convert evil.ckpt o",
    "checkpoint that runs code": "autoencoder convert evil-zip.ckpt o",
}


@pytest.fixture(scope="module")
def wrong_inputs(tmp_path_factory: pytest.TempPathFactory, bank_path: Path) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    _prepare(folder, bank_path)
    return folder


def _assert_one_line(code: int, out: str, err: str) -> None:
    lines = [line for line in err.splitlines() if not line.startswith("lpkernel: no config given")]
    assert code == 2 and out == ""
    assert len(lines) == 1 and lines[0].startswith("lpkernel: error: ") and len(lines[0]) > 25, err


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line_and_code_2(
    line: str, wrong_inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(wrong_inputs)
    code = main(line.split())
    _assert_one_line(code, *capsys.readouterr())
    assert not Path("pwned").exists() and not Path("o").exists() and not Path("x.lpbank").exists()


@pytest.mark.parametrize("name", ["cuda", "cpp", "triton"])
def test_an_unusable_backend_names_its_reasons(
    name: str, tmp_path: Path, bank_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lpkernel.backends import registry

    if not registry.BACKENDS[name].unavailable():
        pytest.skip(f"backend {name} can run here")
    code = main(["generate", "--bank", str(bank_path), *SMALL, "--backend", name, "--out", str(tmp_path / "o")])
    captured = capsys.readouterr()
    _assert_one_line(code, captured.out, captured.err)
    assert f"backend {name}" in captured.err


def _subprocess(*argv: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "lpkernel", *map(str, argv)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_module_run_makes_images_and_keeps_stdout_for_json(tmp_path: Path, bank_path: Path) -> None:
    done = _subprocess(
        "generate", "--bank", bank_path, "-n", 2, "--patch", 3, "--autoencoder", FAKE, "--json", cwd=tmp_path
    )
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout)["settings"]["n"] == 2
    assert (tmp_path / "out" / "sheet.png").is_file()


def test_module_run_of_a_mistake(tmp_path: Path) -> None:
    done = _subprocess("bank", "show", "nowhere.lpbank", cwd=tmp_path)
    _assert_one_line(done.returncode, done.stdout, done.stderr)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("info", "bank", "autoencoder", "generate"))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from lpkernel import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_option_points_to_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--nonsense"]) == 2
    assert capsys.readouterr().err == (
        "lpkernel: error: unrecognized arguments: --nonsense; see lpkernel generate --help\n"
    )


@pytest.mark.parametrize("device", ["foo", "CPU", "", "meta"])
def test_an_unknown_device_is_one_line(device: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for more in (["--no-decode"], []):
        assert main(["generate", "-n", "1", "--device", device, "--out", str(tmp_path / "out"), *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and repr(device) in said


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    out = tmp_path / "人"
    command = [sys.executable, "-m", "lpkernel", "generate", "-n", "1", "--no-decode", "--out", str(out)]
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and b"\\u4eba" in done.stdout, done


def test_escapes_in_names_of_files_are_not_sent_to_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "0\x1b]0;title\x07\x1b[2J.png").symlink_to(tmp_path / "nothing")
    main(["bank", "build", str(photographs), "-o", str(tmp_path / "one.lpbank")])
    main(["evaluate", str(photographs)])
    assert "\x1b" not in capsys.readouterr().err


def test_a_wrong_copy_limit_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--copy-limit", "share=2"]) == 2
    assert "share is 2.0, expected more than 0 and at most 1" in capsys.readouterr().err
