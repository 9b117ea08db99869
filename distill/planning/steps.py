"""How long a training is, and how many queries it reads: the rules of `train.steps` and `data.train_queries`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distill.config import AUTO, Train
from distill.errors import RecipeError

FEWEST, MOST = 100, 1500  # steps of `auto`


def steps_of_auto(queries: int, batch_size: int) -> tuple[int, str]:
    """Choose the steps of `train.steps: auto` for this number of training queries; returns them with the reason."""
    one_pass = math.ceil(queries / batch_size)
    reason = f"{queries:,} training queries are {one_pass:,} batches of {batch_size}"
    steps = min(max(one_pass, FEWEST), MOST)
    if steps == one_pass:
        return steps, f"one pass: {reason}"
    return steps, f"{reason}; the {'fewest' if steps == FEWEST else 'most'} steps are {steps:,}"


def number_of_steps(train: Train, queries: int) -> int:
    """Return the number of optimizer steps on this number of training queries.

    Raises `RecipeError` if the recipe leaves it to the program and no value has been chosen yet.
    """
    if train.steps == AUTO:
        raise RecipeError(
            "train.steps is auto, but no value has been chosen: run `distill import` first, or set a number"
        )
    return train.steps or math.ceil(train.epochs * queries / train.batch_size)


def queries_read(trainings: Sequence[Train]) -> tuple[int | None, str]:
    """Return the most training queries that one of these trainings can read, None for all; and the reason."""
    if any(train.steps is None for train in trainings):
        return None, "train.epochs passes over all of them"
    longest = max(trainings, key=lambda train: _most_steps(train) * train.batch_size)
    steps = _most_steps(longest)
    return steps * longest.batch_size, f"training reads at most {steps:,} batches of {longest.batch_size}"


def _most_steps(train: Train) -> int:
    return MOST if train.steps == AUTO or train.steps is None else train.steps
