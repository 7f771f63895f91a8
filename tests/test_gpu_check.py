"""The GPU check says what it did not run, its problems are valid, and the commands that it starts exist."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import gpu_check
import gpu_problems
import numpy as np
import pytest
import torch

from lpkernel.backends import registry
from lpkernel.backends.base import ScanRequest, TopkRequest
from lpkernel.backends.pytorch import TorchBackend
from lpkernel.benchmarks import suite
from lpkernel.cli import build_parser

ROOT = Path(__file__).parents[1]


def test_without_a_gpu_nothing_passes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr("sys.argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    out = capsys.readouterr().out
    assert (
        "No GPU was checked" in out and "Not run: build, tests, sanitizers, engines, speed, decoding, profile." in out
    )
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "speed"])
    assert gpu_check.main() == 2 and "Not run: speed." in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "sped"])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "got sped, expected one of build, tests" in capsys.readouterr().err


def test_small_problems_pass_where_answers_are_right() -> None:
    gpu_problems.check([registry.BACKENDS["torch"]], "cpu")


def test_small_problems_notice_a_wrong_answer() -> None:
    class Wrong(TorchBackend):
        def unsupported(self, request: ScanRequest | TopkRequest) -> list[str]:
            return []

        def scan(self, request: ScanRequest) -> np.ndarray:
            return super().scan(request)[:, ::-1]

    with pytest.raises(SystemExit, match="differ from the specification"):
        gpu_problems.check([Wrong()], "cpu")


def test_it_needs_nothing_that_it_has_yet_to_build() -> None:
    tree = ast.parse(Path(gpu_check.__file__).read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in names if name.startswith("lpkernel")]


def test_what_it_starts_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its benchmarks are commands that `lpkernel bench` accepts, and its tests exist."""
    asked: list[tuple[str, ...]] = []

    def note(seconds: float, *command: str, **variables: str) -> Any:
        asked.append(command)

    monkeypatch.setattr(gpu_check, "run", note)
    monkeypatch.setattr(gpu_check, "words", lambda process, lines=15: "said")
    monkeypatch.setattr(gpu_check, "vqgan", lambda folder, config: None)
    assert gpu_check.speed(180.0) == "said\nsaid" and "said" in gpu_check.decoding(60.0)
    for command in asked:
        args = build_parser().parse_args(command[3:])
        assert args.device == "cuda" and set(args.cases) <= set(suite.CASES) and args.out.parent == ROOT / "out"
    assert {case for command in asked for case in suite.CASES if case in command} == {
        *("topk", "step", "generate", "decode")
    }
    asked.clear()
    assert gpu_check.engines(60.0) == "said" and Path(asked[0][1]).is_file()
    for name in gpu_check.TESTS:
        assert (ROOT / "tests" / f"test_{name}.py").is_file()


def test_one_benchmark_that_fails_does_not_hide_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def bench(seconds: float, folder: str, *arguments: str) -> str:
        if folder == "a":
            raise SystemExit("its time was up")
        return f"{folder} took {seconds:g}"

    monkeypatch.setattr(gpu_check, "bench", bench)
    with pytest.raises(SystemExit, match="a FAILED: its time was up\nb took 30"):
        gpu_check.each(60.0, {"a": (), "b": ()})


def test_the_large_network_has_the_shape_of_the_papers(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    small = {**gpu_check.VQGAN, "block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 16}
    gpu_check.vqgan(str(tmp_path), small)
    config = (tmp_path / "config.json").read_text(encoding="utf-8")
    assert "AttnUpDecoderBlock2D" in config and '"num_vq_embeddings": 1024' in config


def test_a_part_ends_in_time_and_says_so() -> None:
    """A command that fails or runs out of time fails its part, with its last output; the next one is run."""
    slow = gpu_check.run(0.2, "bash", "-c", "echo begun; sleep 60")
    with pytest.raises(SystemExit, match="begun\ncut off: its time was up"):
        gpu_check.words(slow)
    with pytest.raises(SystemExit, match=r"^b$"):
        gpu_check.words(gpu_check.run(5, "bash", "-c", "echo a; echo b; exit 3"), 1)
    assert gpu_check.words(gpu_check.run(5, "bash", "-c", "echo $WORD", WORD="fine")) == "fine"
    with pytest.raises(SystemExit, match="not on the PATH"):
        gpu_check.run(5, "no-such-command")
