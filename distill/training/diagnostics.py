"""Warnings about common failures of sparse students, from the lines of the training log."""

from __future__ import annotations

import math

from distill import config
from distill.losses.controller import BOUND
from distill.losses.regularizers import ramp

DENSE = 0.25  # active terms, as a share of the vocabulary
EMPTY = 0.05  # share of the texts without active terms
CONFIDENT = 0.98  # mean probability of the teacher's top passage
FLAT = 0.05  # spread of the labels, relative to that of the untrained student's scores


def diagnose(
    train: config.Train, line: dict[str, float], step: int, total_steps: int, vocab_size: int
) -> dict[str, str]:
    """Diagnose one line of the training log: a sentence per problem, by name; empty if there is none."""
    findings: dict[str, str] = {}
    for side, regularizers in (("query", train.query_regularizers), ("passage", train.passage_regularizers)):
        field = f"train.{side}_regularizers"
        if line[f"{side}_empty"] > EMPTY:
            findings[f"{side}-empty"] = (
                f"{line[f'{side}_empty']:.0%} of the {_plural(side)} have no active term and get no gradient; "
                f"lower the weights in {field} or the learning rate, or lengthen the ramp"
            )
        settled = max([total_steps // 4, *(term.ramp_steps for term in regularizers)])
        if step > settled and line[f"{side}_active"] > DENSE * vocab_size:
            findings[f"{side}-dense"] = (
                f"{_plural(side)} still have {line[f'{side}_active']:,.0f} of {vocab_size:,} terms active; "
                f"raise the weights in {field}"
            )
        if (term := train.targets.get(side)) is not None:
            factor = line[f"{side}_{term.kind}_weight"] / (term.weight * ramp(term.ramp, step, term.ramp_steps))
            if abs(math.log(factor)) > 0.99 * BOUND:
                findings[f"{side}-target"] = (
                    f"{_plural(side)} have {line[f'{side}_active']:,.0f} terms active on the way to target_terms "
                    f"{term.target_terms:,}, and the weight is {factor:.3g} times its start, as far as it goes; start "
                    f"from another weight in {field}, train longer, or choose a target closer to what the losses leave"
                )
    losses = sum(abs(line[loss.kind]) for loss in {loss.kind: loss for loss in train.losses}.values())
    penalties = sum(value for name, value in line.items() if name.startswith(("query-", "passage-")))
    if penalties > losses:
        findings["penalty"] = (
            f"the regularisers ({penalties:.3g}) exceed the ranking losses ({losses:.3g}): training mostly optimises "
            "sparsity; lower their weights or lengthen the ramp"
        )
    if any(isinstance(loss, config.KlLoss) for loss in train.losses) and line["teacher_confidence"] > CONFIDENT:
        findings["saturated"] = (
            f"the teacher is saturated: its top passage has probability {line['teacher_confidence']:.1%} on average, "
            "so that KL learns little about the other passages; raise teacher_temperature in train.losses"
        )
    scale = _label_scale(train)
    dense_start = line["passage_active"] > DENSE * vocab_size  # such a student has large scores whatever the labels
    if step == 1 and scale and not dense_start and scale * line["label_spread"] < FLAT * line["score_spread"]:
        findings["flat-labels"] = (
            "the labels of a query's passages hardly differ (standard deviation "
            f"{scale * line['label_spread']:.2g}; that of the student's scores is {line['score_spread']:.2g}), so "
            "that the student learns to score all passages alike; raise label.scale, map the labels to a teacher's "
            "own scale with label.map_to, or use a better teacher"
        )
    return findings


def _label_scale(train: config.Train) -> float:
    """Largest factor from labels to the student scores that the losses aim at; 0 if no loss uses the labels."""
    scales = [
        loss.student_temperature / loss.teacher_temperature if isinstance(loss, config.KlLoss) else 1.0
        for loss in train.losses
        if isinstance(loss, config.KlLoss | config.MarginMseLoss)
    ]
    return max(scales, default=0.0)


def _plural(side: str) -> str:
    return {"query": "queries", "passage": "passages"}[side]
