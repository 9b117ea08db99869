"""Comparison of two runs on the terminal: one row per measure, and the queries that differ most."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from distill.reporting.table import metric_title

_TEXT_WIDTH = 60


def print_comparison(comparison: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the result of `distill.evaluation.compare.compare`."""
    console = console or Console()
    console.print(
        f"A: {comparison['a']}\nB: {comparison['b']}\n{comparison['queries']:,} judged queries",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    table = _table("metric", "A", "B", "A − B", "p\nt-test", "p\nrandomisation", "A\nbetter", "A\nworse", "equal")
    for row in comparison["comparisons"]:
        table.add_row(
            metric_title(row["metric"]),
            f"{row['a']:.4f}",
            f"{row['b']:.4f}",
            f"{row['difference']:+.4f}",
            f"{row['t_test']:.4f}",
            f"{row['randomisation_test']:.4f}",
            str(row["wins"]),
            str(row["losses"]),
            str(row["ties"]),
        )
    console.print(table)
    if comparison["differ_most"]:
        table = _table("query", "A", "B", "A − B")
        for row in comparison["differ_most"]:
            text = " ".join((row["text"] or "").split())
            name = f"{row['query']}  {text if len(text) <= _TEXT_WIDTH else text[: _TEXT_WIDTH - 1] + '…'}".rstrip()
            table.add_row(name, f"{row['a']:.3f}", f"{row['b']:.3f}", f"{row['a'] - row['b']:+.3f}")
        metric = metric_title(comparison["comparisons"][0]["metric"])
        console.print(f"\nqueries that differ most in {metric}:", highlight=False)
        console.print(table, markup=False)


def _table(*headers: str) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left", vertical="bottom", no_wrap=bool(i))
    return table
