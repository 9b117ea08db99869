"""The training loop: batches, cached steps, log, checkpoints, evaluation on the development set, the saved model.

`train` is the stage; `train_process` is what each of its processes runs. A run that was killed goes on from its last
checkpoint when it is started again, with the same batches, draws and numbers as if it had never stopped.
"""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from distill.config import KlLoss, Recipe
from distill.data.batches import Batch
from distill.data.files import locked
from distill.data.layout import RunFolder
from distill.data.manifest import Manifest, read_manifest, write_manifest
from distill.data.texts import TextStore
from distill.errors import DistillError, Preempted, RecipeError, TrainingError
from distill.evaluation.evaluate import evaluate_student
from distill.losses.objective import Place, Targets, objective
from distill.losses.sparse_products import list_scores
from distill.progress import progress
from distill.student.checkpoint import load_checkpoint, save_student
from distill.training import checkpoints, launch, measure, metrics, preemption
from distill.training.alarms import alarms
from distill.training.datasets import Dataset, datasets, open_sampler, open_tokens
from distill.training.engine import HALF, Engine, LossScale, Update, resolve_precision
from distill.training.opening import open_student, prepare, training_fields
from distill.training.rng import rng_state, set_rng_state
from distill.training.schedules import lr_factor
from distill.training.step import SIDES, Step, Texts, cached_step, plan, ran_out_of_memory
from distill.training.targets import DatasetTargets
from distill.training.world import World, join

log = logging.getLogger(__name__)
OUT_OF_MEMORY, ASKED_TO_STOP = 1, 2  # what ranks tell each other between chunks; the larger wins
SMALLEST_CHUNK = 64  # tokens; below this, halving is no remedy


def train(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Distil the labels in `folder` into the recipe's student; writes folder.start, folder.model and the log.

    Starts processes itself where the recipe or the machine's GPUs ask for several and no launcher has done so.
    Returns the counts of the model's manifest. A model that is there already is not trained again. Raises
    `Preempted` when asked to stop, `FingerprintError` where the folder belongs to another recipe.
    """
    done = read_manifest(folder.model)
    if done is not None and done.fields == training_fields(recipe, folder):
        return done.counts
    processes = 1 if launch.placed() else launch.processes_here(recipe)
    if processes == 1:
        return train_process(recipe, folder)
    _refuse_fewer_queries(recipe, processes)
    return launch.start(recipe, folder, processes)


def train_process(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """This process's part of `train`."""
    with preemption.watching() as stop:
        try:
            with stop.at_once():
                prepare(recipe, folder)
                world = join()
        except Preempted:
            preemption.mark(folder, step=0)
            raise
        _refuse_fewer_queries(recipe, world.size)
        with _alone(folder, world):
            if world.rank == 0:
                preemption.unmark(folder)
            while True:
                try:
                    return _attempt(recipe, folder, world, stop)
                except _SmallerChunks:
                    pass
                gc.collect()  # the attempt that ran out of memory must be gone before the next one begins
                if world.device.type == "cuda":
                    torch.cuda.empty_cache()


@contextmanager
def _alone(folder: RunFolder, world: World) -> Iterator[None]:
    """Hold the run folder for this training; every rank raises where another one has it."""
    with ExitStack() as held:
        free = True
        if world.rank == 0:
            try:
                held.enter_context(locked(folder.checkpoints, wait=False))
            except BlockingIOError:
                free = False
        if not world.minimum(int(free)):
            raise TrainingError(
                f"{folder.root}: another process is training into this folder; wait for it, stop it, "
                "or choose another run_dir"
            )
        yield


def _attempt(recipe: Recipe, folder: RunFolder, world: World, stop: preemption.Watch) -> dict[str, Any]:
    run = Run(recipe, folder, world, stop)
    try:
        return run.finish()
    finally:
        run.engine.close()


def _refuse_fewer_queries(recipe: Recipe, processes: int) -> None:
    if recipe.train.batch_size < processes:
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, less than a query for each of the {processes} processes"
        )


