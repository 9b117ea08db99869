"""The rounds of a recipe, each as a recipe of its own.

A further round is a complete run in `<run>/round-<n>`, but for the data and the fine-tuned teachers, which are the
first round's; nothing else tells it from any other run, so every stage takes it as it is.
"""

from __future__ import annotations

from distill.config import Recipe
from distill.config.rounds import merged, with_previous
from distill.data.layout import RunFolder
from distill.errors import RecipeError
from distill.recipe_file import parse_recipe


def all_rounds(recipe: Recipe) -> list[Recipe]:
    """The recipe itself, which is the first round, and one recipe for each entry of its `rounds`.

    Raises `RecipeError`, naming the entry and the field, for a round that is no valid recipe.
    """
    found = [recipe]
    tree = recipe.model_dump(mode="json", exclude={"rounds", "follows"})
    first = RunFolder(recipe.folder)
    for index, changes in enumerate(recipe.rounds):
        before = found[-1]
        checkpoint = str(RunFolder.of(before).model)
        goes_on = before.follows is not None and before.student.model == str(before.follows.checkpoint)
        own = {
            **with_previous(merged(tree, changes), checkpoint),
            "name": f"{recipe.name}-round-{index + 2}",
            "run_dir": str(first.round(index + 2)),
            "follows": {
                "run": str(first.root),
                "checkpoint": checkpoint,
                "model": before.follows.model if goes_on else before.student.model,
            },
        }
        if (
            isinstance(own["student"], dict)
            and own["student"].get("model") == checkpoint
            and own["student"].get("start") == "calibrated"
        ):
            own["student"] = {**own["student"], "start": "mlm"}  # the checkpoint has a head already, a trained one
        found.append(parse_recipe(own, origin=f"recipe {recipe.name!r}: rounds.{index}"))
        _refuse_other_fine_tuning(recipe, found[-1], f"recipe {recipe.name!r}: rounds.{index}")
    return found


def round_of(recipe: Recipe, number: int | None) -> Recipe:
    """Round `number` of a recipe, counted from 1; None is the first. Raises `RecipeError` where there is no such."""
    rounds = all_rounds(recipe)
    return rounds[number_of(rounds, number) - 1]


def number_of(rounds: list[Recipe], number: int | None) -> int:
    """The number, 1 for None, if there is such a round; else `RecipeError`."""
    if not 1 <= (number or 1) <= len(rounds):
        raise RecipeError(f"there is no round {number}: the recipe has {len(rounds)}")
    return number or 1


def _refuse_other_fine_tuning(first: Recipe, later: Recipe, origin: str) -> None:
    """Teachers are fine-tuned in the first round, on its candidates, and then stay what they are."""
    for name, teacher in later.teachers.items():
        before = first.teachers.get(name)
        fields = ("kind", "model", "revision", "max_length", "fine_tune")
        if teacher.fine_tune is not None and (
            before is None or any(getattr(teacher, field) != getattr(before, field) for field in fields)
        ):
            raise RecipeError(
                f"{origin}: teachers.{name}: a teacher is fine-tuned in the first round only; declare it "
                "there (weight: 0 keeps it out of the first round's labels), and leave it as it is"
            )
