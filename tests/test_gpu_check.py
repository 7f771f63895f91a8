"""The GPU check says what it did not run, and its problems are sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_check
import numpy as np
import pytest
import torch
from fakes import FakeVQ

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


SMALL = {**gpu_check.VQGAN, "block_out_channels": (32, 32), "layers_per_block": 1, "sample_size": 16}


def test_decoders_are_compared_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("diffusers")

    def once(call: Callable[[], object]) -> float:
        call()
        return 0.5

    monkeypatch.setattr(gpu_check, "seconds", once)
    monkeypatch.setattr(gpu_check, "DECODED", (1, 7))
    rows = list(gpu_check.decoders("cpu", SMALL))
    assert len(rows) == 2 + 2 * 2 * 2
    assert rows[2] == "| embedded | torch | 1 | 500.0 | 2 |  |" and rows[-1].startswith("| VQ-GAN | one kernel | 7 |")


def test_decoders_notice_a_batch_that_changes_an_image() -> None:
    autoencoder: Any = FakeVQ()
    codes = np.random.default_rng(0).integers(0, 32, (32, 8, 8))
    gpu_check._check_pixels("fake", autoencoder, autoencoder, codes)
    decode = autoencoder.decode
    autoencoder.decode = lambda some: decode(some) + (len(some) == 3)
    with pytest.raises(SystemExit, match="decoded with 2 others"):
        gpu_check._check_pixels("fake", autoencoder, autoencoder, codes)
    other: Any = FakeVQ(seed=5)
    autoencoder.decode = decode
    with pytest.raises(SystemExit, match="differ by more than 1"):
        gpu_check._check_pixels("fake", autoencoder, other, codes)


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
