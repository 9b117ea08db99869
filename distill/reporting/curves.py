"""Small SVG charts: one training curve per logged number, and effectiveness against cost.

They are drawn without matplotlib's global state. Colours are mid-tones on a transparent background, so that charts are
legible on light and dark pages.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from distill.reporting import run_facts

_LINE, _FAINT, _TEXT = "#3b82c4", "#3b82c455", "#8a8f98"


def training_curves(log: Iterable[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Draw every number that is logged at two steps or more: (name, data URI of an SVG), in order of appearance."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in log:
        if "step" not in line:
            continue
        for name, value in run_facts.logged_numbers(line).items():
            if np.isfinite(value):
                series.setdefault(name, []).append((float(line["step"]), value))
    return [(name, _chart(np.array(points))) for name, points in series.items() if len(points) > 1]


def cost_charts(curve: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    """Draw the metric of each cap in evaluation.json's `curve` against each cost: (name of the cost, data URI)."""
    rows = curve["rows"]
    names = [str(row["top_k"] or "no cap") for row in rows]
    costs = {
        "passage terms": [row["passage_terms"] for row in rows],
        "FLOPS": [row["flops"] for row in rows],
        "inverted index, MB": [row["inverted_bytes"] / 1e6 for row in rows],
        "median latency, ms": [row["latency_ms"]["median"] for row in rows],
    }
    values = [row["metrics"][metric] for row in rows]
    return [(name, _chart(np.column_stack([cost, values]), names)) for name, cost in costs.items()]


def _chart(points: np.ndarray, names: Sequence[str] = ()) -> str:
    """Draw `points` [n, 2] of (x, y), labelled with `names`; many points get a running mean over the raw line."""
    figure = Figure(figsize=(3.4, 2.0), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    x, y = points.T
    for name, point in zip(names, points, strict=False):
        axes.annotate(name, point, xytext=(3, 3), textcoords="offset points", color=_TEXT, fontsize=7)
    if len(y) >= 30:
        window = max(2, len(y) // 20)
        axes.plot(x, y, color=_FAINT, linewidth=0.8)
        axes.plot(x, _running_mean(y, window), color=_LINE, linewidth=1.6)
    else:
        axes.plot(x, y, color=_LINE, linewidth=1.6, marker="o", markersize=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_TEXT)
    axes.tick_params(colors=_TEXT, labelsize=8, length=3)
    axes.grid(axis="y", color=_TEXT, alpha=0.2, linewidth=0.6)
    axes.locator_params(axis="both", nbins=5)
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "distill", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and up to `window - 1` values before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
