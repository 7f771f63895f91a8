"""The benchmark suite runs, writes sound files, refuses wrong answers and names missing peers. No time is judged."""

from __future__ import annotations

import argparse
import gc
import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from emulation.build import cuda_module
from emulation.needs import need_compiler
from fakes import FakeVQ

from lpkernel import Bank, load_autoencoder
from lpkernel.autoencoder import device_decoder
from lpkernel.backends import registry
from lpkernel.backends.base import ScanRequest, TopK
from lpkernel.backends.cuda import CudaBackend
from lpkernel.backends.specification import NumpyBackend
from lpkernel.benchmarks import data, decoding, machine, measure, peers, plots, points, report, suite, torch_float32
from lpkernel.benchmarks.checks import Truth, WrongAnswer, true_distances
from lpkernel.benchmarks.points import Generation
from lpkernel.benchmarks.suite import Options, Suite
from lpkernel.benchmarks.torch_float32 import TorchFloat32
from lpkernel.cli import main
from lpkernel.commands import bench as command
from lpkernel.errors import InputError
from lpkernel.info import cpu_model
from lpkernel.search import ops

TINY = ["--n", "1,3", "--b", "40", "--k", "4", "--budget", "0.001", "--backend", "numpy,torch", "--quiet"]
KEYS = {"case", "data", "provider", "ours", "metric", "unit", "x", "p20", "p50", "p80", "config"}


