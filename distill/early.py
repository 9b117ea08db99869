"""What a recipe would be refused for hours later, refused before the work.

The stages check what they need themselves; here the checks of the later ones are made once more ahead of the earlier,
which are the expensive ones.
"""

from __future__ import annotations

from importlib.util import find_spec

from distill.config import CustomStudent, Recipe, resolve_model
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.errors import RecipeError, StudentError
from distill.own_code import check_own_code


def check_recipe(recipe: Recipe) -> None:
    """What needs no data: names of measures, code of one's own, packages, and what DeepSpeed is told."""
    from distill.evaluation.metrics import check_depth

    check_depth(recipe.evaluate.metrics, recipe.evaluate.depth)
    check_own_code(recipe)
    tracking = recipe.tracking
    for name, wanted in {
        "wandb": tracking.wandb,
        "tensorboard": tracking.tensorboard,
        "codecarbon": tracking.codecarbon,
    }.items():
        if wanted and find_spec(name) is None:
            raise RecipeError(f"tracking.{name} needs the package {name}: pip install 'splade-distill[{name}]'")
    if recipe.train.deepspeed and recipe.train.precision != "auto":
        from distill.training.engine import deepspeed_config

        deepspeed_config(recipe.train, 1, recipe.train.precision)


def check_with_data(recipe: Recipe, folder: RunFolder, stage: str | None = None) -> None:
    """What needs the imported data. `stage`: the only one that is to run; None is all of them, on this machine."""
    if stage in (None, "evaluate"):
        _check_split(recipe, folder)
    if read_manifest(folder.model) is None:
        from distill.training.opening import check_development

        if stage is None:
            _check_student(recipe)
        check_development(recipe, folder)
        if any(loss.kind == "embedding-mse" for losses in recipe.train.losses_by_field.values() for loss in losses):
            from distill.training.targets import check_targets

            check_targets(recipe, folder)
    if recipe.evaluate.evaluators and read_manifest(folder.metrics) is None:
        from distill.data.texts import TextStore
        from distill.evaluation.evaluators import check_evaluators

        check_evaluators(recipe.evaluate.evaluators, TextStore.open(folder.passages).collection_size)


def _check_split(recipe: Recipe, folder: RunFolder) -> None:
    split = recipe.evaluate.split
    if not folder.judgements(split).exists():
        others = [other for other in ("dev", "test") if folder.judgements(other).exists()]
        remedy = f"set evaluate.split={others[0]}" if others else "run the stages one by one, without `evaluate`"
        raise RecipeError(
            f"evaluate.split is {split!r}, but the data in {folder.data} has no judged {split} queries; " + remedy
        )


def _check_student(recipe: Recipe) -> None:
    """Whether there is a model by the student's name; it may be a round's checkpoint that is still to come."""
    student = recipe.student
    if isinstance(student, CustomStudent) or (
        recipe.follows is not None and student.model == str(recipe.follows.checkpoint)
    ):
        return
    from distill.student.layout import NotCached, read_json

    name = resolve_model(student.model)
    refusal = StudentError(f"student.model: {student.model!r} has neither config.json nor modules.json")
    for file in ("config.json", "modules.json"):
        try:
            if read_json(name, file, student.revision) is not None:
                return
        except NotCached as error:
            refusal = error
    raise refusal
