"""Stage 6, train: distil the labels into the student."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from distill.config import LexicalStart, Recipe, SlurmJob, Student, max_length
from distill.planning.case import ENCODING, PER_MACHINE, TRAINING, Case, Cost, StageCost, unknown
from distill.planning.devices import Device
from distill.planning.flops import ModelCost
from distill.planning.memory import graph_bytes_per_token, training_memory
from distill.planning.volumes import ADAM_BYTES_PER_PARAMETER
from distill.recipe.imports import check_own_code
from distill.reporting.tracking import follow
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import BatchJob, Stage
from distill.training.checks import check_development, check_losses, check_student
from distill.training.deepspeed_config import deepspeed_config
from distill.training.fields import training_fields
from distill.training.lengths import LENGTHS, readers
from distill.training.steps import STEPS

INSIDE, BETWEEN = 200e9, 25e9  # assumed bytes per second of an all-reduce inside and between machines


def outputs(run: Run) -> list[Output]:
    return [Output(run.folder.model, lambda: training_fields(run))]


def execute(run: Run, outputs: Sequence[Output]) -> None:
    from distill.training.trainer import train

    with follow(run):
        train(run, outputs[0])


def check_recipe(recipe: Recipe) -> None:
    """Raise `RecipeError` for user-defined classes that are not there and contradictory DeepSpeed settings."""

    check_own_code(recipe)
    if recipe.train.deepspeed and recipe.train.precision != "auto":
        deepspeed_config(recipe.train, 1, recipe.train.precision)


def check_data(run: Run) -> None:
    """Check the student, the development queries, the losses on lists without a positive, and teachers' vectors."""
    if read_manifest(run.folder.model) is not None:
        return
    check_student(run.recipe)
    check_development(run)
    check_losses(run)
    if any(loss.kind == "embedding-mse" for losses in run.recipe.train.losses_by_field.values() for loss in losses):
        from distill.training.targets import check_targets

        check_targets(run)


def auxiliary(folder: RunFolder) -> tuple[Path, ...]:
    """What training writes besides the model."""
    return folder.checkpoints, folder.start, folder.train_log


def job(run: Run, request: SlurmJob) -> BatchJob:
    """One task per GPU, or per process that the recipe asks for, on every machine."""
    return BatchJob("train.sbatch", nodes=request.nodes or 1, tasks=request.gpus or run.recipe.train.processes or 1)


def cost(case: Case) -> StageCost:
    """Cost of training: two encoder passes for chunks without a kept graph, one for the others, and all-reduces."""
    recipe, counts, model = case.recipe, case.counts, case.student()
    train, keep_last = recipe.train, recipe.train.checkpoints.keep_last
    tokens = counts.steps * counts.step_tokens
    work = (
        f"{counts.steps:,} steps of {train.batch_size} queries x {1 + train.negatives} passages; {tokens:.3g} tokens; "
        f"a checkpoint every {train.checkpoints.every} steps, {keep_last} kept"
    )
    student = recipe.trained_student
    start = student.lexical_start if isinstance(student, Student) else None
    if start is not None:
        work += f"; before them, a lexical start on {start.of(case.size.passages):,} passages"
    if model is None:
        return StageCost(work, None, [unknown("", recipe.trained_student.model)])
    disk = model.parameters * (ADAM_BYTES_PER_PARAMETER * keep_last + 2 * 4)
    parts = [_steps(case, model, tokens)]
    if isinstance(student, Student) and student.lexical_start is not None:
        parts.append(_lexical_start(case, student, student.lexical_start, model))
    if train.evaluate_every:
        parts.append(_development(case, model))
    return StageCost(work, disk, parts)


