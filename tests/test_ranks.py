"""Runs by several processes: the same files whatever their number, and what stays when one of them dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import fakes
import numpy as np
import pytest
from test_cli import FAKE
from test_runs import content

from lpkernel import Bank
from lpkernel.cli import main
from lpkernel.commands.ranks import Rank


def start(world: int, argv: list[str], ranks: range | None = None) -> list[subprocess.Popen[str]]:
    """The processes of a job, as torchrun starts them."""
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
            [sys.executable, "-m", "lpkernel", *argv],
            env=os.environ | here | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks or range(world)
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


@pytest.mark.parametrize("world", [2, 3])
def test_files_are_the_same_whatever_the_number_of_processes(world: int, command: list[str], tmp_path: Path) -> None:
    assert main([*command, "--quiet", "--out", str(tmp_path / "one")]) == 0
    done = ended(start(world, [*command, "--json", "--out", str(tmp_path / "many")]))
    assert [code for code, _, _ in done] == [0] * world, done
    assert json.loads(done[0][1])["count"] == 40 and [out for _, out, _ in done[1:]] == [""] * (world - 1)
    assert content(tmp_path / "many") == content(tmp_path / "one")


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
    assert "holds what 2 processes made; go on with --nproc-per-node 2" in other[0][2]
    done = ended(start(2, [*command, "--out", str(out)]))
    assert [code for code, _, _ in done] == [0, 0], done
    assert main([*command, "--quiet", "--out", str(tmp_path / "one")]) == 0
    assert content(out) == content(tmp_path / "one")
