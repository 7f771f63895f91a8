"""Runs by several processes: the same files whatever their number, and what remains when one of them dies."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from test_cli import FAKE
from test_runs import content, members

from lpkernel import Bank, Synthesis, distributed, generate, load_autoencoder
from lpkernel.cli import main
from lpkernel.commands import ranks
from lpkernel.commands.ranks import Rank
from lpkernel.errors import InputError
from lpkernel.pictures import seams


def start(world: int, argv: list[str]) -> list[subprocess.Popen[str]]:
    """The processes of a job, as torchrun starts them: of lpkernel, or of a script."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    job = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, *(["-m", "lpkernel"] if argv[0] == "generate" else []), *argv],
            env=os.environ | here | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        found.append((process.returncode, out, err))
    return found


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    path = tmp_path / "small.lpbank"
    images = np.random.default_rng(3).integers(0, 256, (20, 64, 64, 3), np.uint8)
    Bank.build(images, fakes.FakeVQ(), channels=3).save(path)
    return ["generate", "--bank", str(path), "--patch", "3", "--autoencoder", FAKE, "-n", "40", "--first-image", "7"]


def test_shares_are_all_images_once() -> None:
    for world in range(2, 9):
        for count in (0, 1, 5, 40):
            shares = [Rank(number, world).share(count) for number in range(world)]
            assert [i for share in shares for i in share] == list(range(count))


@pytest.mark.parametrize("while_it", ["works", "waits"])
def test_a_process_that_is_told_to_end_says_so_in_one_line(while_it: str, command: list[str], tmp_path: Path) -> None:
    """As torchrun tells all of them when one has failed."""
    out = tmp_path / "many"
    alive = start(2, [*command, "--out", str(out)])
    told, other = alive if while_it == "works" else alive[::-1]
    begun = out / "rank-0-of-2" / "images.jsonl.part"
    while not begun.exists():
        assert all(process.poll() is None for process in alive)
    if while_it == "waits":
        other.send_signal(signal.SIGSTOP)
        while not (out / "rank-1-of-2" / "images.jsonl.part").exists():
            assert told.poll() is None
        time.sleep(1)  # it has few images left to make
    told.send_signal(signal.SIGTERM)
    code, _, err = ended([told])[0]
    other.kill()
    ended([other])
    number = 0 if while_it == "works" else 1
    assert (code, err.count("lpkernel: "), err.count("Traceback")) == (130, 1, 0), err
    assert f"lpkernel: process {number}: told to end; what was written is kept" in err
    done = ended(start(2, [*command, "--out", str(out)]))
    assert [code for code, _, _ in done] == [0, 0], done


ENDING = """
import os, signal, subprocess, sys, time
from lpkernel.commands import ranks
rank = ranks.Rank(1, 2)
"""


@pytest.mark.parametrize("stderr", ["closed", "full"])
def test_it_ends_though_nobody_hears_it(stderr: str) -> None:
    reading, writing = os.pipe()
    if stderr == "closed":
        os.close(reading)
    else:
        os.set_blocking(writing, False)
        while True:
            try:
                os.write(writing, bytes(4096))
            except BlockingIOError:
                break
        os.set_blocking(writing, True)
    code = ENDING + "with ranks._last_words(rank):\n    print(flush=True); time.sleep(30)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing)
    assert process.stdout is not None and process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 130


