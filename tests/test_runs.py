"""The folder of a run: one run only, cleaned of exactly what a record lists, resumed after a kill."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cli import FAKE, facts, listed, names, run_json, save_images

from lpkernel import Bank, generate, load_autoencoder
from lpkernel.cli import main
from lpkernel.commands import results, runs
from lpkernel.commands.common import json_text, seed
from lpkernel.commands.tar_shard import TarShard


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "small.lpbank"
    images = np.random.default_rng(3).integers(0, 256, (20, 64, 64, 3), np.uint8)
    Bank.build(images, fakes.FakeVQ(), channels=3, attributes={"Male": np.arange(20) % 2 == 0}).save(path)
    return path


@pytest.fixture
def command(bank: Path, tmp_path: Path) -> list[str]:
    argv = ["generate", "--bank", str(bank), "--patch", "3", "--autoencoder", FAKE, "--quiet"]
    return [*argv, "--out", str(tmp_path / "out")]


def content(folder: Path) -> dict[str, bytes]:
    """The content of every file; the record without its timings."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in found:
        if name.endswith(".json"):
            found[name] = json.dumps({**json.loads(found[name]), "seconds": {}}).encode()
    return found


def test_another_run_is_refused_and_nothing_changes(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "-n", "3"]) == 0
    before = content(tmp_path / "out")
    for other in (["-n", "2"], ["-n", "3", "--seed", "4"], ["-n", "3", "--provenance"]):
        assert main([*command, *other]) == 2
        error = capsys.readouterr().err
        assert "holds the run of lpkernel generate with seed 0 (generate.json); --overwrite" in error
        assert error.count("\n") == 1 and content(tmp_path / "out") == before


