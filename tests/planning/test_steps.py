"""The rules of `train.steps: auto` and `data.train_queries: auto`."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.config import Train
from distill.errors import RecipeError
from distill.planning.steps import number_of_steps, queries_read, steps_of_auto


@pytest.mark.parametrize(
    ("queries", "steps", "reason"),
    [
        (2620, 164, "one pass: 2,620 training queries are 164 batches of 16"),
        (50, 100, "50 training queries are 4 batches of 16; the fewest steps are 100"),
        (500_000, 1500, "500,000 training queries are 31,250 batches of 16; the most steps are 1,500"),
    ],
)
def test_steps_are_one_pass_within_limits(queries, steps, reason):
    assert steps_of_auto(queries, 16) == (steps, reason)


@given(st.integers(1, 10**6), st.integers(1, 512))
def test_the_steps_are_the_same_for_all_queries_and_for_those_that_training_reads(available, batch_size):
    steps, _ = steps_of_auto(available, batch_size)
    most, _ = queries_read([Train(steps="auto", batch_size=batch_size)])
    imported = min(available, most)
    assert steps_of_auto(imported, batch_size)[0] == steps
    assert imported == min(available, max(imported, 1)) and (imported == available or imported <= steps * batch_size)


def test_as_many_queries_are_read_as_the_longest_training_has_places_for():
    trainings = [Train(steps=120, batch_size=16), Train(steps=50, batch_size=64)]
    assert queries_read(trainings) == (3200, "training reads at most 50 batches of 64")
    assert queries_read([*trainings, Train(epochs=2)])[0] is None


def test_the_number_of_steps_is_the_recipes_or_from_its_epochs():
    assert number_of_steps(Train(steps=7, batch_size=8), 1000) == 7
    assert number_of_steps(Train(epochs=1.5, batch_size=8), 1001) == math.ceil(1.5 * 1001 / 8)
    with pytest.raises(RecipeError, match=r"train\.steps is auto, but no value has been chosen"):
        number_of_steps(Train(steps="auto"), 1000)
