"""The training loop: batches, cached steps, log, checkpoints, evaluation on the development set, the saved model.

`train` is the stage; `train_process` runs in each of its processes. A killed run that is started again resumes from
its last checkpoint, with the same batches and random draws, and so the same weights, as an uninterrupted run.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from distill.errors import DistillError, Preempted, TrainingError
from distill.losses import regularizers
from distill.losses.controller import Control
from distill.losses.objective import objective
from distill.planning.memory import chunk_tokens
from distill.planning.steps import number_of_steps
from distill.progress import progress
from distill.recipe.imports import import_own_code
from distill.run.device import ran_out_of_memory
from distill.run.manifest import Shard
from distill.run.model_ref import model_files
from distill.run.output import Output
from distill.run.run import Run
from distill.store.texts import TextStore
from distill.student.base import Student
from distill.student.checkpoint import load_student, save_student
from distill.training import checkpoints, launch, metrics, preemption, profiling
from distill.training.batch import LocalBatch, TrainingSets
from distill.training.checks import check_batch_size
from distill.training.development import Development
from distill.training.engine import Engine, LossScale, Update, resolve_precision
from distill.training.log import StepLog, TrainLog
from distill.training.prepare import open_start, prepare
from distill.training.rng import rng_state, set_rng_state
from distill.training.schedules import lr_factor
from distill.training.state import TrainState
from distill.training.step import StepResult, cached_step, plan
from distill.training.world import World, join

log = logging.getLogger(__name__)
# reasons to abandon a step, which the ranks exchange between chunks; the largest wins
OUT_OF_MEMORY, STOP_ASKED = 1, 2
SMALLEST_CHUNK = 64  # tokens; smaller chunks would hardly save memory


def train(run: Run, output: Output) -> dict[str, Any]:
    """Distil the labels of the run into the recipe's student; writes `start`, `model` and the log in its folder.

    Starts several processes if the recipe or the number of GPUs asks for them and no launcher has started any.
    Returns the counts of the model's manifest. Raises `Preempted` when asked to stop, `FingerprintError` if the folder
    belongs to another recipe.
    """
    launch.adopt_slurm_ranks()
    processes = 1 if launch.under_launcher() else launch.processes_here(run.recipe)
    if processes == 1:
        return train_process(run, output)
    check_batch_size(run.recipe, processes)
    return launch.start(run, processes)


def train_process(run: Run, output: Output) -> dict[str, Any]:
    """This process's part of `train`."""
    import_own_code(run.recipe)
    with preemption.watching() as stop:
        try:
            with stop.at_once():
                prepare(run, output)
                world = join()
        except Preempted:
            preemption.mark(run.folder, step=0)
            raise
        check_batch_size(run.recipe, world.size)
        with world.leaving(), checkpoints.locked_for_training(run.folder, world):
            if world.rank == 0:
                preemption.unmark(run.folder)
            while True:
                try:
                    return _attempt(run, output, world, stop)
                except _SmallerChunks:
                    pass
                gc.collect()  # the attempt that ran out of memory must be freed before the next one starts
                if world.device.type == "cuda":
                    torch.cuda.empty_cache()


def _attempt(run: Run, output: Output, world: World, stop: preemption.Watch) -> dict[str, Any]:
    trainer = Trainer(run, output, world, stop)
    try:
        return trainer.train()
    finally:
        trainer.engine.close()


class _Abandoned(Exception):
    """The ranks have agreed to abandon the current step."""

    def __init__(self, reason: int):
        self.reason = reason


class _SmallerChunks(Exception):
    """A chunk ran out of memory; a checkpoint with half the token budget was saved to resume from."""


