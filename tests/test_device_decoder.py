"""How a decoder runs on a device, tried on the CPU's no-op streams and a stand-in for graphs; torch.compile."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
import torch
from torch import Tensor

from lpkernel.autoencoder import device_decoder, load_autoencoder
from lpkernel.autoencoder.base import full_precision
from lpkernel.autoencoder.described import described
from lpkernel.autoencoder.device_decoder import COMPILED_FROM, Pipeline, choose
from lpkernel.errors import InputError
from lpkernel.info import info

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BATCH, SIDE = 4, 3


class Shift:
    """A step: three bytes from a code, or from a latent's first number. Records the shapes and dtypes that it gets."""

    def __init__(self) -> None:
        self.seen: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __call__(self, values: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((tuple(values.shape), values.dtype))
        of = (values if values.ndim == 3 else values[..., 0]).float()
        return torch.stack([of + i for i in range(3)], dim=-1).to(torch.uint8), of.isfinite().all()


class Graph:
    """Like a CUDA graph: it reads what its tensor holds now, and returns the same memory each time."""

    def __init__(self, step: Any, given: Tensor) -> None:
        self.step, self.given = step, given
        self.found = step(given)

    def __call__(self, given: Tensor) -> tuple[Tensor, Tensor]:
        assert given is self.given
        for kept, new in zip(self.found, self.step(given), strict=True):
            kept.copy_(new)
        return self.found


def expected(values: np.ndarray) -> np.ndarray:
    of = values if values.ndim == 3 else values[..., 0]
    return np.stack([of + i for i in range(3)], axis=-1).astype(np.uint8)


def content(n: int, codes: int | None) -> np.ndarray:
    random = np.random.default_rng(n)
    shape = (n, SIDE, SIDE) if codes else (n, SIDE, SIDE, 2)
    values = random.integers(0, 200, shape)
    return values if codes else values.astype(np.float64)


@pytest.mark.parametrize("graph", [None, Graph])
@pytest.mark.parametrize(
    ("codes", "kind"), [(200, torch.int16), (1 << 15, torch.int16), (1 << 16, torch.int32), (None, torch.float32)]
)
def test_every_number_of_images(graph: Any, codes: int | None, kind: torch.dtype) -> None:
    """Batches of one shape, in the order they came; a batch's memory is reused only after it has been read."""
    step = Shift()
    pipeline = Pipeline(step, CPU, codes, graph)
    with torch.inference_mode():
        for n in (0, 1, BATCH - 1, BATCH, BATCH + 1, 2 * BATCH, 3 * BATCH + 2, 1):
            values, out = content(n, codes), np.zeros((n, SIDE, SIDE, 3), np.uint8)
            assert pipeline.run(values, BATCH, out)
            assert np.array_equal(out, expected(values))
    assert {(shape[:3], given) for shape, given in step.seen} == {((BATCH, SIDE, SIDE), kind)}
    assert pipeline.why_no_graph == ""


def test_copies_are_waited_for_before_memory_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    class Event:
        names = iter("abcd")

        def __init__(self) -> None:
            self.name = next(self.names)  # "made" and "copied" of the first slot, then of the second

        def record(self, stream: Any) -> None:
            said.append(f"{self.name} on {stream}")

        def wait(self, stream: Any) -> None:
            said.append(f"{stream} waits for {self.name}")

        def synchronize(self) -> None:
            said.append(f"host waits for {self.name}")

    monkeypatch.setattr(torch.cpu, "Event", Event)
    monkeypatch.setattr(torch.cpu, "Stream", lambda: "side")
    monkeypatch.setattr(torch.cpu, "current_stream", lambda device: "main")
    pipeline, out = Pipeline(Shift(), CPU, 200), np.zeros((3 * BATCH, SIDE, SIDE, 3), np.uint8)
    with torch.inference_mode():
        assert pipeline.run(content(3 * BATCH, 200), BATCH, out)
    first, second = (
        [f"{made} on main", f"side waits for {made}", f"{copied} on side"] for made, copied in ("ab", "cd")
    )
    assert said == [*first, *second, "host waits for b", *first, "host waits for b", "host waits for d"]


def test_encoders_do_not_round_to_tf32() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled
    assert before == (True, True)  # torch's own settings
    with full_precision(CUDA):
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.enabled
    with full_precision(CPU):
        assert torch.backends.cudnn.allow_tf32
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.enabled) == before


