"""From images to banks: finding, reading and skipping files, attributes, and resuming a killed build."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeContinuous, FakeVQ
from PIL import Image

from lpkernel.bank import Bank, ingest, shards
from lpkernel.bank.attributes import read_attributes
from lpkernel.errors import InputError
from lpkernel.pictures.images import find_images, load_image

RANDOM = np.random.default_rng(0)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (80, 64)) -> Path:
    """A file of random coarse blocks, which JPEG hardly changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def folder_of(path: Path, count: int) -> Path:
    for i in range(count):
        picture(path / f"{i}.png", i)
    return path


def test_folder_order_labels_and_names(tmp_path: Path) -> None:
    for name in ("b/10.jpg", "b/2.JPG", "a2/x.png", "a10/deep/x.webp", "0.bmp", ".hidden.png", ".git/x.png"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "a2" / "loop").symlink_to(tmp_path)
    expected = ["0.bmp", "a2/x.png", "a10/deep/x.webp", "b/2.JPG", "b/10.jpg"]
    assert find_images(tmp_path).names == expected
    bank = Bank.build(tmp_path, FakeVQ(), 3)
    assert bank.names == expected and bank.labels == ["", "a2", "a10", "b", "b"] and bank.skipped == []
    assert Bank.build(str(tmp_path / "b"), FakeVQ(), 3).labels is None


def test_digits_of_other_scripts_do_not_break_the_order(tmp_path: Path) -> None:
    for name in ("٣.png", "3.png", "².png", "a.png"):
        picture(tmp_path / name)
    assert len(find_images(tmp_path).names) == 4


def test_arrays_files_and_folders_give_equal_banks(tmp_path: Path) -> None:
    ae = FakeVQ()
    folder = tmp_path / "in"
    for i in range(5):
        picture(folder / f"{i}.png", i, size=(64, 64))
    files = [folder / f"{i}.png" for i in range(5)]
    images = np.stack([np.asarray(Image.open(path)) for path in files])
    banks = [Bank.build(given, ae, 3, batch=2) for given in (folder, files, images)]
    assert banks[0].names == banks[1].names == [f"{i}.png" for i in range(5)]
    for bank in banks:
        assert bank.codes is not None and np.array_equal(bank.codes, ae.encode(images))
        assert (bank.autoencoder_name, bank.image_size, bank.resize_filter) == ("fake-vq", 64, "bicubic")
    assert banks[0].sources_hash == banks[1].sources_hash != banks[2].sources_hash
    files[2].unlink()
    assert Bank.build(folder, ae, 3).sources_hash != banks[0].sources_hash


def test_continuous_autoencoder(tmp_path: Path) -> None:
    ae = FakeContinuous()
    images = RANDOM.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    bank = Bank.build(images, ae, 3, batch=2, cache=tmp_path / "cache")
    assert bank.latents is not None and np.array_equal(bank.latents, ae.encode(images).astype(np.float16))
    bank.save(tmp_path / "x")
    assert np.array_equal(Bank.load(tmp_path / "x").level(5), bank.level(5))


def test_names_of_listed_files_are_relative_to_their_common_folder(tmp_path: Path) -> None:
    files = [picture(tmp_path / "b" / "1.png"), picture(tmp_path / "a" / "1.png")]
    bank = Bank.build(files, FakeVQ(), 3)
    assert bank.names == ["b/1.png", "a/1.png"] and bank.labels is None


