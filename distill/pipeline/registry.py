"""The list of stages, in order. A new stage is a file with a `Stage`, and an entry here."""

from __future__ import annotations

from distill.config import Recipe
from distill.errors import RecipeError
from distill.evaluation.stage import STAGE as EVALUATE
from distill.importing.stage import STAGE as IMPORT
from distill.labelling.stage import STAGE as LABEL
from distill.run.run import Run
from distill.run.stage import Stage
from distill.training.stage import STAGE as TRAIN
from ray_jobs.stage import MINE, SCORE
from teachers.stage import STAGE as TEACH

STAGES: list[Stage] = [IMPORT, MINE, TEACH, SCORE, LABEL, TRAIN, EVALUATE]


def all_stages(recipe: Recipe) -> list[Stage]:
    """The stages of a recipe, in order, over all rounds; without a student, training and evaluation are left out."""
    return [stage for stage in STAGES if recipe.student is not None or not stage.needs_student]


def stages_of(run: Run) -> list[Stage]:
    """The stages of one round, in order; later rounds use the first one's data and fine-tuned teachers."""
    return [stage for stage in all_stages(run.recipe) if run.recipe.follows is None or not stage.first_round_only]


def stage_of(run: Run, name: str) -> Stage:
    """A stage by name. Raises `RecipeError` if this round has no such stage."""
    for stage in stages_of(run):
        if stage.name == name:
            return stage
    if any(stage.name == name and stage.needs_student for stage in STAGES):
        raise RecipeError(f"stage {name!r} needs a student, and the recipe has none: add the section `student`")
    if name in (stage.name for stage in STAGES):
        raise RecipeError(f"stage {name!r} runs in the first round only; later rounds use its output")
    raise RecipeError(f"no stage {name!r}; stages: {', '.join(stage.name for stage in STAGES)}")
