"""lp.info(): a report that is JSON-ready and never fails for what is missing."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

import lpkernel
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
