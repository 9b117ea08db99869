"""What a tracker is to the mechanism that follows the log (`distill.reporting.tracking`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tracker:
    """`line`: the numbers of one line of the log, with its step; `results`: those of the evaluation."""

    line: Callable[[int, Mapping[str, float]], None]
    results: Callable[[Mapping[str, float]], None]
    close: Callable[[], None]


def first_rank() -> bool:
    """Whether this process is the one of its job that tells others."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
