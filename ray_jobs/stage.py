"""The stages that run on Ray: mine (stage 2), if the collection has several chunks, and score (stage 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from distill.config import Recipe, SlurmJob, Teacher
from distill.labelling.weights import needs_development_scores
from distill.mining import stage as mining
from distill.planning.case import ENCODING, Case, Cost, StageCost, unknown
from distill.planning.volumes import BYTES_PER_SCORE, Counts, Volumes
from distill.run.manifest import FORMAT, read_manifest, require_manifest
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import BatchJob, Reader, Stage
from distill.run.truncation import Truncation
from ray_jobs.job_status import job_status
from teachers.identity import check_available, identity
from teachers.spec import TeacherSpec

BM25_PAIRS_PER_SECOND = 1e6  # measured on one processor core


def mine(run: Run, outputs: Sequence[Output]) -> None:
    from ray_jobs.mine import mine

    mine(run, outputs)


MINE = Stage(
    "mine",
    help="Find hard negatives for the training queries, and candidates to rerank for the other splits.",
    outputs=mining.outputs,
    execute=mine,
    cost=mining.cost,
    needs=("import",),
    check_data=mining.check_data,
    readers=mining.readers,
)


def scoring_teachers(recipe: Recipe) -> tuple[str, ...]:
    """The teachers to run: all but those whose scores were imported."""
    return tuple(name for name, teacher in recipe.teachers.items() if teacher.kind != "imported")


def splits_to_score(run: Run) -> tuple[str, ...]:
    """The training queries and, if they have candidates, the evaluated ones for the table of results, and the
    development queries for weights of teachers that are still to be fitted."""
    if run.recipe.student is None or not run.recipe.score.rerank:
        return ("train",)
    wanted = [run.recipe.evaluate.split, *(["dev"] if needs_development_scores(run) else [])]
    mined = [split for split in wanted if read_manifest(run.folder.candidates(split)) is not None]
    return tuple(dict.fromkeys(["train", *mined]))


def score_fields(run: Run, teacher: str, split: str) -> dict[str, Any]:
    """Fingerprint inputs of a teacher's scores of a split. Raises `TeacherError` if it cannot be loaded."""

    return {
        "stage": "score",
        "format": FORMAT,
        "candidates": require_manifest(run.folder.candidates(split), "mine").fingerprint,
        "teacher": identity(TeacherSpec.of(run, teacher)),
    }


def check_data(run: Run) -> None:
    """Raise `TeacherError` for a teacher that cannot be loaded: before candidates are mined for it.

    A model that an earlier round will train, and a teacher whose scores are there, are not checked.
    """
    follows = run.recipe.follows
    for name in scoring_teachers(run.recipe):
        to_come = follows is not None and run.recipe.teachers[name].model == str(follows.checkpoint)
        if not to_come and read_manifest(run.folder.scores(name, "train")) is None:
            check_available(TeacherSpec.of(run, name))


def outputs(run: Run) -> list[Output]:
    """One folder per teacher and split."""
    return score_outputs(run, scoring_teachers(run.recipe), splits_to_score(run))


def score_outputs(run: Run, teachers: Sequence[str], splits: Sequence[str]) -> list[Output]:
    """One folder per teacher and split of those given."""
    return [
        Output(run.folder.scores(name, split), partial(score_fields, run, name, split), key=(name, split))
        for name in teachers
        for split in splits
    ]


def readers(run: Run) -> dict[str, Reader]:
    """What the teachers' models do not read."""
    return {
        f"teacher {name}": partial(_truncation, run, name)
        for name, teacher in run.recipe.teachers.items()
        if teacher.kind in ("cross-encoder", "llm", "bi-encoder", "splade")
    }


def _truncation(run: Run, name: str) -> list[Truncation]:
    from teachers.truncation import truncation  # imports torch

    return truncation(TeacherSpec.of(run, name), run.recipe.seed)


def score(run: Run, outputs: Sequence[Output]) -> None:
    from ray_jobs.score import score

    score(run, outputs)


def score_part(run: Run, outputs: Sequence[Output], part: tuple[int, int]) -> None:
    from ray_jobs.score import score_local

    score_local(run, outputs, part)


