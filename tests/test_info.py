"""lp.info(): a JSON-ready report that never fails because something is missing."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import fakes
import pytest
import torch
from lpkernel.triton_kernels import configs

import lpkernel
from lpkernel import _native, load_autoencoder
from lpkernel.autoencoder import described as describing
from lpkernel.autoencoder import layers
from lpkernel.autoencoder.described import described
from lpkernel.backends import registry
from lpkernel.info import info, why_chosen


def test_report_is_json_and_complete() -> None:
    found = json.loads(json.dumps(info()))
    assert found["lpkernel"] == lpkernel.__version__
    assert found["packages"]["numpy"] == metadata.version("numpy")
    assert found["cpu"]["model"] and 1 <= found["cpu"]["usable_cores"] <= found["cpu"]["cores"]
    assert set(found["build"]) == {"cpp", "cuda"}
    assert all("built" in build for build in found["build"].values())
    assert set(found["data"]) == {"autoencoder", "bank"}


def test_backends_say_usable_or_why_not() -> None:
    found = info()
    assert list(found["backends"]) == list(registry.BACKENDS)
    for name, backend in found["backends"].items():
        assert backend["usable"] == (not backend["reasons"]), name
    assert found["backends"]["numpy"]["usable"]


def test_auto_is_the_first_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LPKERNEL_BACKEND", raising=False)
    found = info()
    first = next(name for name, backend in found["backends"].items() if backend["usable"])
    assert found["auto"]["backend"] == first
    assert found["auto"]["reason"].startswith("first usable")


def test_environment_decides_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LPKERNEL_BACKEND", "numpy")
    assert info()["auto"] == {"backend": "numpy", "reason": "asked for by LPKERNEL_BACKEND"}
    monkeypatch.setenv("LPKERNEL_BACKEND", "nonsense")
    auto = info()["auto"]
    assert auto["backend"] is None and "nonsense" in auto["reason"]


def test_why_a_named_backend() -> None:
    assert why_chosen("torch") == "asked for by name"


def test_the_autoencoder_s_layers_say_what_runs_them() -> None:
    found = info()["autoencoder"]
    assert found["source"] == "default"
    assert list(found["layers"]) == [
        *("dtype", "images", "convolutions", "GroupNorm", "SiLU", "decoder", "torch.compile")
    ]
    assert found["layers"]["dtype"].endswith("; channels-last") and found["layers"]["SiLU"].startswith("28 by torch")
    assert info("nowhere")["autoencoder"]["reason"].startswith("nowhere: no such autoencoder")
    half = info(dtype="bfloat16", device="cpu")["autoencoder"]["layers"]
    by = "oneDNN" if layers.by_onednn(torch.bfloat16) else "torch"
    assert half["dtype"].startswith("decoder bfloat16, encoder bfloat16") and f"33 by {by}" in half["convolutions"]
    assert info(f"{fakes.__file__}:FakeVQ")["autoencoder"]["layers"] == {
        "layers": "not known: FakeVQ is not a TorchAutoencoder"
    }


def test_group_norms_say_why_they_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder: Any = load_autoencoder(device="cpu", dtype="float32")
    monkeypatch.setattr(_native, "isa_reasons", lambda isa: ())
    assert described(autoencoder)["GroupNorm"] == "15 by the compiled code"
    monkeypatch.setattr(_native, "isa_reasons", lambda isa: ("switched off",))
    assert described(autoencoder)["GroupNorm"] == "15 by torch and NumPy: switched off"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "has no oneDNN" in described(autoencoder)["convolutions"]


def test_a_gpu_s_layers_say_what_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the description: the network is on the CPU and labelled as on a GPU."""
    autoencoder: Any = load_autoencoder(device="cpu", dtype="float32")
    autoencoder.device, autoencoder.batch = torch.device("cuda"), 64
    monkeypatch.setattr(describing, "has_triton", lambda: False)
    assert described(autoencoder)["GroupNorm"] == "15 by torch, since triton is not installed"
    monkeypatch.setattr(describing, "has_triton", lambda: True)
    said = described(autoencoder)
    assert said["GroupNorm"] == "15 by Triton, 15 of them fused with SiLU" and said["SiLU"] == "13 by torch"
    assert said["images"] == "batches of 64, the last one filled up" and said["convolutions"] == "33 by torch"
    autoencoder.dtype = torch.float64
    assert "Triton's has no float64" in described(autoencoder)["GroupNorm"]
    autoencoder.dtype = torch.bfloat16
    monkeypatch.setattr(configs, "norm", lambda channels, groups: None)
    assert described(autoencoder)["GroupNorm"].endswith("15 by torch, with too many channels for the kernel")
