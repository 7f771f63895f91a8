"""The GPU check says what it did not run, and its problems are sound."""

from __future__ import annotations

import gpu_check
import numpy as np
import pytest
import torch

from lpkernel.backends import registry
from lpkernel.backends.base import ScanRequest, TopkRequest
from lpkernel.backends.pytorch import TorchBackend


def test_without_a_gpu_nothing_passes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr("sys.argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    out = capsys.readouterr().out
    assert "No GPU was checked" in out and "Not run: tests on the GPU, memcheck" in out


def test_small_problems_pass_where_answers_are_right() -> None:
    gpu_check.small_problems([registry.BACKENDS["torch"]], "cpu")


def test_small_problems_notice_a_wrong_answer() -> None:
    class Wrong(TorchBackend):
        def unsupported(self, request: ScanRequest | TopkRequest | None, device: str = "auto") -> list[str]:
            return []

        def scan(self, request: ScanRequest, device: str = "auto") -> np.ndarray:
            return super().scan(request, device)[:, ::-1]

    with pytest.raises(SystemExit, match="differ from the specification"):
        gpu_check.small_problems([Wrong()], "cpu")


def test_a_part_ends_in_time_and_says_so() -> None:
    """A command that fails, or whose time is up, fails its part with its last words; the next one is run."""
    slow = gpu_check.run(0.2, "bash", "-c", "echo begun; sleep 60")
    with pytest.raises(SystemExit, match="begun\ncut off: its time was up"):
        gpu_check.words(slow)
    with pytest.raises(SystemExit, match=r"^b$"):
        gpu_check.words(gpu_check.run(5, "bash", "-c", "echo a; echo b; exit 3"), 1)
    assert gpu_check.words(gpu_check.run(5, "bash", "-c", "echo $WORD", WORD="fine")) == "fine"
    with pytest.raises(SystemExit, match="not on the PATH"):
        gpu_check.run(5, "no-such-command")
