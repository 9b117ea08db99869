"""What training needs of its recipe and its data, checked before the process group forms."""

from __future__ import annotations

from distill.config import CsrStudent, CustomStudent, Recipe
from distill.errors import ModelError, RecipeError, StudentError
from distill.evaluation.collection import open_collection
from distill.run.layout import run_at
from distill.run.model_ref import ModelRef
from distill.run.run import Run
from distill.store.judgements import queries_without_positives


def check_development(run: Run) -> None:
    """Raise `RecipeError` if the recipe evaluates during training but there are no judged development queries."""
    if run.recipe.train.evaluate_every is not None:
        try:
            open_collection(run.folder, "dev")
        except RecipeError:
            raise RecipeError(
                f"train.evaluate_every needs judged development queries, but {run.folder.data} has none; add them to "
                "data.source, let data.generate make some (its dev_share), or leave evaluate_every out"
            ) from None


def check_losses(run: Run) -> None:
    """Raise `RecipeError` for a loss that needs a positive in every list if some training queries have none."""
    train = run.recipe.train
    used = [("losses", train.losses, run.folder)]
    for name, other in train.datasets.items():
        own = other.losses is not None
        used.append((f"datasets.{name}.losses" if own else "losses", other.losses or train.losses, run_at(other.run)))
    for field, losses, folder in used:
        for i, loss in enumerate(losses):
            if not getattr(loss, "pseudo_positive", True) and (number := queries_without_positives(folder)):
                raise RecipeError(
                    f"train.{field}.{i}: {loss.kind} needs a positive in every list, but {number:,} training queries "
                    f"in {folder.data} have none. Set pseudo_positive: true to take the passage with the highest "
                    "label, or use a loss that reads labels, such as kl, margin-mse or ranknet"
                )


def check_student(recipe: Recipe) -> None:
    """Raise `StudentError` for a model that does not exist or does not take the recipe's lengths.

    A model that an earlier round will train is not checked.
    """
    # they import torch, which the command line does without
    from distill.student.base import check_max_lengths
    from distill.student.model import check_start
    from distill.student.text_reader import longest_dense_input

    student = recipe.trained_student
    if isinstance(student, CustomStudent) or (
        recipe.follows is not None and student.model == str(recipe.follows.checkpoint)
    ):
        return
    model = ModelRef.parse(student.model, student.revision)
    try:
        model.identity()
        longest = longest_dense_input(model) if isinstance(student, CsrStudent) else None
    except ModelError as error:
        raise StudentError(f"student.model: {error}") from None
    if isinstance(student, CsrStudent):
        check_max_lengths(student, longest)
    else:
        check_start(student)


def check_batch_size(recipe: Recipe, processes: int) -> None:
    """Raise `RecipeError` if there are fewer queries per batch than processes."""
    if recipe.train.batch_size < processes:
        raise RecipeError(
            f"train.batch_size is {recipe.train.batch_size}, but each of the {processes} processes needs at least one "
            "query per step; raise it or use fewer processes"
        )
