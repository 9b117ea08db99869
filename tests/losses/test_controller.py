"""The controller of a regulariser's weight equals its written-out formula, and brings simulated texts to the target."""

import math
import random

import pytest
import torch

from distill import config
from distill.losses.controller import Control
from distill.losses.objective import GlobalSlice, Supervision, objective
from tests.losses.reference import LISTS, B, dense_batch, sparse

TARGET, STEPS, RAMP = 40, 100, 10


def adjusted(measured, steps=STEPS):
    """Multipliers after each measurement, with a linear ramp."""
    control, multipliers = Control(), []
    for step, terms in enumerate(measured, start=1):
        control = control.adjusted(terms, TARGET, step, steps, min(step / RAMP, 1.0))
        multipliers.append(control.multiplier)
    return multipliers


def test_the_multiplier_follows_the_written_out_formula():
    draw = random.Random(0)
    measured = [max(400 * 0.97**step * draw.uniform(0.8, 1.2), 5) for step in range(STEPS)]
    smoothed, courses = [measured[0]], []
    for terms in measured[1:]:
        smoothed.append(0.5 * smoothed[-1] + 0.5 * terms)
    for step in range(1, STEPS + 1):
        left = max(1 - step / 90, 0) ** 2
        courses.append(math.exp(left * math.log(measured[0]) + (1 - left) * math.log(TARGET)))
    errors = [max(-1, min(1, math.log(a / b))) for a, b in zip(smoothed, courses, strict=True)]
    integral, expected = 0.0, []
    for step, (terms, error) in enumerate(zip(smoothed, errors, strict=True), start=1):
        past = max(-1, math.log(terms / TARGET))  # below the target, not only below the course
        lasting = error if error > 0 else past if past < 0 else 0
        grown = integral + min(step / RAMP, 1) * 0.4 * lasting
        if abs(14 * error + grown) <= math.log(1000):
            integral = grown
        expected.append(min(max(math.exp(14 * error + integral), 0.001), 1000))
    assert adjusted(measured) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("terms", "bound"), [(1e6, 1e3), (0.0, 1e-3)])
def test_the_multiplier_is_bounded(terms, bound):
    assert adjusted([100.0, *[terms] * 500], steps=20)[-1] == pytest.approx(bound)


@pytest.mark.parametrize("factor", [0.1, 1, 10])
@pytest.mark.parametrize("steps", [150, 5000])
@pytest.mark.parametrize("elasticity", [0.3, 1.0])
def test_delayed_noisy_terms_end_near_the_target(factor, steps, elasticity):
    """The terms follow the weight with a delay of a tenth of the training; a weight of 1 holds the target."""
    draw, logarithm, control, last = random.Random(1), math.log(20), Control(), []
    for step in range(1, steps + 1):
        measured = TARGET * math.exp(logarithm + draw.gauss(0, 0.1))  # as batches of 16 queries
        held = -elasticity * math.log(factor * control.multiplier)
        logarithm += (held - logarithm) / (0.1 * steps)
        control = control.adjusted(measured, TARGET, step, steps, 1.0)
        last = [*last[-20:], logarithm]
    assert abs(sum(last) / len(last)) < 0.15


def test_the_objective_takes_the_multiplier_and_measures_the_terms():
    queries, passages = dense_batch()

    def both(**target):
        train = config.Train.model_validate(
            {
                "query_regularizers": [{"kind": "l1", "weight": 0.3, "ramp": "constant"}],
                "passage_regularizers": [
                    {"kind": "anti-zero", "weight": 0.1, "ramp": "constant"},
                    {"kind": "flops", "weight": 0.5, "ramp": "linear", "ramp_steps": 10, **target},
                ],
            }
        )
        supervision = Supervision(torch.zeros(B, LISTS), GlobalSlice(0, B))
        factors = {"query": 7.0, "passage": 3.0}
        return objective(train, sparse(queries), sparse(passages), supervision, 4, multipliers=factors)

    plain, held = both(), both(target_terms=9)
    assert plain.active is None and plain.weights == {}
    assert held.weights == pytest.approx({"passage_flops_weight": 0.5 * 0.4 * 3})
    assert held.active.tolist() == pytest.approx([(passages > 0).sum(1).float().mean().item()])
    assert held.parts.pop("passage-flops") == pytest.approx(3 * plain.parts.pop("passage-flops").item())
    assert held.parts == plain.parts