def test_a_step_that_is_no_graph_is_launched_kernel_by_kernel() -> None:
    def refused(step: Any, given: Tensor) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    pipeline, out = Pipeline(Shift(), CPU, 200, refused), np.zeros((5, SIDE, SIDE, 3), np.uint8)
    with torch.inference_mode():
        assert pipeline.run(content(5, 200), BATCH, out)
    assert np.array_equal(out, expected(content(5, 200)))
    assert pipeline.why_no_graph == "operation not permitted when stream is capturing"


def test_what_is_not_finite_is_told_whichever_batch_it_is_in() -> None:
    pipeline, out = Pipeline(Shift(), CPU, None), np.zeros((9, SIDE, SIDE, 3), np.uint8)
    with torch.inference_mode():
        for image in (0, 4, 8):
            values = content(9, None)
            values[image, 1, 1, 0] = np.inf
            assert not pipeline.run(values, BATCH, out)
        assert pipeline.run(content(9, None), BATCH, out)


def test_an_exception_leaves_nothing_behind() -> None:
    step = Shift()
    pipeline, out = Pipeline(step, CPU, 200), np.zeros((9, SIDE, SIDE, 3), np.uint8)
    with torch.inference_mode():
        with pytest.raises(ValueError, match="broadcast"):
            pipeline.run(content(9, 200), BATCH, out[..., :2])  # an output that does not fit
        assert pipeline.run(content(9, 200), BATCH, out)
    assert np.array_equal(out, expected(content(9, 200)))
    with torch.inference_mode():  # nor of a batch that was under way when another could not be made
        wrong = content(9, 200)[:, :2]
        with pytest.raises(ValueError, match="broadcast"):
            pipeline.run(wrong, BATCH, out)
        short = np.full((1, SIDE, SIDE, 3), 7, np.uint8)
        assert pipeline.run(content(1, 200), BATCH, short)
    assert np.array_equal(short, expected(content(1, 200)))


def test_an_autoencoder_decodes_through_it() -> None:
    """The embedded one, as on a GPU but run on the CPU; the same pixels, whatever the batch."""
    plain: Any = load_autoencoder(device="cpu", dtype="float32")
    piped: Any = load_autoencoder(device="cpu", dtype="float32")
    piped.pipeline, piped.batch = Pipeline(piped._bytes, CPU, len(piped.codebook), Graph), 2
    codes = np.random.default_rng(0).integers(0, len(plain.codebook), (3, 16, 16))
    want = plain.decode(codes)
    assert np.abs(piped.decode(codes).astype(int) - want).max() <= 1
    assert np.array_equal(piped.decode(codes[2:]), piped.decode(codes)[2:])
    last: Any = [layer for layer in piped.network.decoder.modules() if isinstance(layer, torch.nn.Conv2d)][-1]
    last.bias.data[:] = torch.inf
    with pytest.raises(InputError, match=r"gave infinite or undefined values in torch\.float32; check its weights"):
        piped.decode(codes[:1])


