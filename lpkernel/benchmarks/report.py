"""Readable tables: times, comparison with the fastest peer, memory; losses are marked and absent providers named."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lpkernel.benchmarks import machine, measure
from lpkernel.benchmarks.points import Point
from lpkernel.benchmarks.suite import Record, Results

LOST = "SLOWER"


def place(x: dict[str, int]) -> str:
    """The sizes of a point, such as "n=2 b=40"."""
    return " ".join(f"{name}={value}" for name, value in x.items())


def of_point(records: Iterable[Record], case: str, data: str, x: dict[str, int]) -> list[Record]:
    return [record for record in records if (record.case, record.data, record.x) == (case, data, x)]


def times(records: Iterable[Record]) -> list[Record]:
    """Times, fastest first."""
    return sorted((record for record in records if record.metric == "time"), key=lambda record: record.p50)


def fastest_peer(records: Iterable[Record]) -> float | None:
    """Seconds of the fastest provider that is not lpkernel's."""
    return next((record.p50 for record in times(records) if not record.ours), None)


def duration(seconds: float) -> str:
    """The time to three digits, in s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _memory(records: list[Record], provider: str, metric: str) -> str:
    found = [r.p50 for r in records if (r.provider, r.metric) == (provider, metric)]
    return f"{found[0] / 1e6:.1f}" if found else "-"


def _rate(record: Record) -> list[str]:
    """Operations a second and their share of the measured peak, where a record has the operations of an image."""
    if "flop" not in record.config:
        return []
    rate = record.config["flop"] * record.x["N"] / record.p50
    shown = f"{rate / 1e12:,.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:,.0f} GFLOP/s"
    return [f"{shown}, {rate / record.config['peak']:.0%} of the peak"]


def table(point: Point, results: Results) -> list[str]:
    """One point: a line for each provider, fastest first; what was refused or skipped below."""
    records = of_point(results.records, point.case, point.data, point.x)
    peer = fastest_peer(records)
    lines = [f"{point.case}, {point.data} data, on {machine.device_name(point.device)}: {place(point.x)}"]
    rows: list[tuple[str, ...]] = [("provider", "median", "p20 - p80", "x fastest peer", "kept MB", "extra MB", "")]
    for record in times(records):
        ratio = "-" if peer is None else f"{peer / record.p50:.2f}"
        told = ("variant", "answers", "pixels", "parts", "note")
        notes = [str(record.config[name]) for name in told if record.config.get(name)] + _rate(record)
        if record.ours and peer is not None and record.p50 > peer:
            notes.insert(0, LOST)
        memory = (_memory(records, record.provider, metric) for metric in ("resident", "peak"))
        span = f"{duration(record.p20)} - {duration(record.p80)}"
        rows.append((record.provider, duration(record.p50), span, ratio, *memory, ", ".join(notes)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [
            f"{row[0]:<{widths[0]}}",
            *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=False)),
        ]
        lines.append(f"  {'  '.join(cells)}  {row[-1]}".rstrip())
    if point.bounds:
        kind = "measured" if point.case == "decode" or measure.on_gpu(point.device) else "estimates"
        lines.append(f"  limits ({kind}): " + ", ".join(f"{name} {duration(s)}" for name, s in point.bounds.items()))
    for what, entries in (("REFUSED", results.refused), ("not run", results.skipped)):
        for entry in entries:
            if (entry["case"], entry["data"], entry["x"]) == (point.case, point.data, point.x):
                lines.append(f"  {what}: {entry['provider']}: {entry['reason']}")
    return lines


def verdicts(results: Results) -> list[dict[str, Any]]:
    """For each point with both: lpkernel's fastest backend, the fastest peer, and the speedup of ours."""
    found = []
    places: list[tuple[str, str, dict[str, int]]] = []
    for record in results.records:
        if (where := (record.case, record.data, record.x)) not in places:
            places.append(where)
    for case, data, x in places:
        ordered = times(of_point(results.records, case, data, x))
        ours = next((record for record in ordered if record.ours), None)
        peer = next((record for record in ordered if not record.ours), None)
        if ours is not None and peer is not None:
            ratio = peer.p50 / ours.p50
            found.append(
                {"case": case, "data": data, "x": x, "ours": ours.provider, "peer": peer.provider, "ratio": ratio}
            )
    return found


def losses(compared: list[dict[str, Any]]) -> str:
    """The geometric mean of some verdicts, how many are lost, and the worst."""
    mean = math.exp(sum(math.log(entry["ratio"]) for entry in compared) / len(compared))
    lost = sorted((entry for entry in compared if entry["ratio"] < 1), key=lambda entry: entry["ratio"])
    worst = f", the worst {lost[0]['ratio']:.2f} at {place(lost[0]['x'])}" if lost else ""
    return f"geometric mean {mean:.2f}, {len(lost)} of {len(compared)} points lost{worst}"


def summary(results: Results) -> list[str]:
    """The whole run: our fastest backend beside the fastest peer at each point, memory, losses, absent providers."""
    lines = []
    compared = verdicts(results)
    if compared:
        lines.append("fastest lpkernel backend against the fastest peer (times faster):")
    for entry in compared:
        mark = "" if entry["ratio"] >= 1 else f"  {LOST}"
        where = f"{entry['case']} {entry['data']} {place(entry['x'])}"
        lines.append(f"  {entry['ratio']:8.2f}  {where}: {entry['ours']} against {entry['peer']}{mark}")
    for case in dict.fromkeys(entry["case"] for entry in compared):
        lines.append(f"  {case}: {losses([entry for entry in compared if entry['case'] == case])}")
    memory = [record for record in results.records if record.case == "memory"]
    if memory:
        lines.append(
            "extra memory of a process that holds a bank and generates from it, and the time of its first image:"
        )
    for record in memory:
        value = f"{record.p50:.2f} s" if record.unit == "s" else f"{record.p50 / 1e6:.1f} MB"
        lines.append(f"  {record.provider}, {record.data} ({place(record.x)}): {record.metric} {value}")
    if results.absent:
        lines.append("did not take part:")
        lines += [f"  {entry['provider']}: {entry['reason']}" for entry in results.absent]
    if results.refused:
        lines.append(f"{len(results.refused)} answers REFUSED as wrong, see above")
    return lines