def test_crop_and_centre_square(tmp_path: Path) -> None:
    pixels = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(load_image(tmp_path / "x.png", 20), pixels[:, 5:25])
    assert np.array_equal(load_image(tmp_path / "x.png", 10, (3, 2, 13, 12)), pixels[2:12, 3:13])
    assert np.array_equal(load_image(tmp_path / "x.png", 10, (0, 0, 30, 10)), pixels[:10, 10:20])
    big = np.kron(pixels, np.ones((4, 4, 1), np.uint8))
    Image.fromarray(big).save(tmp_path / "big.png")
    expected = Image.fromarray(big[:, 20:100]).resize((20, 20), Image.Resampling.BICUBIC)
    assert np.array_equal(load_image(tmp_path / "big.png", 20), np.asarray(expected))
    for crop in [(0, 0, 31, 10), (5, 5, 5, 10), (-1, 0, 10, 10), (9, 0, 2, 10)]:
        with pytest.raises(InputError, match="not within its 30x20 pixels"):
            load_image(tmp_path / "x.png", 10, crop)
    with pytest.raises(InputError, match="at least 8"):
        load_image(tmp_path / "x.png", 10, (0, 0, 20, 7))


def test_colour_modes(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(path)
    assert (load_image(path, 8) == 255).all()  # transparent means white
    Image.new("LA", (8, 8), (0, 255)).save(path)
    assert (load_image(path, 8) == 0).all()
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.save(path, transparency=1)
    assert (load_image(path, 8) == 255).all()
    Image.fromarray(np.full((8, 8), 40 * 256 + 7, np.uint16)).save(path)
    assert (load_image(path, 8) == 40).all()
    Image.new("1", (8, 8), 1).save(path)
    assert (load_image(path, 8) == 255).all()
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "x.jpg", quality=100)
    assert load_image(tmp_path / "x.jpg", 8).max() < 5
    Image.new("F", (8, 8), 1.0).save(tmp_path / "x.tiff")
    with pytest.raises(InputError, match="float"):
        load_image(tmp_path / "x.tiff", 8)


def test_exif_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: shown after a quarter turn clockwise
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "x.png", 16), np.rot90(pixels, -1))


