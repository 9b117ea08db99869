"""Evaluation on the development set during training, which selects the parameters of the final model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from distill.evaluation.evaluate import evaluate_student
from distill.run.run import Run
from distill.student.checkpoint import load_student
from distill.training import checkpoints
from distill.training.engine import Engine
from distill.training.log import TrainLog
from distill.training.state import TrainState

log = logging.getLogger(__name__)


class _Interrupted(Exception):
    """A stop was requested during an evaluation."""


class Development:
    """Evaluates the student when due. `stop_asked()`: whether a stop was requested; it is checked before each batch."""

    def __init__(
        self, run: Run, engine: Engine, lines: TrainLog, total_steps: int, stop_asked: Callable[[], bool]
    ) -> None:
        self._run, self._engine, self._lines = run, engine, lines
        self._total_steps, self._stop_asked = total_steps, stop_asked
        self._metric = run.recipe.evaluate.metrics[0]

    def due(self, state: TrainState) -> bool:
        """Whether the present step is one to evaluate, and has not been evaluated yet; step 0 is the start."""
        every = self._run.recipe.train.evaluate_every
        if every is None or state.evaluated >= state.step:
            return False
        return state.step % every == 0 or state.step == self._total_steps

    def evaluate(self, state: TrainState) -> bool:
        """Evaluate the student on rank 0, and save its parameters if they are the best so far. Collective.

        Returns False, on every rank, if rank 0 was asked to stop before the evaluation was finished.
        """
        parameters = self._engine.parameters()
        score: float | None = None
        if self._engine.world.rank == 0:
            with suppress(_Interrupted):
                score = self._measure(state, parameters)
                if score > state.best_score:
                    checkpoints.save_best(self._run.folder, state.step, parameters)
        score = self._engine.world.broadcast(score)
        if score is None:
            return False
        state.evaluated = state.step
        if score > state.best_score:
            state.best_step, state.best_score = state.step, score
        return True

    def counts(self, state: TrainState) -> dict[str, Any]:
        """The selected step and its score, for the model's manifest; rank 0 warns if it is the untrained student."""
        if state.best_step is None:
            return {}
        if state.best_step == 0 and self._engine.world.rank == 0:
            log.warning(
                "no evaluated step was better on the development queries than the untrained student (%s %.4g), which "
                "becomes the model: lower train.lr, or improve the labels",
                self._metric,
                state.best_score,
            )
        return {"best_step": state.best_step, f"dev {self._metric}": state.best_score}

    def _measure(self, state: TrainState, parameters: dict[str, Any]) -> float:
        student = load_student(self._run.folder.start).to(self._engine.world.device).eval()
        checkpoints.load_parameters(student, parameters)
        student.register_forward_pre_hook(self._stop_if_asked)
        metrics = evaluate_student(student, self._run, "dev")
        self._lines.write(step=state.step, event="evaluation", **metrics)
        log.info("step %d: %s", state.step, ", ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
        return metrics[self._metric]

    def _stop_if_asked(self, *_: Any) -> None:
        if self._stop_asked():
            raise _Interrupted