def test_overwrite_cleans_what_the_record_lists_and_nothing_else(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([*command, "-n", "5", "--provenance", "--baseline"]) == 0
    mine = {"holiday.png", "image-000007.png", "image-1.png", "notes.txt", "map-000001.jpg"}
    for name in mine:
        (out / name).write_text("mine")
    assert main([*command, "-n", "2", "--overwrite"]) == 0
    record = json.loads((out / "generate.json").read_text())
    assert set(names(out)) == mine | set(listed(record)) and record["count"] == 2
    assert all((out / name).read_text() == "mine" for name in mine)


def test_a_record_of_an_earlier_version_is_cleaned_of_its_files(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("image-000000.png", "image-000001.png", "baseline-codes.png", "kept.png"):
        (out / name).write_text("old")
    old = {"files": ["image-000000.png", "image-000001.png", "baseline-codes.png", "generate.json"], "settings": {}}
    (out / "generate.json").write_text(json.dumps(old))
    assert main([*command, "-n", "1"]) == 2
    assert main([*command, "-n", "1", "--overwrite"]) == 0
    assert set(names(out)) == {"kept.png", *listed(json.loads((out / "generate.json").read_text()))}


def test_commands_share_no_folder(command: list[str], bank: Path, tmp_path: Path) -> None:
    assert main([*command, "-n", "3"]) == 0
    photograph = save_images(tmp_path / "in", 1) / "0.png"
    edit = ["edit", str(photograph), "--box", "0,0,20,20", *command[1:]]
    assert main([*edit, "-n", "1"]) == 2
    assert main([*edit, "-n", "1", "--overwrite"]) == 0
    record = json.loads((tmp_path / "out" / "edit.json").read_text())
    assert names(tmp_path / "out") == listed(record)


@pytest.mark.parametrize(
    "record",
    [
        "no JSON",
        "[]",
        json.dumps({"files": ["../outside.png", "generate.json"]}),
        json.dumps({"files": ["/etc/passwd"]}),
        json.dumps({"files": [".hidden"]}),
        json.dumps({"files": [3]}),
        json.dumps({"files": [], "files_per_image": ["{index.__class__}"], "first_image": 0, "count": 1}),
        json.dumps({"files": [], "files_per_image": ["../image-{index:06d}.png"], "first_image": 0, "count": 1}),
        json.dumps({"files": [], "files_per_image": [], "first_image": 0, "count": -1}),
        json.dumps({"files": [], "files_per_image": [], "first_image": 0, "count": 1e9}),
        "[" * 100_000,
        json.dumps({"files": [], "x": [[]] * 1_100_000}),
        json.dumps({"files": []}) + " " * (1 << 23) + "x",
    ],
)
def test_what_is_no_record_of_ours_is_not_trusted(
    record: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "outside.png").write_text("mine")
    (out / "generate.json").write_text(record)
    for more in ([], ["--overwrite"]):
        assert main([*command, "-n", "1", *more]) == 2
        assert "is not a record of a run" in capsys.readouterr().err
    assert names(out) == ["generate.json"] and (tmp_path / "outside.png").exists()


def test_files_that_no_record_lists_are_not_overwritten(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "image-000001.png").write_text("mine")
    for more in ([], ["--overwrite"]):
        assert main([*command, "-n", "2", *more]) == 2
        assert "image-000001.png exists and no record of a run lists it" in capsys.readouterr().err
    assert main([*command, "-n", "1"]) == 0 and (out / "image-000001.png").read_text() == "mine"


def test_the_same_run_again_is_the_record(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_json(capsys, *command, "-n", 3)
    before = content(tmp_path / "out")
    monkeypatch.setattr("lpkernel.synthesis.generate", None)  # nothing is made
    monkeypatch.setattr("lpkernel.load_autoencoder", None)
    assert run_json(capsys, *command, "-n", 3) == first and content(tmp_path / "out") == before


def test_a_run_that_lost_a_file_is_made_again(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "-n", "3"]) == 0
    before = content(tmp_path / "out")
    (tmp_path / "out" / "image-000001.png").unlink()
    assert main([*command, "-n", "3"]) == 0 and content(tmp_path / "out") == before


def test_a_run_is_known_by_its_arguments(command: list[str], tmp_path: Path) -> None:
    """Not by objects that differ from process to process."""
    from lpkernel.cli import build_parser

    def known(*more: str) -> str:
        return runs.identity(build_parser().parse_args([*command, *more]), "generate")

    assert known() == known("--out", str(tmp_path), "--json", "--backend", "numpy", "--overwrite")
    assert len({known(), known("--seed", "1"), known("-n", "3"), known("--copy-limit", "area=3")}) == 4


def test_an_input_that_changed_is_another_run(command: list[str], tmp_path: Path) -> None:
    photograph = save_images(tmp_path / "in", 1) / "0.png"
    argv = [*command, "-n", "1", "--reference", str(photograph)]
    assert main(argv) == 0 and main(argv) == 0
    Image.fromarray(np.zeros((70, 70, 3), np.uint8)).save(photograph)
    assert main(argv) == 2


class Killed(BaseException):
    """An exception that no handler of the command line expects."""


def killed_at(monkeypatch: pytest.MonkeyPatch, place: str, call: int) -> None:
    """Let a function of `results` or `runs` raise at its n-th call."""
    module, _, name = place.rpartition(".")
    owner: Any = {"results": results, "runs.Stream": runs.Stream, "runs.Folder": runs.Folder}[module]
    real, calls = getattr(owner, name), [0]

    def counted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return real(*args, **options)

    monkeypatch.setattr(owner, name, counted)


PLACES = [
    *((f"results.{name}", call) for name in ("_write_images", "_facts_of_images") for call in (1, 2, 4)),
    *(("runs.Stream.append", call) for call in (1, 3, 5)),
    ("results._write_sheet", 1),
    ("runs.Stream.finish", 1),
    ("runs.Folder.finish", 1),
]


@pytest.mark.parametrize(("place", "call"), PLACES)
def test_a_killed_run_goes_on_and_gives_the_same_files(
    place: str, call: int, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "DECODE_BATCH", 2)
    argv = [
        *command,
        "-n",
        "5",
        "--where",
        "Male",
        "--where",
        "~Male",
        "--provenance",
        "--copy-limit",
        "area=9,tries=2",
    ]
    whole = tmp_path / "whole"
    assert main([*argv, "--out", str(whole)]) == 0
    with monkeypatch.context() as patch:
        killed_at(patch, place, call)
        with pytest.raises(Killed):
            main(argv)
    out = tmp_path / "out"
    assert not (out / "generate.json").exists() and (out / "generate.unfinished.json").exists()
    assert main([*argv[:-2], "--copy-limit", "area=8,tries=2"]) == 2  # another run does not take over
    made: list[int] = []
    write = results._write_images

    def watched(session: Any, synthesis: Any, first: int, provenance: bool) -> None:
        made.append(first)
        write(session, synthesis, first, provenance)

    with monkeypatch.context() as patch:
        patch.setattr(results, "_write_images", watched)
        assert main(argv) == 0
    assert content(out) == content(whole)
    done = {"runs.Stream.append": call - 1, "results._facts_of_images": call - 1, "results._write_images": call - 1}
    assert made[0] == [0, 2, 4, 5, 7, 9][min(done.get(place, 5), 5)]


def members(path: Path) -> dict[str, bytes]:
    """What a tar file holds, in its order."""
    with tarfile.open(path) as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


@pytest.mark.parametrize("extra", [[], ["--no-decode"], ["--provenance", "--where", "Male", "--where", "~Male"]])
def test_a_shard_holds_what_the_folder_would(extra: list[str], command: list[str], tmp_path: Path) -> None:
    plain, argv = tmp_path / "plain", [*command, "-n", "3", "--first-image", "5", *extra]
    assert main([*argv, "--out", str(plain)]) == 0
    assert main([*argv, "--shards", "tar"]) == 0
    out = tmp_path / "out"
    found, files, maps = members(out / "images-000000.tar"), content(plain), np.load(out / "sources.npy")
    kinds = {"image": "png", "map": "map.png", "overlay": "overlay.png", "provenance": "provenance.png"}
    lines = files["images.jsonl"].splitlines(keepends=True)
    for number, (line, one) in enumerate(zip(lines, maps, strict=True)):
        key = f"{5 + number:06d}"
        for kind, ending in kinds.items():
            assert found.get(f"{key}.{ending}") == files.get(f"{kind}-{key}.png")
        assert found[f"{key}.json"] == line and (np.load(io.BytesIO(found[f"{key}.npy"])) == one).all()
    assert [name.split(".")[0] for name in found] == sorted(name.split(".")[0] for name in found)
    assert len(found) == len(lines) * (
        2 + sum(name.startswith(f"{kind}-00") for kind in kinds for name in files) / len(lines)
    )
    for name in ("images.jsonl", "sources.npy", "sheet.png"):
        assert (out / name).exists() == (name in files)
        assert name == "sheet.png" or (out / name).read_bytes() == files[name]
    assert main([*argv, "--shards", "tar"]) == 0  # nothing is made twice
    assert main(argv) == 2  # another run


@pytest.mark.parametrize("cut", [0, 1, 511, 513, 700, 5000, -1, -513])
def test_a_cut_shard_is_gone_on_with_after_its_last_whole_image(
    cut: int, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "DECODE_BATCH", 2)
    argv = [*command, "-n", "7", "--shards", "tar"]
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        killed_at(patch, "runs.Stream.append", 4)
        with pytest.raises(Killed):
            main(argv)
    growing = tmp_path / "out" / "images-000000.tar.part"
    length = growing.stat().st_size
    os.truncate(growing, cut if cut >= 0 else length + cut)
    assert main(argv) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


@pytest.mark.parametrize(("place", "call"), [*((("runs.Stream.append", call)) for call in (1, 3)), *PLACES[-3:]])
def test_a_killed_run_with_a_shard_goes_on(
    place: str, call: int, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "DECODE_BATCH", 2)
    argv = [*command, "-n", "5", "--shards", "tar", "--provenance"]
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        killed_at(patch, place, call)
        with pytest.raises(Killed):
            main(argv)
    assert main(argv) == 0
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_cut_line_and_a_lost_picture_are_made_again(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "DECODE_BATCH", 2)
    argv, out = [*command, "-n", "7"], tmp_path / "out"
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    with monkeypatch.context() as patch:
        killed_at(patch, "results._write_sheet", 1)
        with pytest.raises(Killed):
            main(argv)
    kept = tmp_path / "kept"
    shutil.copytree(out, kept)

    def cut(name: str, keep: int) -> None:
        os.truncate(out / name, keep)

    damages: list[Callable[[], None]] = [
        lambda: cut("images.jsonl.part", 900),
        lambda: cut("sources.npy.part", 1000),
        lambda: cut("sources.npy.part", 20),
        lambda: (out / "image-000003.png").unlink(),
        lambda: (out / "images.jsonl.part").unlink(),
    ]
    for damage in damages:
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        damage()
        assert main(argv) == 0 and content(out) == content(tmp_path / "whole")


def test_an_unfinished_run_is_overwritten_when_asked(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, "results._write_sheet", 1)
        with pytest.raises(Killed):
            main([*command, "-n", "3", "--seed", "6"])
    assert main([*command, "-n", "2"]) == 2
    assert "holds an unfinished run of lpkernel generate with seed 6" in capsys.readouterr().err
    assert main([*command, "-n", "2", "--overwrite"]) == 0
    assert names(tmp_path / "out") == listed(json.loads((tmp_path / "out" / "generate.json").read_text()))


def test_two_processes_do_not_share_a_folder(command: list[str], tmp_path: Path) -> None:
    from lpkernel.bank.shards import owned

    with owned(tmp_path / "out"):
        assert main([*command, "-n", "1"]) == 2


def test_a_link_in_place_of_a_growing_file_is_not_followed(command: list[str], tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    mine.write_text("mine")
    (out / "sources.npy.part").symlink_to(mine)
    assert main([*command, "-n", "1"]) == 2 and mine.read_text() == "mine"


def test_a_growing_file_that_has_another_name_is_left_alone(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hard link to a file of the user's, or a pipe, which would wait for ever."""
    out, mine = tmp_path / "out", tmp_path / "mine"
    for name in ("sources.npy.part", "images.jsonl.part"):
        for kind in ("link", "pipe"):
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            mine.write_text("mine")
            (out / name).hardlink_to(mine) if kind == "link" else os.mkfifo(out / name)
            assert main([*command, "-n", "1"]) == 2 and mine.read_text() == "mine"
            assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(("name", "size"), [("000000.png", -5000), ("000000.png", -512), ("é" * 5, 0)])
def test_a_damaged_member_of_a_shard_ends_it(name: str, size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = size
    block = entry.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
    assert len(TarShard(io.BufferedRandom(io.BytesIO(block * 3)), 0, ["png"])) == 0  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_images(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two batches are alive at once."""
    import gc

    from lpkernel.synthesis import Synthesis

    def alive() -> list[Synthesis]:
        gc.collect()
        return [one for one in gc.get_objects() if type(one) is Synthesis]

    most = 0
    append, others = runs.Stream.append, alive()  # excludes those of other tests' fixtures

    def watched(self: runs.Stream, *args: Any) -> None:
        nonlocal most
        most = max(most, sum(len(one.sources) for one in alive() if not any(one is other for other in others)))
        append(self, *args)

    monkeypatch.setattr(runs.Stream, "append", watched)
    monkeypatch.setattr(results, "DECODE_BATCH", 4)
    assert main([*command, "-n", "40"]) == 0
    assert 0 < most <= 8


def test_pictures_say_what_they_were_made_with(command: list[str], bank: Path, tmp_path: Path) -> None:
    argv = ["-n", "2", "--seed", "8", "--k", "2", "--where", "Male", "--first-image", "4", "--provenance"]
    assert main([*command, *argv]) == 0
    out = tmp_path / "out"
    for kind in ("image", "map", "overlay", "provenance"):
        with Image.open(out / f"{kind}-000005.png") as picture:
            said = json.loads(picture.info["lpkernel"])
        assert (said["picture"], said["image"], said["seed"], said["where"]) == (kind, 5, 8, "Male")
        assert said["command"] == "generate" and said["settings"]["k"] == 2 and said["settings"]["patch"] == 3
    with Image.open(out / "sheet.png") as sheet:
        assert json.loads(sheet.info["lpkernel"])["seed"] == 8
    # enough to reproduce it
    loaded = Bank.load(bank)
    settings = {key: said["settings"][key] for key in ("patch", "stride", "scales", "start", "overlap", "mirror", "k")}
    allowed = loaded.where(said["where"])
    again = generate(loaded, 1, seed=said["seed"], first_image=said["image"], candidates=allowed, **settings)
    with Image.open(out / "image-000005.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), again.decode(load_autoencoder(FAKE))[0])


def test_a_random_seed_is_said_and_repeats(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run_json(capsys, *command, "-n", 2, "--seed", "random")
    drawn = record["settings"]["seed"]
    argv = [*command, "-n", "2", "--seed", str(drawn), "--out", str(tmp_path / "again")]
    argv.remove("--quiet")
    assert main(argv) == 0
    assert f"(seed {drawn}; " in capsys.readouterr().out
    np.testing.assert_array_equal(np.load(tmp_path / "out/sources.npy"), np.load(tmp_path / "again/sources.npy"))
    assert seed("random") != seed("random")


def test_k_beyond_the_allowed_images_is_all_of_them(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.remove("--quiet")
    many, all_of_them = ([*command, "-n", "2", "--where", "Male", "--k", str(k)] for k in (99, 10))
    assert main(many) == 0
    captured = capsys.readouterr()
    assert (
        "warning: k is 99, but the bank images allowed by 'Male' are only 10: drawing from all of them" in captured.err
    )
    assert len(json.loads((tmp_path / "out" / "generate.json").read_text())["warnings"]) == 1
    assert main([*all_of_them, "--out", str(tmp_path / "b")]) == 0 and "k is" not in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "out/sources.npy"), np.load(tmp_path / "b/sources.npy"))


def test_a_sheet_says_how_many_it_shows(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    from lpkernel.pictures import render

    contact = render.contact_sheet

    def watched(*args: Any) -> Any:
        titles.extend(title for title, _, _ in args[2])
        return contact(*args)

    monkeypatch.setattr(render, "contact_sheet", watched)
    assert main([*command, "-n", "9", "--where", "Male", "--where", "~Male"]) == 0
    assert titles == [f"{where} (10 images of the bank): first 8 of 9 shown" for where in ("Male", "~Male")]
    titles.clear()
    assert main([*command, "-n", "9", "--overwrite"]) == 0
    assert titles == ["LatentPatch results, and the source of each piece"]


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_is_what_json_holds(value: Any) -> None:
    assert json.loads(json_text(value)) == json.loads(json.dumps(value))


@pytest.mark.parametrize("text", ["a\udcff", "\ud800", "x\udc80y\U0001f600"])
def test_json_of_what_is_no_text_is_still_json(text: str) -> None:
    written = json_text({text: [text, (text,)]})
    assert "\\ud" not in written.replace("\\\\ud", "").replace("\\ud83d\\ude00", "")
    assert json.loads(written.encode()).popitem()[1][0].encode()  # every reader can take it


def test_a_plain_list_of_facts(command: list[str], tmp_path: Path) -> None:
    assert main([*command, "-n", "3", "--no-decode"]) == 0
    sources = np.load(tmp_path / "out" / "sources.npy")
    assert [fact["index"] for fact in facts(tmp_path / "out")] == [0, 1, 2]
    assert sources.dtype == np.int32 and sources.shape == (3, 8, 8)


def test_a_bank_is_not_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = save_images(tmp_path / "in", 3), tmp_path / "b.lpbank"
    argv = ["bank", "build", str(folder), "-o", str(out), "--autoencoder", FAKE, "--channels", "3", "--quiet"]
    assert main(argv) == 0
    before = out.read_bytes()
    assert main([*argv, "--limit", "2"]) == 2 and out.read_bytes() == before
    assert "exists already; --overwrite replaces it" in capsys.readouterr().err
    assert main([*argv, "--limit", "2", "--overwrite"]) == 0 and len(Bank.load(out)) == 2
