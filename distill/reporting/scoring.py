"""Progress of a scoring job on the terminal: one row per teacher and one line per launch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from distill.progress import clock

_COLUMNS = ("teacher", "shards", "in flight", "failed", "pairs/s", "tokens/s", "padding", "time left")


def print_scoring(job: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the state of a scoring job, as `ray_jobs.job_status` returns it."""
    console = console or Console()
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, column in enumerate(_COLUMNS):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    for row in job["teachers"]:
        table.add_row(
            row["teacher"],
            f"{row['done']:,}/{row['shards']:,}",
            f"{row['in_flight']:,}",
            f"{row['failed']:,}",
            _or_dash(row["pairs_per_second"], "{:,.1f}"),
            _or_dash(row["tokens_per_second"], "{:,.0f}"),
            _or_dash(row["padding"], "{:.1%}"),
            "–" if row["seconds_left"] is None else clock(row["seconds_left"]),
        )
    console.print(table)
    for launch in job["launches"]:
        deaths = f", {launch['deaths']} worker deaths" if launch["deaths"] else ""
        console.print(
            f"driver on {launch['host']} (process {launch['pid']}): {launch['state']}, last event "
            f"{clock(launch['seconds_since_event'])} ago{deaths}",
            highlight=False,
            soft_wrap=True,
        )
        if launch["error"]:
            console.print(f"  {launch['error']}", highlight=False, markup=False, soft_wrap=True)


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
