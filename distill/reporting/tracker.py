"""The interface of a tracker, which `distill.reporting.tracking` feeds from the log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tracker:
    """`line(step, numbers)` takes one line of the log, `results(numbers)` those of the evaluation."""

    line: Callable[[int, Mapping[str, float]], None]
    results: Callable[[Mapping[str, float]], None]
    close: Callable[[], None]