def png_claiming(side: int) -> bytes:
    """A tiny PNG whose header says side x side pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def spoil(folder: Path) -> dict[str, str]:
    """Files that cannot be used, and a part of the reason for each."""
    picture(folder / "small.png", size=(7, 90))
    (folder / "text.png").write_text("this is no picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(picture(folder / "whole.jpg").read_bytes()[:-100])
    (folder / "whole.jpg").unlink()
    (folder / "bomb.png").write_bytes(png_claiming(30_000))
    (folder / "large.png").write_bytes(png_claiming(10_000))
    (folder / "gone.png").symlink_to(folder / "nowhere")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    return {
        "small.png": "at least 8",
        "text.png": "not an image",
        "empty.jpg": "not an image",
        "cut.jpg": "truncated",
        "bomb.png": "pixels",
        "large.png": "pixels",
        "gone.png": "no such file",
        "pipe.png": "not a regular file",
    }


@pytest.mark.filterwarnings("error")
def test_unusable_files_are_reported_and_skipped(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 5)
    reasons = spoil(folder)
    progress: list[tuple[int, int]] = []
    bank = Bank.build(folder, FakeVQ(), 3, batch=4, progress=lambda done, total: progress.append((done, total)))
    assert bank.names == [f"{i}.png" for i in range(5)]
    assert [name for name, _ in bank.skipped] == sorted(reasons)
    for name, reason in bank.skipped:
        assert reasons[name] in reason.lower() and "\n" not in reason
    assert progress == [(4, 13), (8, 13), (12, 13), (13, 13)]
    with pytest.raises(InputError, match=r"bomb\.png: more than"):
        Bank.build(folder, FakeVQ(), 3, strict=True)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd tags
def test_flipped_bytes_never_escape_as_other_errors(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "webp", "tif", "bmp"):
        content = picture(tmp_path / f"x.{suffix}").read_bytes()
        random = np.random.default_rng(0)
        damaged = tmp_path / f"y.{suffix}"
        outcomes: set[object] = set()
        for _ in range(60):
            data = bytearray(content)
            for offset in random.integers(0, min(len(data), 400), 4):
                data[offset] = random.integers(0, 256)
            damaged.write_bytes(data)
            try:
                outcomes.add(load_image(damaged, 32).shape)
            except InputError as error:
                outcomes.add("\n" not in str(error))
        assert True in outcomes and outcomes <= {True, (32, 32, 3)}


def test_nothing_usable(tmp_path: Path) -> None:
    ae = FakeVQ()
    with pytest.raises(InputError, match="no folder"):
        Bank.build(tmp_path / "missing", ae, 3)
    with pytest.raises(InputError, match="no images in"):
        Bank.build(tmp_path, ae, 3)
    spoil(tmp_path)
    with pytest.raises(InputError, match=r"none of the 8 images can be used; bomb\.png"):
        Bank.build(tmp_path, ae, 3)
    with pytest.raises(InputError, match="it is a file"):
        Bank.build(tmp_path / "text.png", ae, 3)
    with pytest.raises(InputError, match="list of images is empty"):
        Bank.build([], ae, 3)
    with pytest.raises(InputError, match="floats from 2 to 2, expected 0 to 1"):
        Bank.build(np.full((2, 64, 64, 3), 2.0), ae, 3)
    with pytest.raises(InputError, match="images: got uint8"):
        Bank.build(np.zeros((0, 64, 64, 3), np.uint8), ae, 3)
    with pytest.raises(InputError, match="batch=0"):
        Bank.build(tmp_path, ae, 3, batch=0)
    with pytest.raises(InputError, match="limit=0"):
        Bank.build(tmp_path, ae, 3, limit=0)


def test_limit_takes_the_first_images(tmp_path: Path) -> None:
    ae = FakeVQ()
    bank = Bank.build(folder_of(tmp_path, 12), ae, 3, limit=5)
    assert bank.names == [f"{i}.png" for i in range(5)] and ae.encoded == 5


@pytest.mark.parametrize(
    ("autoencoder", "values", "message"),
    [
        (FakeVQ(), np.zeros((2, 8, 7), int), "integers"),
        (FakeVQ(), np.zeros((2, 8, 8)), "integers"),
        (FakeVQ(), np.full((2, 8, 8), 99), "expected 0 to 31"),
        (FakeContinuous(), np.zeros((2, 8, 8), np.float32), "floats"),
        (FakeContinuous(), np.full((2, 8, 8, 6), 1e6), "65504"),
    ],
)
def test_odd_autoencoders(
    autoencoder: FakeVQ | FakeContinuous, values: np.ndarray, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "encode", lambda images: values)
    with pytest.raises(InputError, match=message):
        Bank.build(np.zeros((2, 64, 64, 3), np.uint8), autoencoder, 3)


def killed_after(ae: FakeVQ, batches: int) -> Callable[[np.ndarray], np.ndarray]:
    encode = ae.encode
    calls = iter(range(batches))

    def interrupted(images: np.ndarray) -> np.ndarray:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return encode(images)

    return interrupted


def test_killed_builds_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SHARD", 6)
    folder, cache = folder_of(tmp_path / "in", 20), tmp_path / "x.cache"
    (folder / "3.png").write_text("broken")
    whole = Bank.build(folder, FakeVQ(), 3, batch=3)
    ae = FakeVQ()
    with monkeypatch.context() as patch:
        patch.setattr(ae, "encode", killed_after(ae, 5))  # two shards and a half
        with pytest.raises(KeyboardInterrupt):
            Bank.build(folder, ae, 3, batch=3, cache=cache)
    assert ae.encoded == 14 and len(list(cache.glob("*.shard"))) == 2
    progress: list[int] = []
    again = FakeVQ()
    bank = Bank.build(folder, again, 3, batch=3, cache=cache, progress=lambda done, _: progress.append(done))
    assert again.encoded == 8 and progress == [12, 15, 18, 20]
    bank.save(tmp_path / "a")
    whole.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [name for name, _ in bank.skipped] == [name for name, _ in whole.skipped] == ["3.png"]
    with pytest.raises(InputError, match=r"3\.png"):  # strict is not fooled by the cache
        Bank.build(folder, FakeVQ(), 3, batch=3, cache=cache, strict=True)


def test_stale_and_damaged_shards_are_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "SHARD", 5)
    folder, cache = folder_of(tmp_path / "in", 15), tmp_path / "x.cache"

    def encoded(ae: FakeVQ, **options: object) -> int:
        Bank.build(folder, ae, 3, cache=cache, **options)  # type: ignore[arg-type]
        return ae.encoded

    assert encoded(FakeVQ()) == 15
    assert encoded(FakeVQ()) == 0
    assert encoded(FakeVQ(), crop=(0, 0, 40, 40)) == 15
    assert encoded(FakeVQ(seed=1)) == 15
    picture(folder / "7.png", 99)  # changed: only this one is encoded again
    assert encoded(FakeVQ()) == 1
    picture(folder / "0-first.png", 98)  # in front of all others
    assert encoded(FakeVQ()) == 1
    (folder / "0-first.png").unlink()
    assert encoded(FakeVQ()) == 0
    for shard in cache.glob("*.shard"):
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    assert encoded(FakeVQ()) == 15
    picture(folder / "15.png", 15)
    assert encoded(FakeVQ()) == 1


def test_arrays_are_cached_by_content(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    Bank.build(images, FakeVQ(), 3, cache=tmp_path / "c")
    ae = FakeVQ()
    Bank.build(images, ae, 3, cache=tmp_path / "c")
    assert ae.encoded == 0
    Bank.build(images + 1, ae, 3, cache=tmp_path / "c")
    assert ae.encoded == 4


@pytest.mark.parametrize("make", [FakeVQ, FakeContinuous])
def test_flip_adds_the_mirror_images(make: type, tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (4, 64, 80, 3), dtype=np.uint8)
    crop = (0, 0, 40, 40)  # in the image as it is, not in its mirror image
    framed = images[:, :40, :40]
    attributes = {"Hat": np.array([True, False, False, True])}
    bank = Bank.build(images, make(), 3, crop=crop, attributes=attributes, flip=True)
    by_hand = Bank.build(np.concatenate([framed, framed[:, :, ::-1]]), make(), 3)
    assert np.array_equal(bank.cells, by_hand.cells)
    assert bank.names[4:] == [f"{name} (flipped)" for name in bank.names[:4]]
    assert bank.attributes["Hat"].tolist() == [True, False, False, True] * 2
    Bank.build(images, make(), 3, crop=crop, cache=tmp_path / "c")
    later = make()
    assert np.array_equal(Bank.build(images, later, 3, crop=crop, cache=tmp_path / "c", flip=True).cells, bank.cells)
    assert later.encoded == 4  # only the new ones


def test_flip_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a/0.png", "a/1.png", "b/2.png"):
        picture(folder / name, int(name[2]))
    (folder / "a" / "1.png").write_text("broken")
    bank = Bank.build(folder, FakeVQ(), 3, flip=True, limit=3)
    assert bank.names == ["a/0.png", "b/2.png", "a/0.png (flipped)", "b/2.png (flipped)"]
    assert bank.labels == ["a", "b"] * 2 and [name for name, _ in bank.skipped] == ["a/1.png"]
    assert bank.flips_of(np.array([True, False, False, False])).tolist() == [False, False, True, False]
    assert bank.flips_of(np.array([False, False, True, True])).tolist() == [True, True, False, False]
    assert not Bank.build(folder, FakeVQ(), 3).flips_of(np.array([True, True])).any()
    picture(folder / "c" / "3.png", 3)
    picture(folder / "d" / "4.png", 4)
    some = Bank.build(folder, FakeVQ(), 3, flip=True, limit=4)  # labels of those within the limit, not of all files
    assert list(zip(some.names, some.labels or [], strict=True)) == [
        (name + end, name[0]) for end in ("", " (flipped)") for name in ("a/0.png", "b/2.png", "c/3.png")
    ]


def test_discard_removes_only_what_it_made(tmp_path: Path) -> None:
    cache = tmp_path / "c"
    Bank.build(folder_of(tmp_path / "in", 3), FakeVQ(), 3, cache=cache)
    (cache / f".{64 * 'a'}.shard.0f.part").write_text("left by a killed write")
    (cache / "mine.txt").write_text("kept")
    shards.discard_cache(cache)
    assert [path.name for path in cache.iterdir()] == ["mine.txt"]
    (cache / "mine.txt").unlink()
    shards.discard_cache(cache)
    assert not cache.exists()
    shards.discard_cache(cache)
    cache.write_text("a file")
    with pytest.raises(InputError, match="cannot make the folder"):
        Bank.build(tmp_path / "in", FakeVQ(), 3, cache=cache)


TABLE = "3\nHat Smiling\n0.png  1 -1\n1.png -1  1\n2.png\t1\t1\n"


def test_attribute_tables(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 3)
    (folder / "1.png").write_text("broken")
    table = tmp_path / "attributes.txt"
    table.write_text("\ufeff" + TABLE.replace("\n", " \r\n"), encoding="utf-8")
    bank = Bank.build(folder, FakeVQ(), 3, attributes=table)
    assert bank.names == ["0.png", "2.png"] and list(bank.attributes) == ["Hat", "Smiling"]
    assert bank.attributes["Hat"].tolist() == [True, True] and bank.attributes["Smiling"].tolist() == [False, True]
    found = read_attributes(table, ["deep/2.png", "1.png"])  # in subfolders: by the file name alone
    assert found["Hat"].tolist() == [True, False]
    assert Bank.build(folder, FakeVQ(), 3, attributes=table, limit=1).attributes["Hat"].tolist() == [True]


def test_attributes_as_arrays(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", 4)
    (folder / "1.png").write_text("broken")
    hats = np.array([True, True, False, True])
    assert Bank.build(folder, FakeVQ(), 3, attributes={"Hat": hats}).attributes["Hat"].tolist() == [True, False, True]
    with pytest.raises(InputError, match=r"expected \(4,\)"):
        Bank.build(folder, FakeVQ(), 3, attributes={"Hat": hats[:3]})


def test_equal_file_names_in_subfolders_need_the_whole_name(tmp_path: Path) -> None:
    table = tmp_path / "t.txt"
    table.write_text("2\nHat\na/1.png 1\n1.png -1\n")
    assert read_attributes(table, ["a/1.png"])["Hat"].tolist() == [True]
    with pytest.raises(InputError, match=r"'b/1\.png' could have the row 'a/1\.png' and '1\.png'"):
        read_attributes(table, ["a/1.png", "b/1.png"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "number of images on line 1"),
        ("Hat Smiling\n0.png 1 1\n", "number of images on line 1"),
        ("3\n", "line 2"),
        (TABLE.replace("3\n", "4\n"), "says 4 images, 3 rows follow"),
        (TABLE.replace("3\n", "²\n"), "line 1"),
        (TABLE.replace("-1  1", "-1"), "line 4: expected a file name and 2 values"),
        (TABLE.replace("-1  1", "-1 0"), "line 4: expected a file name and 2 values 1 or -1"),
        (TABLE.replace("-1", "0").replace("0  1", "-1  1"), "line 4: expected a file name and 2 values 1 or 0"),
        (TABLE.replace("-1  1", "-1 1 1"), "line 4"),
        (TABLE.replace("1.png", "0.png"), "line 4: a second row for '0.png'"),
        (TABLE.replace("Hat Smiling", "Hat Hat"), "appears twice"),
        (TABLE.replace("0.png", "9.png"), "no row for 1 of 3 images, first '0.png'"),
    ],
)
def test_bad_attribute_tables(text: str, message: str, tmp_path: Path) -> None:
    ae = FakeVQ()
    table = tmp_path / "t.txt"
    table.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        Bank.build(folder_of(tmp_path / "in", 3), ae, 3, attributes=table)
    assert "\n" not in str(caught.value) and ae.encoded == 0


def test_attribute_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_attributes(tmp_path / "missing.txt", ["a"])
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8"):
        read_attributes(tmp_path / "x", ["a"])


def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff1.png")
    picture(tmp_path / "a.png").rename(tmp_path / name)
    bank = Bank.build(tmp_path, FakeVQ(), 3, cache=tmp_path / "cache")
    bank.save(tmp_path / "x.lpbank")
    assert Bank.load(tmp_path / "x.lpbank").names == [name]
    assert json.loads(json.dumps(bank.names)) == [name]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1," * 200_000 + "1" * 130_000, "line 2: expected a file name and 3 values 1 or -1, or 1 or 0"),
        ("1,1," + "1" * 130_000, "line 2: expected a file name and 3 values 1 or -1, or 1 or 0"),
        ("0,1,-1", "line 2: expected a file name and 3 values 1 or 0, as in the rest of the table"),
        ("1,1,", "line 2: expected a file name and 3 values 1 or -1, or 1 or 0"),
    ],
)
def test_a_row_of_other_values(row: str, message: str, tmp_path: Path) -> None:
    """However many and long they are: as an array the first would take 97 GiB."""
    table = table_file(tmp_path, f"image,a,b,c\n0.png,{row}\n")
    with pytest.raises(InputError, match=message):
        read_attributes(table, ["0.png"])


def test_attributes_are_a_file_of_a_table_s_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for name, words in (("pipe", "not a regular file"), ("sparse", "expected a table of at most")):
        with pytest.raises(InputError, match=words):
            read_attributes(tmp_path / name, ["a.jpg"])


CSV = "image_id,Hat,Wavy Hair\n0.jpg,1,-1\n1.jpg,-1,1\n2.jpg,1,1\n"
MAPPING = "idx    orig_idx    orig_file\n0 119613 119614.jpg\n1 99094 099095.jpg\n2 200121 200122.jpg\n"


def table_file(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    "text",
    [
        CSV,
        CSV.replace("-1", "0"),
        "\ufeff" + CSV.replace("\n", "\r\n"),
        '"image_id", "Hat", "Wavy Hair"\n' + CSV.partition("\n")[2].replace(",", ", ") + "\n\n",
    ],
)
def test_csv_tables(text: str, tmp_path: Path) -> None:
    """As on Kaggle: a header row, commas, 0/1 or -1/1; converted images are found by their stems."""
    bank = Bank.build(folder_of(tmp_path / "in", 3), FakeVQ(), 3, attributes=table_file(tmp_path, text))
    assert {name: values.tolist() for name, values in bank.attributes.items()} == {
        "Hat": [True, False, True],
        "Wavy Hair": [False, True, True],
    }


@pytest.mark.parametrize(
    ("files", "rows", "expected"),
    [
        (["1.png"], ["1.jpg", "2.jpg"], [0]),  # the stem
        (["1.png"], ["1.jpg", "1.png"], [1]),  # the whole name before the stem
        (["a/1.png", "b/1.png"], ["b/1.jpg", "a/1.jpg"], [1, 0]),  # relative names, other endings
        (["deep/1.png"], ["1.jpg"], [0]),
        (["1.png"], ["img_align_celeba/1.jpg"], [0]),
        (["a/1.png"], ["./a/1.png", "1.png"], [0]),
        (["a.b.png"], ["a.jpg", "a.b.jpg"], [1]),
        (["1.png", "1.jpg"], ["1.jpg", "1.png"], [1, 0]),
        (["a/1.png", "1.png"], ["1.png", "a/1.jpg"], [1, 0]),
        (["1.png", "2.png"], ["1.jpg"], "no row for 1 of 2 images, first '2.png'"),
        (["1.png", "1.jpg"], ["1.jpg"], "the row '1.jpg' could be that of '1.jpg' and '1.png'"),
        (["a/1.png", "b/1.png"], ["1.jpg"], "the row '1.jpg' could be that of 'a/1.png' and 'b/1.png'"),
        (["1.png"], ["1.jpg", "1.jpeg"], "'1.png' could have the row '1.jpg' and '1.jpeg'"),
        (["1.png"], ["a/1.png", "b/1.png"], "'1.png' could have the row 'a/1.png' and 'b/1.png'"),
    ],
)
def test_rows_are_joined_by_name_or_stem(
    files: list[str], rows: list[str], expected: list[int] | str, tmp_path: Path
) -> None:
    columns = ",".join(f"is_{row}" for row in range(len(rows)))
    lines = [f"{name}," + ",".join(str(int(i == row)) for i in range(len(rows))) for row, name in enumerate(rows)]
    path = table_file(tmp_path, f"image,{columns}\n" + "\n".join(lines) + "\n")
    if isinstance(expected, str):
        with pytest.raises(InputError, match=re.escape(expected)):
            read_attributes(path, files)
    else:
        found = read_attributes(path, files)
        assert [[i for i in range(len(rows)) if found[f"is_{i}"][image]] for image in range(len(files))] == [
            [row] for row in expected
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,Hat\n", "0 rows follow"),
        ("image_id,\n0.png,1\n", "has no name"),
        ("image_id,Hat,Hat\n0.png,1,1\n", "appears twice"),
        (CSV.replace("-1,1", "-1"), "line 3: expected a file name and 2 values"),
        (CSV.replace("-1,1", "-1,0"), "line 3: expected a file name and 2 values 1 or -1"),
        (CSV.replace("-1,1", "yes,1"), "line 3"),
        (CSV.replace("1.jpg", "0.jpg"), "a second row for '0.jpg'"),
        (CSV.replace("0.jpg", "9.jpg"), "no row for 1 of 3 images, first '0.png'"),
        (CSV + '"' + "x" * 200_000, "not a CSV"),
        ("image_id,partition\n0.jpg,2\n", "line 2"),
    ],
)
def test_bad_csv_tables(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_attributes(table_file(tmp_path, text), ["0.png", "1.png", "2.png"])
    assert "\n" not in str(caught.value)


def test_celeba_hq_is_mapped_to_celeba(tmp_path: Path) -> None:
    table = table_file(tmp_path, "image_id,Hat\n099095.jpg,1\n119614.jpg,0\n200122.jpg,1\n", "celeba.csv")
    mapping = table_file(tmp_path, MAPPING, "CelebA-HQ-to-CelebA-mapping.txt")
    assert read_attributes(table, ["0.jpg", "deep/00001.png"], mapping)["Hat"].tolist() == [False, True]
    bank = Bank.build(folder_of(tmp_path / "in", 3), FakeVQ(), 3, attributes=table, mapping=mapping)
    assert bank.attributes["Hat"].tolist() == [False, True, True]
    for file in ("3.jpg", "face.jpg", "²3.jpg"):
        with pytest.raises(InputError, match=f"no line for '{file}'"):
            read_attributes(table, [file], mapping)
    for text, message in (
        (MAPPING + "2 1 a.jpg\n", "line 5: a second line for 2"),
        (MAPPING + "3 1\n", "line 5: expected three columns"),
        (MAPPING + "x 1 a.jpg\n", "line 5: expected three columns"),
    ):
        with pytest.raises(InputError, match=message):
            read_attributes(table, ["0.jpg"], table_file(tmp_path, text, "m.txt"))
    with pytest.raises(InputError, match="mapping: is for attributes"):
        Bank.build(tmp_path / "in", FakeVQ(), 3, mapping=mapping)
