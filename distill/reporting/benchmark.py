"""The result of a benchmark as a table, for the terminal and in Markdown, and as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from distill.reporting.table import metric_title, p_value
from distill.run.files import write_atomic


def write_pages(result: Mapping[str, Any], title: str, out: Path) -> None:
    """Write benchmark.md and benchmark.svg into `out`."""
    with write_atomic(out / "benchmark.md") as temporary:
        temporary.write_text("\n".join(markdown(result, title)) + "\n", encoding="utf-8")
    with write_atomic(out / "benchmark.svg") as temporary:
        picture(result, title).savefig(temporary, format="svg")


def print_benchmark(result: Mapping[str, Any], title: str, console: Console | None = None) -> None:
    """Print the table, the tests, and what is missing."""
    console = console or Console()
    header, *rows = cells(result)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", show_edge=False)
    for i, name in enumerate(header):
        table.add_column(name.replace(", ", ",\n"), justify="right" if i else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row, style="bold" if row is rows[-1] else None)
    console.print(table)
    for line in remarks(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def markdown(result: Mapping[str, Any], title: str) -> list[str]:
    """Return the lines of a Markdown page."""
    header, *rows = cells(result)
    lines = [f"# {title}", "", f"| {' | '.join(header)} |", f"|---{'|---:' * (len(header) - 1)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", *(f"- {line}" for line in remarks(result)), ""]
    if len(result["collections"]) > 1:
        lines += _tests_by_collection(result)
    return [*lines, "![The table as a picture](benchmark.svg)"]


def _tests_by_collection(result: Mapping[str, Any]) -> list[str]:
    """The differences of each pair of systems per collection, with p: lines of Markdown."""
    pairs = [(test["ours"], test["theirs"]) for test in result["tests"]]
    lines = [
        "## By collection",
        "",
        f"Difference in {metric_title(result['metrics'][0])} per query, and p of a paired t-test, not corrected for "
        "the number of collections.",
        "",
        f"| | {' | '.join(f'{ours} − {theirs}' for ours, theirs in pairs)} |",
        f"|---{'|---:' * len(pairs)}|",
    ]
    for row in result["collections"]:
        tests = {(test["ours"], test["theirs"]): test for test in row["tests"]}
        shown = [
            f"{test['difference']:+.3f}, p {p_value(test['p'])}" if (test := tests.get(pair)) else "" for pair in pairs
        ]
        lines.append(f"| {row['name']} | {' | '.join(shown)} |")
    return [*lines, ""]


def cells(result: Mapping[str, Any]) -> list[list[str]]:
    """Return the table: a header, a row per collection, and the mean."""
    metric, systems, published = _axes(result)
    header = [metric_title(metric), "queries", *systems, *(f"{name}, published" for name in published)]
    rows = [
        [
            row["name"],
            f"{row['queries']:,}",
            *(_figure(row["values"].get(name, {}).get(metric)) for name in systems),
            *(_figure(row["published"].get(name)) for name in published),
        ]
        for row in result["collections"]
    ]
    means = [_figure(result["published_mean"].get(name, {}).get(metric)) for name in published]
    own = [_figure(result["mean"].get(name, {}).get(metric)) for name in systems]
    queries = sum(row["queries"] for row in result["collections"])
    return [header, *rows, [f"mean of {len(rows)}", f"{queries:,}", *own, *means]]


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Return sentences under the table: tests, sources, notes, what is missing."""
    lines = []
    for test in result["tests"]:
        lines.append(
            f"{test['ours']} against {test['theirs']}: {test['difference']:+.4f} per query, p {p_value(test['p'])} "
            f"(paired t-test over {test['queries']:,} queries), better on {test['wins']:,}, worse on "
            f"{test['losses']:,}, ahead on {test['ahead']} of {test['collections']} collections"
        )
    for row in result["collections"]:
        lines += [
            f"{row['name']}: {name} ranks no passage for any query (of BM25: is its language right?)"
            for name in result["systems"]
            if name not in row["values"]
        ]
    lines += [f"{row['name']}: {row['note']}" for row in result["collections"] if "note" in row]
    lines += [f"{row['name']}: the mean of {row['parts']} parts" for row in result["collections"] if row["parts"] > 1]
    _, _, published = _axes(result)
    lines += [f"{name}, published: {result['sources'][name]}" for name in published]
    if result["missing"]:
        lines.append(
            f"missing, so that the mean is not the whole suite's and no published mean: {', '.join(result['missing'])}"
        )
    return lines


def picture(result: Mapping[str, Any], title: str) -> Figure:
    """Draw a row of dots per collection, one per system."""
    metric, systems, published = _axes(result)
    rows = list(reversed(result["collections"]))
    figure = Figure(figsize=(7, 1.4 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for name in systems:
        shown = [(row["values"][name][metric], place) for place, row in enumerate(rows) if name in row["values"]]
        axes.plot(*zip(*shown, strict=True), "o", label=name, alpha=0.8)
    for marker, name in zip(itertools.cycle("v^sDPX"), published, strict=False):
        shown = [(row["published"][name], place) for place, row in enumerate(rows) if name in row["published"]]
        axes.plot(
            *zip(*shown, strict=True),
            marker,
            label=f"{name}, published",
            markersize=5,
            markerfacecolor="none",
            color="0.45",
            zorder=1,
        )
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_xlabel(metric_title(metric))
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def _axes(result: Mapping[str, Any]) -> tuple[str, Sequence[str], Sequence[str]]:
    """The measure of the table, the measured systems, and the published ones."""
    published = list(dict.fromkeys(name for row in result["collections"] for name in row["published"]))
    return result["metrics"][0], list(result["systems"]), published


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