class Trainer:
    """One attempt: from the newest checkpoint, or the untrained student, to the end or the next interruption.

    Every step is: sample a batch, take this rank's slice, cached step, update, log, save.
    """

    def __init__(self, run: Run, output: Output, world: World, stop: preemption.Watch):
        self.run, self.output, self.world, self.stop = run, output, world, stop
        self.cfg = run.recipe.train
        self.student = open_start(run)
        self.data = TrainingSets(run, self.student)
        self.total_steps = number_of_steps(self.cfg, self.data.queries)
        saved = self._newest_checkpoint()
        self.state = self._resumed_state(saved)
        self.engine = self._open_engine(saved)
        self.log = TrainLog(run.folder.train_log, self.state.step if saved else -1, enabled=world.rank == 0)
        self.step_log = StepLog(self.log, self.engine, self.total_steps)
        self.development = Development(run, self.engine, self.log, self.total_steps, lambda: self.stop.asked)

    # ------------------------------------------------------------------------------------------------------ the loop

    def train(self) -> dict[str, Any]:
        """Train to the end and save the model; returns the counts of its manifest."""
        state = self.state
        with progress("train", self.total_steps, "steps") if self.world.rank == 0 else nullcontext(_silent) as advance:
            advance(state.step)
            while True:
                if self.development.due(state) and not self.development.evaluate(state):
                    self._end_preempted()  # a checkpoint was saved before the evaluation, or none is needed
                if state.step >= self.total_steps:
                    break
                before = self._position()
                reason = 0
                try:
                    self._check()
                    note = self._step()
                except _Abandoned as abandoned:
                    reason = abandoned.reason
                if reason:  # outside the handler, so that the abandoned step's tensors are freed
                    self._leave(reason, before)
                advance(1, note)
                # an evaluation may take longer than the time between a stop signal and the kill: save before it
                periodic = state.step % self.cfg.checkpoints.every == 0 and state.step < self.total_steps
                if periodic or self.development.due(state):
                    self._save_checkpoint(self._position())
        return self._save_model()

    def _step(self) -> str:
        """Make one optimizer step; returns a note for the progress display."""
        began, state = time.perf_counter(), self.state
        number = state.step + 1
        batch = self.data.next_batch(self.world)
        train = batch.dataset.train
        chunks = plan(batch.sides, state.chunk_tokens, self.world, self._kept_tokens())
        loss = partial(
            objective,
            train,
            supervision=batch.supervision,
            step=number,
            own_losses=self.student.own_losses,
            multipliers={side: control.multiplier for side, control in state.controls.items()},
        )
        try:
            result = cached_step(self.engine, batch.sides, chunks, loss, self._check)
        except Exception as error:
            self._abandon_if_out_of_memory(error)
            raise
        update = self._update(result, number)
        state.step = number
        seconds = time.perf_counter() - began
        state.seconds += seconds
        if update is None or not (update.applied or self._overflow_is_routine()):
            self._count_bad(batch, result)
        if number % self.run.recipe.tracking.log_every == 0 or number in (1, self.total_steps):
            named = {"dataset": batch.name} if self.cfg.datasets else {}
            self.step_log.write(result, update, batch.supervision.labels, train, state, seconds, **named)
        return f"loss {float(result.objective.total):.4g}"

    def _update(self, result: StepResult, number: int) -> Update | None:
        """Apply the gradient; None if the objective was not finite, and there is no gradient."""
        if not result.finite:
            return None
        warmup = math.ceil(self.cfg.warmup_ratio * self.total_steps)
        update = self.engine.step(lr_factor(self.cfg.schedule, number, self.total_steps, warmup))
        if update.applied:
            if type(self.student).record_activations is not Student.record_activations:  # counting takes a reduction
                self.student.record_activations(metrics.texts_with(result.sides))
            if result.objective.active is not None:
                self._adjust_weights(result.objective.active.tolist(), number)
        return update

    def _adjust_weights(self, active: list[float], number: int) -> None:
        """Adjust the weights of the regularisers with `target_terms`. `active`: as in `Objective`."""
        for (side, term), terms in zip(self.cfg.targets.items(), active, strict=True):
            assert term.target_terms is not None
            before = self.state.controls.get(side, Control())
            ramp = regularizers.ramp(term.ramp, number, term.ramp_steps)
            self.state.controls[side] = before.adjusted(terms, term.target_terms, number, self.total_steps, ramp)

    def _kept_tokens(self) -> float:
        """Number of padded tokens whose graphs fit in the activation budget."""
        return self.budget / self.state.graph_bytes if self.state.graph_bytes else 0.0

    # ------------------------------------------------------------------------------------------------------- resuming

    def _newest_checkpoint(self) -> dict[str, Any] | None:
        """Load the checkpoint to resume from. Rank 0 chooses: other ranks may see an older state of a shared folder."""
        newest: Path | DistillError | None = None
        if self.world.rank == 0:
            try:
                newest = checkpoints.newest(self.run.folder, self.output.fields)
            except DistillError as error:
                newest = error  # raised on every rank, so that none waits for rank 0
        newest = self.world.broadcast(newest)
        if isinstance(newest, DistillError):
            raise newest
        return None if newest is None else checkpoints.load(newest)

    def _resumed_state(self, saved: dict[str, Any] | None) -> TrainState:
        """Restore the state, or start a new one.

        The smaller of the two `chunk_tokens` wins. `precision: auto` keeps the checkpoint's precision unless the
        device type changed.
        """
        precision = self.world.broadcast(resolve_precision(self.cfg.precision, self.world.device))
        tokens = chunk_tokens(self.cfg, self.world.device.type == "cuda")
        if saved is None:
            return TrainState(tokens, precision, self.world.device.type)
        state = TrainState.from_checkpoint(saved["state"])
        state.chunk_tokens = min(state.chunk_tokens, tokens)
        if self.cfg.precision != "auto" or state.device != self.world.device.type:
            state.precision, state.device = precision, self.world.device.type
        return state

    def _open_engine(self, saved: dict[str, Any] | None) -> Engine:
        """Create the engine, and restore parameters, optimizer, sampler and random generators from a checkpoint."""
        state = self.state
        if saved:
            checkpoints.load_parameters(self.student, saved["parameters"])
        engine = Engine(self.student, self.cfg, self.world, state.precision)
        seeds = np.random.SeedSequence([self.run.recipe.seed, self.world.rank, state.step])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        if saved:
            engine.load_optimizer_state(saved["optimizer"], saved["updates"])
            self.data.sampler.load_state_dict(saved["sampler"])
            if len(saved["rng"]) == self.world.size and saved["state"]["device"] == state.device:
                set_rng_state(saved["rng"][self.world.rank], self.world.device)
            if engine.loss_scale is not None and state.loss_scale is not None:
                engine.loss_scale = LossScale(**state.loss_scale)
            log.info("resuming from step %d", state.step)
        self.budget = profiling.fit_memory(engine, self.cfg, state, self.student.passage_max_length)
        return engine

    # --------------------------------------------------------------------------------------------------- interruptions

    def _check(self, out_of_memory: bool = False) -> None:
        """Between chunks, abandon the step if any rank has to."""
        if out_of_memory and self.engine.zero_stage == 3:
            # other ranks wait for this rank's partitions in their forward, and cannot take part in a collective; and
            # DeepSpeed never frees the parameters of a closed engine, so that another attempt would have less memory
            raise TrainingError(
                f"out of memory under ZeRO-3; start again with a smaller train.chunk_tokens (now "
                f"{self.state.chunk_tokens}), or with stage 2"
            )
        reason = OUT_OF_MEMORY if out_of_memory else STOP_ASKED if self.stop.asked else 0
        if agreed := self.world.max(reason):
            raise _Abandoned(agreed)

    def _abandon_if_out_of_memory(self, error: Exception) -> None:
        """Abandon the step, to use smaller chunks, if `error` means that the objective ran out of memory."""
        if not ran_out_of_memory(error):
            return
        if self.world.size > 1:  # the other ranks wait for this rank in a collective of the losses
            raise TrainingError(
                "out of memory in the losses over the whole batch; start again with a smaller "
                "train.activation_budget or on more processes"
            ) from error
        raise _Abandoned(OUT_OF_MEMORY) from error

    def _leave(self, reason: int, before: _Position) -> NoReturn:
        """Save a checkpoint of the state before the abandoned step, and raise."""
        state = self.state
        if reason == STOP_ASKED:
            self._save_checkpoint(before)
            self._end_preempted()
        halved = state.chunk_tokens // 2
        if halved < SMALLEST_CHUNK:
            raise TrainingError(
                f"out of memory with chunks of only {state.chunk_tokens} tokens; start again with more processes, or "
                "in another run_dir with a smaller model or train.batch_size"
            )
        log.warning("out of memory: train.chunk_tokens lowered from %d to %d for this run", state.chunk_tokens, halved)
        self.log.write(step=state.step, event="out of memory", chunk_tokens=halved)
        state.chunk_tokens = halved
        state.graph_bytes *= 2  # halves the number of kept graphs
        self._save_checkpoint(before)
        raise _SmallerChunks

    def _end_preempted(self) -> NoReturn:
        """Write the marker of a preempted run, and raise `Preempted`. Collective."""
        step = self.state.step
        if self.world.rank == 0:
            preemption.mark(self.run.folder, step)
        self.world.barrier()  # launchers kill the other ranks as soon as one has exited
        raise Preempted(
            f"asked to stop: training was saved at step {step} of {self.total_steps}; start it again to resume"
        )

    def _overflow_is_routine(self) -> bool:
        """Whether an overflow is part of fp16's search for its loss scale."""
        return self.engine.loss_scale is not None and self.engine.loss_scale.scale > 1

    def _count_bad(self, batch: LocalBatch, result: StepResult) -> None:
        """Count a step without an update. Raises `TrainingError` after `train.max_bad_steps` of them."""
        state, rows = self.state, batch.query_rows
        state.bad_steps += 1
        ids = TextStore.open(batch.dataset.folder.queries("train")).ids(rows[:5])
        what = "gradient" if result.finite else "loss"
        more = ", ..." if len(rows) > 5 else ""
        where = f"non-finite {what} at step {state.step}, batch of queries {', '.join(ids)}{more}"
        log.warning("%s: step skipped", where)
        self.log.write(step=state.step, event=f"non-finite {what}", queries=rows.tolist())
        if state.bad_steps >= self.cfg.max_bad_steps:
            raise TrainingError(
                f"{where}; {state.bad_steps} steps were skipped, the limit is {self.cfg.max_bad_steps} "
                "(train.max_bad_steps): lower train.lr, or check the labels of these queries"
            )

    # --------------------------------------------------------------------------------------------------------- saving

    def _position(self) -> _Position:
        """The state of the sampler and the random generators, from which the next step starts."""
        return self.data.sampler.state_dict(), rng_state(self.world.device)

    def _save_checkpoint(self, position: _Position) -> None:
        """Save a checkpoint. Collective. `position`: where the step to resume with starts."""
        sampler, rng = position
        if self.engine.loss_scale is not None:
            self.state.loss_scale = asdict(self.engine.loss_scale)
        tensors = {
            "state": asdict(self.state),
            "sampler": sampler,
            "rng": self.world.gather(rng),
            "parameters": self.engine.parameters(),
            "optimizer": self.engine.optimizer_state(),
            "updates": self.engine.updates(),
        }
        if self.world.rank == 0:
            keep, best = self.cfg.checkpoints.keep_last, self.state.best_step
            checkpoints.save(self.run.folder, self.state.step, tensors, self.output.fields, keep, best=best)
        self.world.barrier()

    def _save_model(self) -> dict[str, Any]:
        """Save the parameters of the best step, or else of the last; returns the counts of the manifest. Collective."""
        state, folder = self.state, self.run.folder
        parameters = self.engine.parameters()
        counts = {
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            "bad_steps": state.bad_steps,
            "processes": self.world.size,
            "precision": state.precision,
            "device": state.device,
            **self.development.counts(state),
        }
        if self.world.rank == 0:
            if state.best_step is not None and state.best_step != state.step:
                parameters = checkpoints.load_best(folder, state.best_step)
            student = load_student(folder.start)
            checkpoints.load_parameters(student, parameters)
            save_student(student, folder.model)
            self.output.finish([Shard.of(file, folder.model) for file in model_files(folder.model)], counts)
        self.world.barrier()
        return counts


_Position = tuple[dict[str, Any], list[torch.Tensor]]  # the sampler's state, and the generators'


def _silent(n: float = 1, note: str = "") -> None:
    """Progress display of the ranks other than 0."""