def _steps(case: Case, model: ModelCost, tokens: float) -> Cost:
    """Cost of the optimizer steps, `tokens` in all."""
    recipe, counts, probe = case.recipe, case.counts, case.probe
    ranks = min(case.gpus, recipe.train.batch_size)
    graph = graph_bytes_per_token(model, max_length(recipe.trained_student, "passage"), recipe.train.precision)
    memory = training_memory(recipe, model, ranks, case.device)
    kept = min(1.0, memory.kept / (graph * counts.step_tokens / ranks))
    layers = model.forward_flops(case.size.passage_tokens)
    flops = tokens * ((3 + (1 - kept)) * layers + case.student_head_flops(model))
    if probe and probe.train_tokens_per_second and probe.train_cuda == case.device.cuda:
        seconds = tokens / probe.train_tokens_per_second
        basis = f"{case.measured}: {probe.train_tokens_per_second:,.0f} tokens per second and process"
    else:
        seconds, basis = case.assumed(flops, TRAINING, model, recipe.train.precision)
    twice = f"; {1 - kept:.0%} of the chunks encoded twice" if kept < 1 else ""
    reduce = _all_reduce_seconds(model.parameters, ranks, case.device) * counts.steps
    wall = seconds / ranks + reduce
    bound = ""
    if ranks < case.gpus:
        bound = f"{recipe.train.batch_size} queries per step: {ranks} of {case.gpus} devices have any"
    elif reduce > 0.2 * wall:
        bound = f"gradients between processes: {reduce / wall:.0%} of the time"
    return Cost("", basis + twice, tokens, flops, seconds + reduce * ranks, wall, bound)


def _lexical_start(case: Case, student: Student, start: LexicalStart, model: ModelCost) -> Cost:
    """Cost of learning BM25's vectors, on rank 0 only: one training pass, and one encoding by the student as it was."""
    passage = min(case.size.passage_tokens + 2, max_length(student, "passage"))
    tokens = start.of(case.size.passages) * start.epochs * passage
    if student.query.kind in ("model", "lexical"):
        excerpt = min(mean(start.excerpt_words), case.size.passage_tokens) + 2
        tokens *= 1 + excerpt / passage
    flops = tokens * (3 + 1) * (model.forward_flops(passage) + model.head_flops)
    seconds, basis = case.assumed(flops, TRAINING, model, "float32")
    part, bound = "lexical start", "one device; the others wait"
    return Cost(part, basis, tokens, flops, seconds * case.gpus, seconds, bound)


def _development(case: Case, model: ModelCost) -> Cost:
    """Cost of the evaluations on the development set, on rank 0 only."""
    every = case.recipe.train.evaluate_every
    assert every is not None
    passages, size = min(case.recipe.evaluate.dev_passages, case.size.passages), case.size
    times = 1 + math.ceil(case.counts.steps / every)  # the first time before training
    tokens = times * (passages * (size.passage_tokens + 2) + size.queries["dev"] * (size.query_tokens + 2))
    flops = tokens * (model.forward_flops(size.passage_tokens) + case.student_head_flops(model))
    seconds, basis = case.assumed(flops, ENCODING, model, case.recipe.evaluate.precision)
    part, bound = f"{times} evaluations", "one device; the others wait"
    return Cost(part, basis, tokens, flops, seconds * case.gpus, seconds, bound)


def _all_reduce_seconds(parameters: float, ranks: int, device: Device) -> float:
    """Seconds of a ring all-reduce of float32 gradients: each rank sends 2 (n - 1) / n of their size
    (Patarasuk & Yuan 2009)."""
    if ranks == 1 or not device.cuda:
        return 0.0
    speed = INSIDE if ranks <= PER_MACHINE else BETWEEN
    return 2 * (ranks - 1) / ranks * 4 * parameters / speed


STAGE = Stage(
    "train",
    help="Distil the labels into the student.",
    outputs=outputs,
    execute=execute,
    cost=cost,
    needs=("mine", "teach", "score", "label"),  # not import: the data source may be missing on this machine
    needs_student=True,
    check_recipe=check_recipe,
    check_data=check_data,
    auxiliary=auxiliary,
    auto=(*LENGTHS, STEPS),
    readers=readers,
    job=job,
)