@pytest.mark.parametrize(
    ("asked", "device", "images", "compiled", "reason"),
    [
        ("never", CUDA, 10**6, False, "asked for"),
        ("always", CUDA, None, True, "asked for"),
        ("always", CPU, None, True, "asked for"),
        ("auto", CPU, 10**6, False, "auto: on a CPU it gains nothing"),
        ("auto", CUDA, None, False, "auto: an unknown number of images to decode, compiling pays from 11,000 on"),
        ("auto", CUDA, 10_999, False, "auto: 10,999 images to decode, compiling pays from 11,000 on"),
        ("auto", CUDA, 11_000, True, "auto: 11,000 images to decode, compiling pays from 11,000 on"),
    ],
)
def test_who_is_compiled(
    asked: str, device: torch.device, images: int | None, compiled: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_decoder, "no_compiler", lambda kind: "")
    assert choose(asked, device, images, 256) == (compiled, reason)


def test_smaller_images_are_to_be_more() -> None:
    assert COMPILED_FROM == 11_000 * 256**2
    assert "from 44,000 on" in choose("auto", CUDA, 11_000, 128).reason
    assert choose("auto", CUDA, 10**6, 256, fused=True) == (False, "auto: the network's Triton kernels are as fast")
    assert choose("always", CUDA, 1, 256, fused=True).compiled


def test_without_a_compiler_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match="no-such-compiler was not found; install it or use"):
        choose("always", CPU, None, 256)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choose("auto", CUDA, 10**6, 256) == (False, "auto: torch.compile needs the package triton")


def test_words_and_plug_ins_that_cannot_be_compiled() -> None:
    with pytest.raises(InputError, match="compile"):
        load_autoencoder(device="cpu", compile="sometimes")
    plug_in = f"{fakes.__file__}:FakeVQ"
    with pytest.raises(InputError, match='compile="always" needs a TorchAutoencoder, but this is a FakeVQ'):
        load_autoencoder(plug_in, compile="always")
    load_autoencoder(plug_in)


def test_a_compiled_decoder_has_one_shape_and_the_same_pixels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With aot_eager, which traces as the real compiler does but writes no code: one graph without a break."""
    from torch._dynamo.utils import counters

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda step, **options: real(step, backend="aot_eager", **options))
    monkeypatch.setattr(device_decoder, "no_compiler", lambda kind: "")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that monkeypatch restores it
    del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counters.clear()
    plain: Any = load_autoencoder(device="cpu", dtype="float32")
    compiled: Any = load_autoencoder(device="cpu", dtype="float32", compile="always")
    codes = np.random.default_rng(0).integers(0, len(plain.codebook), (3, 16, 16))
    found = compiled.decode(codes)
    assert np.abs(found.astype(int) - plain.decode(codes)).max() <= 1
    assert np.array_equal(compiled.decode(codes[1:2]), found[1:2])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "lpkernel" / "torch.compile")


def test_info_says_what_is_chosen() -> None:
    found = info(device="cpu")["autoencoder"]["layers"]
    assert found["torch.compile"] == "no: auto: on a CPU it gains nothing" and found["decoder"] == "layer by layer"
    assert info(device="cpu", compile="never")["autoencoder"]["layers"]["torch.compile"] == "no: asked for"
    ours: Any = load_autoencoder(device="cpu")
    ours.device = CUDA  # changes only the description
    assert described(ours)["decoder"] == (
        "one CUDA graph a batch; codes as int16 sent there, bytes returned through pinned memory during the next batch"
    )
    ours.pipeline.why_no_graph = "no reason"
    assert described(ours)["decoder"].startswith("launched kernel by kernel (no reason); codes")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    """With real streams and a real graph: the same bits in any batch, close to float32 on the CPU."""
    ours: Any = load_autoencoder(device="cuda")
    codes = np.random.default_rng(0).integers(0, len(ours.codebook), (3 * ours.batch + 2, 16, 16))
    found = ours.decode(codes)
    assert ours.pipeline.why_no_graph == ""
    for part in (slice(0, 1), slice(5, 8), slice(ours.batch, 2 * ours.batch + 1)):
        assert np.array_equal(ours.decode(codes[part]), found[part])
    apart = np.abs(found[:4].astype(int) - load_autoencoder(device="cpu", dtype="float32").decode(codes[:4]))
    assert apart.mean() < 2
