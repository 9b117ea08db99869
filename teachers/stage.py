"""Stage 3, teach: fine-tune teachers on the labelled training pairs, in folds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from distill.config import FineTune
from distill.errors import RecipeError
from distill.planning.case import TRAINING, Case, Cost, StageCost, on_one_device, unknown
from distill.run.manifest import FORMAT, require_manifest
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import Stage
from distill.store.judgements import load_judgements
from teachers.identity import model_identity
from teachers.spec import TeacherSpec


def fine_tune_fields(run: Run, name: str) -> dict[str, Any]:
    """Fingerprint inputs of the fine-tuned models of teacher `name`."""

    spec = TeacherSpec.of(run, name)
    return {
        "stage": "teach",
        "format": FORMAT,
        "seed": run.recipe.seed,
        "max_length": spec.config.max_length,
        "candidates": require_manifest(run.folder.candidates("train"), "mine").fingerprint,
        "backbone": model_identity(name, spec.model),
        **spec.fine_tune.model_dump(mode="json"),
    }


def outputs(run: Run) -> list[Output]:
    """One folder per teacher that the recipe fine-tunes."""
    return [
        Output(run.folder.teacher(name), partial(fine_tune_fields, run, name), key=(name,))
        for name, teacher in run.recipe.teachers.items()
        if teacher.fine_tune is not None
    ]


def check_data(run: Run) -> None:
    """Raise `RecipeError` for a teacher to fine-tune if no training query has a positive."""
    tuned = [name for name, teacher in run.recipe.teachers.items() if teacher.fine_tune is not None]
    if (
        tuned
        and run.folder.judgements("train").exists()
        and not len(load_judgements(run.folder, "train").with_positives)
    ):
        raise RecipeError(
            f"teachers.{tuned[0]}.fine_tune needs training queries with a positive, but none in {run.folder.data} has "
            "one; leave fine_tune out, or add judged queries or data.generate"
        )


def execute(run: Run, outputs: Sequence[Output]) -> None:
    from teachers.fine_tune import fine_tune

    for output in outputs:
        if output.finished() is None:
            fine_tune(TeacherSpec.of(run, output.key[0]), run.recipe.seed, output)


def cost(case: Case) -> StageCost:
    """The folds are trained one after the other, on one device."""
    recipe, pairs = case.recipe, case.counts.teach_pairs
    tuned = {name: recipe.teachers[name].fine_tune for name in pairs}
    each = (f"{name}: {cfg.folds} folds, {pairs[name]:,} pairs per epoch" for name, cfg in tuned.items() if cfg)
    work = "; ".join(each) or "no teacher to fine-tune"
    if measured := on_one_device(case, "teach", lambda case: sum(case.counts.teach_pairs.values())):
        return StageCost(work, None, [measured])
    parts = [_tuning(case, name, cfg) for name, cfg in tuned.items() if cfg]
    return StageCost(work, None, parts)


def _tuning(case: Case, name: str, cfg: FineTune) -> Cost:
    teacher = case.recipe.teachers[name]
    model = case.teacher(teacher)
    if model is None:
        return unknown(name, teacher.model)
    length = case.counts.pair_tokens[name]
    tokens = case.counts.teach_pairs[name] * cfg.epochs * length
    flops = 3 * tokens * model.forward_flops(length)
    seconds, basis = case.assumed(flops, TRAINING, model, "auto")
    wall = seconds + cfg.folds * case.start
    return Cost(name, basis, tokens, flops, device_seconds=seconds, wall_seconds=wall, bound="one device")


STAGE = Stage(
    "teach",
    help="Fine-tune the teachers that have a fine_tune section.",
    outputs=outputs,
    execute=execute,
    cost=cost,
    needs=("import", "mine"),
    first_round_only=True,
    check_data=check_data,
)
