"""Progress display of all long stages: a bar with rate and time left on a terminal, plain lines elsewhere.

Plain lines (batch jobs, logs) appear at most every ten seconds, and once at the end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Protocol, TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 10.0


class Advance(Protocol):
    def __call__(self, n: float = 1, note: str = "") -> None: ...


@contextmanager
def progress(description: str, total: float | None = None, unit: str = "it") -> Iterator[Advance]:
    """Yield a function `advance(n, note="")`; the note, e.g. a loss or a shard's name, is shown after the times."""
    if sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        with _lines(description, total, unit) as advance:
            yield advance


def track(items: Iterable[T], total: float | None = None, description: str = "", unit: str = "it") -> Iterator[T]:
    """Yield the items, and advance a progress display by one for each."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(description, total, unit) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _bar(description: str, total: float | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(description, total=total, rate="", note="")
        start, done = time.monotonic(), 0.0

        def advance(n: float = 1, note: str = "") -> None:
            nonlocal done
            done += n
            rate = done / max(time.monotonic() - start, 1e-9)
            bars.update(task, advance=n, rate=f"{rate:,.1f} {unit}/s", note=note)

        yield advance


@contextmanager
def _lines(description: str, total: float | None, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0.0
    printed = -1.0

    def line(note: str = "") -> None:
        nonlocal printed
        printed = done
        seconds = time.monotonic() - start
        rate = done / max(seconds, 1e-9)
        of = f"/{total:,.0f}" if total else ""
        remaining = f", {clock((total - done) / rate)} left" if total and rate > 0 and done < total else ""
        print(
            f"{description}: {done:,.0f}{of} {unit}, {rate:,.1f} {unit}/s, {clock(seconds)} elapsed{remaining}"
            f"{'  ' + note if note else ''}",
            file=sys.stderr,
            flush=True,
        )

    def advance(n: float = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            line(note)

    yield advance
    if done != printed:
        line()


def clock(seconds: float) -> str:
    """Format a duration as m:ss or h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
