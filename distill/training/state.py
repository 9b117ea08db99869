"""The scalar part of a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from distill.losses.controller import Control


@dataclass
class TrainState:
    """Step counter, chunk size, precision, best development score, and weights that are adjusted to a target."""

    chunk_tokens: int
    precision: str
    device: str  # its type
    graph_bytes: float = 0.0  # estimated memory of a kept graph per padded token; 0: not measured
    step: int = 0  # optimizer steps, including bad ones
    bad_steps: int = 0  # steps without an update, because the loss or gradient was not finite
    seconds: float = 0.0
    evaluated: int = -1  # the last step after which the development set was evaluated; 0: the untrained student
    best_step: int | None = None  # 0: the untrained student
    best_score: float = -math.inf  # on the development set
    loss_scale: dict[str, Any] | None = None  # fp16
    controls: dict[str, Control] = field(default_factory=dict)  # side -> of its regulariser with `target_terms`

    @classmethod
    def from_checkpoint(cls, saved: dict[str, Any]) -> TrainState:
        """Restore the state from what `asdict` made of it."""
        controls = {side: Control(**control) for side, control in saved.get("controls", {}).items()}
        return cls(**{**saved, "controls": controls})
