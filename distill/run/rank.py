"""Rank of this process, as launchers announce it."""

from __future__ import annotations

import os


def is_rank_zero() -> bool:
    """Return whether this is rank 0, the process of its job that logs and reports."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
