"""How the command line starts: a line at once, closed streams, completion, no output from other packages."""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from test_cli import FAKE, facts, save_images

import lpkernel
from lpkernel import Bank
from lpkernel.autoencoder.device_decoder import COMPILE
from lpkernel.bank.ingest import MISSING_ATTRIBUTES
from lpkernel.cli import build_parser, main

ROOT = Path(__file__).parent.parent
LPKERNEL = f"{sys.executable} -m lpkernel"


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, with lpkernel importable."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=environment, capture_output=True, check=False)


def test_only_what_is_needed_is_imported() -> None:
    """--version, --help and completion answer without torch; a program that imports lpkernel finds the op."""
    for arguments in ("['--version']", "['completion', 'bash']"):
        code = (
            "import sys; sys.argv = ['lpkernel']; import lpkernel.cli; "
            f"assert lpkernel.cli.main({arguments}) == 0; "
            "assert not {'torch', 'tqdm', 'diffusers'} & set(sys.modules), sorted(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    code = "import torch, lpkernel; torch.ops.lpkernel.masked_topk; lpkernel.info; lpkernel.errors; lpkernel.render"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_choices_are_those_of_modules_that_start_too_slowly() -> None:
    def choices(parser: argparse.ArgumentParser, option: str, *names: str) -> object:
        for name in names:
            (commands,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
            parser = commands.choices[name]
        return next(action.choices for action in parser._actions if option in action.option_strings)

    assert choices(build_parser(), "--compile", "generate") == COMPILE
    assert choices(build_parser(), "--missing-attributes", "bank", "build") == MISSING_ATTRIBUTES


def test_every_public_name_is_there() -> None:
    for name in lpkernel.__all__:
        assert getattr(lpkernel, name) is not None and name in dir(lpkernel)
    assert callable(lpkernel.info)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lpkernel.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_a_line_comes_before_torch(tmp_path: Path) -> None:
    """On a terminal, where progress is shown too."""
    argv = ["generate", "-n", "1", "--seed", "5", "--bank", "nowhere.lpbank"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONPROFILEIMPORTTIME": "1"}
    screen, terminal = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "lpkernel", *argv], cwd=tmp_path, env=environment, stderr=terminal):
        os.close(terminal)
        seen = b""
        with suppress(OSError):  # on Linux, raised when the other side is closed
            while part := os.read(screen, 1 << 16):
                seen += part
    os.close(screen)
    lines = seen.decode().splitlines()
    said = lines.index("lpkernel: making 1 image from nowhere.lpbank with seed 5, into out ...")
    assert said < next(i for i, line in enumerate(lines) if line.endswith("| torch"))


@pytest.mark.parametrize(("more", "terminal"), [(["--quiet"], True), ([], False), (["--json"], False)])
def test_no_line_for_programs(
    more: list[str], terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert main(["generate", "--bank", "nowhere.lpbank", *more]) == 2
    assert capsys.readouterr().err.startswith("lpkernel: error: ")


CLOSED = [
    ("--version >&-", 0),
    ("bank show default --json >&-", 0),
    ("bank show nowhere 2>&-", 2),
    ("nonsense >&- 2>&-", 2),
    ("--version <&- >&- 2>&-", 0),
]


@pytest.mark.parametrize(("line", "code"), CLOSED)
def test_closed_streams(line: str, code: int, tmp_path: Path) -> None:
    done = shell(f"{LPKERNEL} {line}", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


def test_files_do_not_take_the_place_of_closed_streams(tmp_path: Path) -> None:
    save_images(tmp_path / "in", 3)
    build = f"{LPKERNEL} bank build in -o b.lpbank --autoencoder {FAKE} --channels 3"
    run = f"{LPKERNEL} generate --bank b.lpbank -n 2 --patch 3 --autoencoder {FAKE} --out o"
    done = shell(f"{build} >&- 2>&- <&- && {run} >&- 2>&- <&-", tmp_path)
    assert done.returncode == 0 and len(facts(tmp_path / "o")) == 2
    assert Bank.load(tmp_path / "b.lpbank", verify=True).size == 3
    json.loads((tmp_path / "o" / "generate.json").read_text())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    done = shell(f"{LPKERNEL} --version > /dev/full", tmp_path)
    assert (done.returncode, done.stderr) == (2, b"lpkernel: error: No space left on device\n")


def test_names_that_are_no_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of files, folders and arguments that are not UTF-8: no traceback, and JSON that every reader accepts."""
    folder = save_images(tmp_path / "in", 3)
    odd = os.fsdecode(b"\xff.png")
    (folder / "0.png").rename(folder / odd)
    out, bank = tmp_path / os.fsdecode(b"o\xfe"), tmp_path / os.fsdecode(b"b\xfd.lpbank")
    fake = ["--autoencoder", FAKE, "--quiet"]
    assert main(["bank", "build", str(folder), "-o", str(bank), "--channels", "3", *fake]) == 0
    assert odd in Bank.load(bank).names
    argv = ["generate", "--bank", str(bank), "-n", "2", "--patch", "3", "--provenance", *fake, "--out", str(out)]
    assert main([*argv, "--json"]) == 0
    text = capsys.readouterr().out
    assert "b\\\\udcfd.lpbank" in text and "\\udc" not in text.replace("\\\\udc", "")
    lines = [json.loads(line) for line in (out / "images.jsonl").read_text("utf-8").splitlines()]
    used = {source["name"] for line in lines for source in line["sources"]}
    assert used and all(name.encode() for name in used)
    assert main([*argv, "--seed", "1"]) == 2 and main([*argv, "--where", odd]) == 2
    assert main(["bank", "show", str(bank), "--json"]) == 0 and json.loads(capsys.readouterr().out)["images"] == 3
    edit = ["edit", str(folder / odd), "--box", "0,0,9,9", "--bank", str(bank), "--patch", "3", *fake]
    assert main([*edit, "--out", str(tmp_path / "e")]) == 0


def completed(script: Path, *words: str) -> set[str]:
    """The completions that bash offers after these words."""
    line = " ".join(f"'{word}'" for word in words)
    code = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        "$(complete -p lpkernel | sed 's/.*-F \\([^ ]*\\).*/\\1/') lpkernel \"${COMP_WORDS[-1]}\" "
        '"${COMP_WORDS[-2]}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, cwd=script.parent)
    return set(done.stdout.split())


def test_bash_completes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "lpkernel.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "pictures.txt").write_text("")
    assert completed(script, "lpkernel", "ge") == {"generate"}
    assert {"build", "show"} <= completed(script, "lpkernel", "bank", "")
    assert completed(script, "lpkernel", "generate", "--pre") == {"--preset"}
    assert {"paper", "balanced", "diverse"} <= completed(script, "lpkernel", "generate", "--preset", "")
    assert completed(script, "lpkernel", "edit", "p") == {"photographs", "pictures.txt"}
    assert completed(script, "lpkernel", "bank", "build", "p") == {"photographs"}


@pytest.mark.parametrize("shell_name", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell_name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell_name]) == 0
    script = capsys.readouterr().out
    commands = next(action.choices for action in build_parser()._actions if action.choices)
    assert (
        commands
        and all(command in script for command in commands)
        and "--copy-limit" in script.replace("-l copy-limit", "--copy-limit")
    )


def test_an_unknown_shell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "cmd"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_diffusers_says_nothing(tmp_path: Path) -> None:
    """Loading its models prints none of its notices, and leaves its logger as it was."""
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=16,
        sample_size=64,
    )
    network.save_pretrained(tmp_path / "vq")
    code = (
        "import logging, numpy as np, lpkernel as lp, diffusers;"
        "log = logging.getLogger('diffusers'); before = log.level;"
        "ae = lp.load_autoencoder('vq', dtype='bfloat16'); ae.decode(ae.encode(np.zeros((1, 64, 64, 3), np.uint8)));"
        "assert log.level == before"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
