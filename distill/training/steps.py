"""The number of steps chosen from the data: `train.steps: auto`."""

from __future__ import annotations

from distill.importing.volumes import volumes
from distill.planning.steps import steps_of_auto
from distill.run.manifest import read_manifest
from distill.run.resolved import AutoField, Choice
from distill.run.run import Run


def choose_steps(run: Run) -> Choice | None:
    """Choose the steps from the number of imported training queries; None before the import."""
    manifest = read_manifest(run.folder.data)
    if manifest is None:
        return None
    return Choice(*steps_of_auto(manifest.counts.get("queries.train", 0), run.recipe.train.batch_size))


def assumed_steps(run: Run) -> int:
    """Return the steps for the estimated number of training queries. Raises `RecipeError` if there is no estimate."""
    return steps_of_auto(volumes(run).queries["train"], run.recipe.train.batch_size)[0]


STEPS = AutoField("train.steps", choose_steps, ("train.batch_size",), assumed_steps)