def test_what_is_forked_meanwhile_ends_alone() -> None:
    code = (
        ENDING
        + """
with ranks._last_words(rank):
    child = os.fork()
    if not child:
        time.sleep(30)
        os._exit(0)
    time.sleep(0.3)
    other = os.fork()
    if not other:
        time.sleep(4)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, os.waitpid(other, os.WNOHANG) == (0, 0))
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [str(-signal.SIGTERM), "True", "True"], done


def test_each_process_of_a_machine_takes_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for local, device in (("1", "auto"), ("6", "cuda"), ("1", "cuda:3"), ("1", "cpu"), ("", "auto")):
        monkeypatch.setenv("LOCAL_RANK", local)
        ranks._take_gpu(device)
    assert taken == [1, 2]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    ranks._take_gpu("auto")
    assert taken == [1, 2]


@pytest.mark.parametrize("world", [2, 3])
def test_files_are_the_same_whatever_the_number_of_processes(world: int, command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--quiet", "--out", str(tmp_path / "one")]) == 0
    done = ended(start(world, [*command, "--json", "--out", str(tmp_path / "many")]))
    assert [code for code, _, _ in done] == [0] * world, done
    assert json.loads(done[0][1])["count"] == 40 and [out for _, out, _ in done[1:]] == [""] * (world - 1)
    assert content(tmp_path / "many") == content(tmp_path / "one")


def test_each_process_writes_a_shard(command: list[str], tmp_path: Path) -> None:
    command = [*command, "--shards", "tar"]
    assert main([*command, "--quiet", "--out", str(tmp_path / "one")]) == 0
    done = ended(start(2, [*command, "--out", str(tmp_path / "two")]))
    assert [code for code, _, _ in done] == [0, 0], done
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    assert set(two) == {*one, "images-000001.tar"}
    assert all(one[name] == two[name] for name in ("images.jsonl", "sources.npy", "sheet.png"))
    held = [members(tmp_path / "two" / f"images-{number:06d}.tar") for number in (0, 1)]
    assert [len(part) for part in held] == [60, 60]
    assert held[0] | held[1] == members(tmp_path / "one" / "images-000000.tar")
    record = json.loads(two["generate.json"])
    assert {"images-000000.tar", "images-000001.tar"} < set(record["files"])


def test_a_dead_process_ends_the_job_and_what_was_written_stays(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "many"
    alive = start(2, [*command, "--out", str(out)])
    while not (out / "rank-1-of-2" / "images.jsonl.part").exists():
        assert all(process.poll() is None for process in alive)
    alive[1].kill()
    (code, _, err), _ = ended(alive)
    assert code == 2 and err.count("lpkernel: error:") == 1 and "another process of this job has ended" in err
    assert (out / "rank-0-of-2" / "images.jsonl.part").read_bytes().count(b"\n") == 20
    other = ended(start(3, [*command, "--out", str(out)]))
    assert [code for code, _, _ in other] == [2] * 3 and other[1][2] == other[2][2] == ""
    assert "holds what 2 processes made; resume with torchrun --nproc-per-node 2" in other[0][2]
    alone = ended(start(1, [*command, "--out", str(out)]))[0]
    assert alone[0] == 2 and "holds what 2 processes made" in alone[2] and not (out / "generate.json").exists()
    done = ended(start(2, [*command, "--out", str(out)]))
    assert [code for code, _, _ in done] == [0, 0], done
    assert main([*command, "--quiet", "--out", str(tmp_path / "one")]) == 0
    assert content(out) == content(tmp_path / "one")


DIVIDED = """
    import itertools, sys
    import numpy as np
    import torch.distributed as dist
    from lpkernel import Bank, distributed
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    for path in sys.argv[2:]:
        bank = Bank.load(path)
        ends = [0, *sorted(np.random.default_rng(world).choice(np.arange(1, bank.size), world - 1, False)), bank.size]
        part = bank.subset(np.arange(ends[rank], ends[rank + 1]))
        for number, (preset, k) in enumerate(itertools.product(("paper", "balanced"), (1, 5, 99))):
            radius = number % 3 if bank.size < 99 else 0
            made = distributed.generate(
                part, 4, patch=3, k=k, seed=number, first_image=2, preset=preset, search_radius=radius)
            moved = np.zeros(0) if made.shifts is None else made.shifts
            file = f"{sys.argv[1]}/{path.rpartition('/')[2]}-{number}-{rank}.npz"
            offsets = np.zeros(0) if made.offsets is None else made.offsets
            np.savez(file, a=made.sources, b=made.content, c=moved, d=offsets)
    dist.destroy_process_group()
"""


def divided_banks(folder: Path) -> list[Path]:
    """Codes and latents, more and fewer images than an isolation has references, ties planted; one has colours."""
    random, paths = np.random.default_rng(2), [folder / f"{name}.lpbank" for name in ("codes", "many", "latents")]
    book = random.normal(size=(9, 5))
    few = Bank.from_codes(random.integers(0, 9, (11, 8, 8)), book, 3)
    few.colours = random.integers(0, 256, (11, 8, 8, 3), np.uint8)
    few.save(paths[0])
    Bank.from_codes(random.integers(0, 9, (150, 8, 8))[np.arange(300) % 150], book, 3).save(paths[1])
    Bank.from_latents(random.normal(size=(12, 8, 8, 5)), 3).save(paths[2])
    return paths


def assert_as_whole(folder: Path, paths: list[Path], ranks: range) -> None:
    for path in paths:
        for number, (preset, k) in enumerate(itertools.product(("paper", "balanced"), (1, 5, 99))):
            options: dict[str, Any] = {"patch": 3, "k": k, "seed": number, "first_image": 2, "preset": preset}
            bank = Bank.load(path)
            radius = number % 3 if bank.size < 99 else 0
            whole = generate(bank, 4, search_radius=radius, **options)
            for rank in ranks:
                made = np.load(folder / f"{path.name}-{number}-{rank}.npz")
                assert np.array_equal(made["a"], whole.sources) and made["a"].dtype == np.int32
                assert np.array_equal(made["c"], np.zeros(0) if whole.shifts is None else whole.shifts)
                content = whole.codes if whole.codes is not None else whole.latents
                assert content is not None and np.array_equal(made["b"], content)
                assert np.array_equal(made["d"], offsets(whole))


def offsets(whole: Synthesis) -> NDArray[np.floating]:
    """The offsets of matched colours; empty where none are matched."""
    colours = whole.bank.colours
    return (
        seams.offsets(whole.sources, whole.shifts, colours)
        if whole.match_colours and colours is not None
        else np.zeros(0)
    )


@pytest.mark.parametrize("world", [2, 3])
def test_a_divided_bank_gives_the_source_maps_of_the_whole(world: int, tmp_path: Path) -> None:
    paths = divided_banks(tmp_path)
    done = ended(start(world, ["-c", textwrap.dedent(DIVIDED), str(tmp_path), *map(str, paths)]))
    assert [code for code, _, _ in done] == [0] * world, done
    assert_as_whole(tmp_path, paths, range(world))


def test_one_process_holds_all_of_it(tmp_path: Path) -> None:
    for path in divided_banks(tmp_path):
        for preset, radius in (("paper", 0), ("balanced", 0), ("balanced", 1)):
            options: dict[str, Any] = {"patch": 3, "k": 5, "preset": preset, "search_radius": radius}
            made, whole = distributed.generate(Bank.load(path), 4, **options), generate(path, 4, **options)
            assert np.array_equal(made.sources, whole.sources) and (made.shifts is None) == (radius == 0)


@pytest.mark.parametrize("preset", ["paper", "balanced"])
def test_a_divided_bank_decodes_to_the_pictures_of_the_whole(preset: str) -> None:
    images = np.random.default_rng(3).integers(0, 256, (20, 64, 64, 3), np.uint8)
    autoencoder = fakes.FakeVQ()
    bank = Bank.build(images, autoencoder, channels=3)
    made, whole = distributed.generate(bank, 4, patch=3, preset=preset), generate(bank, 4, patch=3, preset=preset)
    assert whole.match_colours == (preset == "balanced")
    assert np.array_equal(made.decode(autoencoder), whole.decode(autoencoder))
    with pytest.raises(InputError, match="does not fit the bank"):
        made.decode(load_autoencoder())


def test_what_a_divided_bank_refuses() -> None:
    bank = Bank.from_codes(np.zeros((3, 8, 8), int), np.eye(3), 2)
    cases: list[dict[str, Any]] = [{"n": 0}, {"k": 0}, {"patch": 9}, {"preset": "other"}, {"seed": -1}]
    cases += [{"search_radius": 5}, {"search_radius": -1}, {"first_image": -1}, {"first_image": 1.5}, {"seed": 1.5}]
    for options in cases:
        for call in (distributed.generate, generate):  # the same is asked of both
            with pytest.raises(InputError):
                call(bank, **{"patch": 3, "n": 1, **options})


TOLD = """
    import os, pickle, sys
    import torch
    import torch.distributed as dist
    from lpkernel.distributed import told
    from lpkernel.errors import InputError

    class Rogue:
        def __reduce__(self):
            return os.mkdir, (sys.argv[1],)

    dist.init_process_group("gloo")
    if dist.get_rank():
        sent = torch.frombuffer(bytearray(pickle.dumps(Rogue())), dtype=torch.uint8)
        dist.all_gather([torch.zeros(1, dtype=torch.int64) for _ in range(2)], torch.tensor([len(sent)]))
        dist.all_gather([torch.zeros_like(sent) for _ in range(2)], sent)
    else:
        try:
            told("mine")
        except InputError as error:
            print(error)
    dist.destroy_process_group()  # gloo's threads may abort a process that ends without
"""


def test_a_bank_is_not_divided_by_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, answer in {"is_initialized": True, "get_world_size": 2, "get_rank": 0, "get_backend": "nccl"}.items():
        monkeypatch.setattr(torch.distributed, name, lambda answer=answer: answer)
    bank = Bank.build(np.zeros((4, 64, 64, 3), np.uint8), fakes.FakeVQ(), channels=3)
    with pytest.raises(InputError, match="nccl, which sends nothing from the CPU; call init_process_group"):
        distributed.generate(bank, 1, patch=3)


def test_nothing_that_another_process_sends_is_executed(tmp_path: Path) -> None:
    done = ended(start(2, ["-c", textwrap.dedent(TOLD), str(tmp_path / "made")]))
    assert done[0][:2] == (0, "a process of this job sends what is not JSON\n"), done
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("name", "value"), [("RANK", "x"), ("RANK", "7"), ("WORLD_SIZE", "two"), ("MASTER_PORT", "")])
def test_wrong_numbers_of_the_environment(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for key, number in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, number)
    monkeypatch.setenv(name, value)
    assert main(["generate", "-n", "2", "--no-decode", "--out", str(tmp_path / "out")]) == 2
    assert "RANK" in capsys.readouterr().err


def test_links_are_not_followed(command: list[str], tmp_path: Path) -> None:
    victim, names = tmp_path / "victim", ("sources.npy.part", "images.jsonl.part", "generate.unfinished.json")
    victim.mkdir()
    for name in names:
        (victim / name).write_text("mine", encoding="utf-8")
    begun, finished = tmp_path / "begun", tmp_path / "finished"
    begun.mkdir()
    assert main([*command, "--quiet", "--out", str(finished)]) == 0
    before = content(finished)
    for out, code in ((begun, 2), (finished, 0)):
        (out / "rank-0-of-2").symlink_to(victim)
        done = ended(start(2, [*command, "--out", str(out)]))
        assert done[0][0] == code and ("is a link" in done[0][2]) == (code == 2), done
        assert {path.name: path.read_text(encoding="utf-8") for path in victim.iterdir()} == dict.fromkeys(
            names, "mine"
        )
    (finished / "rank-0-of-2").unlink()
    assert content(finished) == before
