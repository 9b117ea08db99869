"""Expansion of a recipe into its rounds, each a recipe and a run.

A further round is a complete run in `<run>/round-<n>` that uses the data and the fine-tuned teachers of the first. In
all other respects it is like any run, so no stage treats it specially.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distill.config import AUTO, Recipe
from distill.config.rounds import merged, with_previous
from distill.errors import RecipeError
from distill.planning.steps import MOST as MOST_STEPS
from distill.planning.steps import queries_read
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.run import Run


def open_runs(recipe: Recipe, limit: int | None = None) -> list[Run]:
    """Return the runs of a recipe, one per round; with `limit`, those of its rehearsal on that many queries.

    Raises `RecipeError`, naming the entry and the field, if a round is not a valid recipe.
    """
    return [Run.of(round_recipe) for round_recipe in all_rounds(rehearsal(recipe, limit))]


def rehearsal(recipe: Recipe, limit: int | None) -> Recipe:
    """Return the recipe with `limit` queries per split and all passages, in a separate run folder; None: unchanged.

    `train.steps` is reduced to at most one epoch, which `auto` becomes.
    """
    if limit is None:
        return recipe
    if recipe.follows is not None:
        raise RecipeError(
            f"{recipe.name} is a further round of {recipe.follows.run} and uses its data; rehearse the whole recipe "
            "instead (--limit with --round)"
        )
    folder = recipe.folder.with_name(f"{recipe.folder.name}-limit-{limit}")
    data, train = recipe.data.model_copy(update={"limit": limit}), recipe.train
    if train.steps is not None:
        most = MOST_STEPS if train.steps == AUTO else train.steps
        steps = min(most, math.ceil(limit / train.batch_size))
        train = train.model_copy(update={"steps": steps})
    return recipe.model_copy(update={"run_dir": folder, "data": data, "train": train})


def all_rounds(recipe: Recipe) -> list[Recipe]:
    """Return the recipe itself, which is the first round, and one recipe per entry of `rounds`.

    Raises `RecipeError`, naming the entry and the field, if a round is not a valid recipe.
    """
    expanded = [recipe]
    tree = recipe.model_dump(mode="json", exclude={"rounds", "follows"})
    first = RunFolder(recipe.folder)
    for index, changes in enumerate(recipe.rounds):
        origin = f"recipe {recipe.name!r}: rounds.{index}"
        before = expanded[-1]
        checkpoint = str(RunFolder.of(before).model)
        fields = {
            **with_previous(merged(tree, changes), checkpoint),
            "name": f"{recipe.name}-round-{index + 2}",
            "run_dir": str(first.round(index + 2)),
            "follows": {"run": str(first.root), "checkpoint": checkpoint, "model": _initial_model(before)},
        }
        student = fields.get("student")
        if isinstance(student, dict) and student.get("model") == checkpoint and student.get("start") == "calibrated":
            fields["student"] = {**student, "start": "mlm"}  # the checkpoint has a trained head
        if isinstance(student, dict) and student.get("model") == checkpoint and "lexical_start" in student:
            asked = (changes.get("student") or {}).get("lexical_start")  # of this round itself, not of the first
            fields["student"] = {**fields["student"], "lexical_start": asked}
        later = parse_recipe(fields, origin=origin)
        _refuse_other_fine_tuning(recipe, later, origin)
        expanded.append(later)
    if recipe.data.train_queries == AUTO:  # the first round imports for all of them
        count, _ = queries_read([each.train for each in expanded])
        data = recipe.data.model_copy(update={"train_queries": count})
        expanded[1:] = [later.model_copy(update={"data": data}) for later in expanded[1:]]
    return expanded


def _initial_model(recipe: Recipe) -> str | None:
    """Return the model whose weights a round's student goes back to, through the rounds before it."""
    follows = recipe.follows
    model = recipe.trained_student.model
    if follows is not None and model == str(follows.checkpoint):
        return follows.model
    return model


def open_run(recipe: Recipe, limit: int | None = None, round: int | None = None) -> Run:
    """Return the run of a round, counted from 1; None is the first. Raises `RecipeError` if there is no such round."""
    runs = open_runs(recipe, limit)
    return runs[number_of(runs, round) - 1]


def number_of(rounds: Sequence[Any], number: int | None) -> int:
    """Return `number`, or 1 for None. Raises `RecipeError` if there is no such round."""
    if not 1 <= (number or 1) <= len(rounds):
        raise RecipeError(f"there is no round {number}: the recipe has {len(rounds)}")
    return number or 1


def _refuse_other_fine_tuning(first: Recipe, later: Recipe, origin: str) -> None:
    """Raise `RecipeError` if a later round fine-tunes a teacher: that happens in the first round, on its candidates."""
    for name, teacher in later.teachers.items():
        original = first.teachers.get(name)
        fields = ("kind", "model", "revision", "max_length", "fine_tune")
        if teacher.fine_tune is not None and (
            original is None or any(getattr(teacher, field) != getattr(original, field) for field in fields)
        ):
            raise RecipeError(
                f"{origin}: teachers.{name}: a teacher is fine-tuned in the first round only; declare it "
                "there (weight: 0 keeps it out of the first round's labels), and do not change it later"
            )