class _Abandoned(Exception):
    """The ranks have agreed to leave the step under way; `flag` says why."""

    def __init__(self, flag: int):
        self.flag = flag


class _SmallerChunks(Exception):
    """A chunk ran out of memory; a checkpoint with half the token budget is there to go on from."""


class Run:
    """One attempt: from the newest checkpoint, or the start, to the end or the next interruption."""

    def __init__(self, recipe: Recipe, folder: RunFolder, world: World, stop: preemption.Watch):
        self.recipe, self.cfg, self.folder, self.world = recipe, recipe.train, folder, world
        self.stop = stop
        self.fields = training_fields(recipe, folder)
        self.sampler, queries = open_sampler(recipe, folder)
        self.total_steps = self.cfg.steps or math.ceil(self.cfg.epochs * queries / self.cfg.batch_size)
        self.student = open_student(recipe, folder)
        self.flops_per_token = measure.flops_per_token(self.student)
        self.datasets = datasets(recipe, folder)
        self.texts = {name: open_tokens(self.student, dataset) for name, dataset in self.datasets.items()}
        self.targets = {
            name: DatasetTargets(dataset, self.student.vocab_size) for name, dataset in self.datasets.items()
        }
        saved = self._saved()
        self.standing = self._standing(saved)
        self.engine = self._engine(saved)
        self.peak_flops = measure.peak_flops(world.device, HALF.get(self.standing.precision, torch.float32))
        self.note, self.alarmed = "", set()
        self.log = metrics.TrainLog(folder.train_log, self.standing.step, enabled=world.rank == 0)

    # ------------------------------------------------------------------------------------------------- opening

    def _saved(self) -> dict[str, Any] | None:
        """The state to go on from. The first rank chooses: others' view of a shared folder may be older."""
        chosen: Path | DistillError | None = None
        if self.world.rank == 0:
            try:
                chosen = checkpoints.newest(self.folder, self.fields)
            except DistillError as error:
                chosen = error  # for every rank: none may wait for the others
        chosen = self.world.from_first(chosen)
        if isinstance(chosen, DistillError):
            raise chosen
        return None if chosen is None else checkpoints.load(chosen)

    def _standing(self, saved: dict[str, Any] | None) -> checkpoints.Standing:
        """Where the run goes on. The recipe's chunks count where they are smaller, and its precision where it names
        one; an automatic one stays what it was, on the same kind of device."""
        precision = self.world.from_first(resolve_precision(self.cfg.precision, self.world.device))
        if saved is None:
            return checkpoints.Standing(self.cfg.chunk_tokens, precision, self.world.device.type)
        standing = checkpoints.Standing(**saved["standing"])
        standing.chunk_tokens = min(standing.chunk_tokens, self.cfg.chunk_tokens)
        if self.cfg.precision != "auto" or standing.device != self.world.device.type:
            standing.precision, standing.device = precision, self.world.device.type
        return standing

    def _engine(self, saved: dict[str, Any] | None) -> Engine:
        standing = self.standing
        if saved:
            checkpoints.load_parameters(self.student, saved["parameters"])
        engine = Engine(self.student, self.cfg, self.world, standing.precision)
        seeds = np.random.SeedSequence([self.recipe.seed, self.world.rank, standing.step])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        if saved:
            engine.load_optimizer_state(saved["optimizer"], saved["updates"])
            self.sampler.load_state_dict(saved["sampler"])
            if len(saved["rng"]) == self.world.size and saved["standing"]["device"] == standing.device:
                set_rng_state(saved["rng"][self.world.rank], self.world.device)
            if engine.loss_scale is not None and standing.loss_scale is not None:
                engine.loss_scale = LossScale(**standing.loss_scale)
            log.info("going on from step %d", standing.step)
        if self.cfg.activation_budget and not standing.graph_bytes:
            standing.graph_bytes = max(self.world.gather(self._graph_bytes(engine)))
        return engine

    def _graph_bytes(self, engine: Engine) -> float:
        """What a kept graph holds per padded token; infinite, so that none is kept, where not even one fits."""
        try:
            return measure.graph_bytes_per_token(engine, self.student.passage_max_length, self.standing.chunk_tokens)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            return math.inf

    # ------------------------------------------------------------------------------------------------- stepping

    def finish(self) -> dict[str, Any]:
        """Train to the end and save the model; returns the counts of its manifest."""
        standing = self.standing
        with progress("train", self.total_steps, "steps") if self.world.rank == 0 else nullcontext(_silent) as advance:
            advance(standing.step)
            while True:
                if self._evaluation_due():
                    self._evaluate()
                if standing.step >= self.total_steps:
                    break
                before = self.sampler.state_dict(), rng_state(self.world.device)
                flag = 0
                try:
                    self._check()
                    self._step()
                except _Abandoned as abandoned:
                    flag = abandoned.flag
                if flag:  # here, where the abandoned step's tensors are freed
                    self._leave(flag, *before)
                advance(1, self.note)
                # an evaluation may outlast the time that a signal leaves: what was learnt is saved before it
                if self._evaluation_due() or (
                    standing.step % self.cfg.checkpoints.every == 0 and standing.step < self.total_steps
                ):
                    self._save(self.sampler.state_dict(), rng_state(self.world.device))
        return self._save_model()

    def _evaluation_due(self) -> bool:
        step, every = self.standing.step, self.cfg.evaluate_every
        return every is not None and self.standing.evaluated < step and (step % every == 0 or step == self.total_steps)

    def _step(self) -> None:
        began = time.perf_counter()
        standing, cfg = self.standing, self.cfg
        number = standing.step + 1
        name, batch = self.sampler.next_batch(cfg.batch_size)
        train = self.datasets[name].train
        place, sides, labels, also_positive, targets = self._mine(batch, name)
        kept_tokens = cfg.activation_budget * 2**30 / standing.graph_bytes if standing.graph_bytes else 0.0
        try:
            step = cached_step(
                self.engine,
                sides,
                plan(sides, standing.chunk_tokens, self.world, kept_tokens),
                lambda queries, passages: objective(
                    train, queries, passages, labels, place, number, also_positive, targets
                ),
                self._check,
            )
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            if self.world.size > 1:  # the others wait for this rank in a collective, and cannot be told
                raise TrainingError(
                    "out of memory in the losses over the whole batch; start again with a smaller "
                    "train.activation_budget or on more processes"
                ) from error
            raise _Abandoned(OUT_OF_MEMORY) from error
        warmup = math.ceil(cfg.warmup_ratio * self.total_steps)
        update = self.engine.step(lr_factor(cfg.schedule, number, self.total_steps, warmup)) if step.finite else None
        if update is not None and update.applied:
            self.student.count(metrics.texts_with(step.sides))
        standing.step = number
        seconds = time.perf_counter() - began
        standing.seconds += seconds
        self.note = f"loss {float(step.objective.total):.4g}"
        if update is None or not (update.applied or self._overflow_is_routine()):
            self._count_bad(batch, self.datasets[name], step)
        if number % self.recipe.tracking.log_every == 0 or number in (1, self.total_steps):
            self._log(step, name, update, labels, seconds)

    def _mine(self, batch: Batch, name: str) -> tuple[Place, tuple[Texts, Texts], torch.Tensor, torch.Tensor, Targets]:
        """This rank's slice of the global batch, what in it is a positive of its queries, too, and its targets."""
        student = self.student
        first, last = batch.bounds(self.world.rank, self.world.size)
        here = batch.rows(first, last)
        rows = here.query_rows, here.passage_rows.reshape(-1)  # of each side
        queries, passages = (
            Texts(tokens.take(of_side), student.max_length(side), student.special_tokens(side))
            for side, tokens, of_side in zip(SIDES, self.texts[name], rows, strict=True)
        )
        labels, also_positive = (
            torch.from_numpy(array).to(self.world.device) for array in (here.labels, batch.also_positive(first, last))
        )
        targets = self.targets[name].take(*rows, self.world.device)
        return Place(first, len(batch)), (queries, passages), labels, also_positive, targets

    def _check(self, out_of_memory: bool = False) -> None:
        """Between chunks: leave the step if any rank has to."""
        if out_of_memory and self.engine.stage == 3 and self.world.size > 1:
            # the others wait for this rank's partitions inside their forward, and cannot be told
            raise TrainingError(
                "out of memory under ZeRO-3 with several processes; start again with a smaller "
                f"train.chunk_tokens (now {self.standing.chunk_tokens})"
            )
        flag = OUT_OF_MEMORY if out_of_memory else ASKED_TO_STOP if self.stop.asked else 0
        if agreed := self.world.agree(flag):
            raise _Abandoned(agreed)

    def _leave(self, flag: int, sampler: dict[str, Any], rng: list[torch.Tensor]) -> None:
        """Save the state before the step that was abandoned, and leave."""
        standing = self.standing
        if flag == OUT_OF_MEMORY:
            halved = standing.chunk_tokens // 2
            if halved < SMALLEST_CHUNK:
                raise TrainingError(
                    f"out of memory with chunks of {standing.chunk_tokens} tokens; start again on more "
                    "processes, or in another run_dir with a smaller model or train.batch_size"
                )
            log.warning(
                "out of memory: train.chunk_tokens goes from %d to %d for this run", standing.chunk_tokens, halved
            )
            self.log.write(step=standing.step, event="out of memory", chunk_tokens=halved)
            standing.chunk_tokens = halved
            standing.graph_bytes *= 2  # so that half as many graphs are kept
            self._save(sampler, rng)
            raise _SmallerChunks
        self._save(sampler, rng)
        self._end_preempted()

    def _end_preempted(self) -> NoReturn:
        step = self.standing.step
        if self.world.rank == 0:
            preemption.mark(self.folder, step)
        self.world.barrier()  # launchers end the other ranks as soon as one has left
        raise Preempted(
            f"asked to stop: training is saved at step {step} of {self.total_steps}; start it again to go on"
        )

    def _overflow_is_routine(self) -> bool:
        """fp16 finds its loss scale by overflowing now and then."""
        return self.engine.loss_scale is not None and self.engine.loss_scale.scale > 1

    def _count_bad(self, batch: Batch, dataset: Dataset, step: Step) -> None:
        standing = self.standing
        standing.bad_steps += 1
        ids = TextStore.open(dataset.folder.queries("train")).ids(batch.query_rows[:5])
        what = "gradient" if step.finite else "loss"
        where = f"non-finite {what} at step {standing.step}, batch of queries {', '.join(ids)}" + (
            ", ..." if len(batch.query_rows) > 5 else ""
        )
        log.warning("%s: step skipped", where)
        self.log.write(step=standing.step, event=f"non-finite {what}", queries=batch.query_rows.tolist())
        if standing.bad_steps >= self.cfg.max_bad_steps:
            raise TrainingError(
                f"{where}; that is {standing.bad_steps} of at most {self.cfg.max_bad_steps} "
                "(train.max_bad_steps): lower train.lr, or look at the labels of these queries"
            )

    # ---------------------------------------------------------------------------------- log, evaluation, saving

    def _log(self, step: Step, dataset: str, update: Update | None, labels: torch.Tensor, seconds: float) -> None:
        train = self.datasets[dataset].train
        tokens = metrics.total(step.tokens, self.world.device)
        temperature = next((loss.teacher_temperature for loss in train.losses if isinstance(loss, KlLoss)), 1.0)
        line: dict[str, Any] = {
            "loss": float(step.objective.total),
            **{name: float(part) for name, part in step.objective.parts.items()},
            **metrics.sparsity(*step.sides),
            "teacher_confidence": metrics.teacher_confidence(labels, temperature),
            "label_spread": metrics.spread(labels),
            "score_spread": metrics.spread(list_scores(*step.sides)),
            "grad_norm": update.grad_norm if update else math.nan,
            "lr": self.engine.lr,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "mfu": tokens / seconds * self.flops_per_token / self.world.size / self.peak_flops,
            "padding": 1 - step.tokens / step.padded,
            "chunks": step.chunks,
            "kept_graphs": step.kept,
            "peak_memory_gib": metrics.peak_memory_gib(self.world.device),
            "bad_steps": self.standing.bad_steps,
        }
        said = alarms(train, line, self.standing.step, self.total_steps, self.student.vocab_size)
        for name, sentence in said.items():
            if name not in self.alarmed and self.world.rank == 0:  # once; the log has them all
                log.warning("step %d: %s", self.standing.step, sentence)
            self.alarmed.add(name)
        named = {"dataset": dataset} if self.cfg.datasets else {}
        self.log.write(step=self.standing.step, **named, **line, **({"alarms": list(said.values())} if said else {}))

    def _evaluate(self) -> None:
        """nDCG@10, or whatever the recipe's first metric is, on the development set; the best parameters are kept."""
        standing = self.standing
        parameters = self.engine.parameters()
        score = None
        if self.world.rank == 0:
            student = load_checkpoint(self.folder.start).to(self.world.device).eval()
            checkpoints.load_parameters(student, parameters)
            student.register_forward_pre_hook(self._stop_evaluating)
            with suppress(_Abandoned):
                measured = evaluate_student(student, self.folder, "dev", self.recipe)
                score = measured[self.recipe.evaluate.metrics[0]]
                self.log.write(step=standing.step, event="evaluation", **measured)
                log.info(
                    "step %d: %s", standing.step, ", ".join(f"{name} {value:.4g}" for name, value in measured.items())
                )
                if score > standing.best_score:
                    checkpoints.save_best(self.folder, standing.step, parameters)
        score = self.world.from_first(score)
        if score is None:
            self._end_preempted()  # a checkpoint was saved before
        standing.evaluated = standing.step
        if score > standing.best_score:
            standing.best_step, standing.best_score = standing.step, score

    def _stop_evaluating(self, *_: Any) -> None:
        """Before a batch of texts: leave the evaluation if this process is asked to stop."""
        if self.stop.asked:
            raise _Abandoned(ASKED_TO_STOP)

    def _save(self, sampler: dict[str, Any], rng: list[torch.Tensor]) -> None:
        """A checkpoint; collective. `sampler` and `rng`: those that the next step starts from."""
        if self.engine.loss_scale is not None:
            self.standing.loss_scale = asdict(self.engine.loss_scale)
        state = {
            "standing": asdict(self.standing),
            "sampler": sampler,
            "rng": self.world.gather(rng),
            "parameters": self.engine.parameters(),
            "optimizer": self.engine.optimizer_state(),
            "updates": self.engine.updates(),
        }
        if self.world.rank == 0:
            checkpoints.save(
                self.folder,
                self.standing.step,
                state,
                self.fields,
                self.cfg.checkpoints.keep_last,
                best=self.standing.best_step,
            )
        self.world.barrier()

    def _save_model(self) -> dict[str, Any]:
        standing = self.standing
        parameters = self.engine.parameters()
        counts = {
            "steps": standing.step,
            "seconds": round(standing.seconds, 1),
            "bad_steps": standing.bad_steps,
            "processes": self.world.size,
            "precision": standing.precision,
            "device": standing.device,
        }
        if standing.best_step is not None:
            counts |= {"best_step": standing.best_step, f"dev {self.recipe.evaluate.metrics[0]}": standing.best_score}
        if self.world.rank == 0:
            if standing.best_step not in (None, standing.step):
                parameters = checkpoints.load_best(self.folder, standing.best_step)
            student = load_checkpoint(self.folder.start)
            checkpoints.load_parameters(student, parameters)
            save_student(student, self.folder.model)
            write_manifest(self.folder.model, Manifest(self.fields, counts=counts))
        self.world.barrier()
        return counts


def _silent(n: float = 1, note: str = "") -> None:
    """The progress display of the ranks that show none."""
