"""The training log: one JSON object per line in logs/train.jsonl, with one line per logged step."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import torch

from distill.config import KlLoss, Train
from distill.planning.devices import peak_flops
from distill.run.files import read_json_lines, write_atomic
from distill.sparse.products import list_scores
from distill.training import metrics, profiling
from distill.training.diagnostics import diagnose
from distill.training.engine import HALF, Engine, Update
from distill.training.state import TrainState
from distill.training.step import StepResult

log = logging.getLogger(__name__)


class TrainLog:
    """Appends lines to the log; `enabled` on rank 0 only.

    On opening, lines of steps after `resumed_at` are removed: they belong to an attempt that was lost.
    """

    def __init__(self, path: Path, resumed_at: int, enabled: bool):
        self.path, self.enabled = path, enabled
        if enabled:
            valid = (values for values in read_json_lines(path) if values.get("step", 0) <= resumed_at)
            with write_atomic(path) as temporary:
                temporary.write_text("".join(map(_line, valid)), encoding="utf-8")

    def write(self, **values: Any) -> None:
        """Append one line."""
        if self.enabled:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(values))


class StepLog:
    """Writes the line of a step: losses, sparsity, speed and alarms. Each alarm is also printed once, as a warning."""

    def __init__(self, lines: TrainLog, engine: Engine, total_steps: int):
        self._lines, self._engine, self._total_steps = lines, engine, total_steps
        self._flops_per_token = profiling.flops_per_token(engine.student)
        self._peak_flops = peak_flops(engine.world.device, HALF.get(engine.precision, torch.float32))
        self._warned: set[str] = set()

    def write(
        self,
        result: StepResult,
        update: Update | None,
        labels: torch.Tensor,
        train: Train,
        state: TrainState,
        seconds: float,
        **named: Any,
    ) -> None:
        """Write the line of a step. Collective.

        `train`: the section whose losses the step used; `named`: further fields of the line.
        """
        world = self._engine.world
        tokens = metrics.total(result.tokens, world.device)
        temperature = next((loss.teacher_temperature for loss in train.losses if isinstance(loss, KlLoss)), 1.0)
        line: dict[str, Any] = {
            "loss": float(result.objective.total),
            **{name: float(part) for name, part in result.objective.parts.items()},
            **result.objective.weights,
            **metrics.sparsity(*result.sides),
            "teacher_confidence": metrics.teacher_confidence(labels, temperature),
            "label_spread": metrics.spread(labels),
            "score_spread": metrics.spread(list_scores(*result.sides)),
            "grad_norm": update.grad_norm if update else math.nan,
            "lr": self._engine.lr,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "mfu": tokens / seconds * self._flops_per_token / world.size / self._peak_flops,
            "padding": 1 - result.tokens / result.padded,
            "chunks": result.chunks,
            "kept_graphs": result.kept,
            "peak_memory_gib": metrics.peak_memory_gib(world.device),
            "bad_steps": state.bad_steps,
        }
        findings = diagnose(train, line, state.step, self._total_steps, self._engine.student.vocab_size)
        for name, sentence in findings.items():
            if name not in self._warned and world.rank == 0:
                log.warning("step %d: %s", state.step, sentence)
            self._warned.add(name)
        alarms = {"alarms": list(findings.values())} if findings else {}
        self._lines.write(step=state.step, **named, **line, **alarms)


def _line(values: dict[str, Any]) -> str:
    """Format one line of strict JSON; non-finite numbers become null."""
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"
