"""The results as one HTML page that needs no other file and no network, and as a table of text."""

from __future__ import annotations

import base64
import html
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lpkernel.metrics.compare import Metric
from lpkernel.pictures import render

Pixels = NDArray[np.uint8]

QUALITY = 92  # of the page's pictures, which are JPEG to keep it small
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1180px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } th, td { padding: 0.35em 0.8em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; max-width: 34em; } thead th { border-bottom: 2px solid #888; }
small { color: #666; display: block; font-weight: normal; } img { max-width: 100%; }
pre { overflow-x: auto; background: #f4f4f5; padding: 0.6em; font-size: 12px; }
"""


def value_text(entry: dict[str, Any] | None) -> str:
    """A value as it is shown, with its error if it has one; a dash for none."""
    if entry is None or entry["value"] is None:
        return "-"
    value = entry["value"]
    text = f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"
    if entry.get("error") is not None:
        text += f" ± {entry['error']:.3f}"
    return text


def table(metrics: list[Metric], columns: list[dict[str, Any]]) -> list[str]:
    """The lines of a table: one row per metric, which says which way is better; none without columns."""
    if not columns:
        return []
    head = ["", *(column["name"] for column in columns)]
    rows = [["N", *(str(column["images"]) for column in columns)]]
    for metric in metrics:
        title = metric.title + (f" ({metric.better})" if metric.better else "")
        rows.append([title, *(value_text(column["metrics"].get(metric.key)) for column in columns)])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in [head, *rows]
    ]


def page(
    result: dict[str, Any],
    metrics: list[Metric],
    samples: list[tuple[str, Pixels]],
    nearest: list[tuple[str, Pixels, Pixels]],
) -> str:
    """The page. samples: a heading and pictures (n, S, S, 3) each. nearest: results and the real one next to each."""
    parts = [f"<h1>lpkernel evaluate</h1><p>{_escaped(_what(result))}</p>", _html_table(metrics, result["columns"])]
    parts += [f"<p><small>{_escaped(note)}</small></p>" for note in result["notes"]]
    if result["memorisation"] is not None:
        parts.append(
            f"<h2>Memorisation by the autoencoder</h2><p>{_escaped(memorisation_text(result['memorisation']))}</p>"
        )
    parts.append("<h2>Samples</h2>")
    for title, pictures in samples:
        parts.append(f"<h3>{_escaped(title)}</h3>{_picture(render.grid(pictures), title)}")
    if nearest:
        parts.append(
            "<h2>Nearest real pictures</h2><p>Those results of each column that are nearest to a real picture, "
        )
        parts.append("each above that picture.</p>")
    for title, results, real in nearest:
        rows = render.grid(np.concatenate([results, real]), len(results))
        parts.append(f"<h3>{_escaped(title)}</h3>{_picture(rows, title)}")
    parts.append("<h2>Record</h2><details><summary>Every number with what it was measured on</summary>")
    parts.append(f"<pre>{_escaped(json.dumps(result, indent=2))}</pre></details>")
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>lpkernel evaluate</title><style>{STYLE}'
    return f"{head}</style></head><body>{''.join(parts)}</body></html>\n"


def memorisation_text(found: dict[str, Any]) -> str:
    """The comparison of training and held-out pictures in a sentence or two."""
    return (
        f"{found['training_images']} training pictures are reconstructed with a median of "
        f"{found['median_psnr_training']:.2f} dB, {found['held_out_images']} held-out ones with "
        f"{found['median_psnr_held_out']:.2f} dB; a training picture is the better one in "
        f"{found['better_in_training']:.1%} of pairs (p = {found['p_rank']:.4f} by {found['shuffles']} shuffles; "
        f"Kolmogorov-Smirnov {found['kolmogorov_smirnov']:.3f}, p = {found['p_kolmogorov_smirnov']:.4f}). "
        "A small p says that the autoencoder knows its training pictures."
    )


def _what(result: dict[str, Any]) -> str:
    real = result["real"]
    used = ", ".join(f"{facts['name']} (SHA-256 {facts['sha256'][:12]}...)" for facts in result["extractors"])
    return (
        f"Measured against {real['images']} real pictures ({real['name']}) of {real['facts']['side']} pixels a side. "
        f"Features: {used}. Seed {result['seed']}."
    )


def _html_table(metrics: list[Metric], columns: list[dict[str, Any]]) -> str:
    if not columns:
        return ""
    heads = "".join(f"<th>{_escaped(column['name'])}<small>N = {column['images']}</small></th>" for column in columns)
    rows = []
    for metric in metrics:
        better = f" ({metric.better} is better)" if metric.better in ("lower", "higher") else ""
        better = better or (f" ({metric.better} is best)" if metric.better else "")
        cells = "".join(f"<td>{value_text(column['metrics'].get(metric.key))}</td>" for column in columns)
        rows.append(f"<tr><td>{_escaped(metric.title)}{better}<small>{_escaped(metric.text)}</small></td>{cells}</tr>")
    return f"<table><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _picture(pixels: Pixels, title: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{_escaped(title)}" src="data:image/jpeg;base64,{data}">'


def _escaped(text: str) -> str:
    return html.escape(text)
