"""Learning-rate schedules as pure functions of the step: no state to save or restore."""

from __future__ import annotations

import math


def lr_factor(schedule: str, step: int, total: int, warmup: int) -> float:
    """Factor of the learning rate at optimizer step `step` (1 for the first) of `total`.

    Linear warm-up over `warmup` steps, of which the last has the full rate; then `constant`, or `linear` or `cosine`
    decay to zero, which the step after the last would reach.
    """
    if step <= warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    done = min((step - 1 - warmup) / max(total - warmup, 1), 1.0)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
