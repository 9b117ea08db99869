"""The stages as functions of a recipe and a folder; a finished stage is not repeated, as in a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.config import Recipe
from distill.evaluation.stage import STAGE as EVALUATE
from distill.importing.stage import STAGE as IMPORT
from distill.labelling.stage import STAGE as LABEL
from distill.mining.mine import mine as mine_in_process
from distill.run.files import read_json
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, require_manifest
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import Stage
from distill.training.stage import STAGE as TRAIN
from ray_jobs import stage as on_ray
from teachers.stage import STAGE as TEACH


def _run(stage: Stage, recipe: Recipe, folder: RunFolder) -> list[Manifest]:
    run = Run(recipe, folder)
    outputs = stage.outputs(run)
    if any(output.finished() is None for output in outputs):
        stage.execute(run, outputs)
    return [require_manifest(output.folder, stage.name) for output in outputs]


def import_data(recipe: Recipe, folder: RunFolder) -> Manifest:
    return _run(IMPORT, recipe, folder)[0]


def mine(recipe: Recipe, folder: RunFolder) -> Manifest:
    """Mine in this process; returns the manifest of the training split."""
    run = Run(recipe, folder)
    mine_in_process(run, on_ray.MINE.outputs(run))
    return require_manifest(folder.candidates("train"), "mine")


def mine_on_ray(recipe: Recipe, folder: RunFolder) -> Manifest:
    _run(on_ray.MINE, recipe, folder)
    return require_manifest(folder.candidates("train"), "mine")


def fine_tune(recipe: Recipe, folder: RunFolder, name: str) -> Manifest:
    _run(TEACH, recipe, folder)
    return require_manifest(folder.teacher(name), "teach")


def score_outputs(
    recipe: Recipe, folder: RunFolder, teachers: Sequence[str] | None = None, splits: Sequence[str] | None = None
) -> tuple[Run, list[Output]]:
    """Return a run, and its outputs of scoring for some teachers and splits."""
    run = Run(recipe, folder)
    return run, [
        output
        for teacher in teachers or on_ray.scoring_teachers(recipe)
        for split in splits or on_ray.splits_to_score(run)
        for output in on_ray.score_outputs(run, [teacher], [split])
    ]


def score(recipe: Recipe, folder: RunFolder, **selection: Any) -> dict[str, int]:
    """Score on Ray; returns the job's counters."""
    from ray_jobs.score import score

    return score(*score_outputs(recipe, folder, **selection))


def score_local(
    recipe: Recipe, folder: RunFolder, *, part: tuple[int, int] = (0, 1), **selection: Any
) -> dict[str, int]:
    """Score without Ray; returns the job's counters."""
    from ray_jobs.score import score_local

    return score_local(*score_outputs(recipe, folder, **selection), part)


def build_labels(recipe: Recipe, folder: RunFolder) -> Manifest:
    return _run(LABEL, recipe, folder)[0]


def train(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Train; returns the counts of the model's manifest."""
    return _run(TRAIN, recipe, folder)[0].counts


def evaluate(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """Evaluate; returns the content of metrics/evaluation.json."""
    _run(EVALUATE, recipe, folder)
    return read_json(folder.evaluation)
