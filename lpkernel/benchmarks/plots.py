"""Cost against N and against B, with the physical limits drawn in."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from lpkernel.benchmarks.report import place, times
from lpkernel.benchmarks.suite import Record, Results
from lpkernel.files import atomic_path

LEAST_POINTS = 3


def draw(results: Results, title: str, out: Path) -> list[str]:
    """Write cost-<case>-<data>-<N or B>.png for each case with enough points along an axis; returns the names.

    The sweep's other numbers are fixed at the combination with the most points.
    """
    import matplotlib

    matplotlib.use("Agg")
    names = []
    for case, data in dict.fromkeys((record.case, record.data) for record in results.records):
        records = [r for r in times(results.records) if (r.case, r.data) == (case, data)]
        for axis in ("N", "B"):
            fixed = _fixed(records, axis)
            if fixed is not None:
                names.append(f"cost-{case}-{data}-{axis}.png")
                bounds = [e for e in results.bounds if (e["case"], e["data"]) == (case, data)]
                _plot(out / names[-1], records, bounds, axis, fixed, f"{case}, {data} data: {title}")
    return names


def _others(x: dict[str, int], axis: str) -> dict[str, int]:
    return {name: value for name, value in x.items() if name != axis}


def _fixed(records: list[Record], axis: str) -> dict[str, int] | None:
    """The other numbers with the most values along `axis`; None if there are too few."""
    seen = {(tuple(_others(r.x, axis).items()), r.x[axis]) for r in records if axis in r.x}
    counts = Counter(others for others, _ in seen)
    best, count = counts.most_common(1)[0] if counts else ((), 0)
    return dict(best) if count >= LEAST_POINTS else None


def _plot(
    path: Path, records: list[Record], bounds: list[dict[str, Any]], axis: str, fixed: dict[str, int], title: str
) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    here = [record for record in records if _others(record.x, axis) == fixed]
    for provider in sorted({record.provider for record in here}):
        line = sorted((r for r in here if r.provider == provider), key=lambda record: record.x[axis])
        places = [record.x[axis] for record in line]
        style = "o-" if line[0].ours else "s--"
        (drawn,) = axes.plot(places, [record.p50 for record in line], style, label=provider, markersize=4)
        axes.fill_between(
            places, [r.p20 for r in line], [r.p80 for r in line], color=drawn.get_color(), alpha=0.2, linewidth=0
        )
    limits = sorted((e for e in bounds if _others(e["x"], axis) == fixed), key=lambda entry: entry["x"][axis])
    greys = ("0.2", "0.4", "0.55", "0.7")
    for name, grey in zip(limits[0]["seconds"] if limits else (), greys, strict=False):
        values = [entry["seconds"][name] for entry in limits]
        axes.plot([e["x"][axis] for e in limits], values, ":", color=grey, label=f"limit (estimate): {name}")
    axes.set(xscale="log", yscale="log", xlabel=axis, ylabel="seconds a call (median, p20 to p80)")
    axes.set_title(f"{title}\n{place(fixed)}", fontsize=9)
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=7)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)
