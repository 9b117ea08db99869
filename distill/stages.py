"""The stages of a run, in order: what each writes, what that depends on, and how it is made.

Each imports its room when it is first used: a run of `import` needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.config import Recipe
from distill.data.layout import SPLITS, RunFolder
from distill.data.manifest import require_manifest
from distill.errors import RecipeError

Outputs = dict[Path, dict[str, Any]]  # folder with a manifest -> the fields its fingerprint must come from


@dataclass(frozen=True)
class Stage:
    """`outputs` says what the stage writes for a recipe, given that the stages before it are done; `beside` names
    folders without a manifest that belong to those outputs and go with them."""

    name: str
    outputs: Callable[[Recipe, RunFolder], Outputs]
    run: Callable[[Recipe, RunFolder], Any]
    beside: Callable[[RunFolder], tuple[Path, ...]] = lambda folder: ()


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages of one round, in order: a further one uses the first one's data and teachers."""
    return [stage for stage in STAGES if recipe.follows is None or stage.name not in ("import", "teach")]


def stage_of(recipe: Recipe, name: str) -> Stage:
    for stage in stages_of(recipe):
        if stage.name == name:
            return stage
    raise RecipeError(f"a further round has no stage {name!r} of its own: it uses what the first round has made")


def _import_outputs(recipe: Recipe, folder: RunFolder) -> Outputs:
    from distill.data.importing import import_outputs

    return import_outputs(recipe, folder)


def _import(recipe: Recipe, folder: RunFolder) -> None:
    from distill.data.importing import import_data

    import_data(recipe, folder)


def _mine_outputs(recipe: Recipe, folder: RunFolder) -> Outputs:
    from distill.data.candidates import are_imported
    from distill.mining.mine import mining_fields

    require_manifest(folder.data, "import")
    splits = [split for split in SPLITS if split == "train" or folder.judgements(split).exists()]
    return {
        folder.candidates(split): mining_fields(recipe, folder, split)
        for split in splits
        if not are_imported(folder.candidates(split))
    }


def _mine(recipe: Recipe, folder: RunFolder) -> None:
    from ray_jobs.mine import mine

    mine(recipe, folder)


def _teach_outputs(recipe: Recipe, folder: RunFolder) -> Outputs:
    tuned = [name for name, teacher in recipe.teachers.items() if teacher.fine_tune is not None]
    if not tuned:
        return {}
    from teachers.fine_tune import fine_tune_fields

    return {folder.teacher(name): fine_tune_fields(recipe, folder, name) for name in tuned}


def _teach(recipe: Recipe, folder: RunFolder) -> None:
    from teachers.fine_tune import fine_tune

    for name, teacher in recipe.teachers.items():
        if teacher.fine_tune is not None:
            fine_tune(recipe, folder, name)


def _score_outputs(recipe: Recipe, folder: RunFolder) -> Outputs:
    from ray_jobs.score import score_fields, scoring_teachers, splits_to_score

    teachers = scoring_teachers(recipe)
    if not teachers:  # nothing to do, but not before there is something
        require_manifest(folder.data, "import")
    return {
        folder.scores(name, split): score_fields(recipe, folder, name, split)
        for name in teachers
        for split in splits_to_score(recipe, folder)
    }


def _score(recipe: Recipe, folder: RunFolder) -> None:
    from ray_jobs.score import score

    score(recipe, folder)


def _label_outputs(recipe: Recipe, folder: RunFolder) -> Outputs:
    from distill.data.labels import label_fields

    return {folder.labels(): label_fields(recipe, folder)}


def _label(recipe: Recipe, folder: RunFolder) -> None:
    from distill.data.labels import build_labels

    build_labels(recipe, folder)


def _train_outputs(recipe: Recipe, folder: RunFolder) -> Outputs:
    from distill.training.loop import training_fields

    return {folder.model: training_fields(recipe, folder)}


def _train(recipe: Recipe, folder: RunFolder) -> None:
    from distill.reporting.tracking import follow
    from distill.training.loop import train

    with follow(recipe, folder):
        train(recipe, folder)


def _evaluate_outputs(recipe: Recipe, folder: RunFolder) -> Outputs:
    from distill.evaluation.evaluate import evaluation_fields

    return {folder.metrics: evaluation_fields(recipe, folder)}


def _evaluate(recipe: Recipe, folder: RunFolder) -> None:
    from distill.evaluation.evaluate import evaluate
    from distill.reporting.tracking import follow

    with follow(recipe, folder):
        evaluate(recipe, folder)


STAGES = (
    Stage("import", _import_outputs, _import),
    Stage("mine", _mine_outputs, _mine),
    Stage("teach", _teach_outputs, _teach),
    Stage("score", _score_outputs, _score),
    Stage("label", _label_outputs, _label),
    Stage("train", _train_outputs, _train, lambda folder: (folder.checkpoints, folder.start, folder.train_log)),
    Stage("evaluate", _evaluate_outputs, _evaluate),
)