def progress(run: Run) -> dict[str, Any] | None:
    """Progress of the scoring job, None before its first launch."""

    job = job_status(run.folder, scoring_teachers(run.recipe), splits_to_score(run))
    return None if job is None else asdict(job)


def job(run: Run, request: SlurmJob) -> BatchJob:
    """A job array without Ray, or one job that runs Ray on its machines."""
    tasks, max_parallel = run.recipe.slurm.array, run.recipe.slurm.max_parallel
    if tasks is None:
        return BatchJob("score_ray.sbatch", nodes=request.nodes or 1)
    array = f"0-{tasks - 1}" + (f"%{max_parallel}" if max_parallel else "")
    return BatchJob("score_array.sbatch", array=array, log="{stage}-%A_%a.out")


def cost(case: Case) -> StageCost:
    """Workers take whole shards, so wall time is a number of rounds of shards."""
    recipe, counts = case.recipe, case.counts
    names, shards = scoring_teachers(recipe), counts.shards * len(recipe.teachers)
    tokens = sum(counts.pairs * tokens for tokens in counts.pair_tokens.values())
    work = (
        f"{counts.pairs:,} pairs x {len(recipe.teachers)} teachers, {shards:,} shards; {tokens:.3g} tokens through "
        "rankers"
    )
    models = {teacher.model for teacher in recipe.teachers.values() if teacher.model}
    if recipe.student is not None:
        models.add(recipe.student.model)
    disk = counts.pairs * BYTES_PER_SCORE * len(recipe.teachers) + counts.text_tokens * 4 * len(models)
    return StageCost(work, disk, [_scored_by(case, name, recipe.teachers[name]) for name in names])


def _scored_by(case: Case, name: str, teacher: Teacher) -> Cost:
    counts, model = case.counts, case.teacher(teacher)
    tokens, length = _tokens_of(name, teacher, case.size, counts)
    head = model.head_flops if model and teacher.kind == "splade" else 0.0
    flops = None if model is None or teacher.kind == "bm25" else tokens * (model.forward_flops(length) + head)
    rate = case.probe.teachers.get(name) if case.probe else None
    workers = case.gpus if case.device.cuda else case.gpus * case.cpu_workers
    if case.probe is not None and rate is not None and rate.cuda == case.device.cuda:
        read = rate.tokens or _tokens_of(name, teacher, case.probe.size, case.probe.counts)[0]
        seconds = tokens / (read / rate.seconds)
        basis = f"{case.measured}: {read / rate.seconds:,.0f} tokens per second and worker"
    elif teacher.kind == "bm25":
        seconds = counts.pairs / BM25_PAIRS_PER_SECOND
        basis = f"assumed: {BM25_PAIRS_PER_SECOND:,.0f} pairs per second and worker"
    elif flops is None or model is None:
        return unknown(name, teacher.model or teacher.cls)
    else:
        seconds, basis = case.assumed(flops, ENCODING, model, teacher.dtype)
        workers = case.gpus  # whole devices
    rounds = math.ceil(counts.shards / workers) if counts.shards else 0  # in the last round some workers are idle
    wall = seconds / max(counts.shards, 1) * rounds
    idle = 1 - seconds / workers / wall if wall else 0.0
    return Cost(
        name,
        basis,
        tokens,
        flops,
        device_seconds=None if teacher.kind == "bm25" else seconds,
        wall_seconds=wall + case.start,
        bound=f"{counts.shards} shards on {workers} workers: {idle:.0%} idle" if idle > 0.05 else "",
    )


def _tokens_of(name: str, teacher: Teacher, size: Volumes, counts: Counts) -> tuple[float, float]:
    """Tokens that a teacher reads in all, and per input; teachers that encode texts separately read each text once."""
    if name in counts.pair_tokens:
        return counts.pairs * counts.pair_tokens[name], counts.pair_tokens[name]
    length = min(size.passage_tokens + 2, teacher.max_length)
    return (min(size.passages, counts.pairs) + sum(size.queries.values())) * length, length


SCORE = Stage(
    "score",
    help="Score the candidates with every teacher, on Ray, into Arrow shards.",
    outputs=outputs,
    execute=score,
    cost=cost,
    needs=("import", "mine", "teach"),
    check_data=check_data,
    readers=readers,
    part=score_part,
    job=job,
    progress=progress,
    caches=lambda folder: folder.caches_of_scores,
)