@pytest.fixture(autouse=True)
def small_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The measured copy is small, points begin without a collection, and the thread settings are restored."""
    monkeypatch.setattr(machine, "COPIED", {"cpu": 1 << 16})
    monkeypatch.setattr(gc, "collect", lambda: 0)  # 0.2 s of what tests have imported, at each point
    with machine.threads(1):
        yield


@pytest.fixture(scope="module")
def bank() -> Bank:
    random = np.random.default_rng(0)
    return Bank.from_codes(random.integers(0, 32, (60, 16, 16)), random.standard_normal((32, 6), np.float32), 4)


@pytest.fixture(scope="module")
def bank_path(bank: Bank, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bank") / "small.lpbank"
    bank.save(path)
    return path


def bench(out: Path, bank_path: Path, *argv: str, code: int = 0) -> dict[str, Any]:
    assert main(["bench", "--bank", str(bank_path), "--out", str(out), "--threads", "1", *TINY, *argv]) == code
    return json.loads((out / "bench.json").read_text(encoding="utf-8"))


def test_a_tiny_sweep_writes_well_formed_json(bank_path: Path, tmp_path: Path) -> None:
    found = bench(tmp_path, bank_path, "topk", "step", "generate", "--peers", "matmul,cdist,torch-float32")
    assert found["refused"] == found["skipped"] == []
    assert found["machine"]["threads"] == 1
    assert found["versions"]["numpy"] == np.__version__
    assert found["machine"]["limits"]["bandwidth"] > 0
    assert found["machine"]["device"] == found["machine"]["cpu"] == cpu_model() and not found["machine"]["gpu"]
    times = [record for record in found["records"] if record["metric"] == "time"]
    for record in found["records"]:
        assert set(record) == KEYS
        assert 0 <= record["p20"] <= record["p50"] <= record["p80"]
    assert all(record["p20"] > 0 and record["config"]["runs"] >= 1 for record in times)
    taken: dict[tuple[str, str], set[str]] = {(record["case"], record["data"]): set() for record in times}
    for record in times:
        taken[record["case"], record["data"]].add(record["provider"])
    ours, searchers = {"lpkernel numpy", "lpkernel torch"}, {"torch matmul+topk", "torch cdist+topk"}
    assert taken == {
        ("topk", "float32"): ours | searchers,
        ("topk", "int16"): ours | searchers,
        ("step", "bank"): ours | searchers,
        ("step", "random"): ours | searchers,
        ("generate", "bank"): ours | {"torch-float32"},
        ("generate", "bank, balanced"): ours,
    }
    assert {record["x"]["N"] for record in times} == {1, 3}
    assert len(found["verdicts"]) == 10 and all(entry["ratio"] > 0 for entry in found["verdicts"])


@pytest.mark.parametrize("name", ["faiss", "sklearn"])
def test_other_libraries_find_the_same_neighbours(name: str) -> None:
    peer = peers.PEERS[name]
    if reason := peer.missing("cpu"):
        pytest.skip(reason)
    random = np.random.default_rng(1)
    batches = [random.standard_normal((5, 24), np.float32) for _ in range(2)]
    search = peers.Search(random.standard_normal((300, 24), np.float32), batches, 6)
    truth = Truth(batches, search.bank, 6)
    variants = peer.prepare(search)
    assert variants
    for call in variants.values():
        for batch in range(2):
            truth.close(peer.answer(call(batch)), batch, expanded=True)


def test_a_wrong_peer_is_refused_and_not_timed(
    bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = peers.TorchMatmul.answer

    def off_by_one(self: peers.TorchMatmul, raw: Any) -> TopK:
        distances, indices = right(self, raw)
        return TopK(distances, (indices + 1) % 40)

    monkeypatch.setattr(peers.TorchMatmul, "answer", off_by_one)
    found = bench(tmp_path, bank_path, "topk", "--peers", "matmul,cdist", code=2)
    assert {entry["provider"] for entry in found["refused"]} == {"torch matmul+topk"}
    assert "torch matmul+topk" not in {record["provider"] for record in found["records"]}
    assert "wrong answers were refused, of torch matmul+topk" in capsys.readouterr().err


def test_a_wrong_backend_is_refused(bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(NumpyBackend):
        name = "numpy"

        def scan(self, request: ScanRequest) -> np.ndarray:
            sources = super().scan(request)
            sources[-1] = np.where(sources[-1] < 0, -1, (sources[-1] + 1) % request.bank.size)
            return sources

    right = registry.BACKENDS["numpy"]
    monkeypatch.setitem(registry.BACKENDS, "torch", Wrong())
    found = bench(tmp_path, bank_path, "step", "--data", "bank", "--peers", "none", code=2)
    assert len(found["refused"]) == 2  # the true numpy passes at both points
    assert registry.BACKENDS["numpy"] is right
    assert {entry["case"] for entry in found["refused"]} == {"step"}


def test_missing_peers_and_backends_are_named(bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("faiss", "sklearn.metrics", "threadpoolctl", "pykeops"):
        monkeypatch.setitem(sys.modules, module, None)
    found = bench(tmp_path, bank_path, "topk", "--backend", "numpy,cuda", "--peers", "faiss,sklearn,keops")
    absent = {entry["provider"]: entry["reason"] for entry in found["absent"]}
    assert {"faiss IndexFlatL2", "scikit-learn ArgKmin", "pykeops argKmin", "threadpoolctl"} <= set(absent)
    assert "pip install" in absent["faiss IndexFlatL2"]
    if registry.BACKENDS["cuda"].unavailable():
        assert absent["lpkernel cuda"]


def test_a_peer_that_breaks_is_reported(bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: peers.TorchMatmul, search: peers.Search) -> peers.Variants:
        raise RuntimeError("does not compile")

    monkeypatch.setattr(peers.TorchMatmul, "prepare", broken)
    found = bench(tmp_path, bank_path, "topk", "--peers", "matmul")
    assert {entry["reason"] for entry in found["skipped"]} == {"RuntimeError: does not compile"}


def test_calls_that_would_take_too_long_are_left_out_and_said_so(bank: Bank) -> None:
    options = Options(("step",), ("bank",), (1, 64), (40,), (3,), (2,), ("numpy",), (), budget=0.001, longest=1e-9)
    run = Suite(options, bank)
    lines = [line for point in run.run() for line in report.table(point, run.results)]
    assert [record.x["N"] for record in report.times(run.results.records)] == [1]
    assert any("not run: lpkernel numpy: a call would take about" in line for line in lines)


def test_few_images_are_scaled_up_and_said_so(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "GENERATIONS", (Generation(50, 20, 6, 2, 3, one_scale=True),))
    run = Suite(Options(("generate",), backends=("torch",), budget=0.001, longest=1e-9), bank)
    (point,) = run.run()
    text = "\n".join(report.table(point, run.results))
    assert text.count("extrapolated from 16 images") == 2
    assert not run.results.refused


def test_memory_of_a_process(bank_path: Path, tmp_path: Path) -> None:
    found = bench(tmp_path, bank_path, "memory", "--backend", "numpy")
    metrics = {record["metric"]: record["p50"] for record in found["records"]}
    assert 0 < metrics["resident"] < 64e6
    assert set(metrics) <= {"resident", "peak", "time"}


def test_plots_show_three_points_or_more(bank: Bank, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    options = Options(("step",), ("random",), (1, 2, 4), (20, 40), (4,), (2,), ("numpy",), ("matmul",), budget=0.001)
    run = Suite(options, bank)
    assert len(list(run.run())) == 6
    assert plots.draw(run.results, "a title", tmp_path) == ["cost-step-random-N.png"]
    assert (tmp_path / "cost-step-random-N.png").read_bytes().startswith(b"\x89PNG")


def test_table_marks_losses_and_summary_counts_them(bank: Bank) -> None:
    run = Suite(Options(("step",), ("bank",), (2,), (40,), (3,), (2,), ("numpy",), ("matmul",), budget=0.001), bank)
    (point,) = run.run()
    ours, peer = (next(r for r in report.times(run.results.records) if r.ours is mine) for mine in (True, False))
    ours.p50, peer.p50 = 2.0, 1.0
    table = "\n".join(report.table(point, run.results))
    assert "SLOWER" in table and "0.50" in table and "limits (estimates): table adds" in table
    assert "1 of 1 points lost" in "\n".join(report.summary(run.results))


def test_extended_banks_hold_the_originals_their_shifts_and_mosaics(bank: Bank) -> None:
    codes = bank.codes
    assert codes is not None
    many = data.extend(codes, 600)
    assert np.array_equal(many[:60], codes)
    assert np.array_equal(many[60:120, :, 1:], codes[:, :, :-1]) and np.array_equal(many[60:120, :, 0], codes[:, :, 0])
    assert len(many) == 600 and np.array_equal(many, data.extend(codes, 600))
    assert np.array_equal(data.extend(codes, 700)[:540], many[:540])
    pool = many[:540]
    assert (many[540:, None] == pool[None]).any(axis=1).all()  # each cell comes from some map, at its place


def test_one_step_is_a_step_of_the_usual_generation(bank: Bank) -> None:
    for patch, known in ((2, 3), (6, 32), (8, 55)):
        one = data.one_step(16, patch)
        assert one.steps == 1 and one.scales[0].compare.sum() == known and one.scales[0].write.all()
    vectors = data.known_vectors(np.asarray(bank.codes), bank, data.one_step(16, 6))
    assert vectors.shape == (60, 32 * 4) and vectors.dtype == np.float32


def test_true_distances_are_exact_for_integers() -> None:
    random = np.random.default_rng(2)
    bank, queries = random.integers(-1023, 1024, (50, 40)), random.integers(-1023, 1024, (3, 40))
    expected = np.square(queries[:, None] - bank[None]).sum(axis=2)
    assert np.array_equal(true_distances(queries, bank.astype(np.int16)), expected)


def test_checks_accept_rounding_and_near_ties_only() -> None:
    random = np.random.default_rng(3)
    bank, queries = random.standard_normal((30, 8)), random.standard_normal((2, 8))
    truth = Truth([queries], bank, 3)
    right = TopK(truth.nearest[0].copy(), truth.order[0].copy())
    truth.exact(right, 0)
    truth.close(TopK(right.distances * (1 + 1e-6), right.indices), 0, expanded=False)
    fourth = np.argsort(true_distances(queries, bank), axis=1)[:, 3]
    wrong = [
        TopK(right.distances * 1.01, right.indices),
        TopK(right.distances, right.indices[:, ::-1]),
        TopK(right.distances, np.repeat(right.indices[:, :1], 3, axis=1)),
        TopK(right.distances[:, :2], right.indices[:, :2]),
        TopK(
            np.column_stack([right.distances[:, :2], true_distances(queries, bank)[[0, 1], fourth]]),
            np.column_stack([right.indices[:, :2], fourth]),
        ),
    ]
    for answer in wrong:
        with pytest.raises(WrongAnswer):
            truth.close(answer, 0, expanded=True)
        with pytest.raises(WrongAnswer):
            truth.exact(answer, 0)


@pytest.mark.parametrize("keep", [False, True])
def test_the_float_path_makes_the_same_images_either_way(bank: Bank, keep: bool) -> None:
    made = Generation(3, 60, 6, 2, 3)
    plan = made.plan(16)
    path = TorchFloat32(bank, plan, 3, keep)
    sources = path.run(3, seed=5)
    assert sources.shape == (3, 16, 16) and sources.min() >= 0 and sources.max() < 60
    assert np.array_equal(sources, TorchFloat32(bank, plan, 3, not keep).run(3, seed=5))
    points._GenerationCheck(bank, made, 0).neighbours(path, points.Share({}))


def test_a_float_path_that_takes_the_farthest_is_refused(bank: Bank) -> None:
    made = Generation(2, 60, 6, 2, 3, one_scale=True)
    path = TorchFloat32(bank, made.plan(16), 3, False)
    path.k = 60
    check = points._GenerationCheck(bank, made, 0)
    share = points.Share({})
    check.neighbours(path, share)  # every image is among the 60 nearest
    honest = TorchFloat32.run

    def claims_three(self: TorchFloat32, *args: Any) -> Any:
        observe = args[2]

        def relabelled(count: int, query: Any, chosen: Any) -> None:
            self.k = 3
            observe(count, query, chosen)
            self.k = 60

        return honest(self, args[0], args[1], relabelled)

    path.run = claims_three.__get__(path)  # type: ignore[method-assign]
    with pytest.raises(WrongAnswer, match="not among the 3 nearest"):
        check.neighbours(path, share)
    path.exact = False  # as in TF32: reported, not refused
    check.neighbours(path, share)
    assert 0 < share.facts["right"] < 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "case: got 'nothing', expected one of topk, step, generate, memory, decode"),
        (["step", "--peers", "nobody"], "--peers: got 'nobody'"),
        (["step", "--backend", "fast"], "--backend: got 'fast'"),
        (["step", "--p", "9"], "--p: got 9, but this bank's fixed point is exact up to 8"),
        (["step", "--threads", "-1"], "--threads"),
        (["step", "--n", "0"], "--n: got 0"),
    ],
)
def test_mistakes_get_one_line(
    argv: list[str], message: str, bank_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--bank", str(bank_path), "--out", str(tmp_path), *argv]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1


def test_a_bank_of_latents_is_refused() -> None:
    latents = np.random.default_rng(0).standard_normal((5, 8, 8, 4), np.float32)
    with pytest.raises(InputError, match="benchmarks need one of at most 4096 codes"):
        data.Maps(Bank.from_latents(latents, channels=4))


def test_sweeps_hold_the_numbers_of_the_design() -> None:
    full = Options(full=True)
    step = suite.step_sweep(full, "bank")
    assert {n for n, *_ in step} == set(suite.NS) and {b for _, b, *_ in step} == set(suite.BS)
    assert {p for *_, p, _ in step} == set(suite.PS) and {k for *_, k in step} == set(suite.KS)
    assert len(set(step)) == len(step)
    short = suite.step_sweep(Options(), "bank")
    assert set(short) <= set(step) and len(short) < len(step) / 3
    assert {b for _, _, b, _ in suite.topk_sweep(full)} == set(suite.BS[1:])


def test_timing_waits_until_no_thread_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "process_time", iter([0.0, 0.01, 0.01, 0.02, 0.02, 0.021]).__next__)
    monkeypatch.setattr(time, "sleep", slept.append)
    measure.rest()
    assert slept == [0.01] * 3
    monkeypatch.setattr(time, "process_time", iter(range(200)).__next__)  # one that never rests
    measure.rest()
    assert len(slept) == 53
    measure.rest("cuda")
    assert len(slept) == 53


def test_the_first_runs_on_a_cpu_do_not_count() -> None:
    asked: list[int] = []

    def call(batch: int) -> None:
        asked.append(batch)
        time.sleep(0.02)

    times = measure.repeat(call, 2, 0.06)
    assert asked == [0, 0, 0, *(i % 2 for i in range(len(times)))]


def test_repeat_runs_batches_in_turn_and_stops_at_the_budget() -> None:
    asked: list[int] = []
    times = measure.repeat(asked.append, 3, 0.0)
    assert len(times) == len(asked) <= measure.LEAST_RUNS
    times = measure.repeat(asked.append, 3, 1e9)
    assert len(times) == measure.MOST_RUNS and asked[-4:] != sorted(asked[-4:])


def test_peak_extra_sees_a_large_array() -> None:
    peak, seconds = measure.peak_extra(lambda: np.ones(16 << 20, np.uint8))
    assert seconds > 0
    if peak is None:
        pytest.skip("/proc/self/clear_refs cannot be written here")
    assert 12 << 20 < peak < 64 << 20


@pytest.fixture
def _small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PEAK_SIDE", {"cpu": 64})
    monkeypatch.setattr(machine, "PEAK_IMAGES", {"cpu": 1})
    machine.peaks.cache_clear()


@pytest.mark.usefixtures("_small_peaks")
def test_decoding_is_timed_beside_the_network_itself(bank_path: Path, tmp_path: Path) -> None:
    found = bench(tmp_path, bank_path, "decode", "--n", "3", "--peers", "module")
    assert found["refused"] == found["skipped"] == []
    assert found["decoded"] == {"autoencoder": "default", "device": cpu_model()}
    decoded = [r for r in found["records"] if r["metric"] == "time"]
    times = {(r["provider"], r["x"]["N"], r["data"]): r for r in decoded}
    # the bank was made with another autoencoder, so the timing of making and decoding uses a bank of random codes
    kinds = ("default", "default, made and decoded")
    assert set(times) == {(name, 3, kind) for name in ("lpkernel", "module float32") for kind in kinds}
    for record in [record for (_, _, kind), record in times.items() if kind == "default"]:
        config = record["config"]
        assert record["case"] == "decode" and record["x"]["S"] == 128 and config["flop"] == 6_430_392_320
        assert config["largest_difference"] <= 1 and config["peak"] > 0 and "100.00% within 1" in config["pixels"]
    assert {"at the rate of a matrix product", "at the rate of a convolution"} == set(found["bounds"][0]["seconds"])


@pytest.mark.usefixtures("_small_peaks")
def test_making_and_decoding_is_timed_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        [
            "bench",
            "decode",
            "--n",
            "2",
            "--budget",
            "0.001",
            "--peers",
            "module",
            "--threads",
            "1",
            "--out",
            str(tmp_path),
        ]
    )
    said = capsys.readouterr().out
    assert code == 0 and "made and decoded" in said and "of the peak" in said and "limits (measured)" in said
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    whole = [r for r in found["records"] if r["metric"] == "time" and r["data"] == "default, made and decoded"]
    assert {record["provider"] for record in whole} == {"lpkernel", "module float32"}
    assert all("ms an image to make" in record["config"]["parts"] for record in whole)


@pytest.mark.usefixtures("_small_peaks")
def test_other_pixels_are_refused(bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right, calls = decoding.Plain.decode, list[int]()

    def brighter(self: decoding.Plain, content: Any, batch: int) -> Any:
        calls.append(batch)
        return right(self, content, batch) // 2 + (1 if len(calls) > 1 else 0)  # the first is the reference

    monkeypatch.setattr(decoding.Plain, "decode", brighter)
    found = bench(tmp_path, bank_path, "decode", "--n", "1", "--peers", "module", code=2)
    assert {entry["provider"] for entry in found["refused"]} == {"lpkernel", "module float32"}
    assert "pixels differ by up to" in found["refused"][0]["reason"]


def test_a_plug_in_has_no_network_to_compare_with(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeVQ()
    monkeypatch.setattr(decoding, "load_autoencoder", lambda *_, **__: fake)
    case = decoding.Decoding("fake", "cpu", bank, decoding.PEERS, 0)
    assert case.reason
    point = case.decode(3)
    assert [not entrant.reason for entrant in point.entrants] == [True, False, False, False, False, False]
    assert "the network of fake is not known" in point.entrants[-1].reason and not point.bounds
    images = point.entrants[0].prepare()[""](0)
    point.entrants[0].check(images, 0)
    with pytest.raises(InputError, match="is not a TorchAutoencoder"):
        decoding.Plain("fake", "cpu", torch.float32)


def test_who_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler was not found" in device_decoder.no_compiler("cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "triton" in device_decoder.no_compiler("cuda")


@pytest.fixture
def said_by_card(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls made to a card that is not there: events 250 ms apart, a cache of 1 KiB and its flush."""
    said: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.number = len(said)

        def record(self) -> None:
            said.append("event")

        def synchronize(self) -> None:
            said.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 250.0

    class Properties:
        L2_cache_size, major, minor, multi_processor_count, total_memory = 1 << 10, 9, 0, 132, 1 << 36

    for name, value in {
        "Event": Event,
        "device": lambda device: nullcontext(),
        "synchronize": lambda device: said.append("flushed"),
        "get_device_properties": lambda device: Properties,
        "get_device_name": lambda device: "A card",
        "memory_allocated": lambda device: 1000,
        "max_memory_allocated": lambda device: 1500,
        "reset_peak_memory_stats": lambda device: said.append("from here"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return said


def test_a_gpu_is_timed_by_events(said_by_card: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said = said_by_card
    monkeypatch.setattr(measure, "_scratch", lambda device: torch.ones(4))
    assert measure.timed(lambda: said.append("call"), "cuda:0") == (0.25, None)
    assert said == ["event", "call", "event", "wait"]
    said.clear()
    assert measure.repeat(lambda _: said.append("call"), 1, 0.7, "cuda") == [0.25] * 3
    assert said == ["flushed", "event", "call", "event", "wait"] * 3
    assert measure.best_of(lambda: None, 1.0, device="cuda") == 0.25
    said.clear()
    assert measure.peak_extra(lambda: None, "cuda") == (500, 0.25) and measure.resident("cuda") == 1000
    assert said == ["flushed", "from here", "event", "event", "wait"]


@pytest.fixture
def card(said_by_card: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The harness takes the CPU for a card: the GPU code runs, on CPU tensors."""
    monkeypatch.setattr(measure, "on_gpu", lambda device: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    kept = (machine.device_name, machine.peaks, measure._scratch, peers.compiled_nearest, torch_float32._compiled)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.mark.usefixtures("card", "_small_peaks")
def test_everybody_is_timed_on_a_card(bank_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CUDA kernels in their emulation; the rows are on the device as tensors beforehand."""
    need_compiler()
    monkeypatch.setitem(registry.BACKENDS, "cuda", CudaBackend(cuda_module(None), "cpu"))
    arguments = ["topk", "step", "generate", "memory", "--backend", "cuda,cpp", "--n", "2", "--data", "bank"]
    kinds: set[type] = set()
    searched = ops.masked_topk

    def noted(queries: Any, bank: Any, *others: Any, **named: Any) -> Any:
        kinds.update((type(queries), type(bank)))
        return searched(queries, bank, *others, **named)

    monkeypatch.setattr(ops, "masked_topk", noted)
    found = bench(tmp_path, bank_path, *arguments)
    assert kinds == {torch.Tensor}
    assert found["machine"]["device"] == "A card" and found["machine"]["gpu"]["multiprocessors"] == 132
    assert found["machine"]["cpu"] == cpu_model() and set(found["machine"]["limits"]) >= {"float16", "bandwidth"}
    taken: dict[str, set[str]] = {}
    for record in found["records"]:
        taken.setdefault(record["case"], set()).add(record["provider"])
        assert (record["metric"], record["p50"]) in {("time", 0.25), ("resident", 0.0), ("peak", 500.0)}
        inexact = "TF32" in record["provider"]
        assert not inexact or (record["config"]["exact"] is False and record["config"]["right"] == 1)
    searchers = {f"{own} matmul+topk{kind}" for own in ("torch", "torch.compile") for kind in ("", " TF32, not exact")}
    ours = {"lpkernel cuda", "lpkernel cpp"}
    assert taken["topk"] == taken["step"] == ours | searchers | {"torch cdist+topk"}
    assert taken["generate"] == ours | {path.name for path in torch_float32.PATHS.values()}
    absent = {entry["provider"]: entry["reason"] for entry in found["absent"]}
    assert absent["scikit-learn ArgKmin"] == "runs on the CPU only" and "faiss" in absent["faiss IndexFlatL2"]
    assert "measures a process on the CPU" in absent["memory"]


@pytest.mark.usefixtures("card", "_small_peaks")
def test_the_table_names_the_card_and_what_is_not_exact(bank: Bank) -> None:
    options = Options(("topk",), n=(2,), b=(40,), k=(4,), backends=("torch",), peers=("matmul-tf32",), budget=0.001)
    run = Suite(options, bank)
    lines = [line for point in run.run() for line in report.table(point, run.results)]
    assert lines[0].startswith("topk, float32 data, on A card: N=2")
    assert any("TF32, not exact" in line and "100.00% of the answers right" in line for line in lines)
    assert any("limits (measured): float32 multiply-adds" in line and "float16" in line for line in lines)


@pytest.mark.usefixtures("card", "_small_peaks")
def test_decoders_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours as it is and by torch.compile: in both, an image in a batch has the bits that it has alone."""
    monkeypatch.setattr(device_decoder, "no_compiler", lambda kind: "")
    options = Options(("decode",), n=(2,), peers=("module-tf32", "module-compiled"), budget=0.001)
    kind = str(getattr(load_autoencoder("default"), "dtype", "")).removeprefix("torch.")  # bfloat16 where it is fast
    run = Suite(options, Bank.default())
    lines = [line for point in run.run() for line in report.table(point, run.results)]
    assert not run.results.refused and not run.results.skipped
    ours = {"lpkernel", "lpkernel by torch.compile"}
    taken = {(record.data, record.provider) for record in run.results.records}
    assert taken == {
        *(
            ("default", name)
            for name in (
                *ours,
                "module float32 in TF32, not exact",
                f"torch.compile {kind}",
            )
        ),
        *(("default, made and decoded", name) for name in ours),
    }
    assert sum("on A card" in line for line in lines) == 2 and any("of the peak" in line for line in lines)


def test_faiss_on_a_card_takes_tensors(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    faiss: Any = ModuleType("faiss")
    inner: list[torch.Tensor] = []

    class Index:
        def __init__(self, resources: Any, width: int, options: Any) -> None:
            assert (resources, width, options.device) == ("resources", 24, 0)

        def add(self, rows: torch.Tensor) -> None:
            inner.append(rows)

        def search(self, queries: torch.Tensor, k: int) -> Any:
            return torch.topk(torch.cdist(queries, inner[0]).square(), k, largest=False)

    faiss.StandardGpuResources, faiss.GpuIndexFlatL2 = lambda: "resources", Index
    faiss.GpuIndexFlatConfig = type("Configuration", (), {})
    faiss.contrib = ModuleType("faiss.contrib")
    for name, module in (("faiss", faiss), ("faiss.contrib", faiss.contrib), ("faiss.contrib.torch_utils", faiss)):
        monkeypatch.setitem(sys.modules, name, module)
    peer = peers.PEERS["faiss"]
    assert peer.missing("cuda") == ""
    random = np.random.default_rng(1)
    search = peers.Search(
        random.standard_normal((300, 24), np.float32), [random.standard_normal((5, 24), np.float32)], 6
    )
    (call,) = peer.prepare(search).values()
    Truth(search.queries, search.bank, 6).close(peer.answer(call(0)), 0, expanded=True)


def test_who_is_left_out_on_a_cpu() -> None:
    assert peers.PEERS["matmul-tf32"].missing("cpu") == "a CPU has no TF32"
    assert "compiled or not" in peers.PEERS["matmul-compiled"].missing("cpu")
    assert torch_float32.PATHS["torch-tf32"].missing("cpu") == "a CPU has no TF32"


def test_precision_is_as_before_a_call_in_tf32() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for wanted in (True, False):
        with machine.tf32(wanted):
            assert torch.get_float32_matmul_precision() == ("high" if wanted else "highest")
            assert torch.backends.cudnn.allow_tf32 is wanted
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_shares_of_right_answers() -> None:
    random = np.random.default_rng(3)
    queries, bank = random.standard_normal((4, 8)), random.standard_normal((30, 8))
    truth = Truth([queries], bank, 3)
    indices = truth.order[0].copy()
    assert truth.right(TopK(truth.nearest[0], indices[:, ::-1]), 0) == (4, 4)  # in any order
    indices[1, 0] = next(row for row in range(30) if row not in indices[1])
    assert truth.right(TopK(truth.nearest[0], indices), 0) == (3, 4)


def test_the_sweep_over_widths_compares_answers_and_tells_the_mean(
    tmp_path: Path, bank_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--backend", "cpp,numpy", "--peers", "matmul,cdist", "--b", "16,70", "--d", "2,33", "--n", "3", "--k", "4")
    arguments = [
        "bench",
        "sweep",
        "--bank",
        str(bank_path),
        "--out",
        str(tmp_path),
        "--threads",
        "1",
        "--budget",
        "0.01",
    ]
    assert main([*arguments, *given]) == 0
    found = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert not found["refused"] and {record["provider"] for record in found["records"]} == {
        "lpkernel cpp",
        "torch matmul+topk",
    }
    assert {(x["N"], x["B"], x["D"], x["K"]) for x in (entry["x"] for entry in found["verdicts"])} == {
        (3, b, d, 4) for b in (16, 70) for d in (2, 33)
    }
    assert "sweep: geometric mean" in capsys.readouterr().out


def test_points_of_the_sweep() -> None:
    full, short = (suite.swept_points(Options(full=full)) for full in (True, False))
    assert set(short) < set(full) and len(short) < len(full) / 3 and len(set(full)) == len(full)
    assert {b for _, b, _, _ in full} == set(suite.SWEPT_BS) and {d for _, _, d, _ in full} == set(suite.SWEPT_DS)
    assert all(k <= b and b * d <= suite.SWEPT_MOST_VALUES and n <= suite.SWEPT_MOST_N for n, b, d, k in full)


def test_losses_are_told_with_the_worst() -> None:
    verdicts = [{"ratio": ratio, "x": {"N": i}} for i, ratio in enumerate((4.0, 0.5, 0.25))]
    assert report.losses(verdicts) == "geometric mean 0.79, 2 of 3 points lost, the worst 0.25 at N=2"
    assert report.losses(verdicts[:1]) == "geometric mean 4.00, 0 of 1 points lost"


def test_help_names_every_peer() -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    command.register(commands)
    (said,) = (action.help or "" for action in commands.choices["bench"]._actions if action.dest == "peers")
    assert set(re.findall(r"[\w-]+", said)) >= {*peers.PEERS, *torch_float32.PATHS, *decoding.PEERS}


@pytest.mark.parametrize("case", [("topk", "--k", "200", "--b", "100"), ("step", "--k", "200", "--b", "100")])
def test_nothing_to_measure_is_said(tmp_path: Path, case: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *case, "--n", "1", "--out", str(tmp_path / "out")]) == 2
    assert "nothing to measure" in capsys.readouterr().err
