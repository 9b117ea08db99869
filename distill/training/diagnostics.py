"""What goes wrong with sparse students, noticed early and said in words."""

from __future__ import annotations

from distill import config

DENSE = 0.25  # of the vocabulary
EMPTY = 0.05  # of the texts
CONFIDENT = 0.98  # mean probability of a teacher's favourite
FLAT = 0.05  # spread of the labels beside that of the untrained student's scores


def alarms(train: config.Train, line: dict[str, float], step: int, total_steps: int, vocab_size: int) -> dict[str, str]:
    """Sentences about one line of the training log, by the alarm's name; empty when all is well."""
    said: dict[str, str] = {}
    for side, regularizers in (("query", train.query_regularizers), ("passage", train.passage_regularizers)):
        field = f"train.{side}_regularizers"
        if line[f"{side}_empty"] > EMPTY:
            said[f"{side}-empty"] = (
                f"{line[f'{side}_empty']:.0%} of the {_plural(side)} have no active term, and learn nothing more: "
                f"lower the weights in {field} or the learning rate, or lengthen the ramp"
            )
        settled = max([total_steps // 4, *(term.ramp_steps for term in regularizers)])
        if step > settled and line[f"{side}_active"] > DENSE * vocab_size:
            said[f"{side}-dense"] = (
                f"{_plural(side)} still have {line[f'{side}_active']:,.0f} active terms of "
                f"{vocab_size:,}: raise the weights in {field}"
            )
    losses = sum(abs(line[loss.kind]) for loss in {loss.kind: loss for loss in train.losses}.values())
    penalties = sum(value for name, value in line.items() if name.startswith(("query-", "passage-")))
    if penalties > losses:
        said["penalty"] = (
            f"the regularisers ({penalties:.3g}) outweigh the losses ({losses:.3g}): what is learnt is "
            "mostly to be sparse"
        )
    if any(isinstance(loss, config.KlLoss) for loss in train.losses) and line["teacher_confidence"] > CONFIDENT:
        said["saturated"] = (
            f"the teacher is saturated: it gives its favourite passage {line['teacher_confidence']:.1%} on average, so "
            "that KL sees little but the top; raise train.losses teacher_temperature"
        )
    scale = _label_scale(train)
    dense_start = line["passage_active"] > DENSE * vocab_size  # its scores are large whatever the labels are
    if step == 1 and scale and not dense_start and scale * line["label_spread"] < FLAT * line["score_spread"]:
        said["flat-labels"] = (
            "the labels of a query's passages hardly differ (standard deviation "
            f"{scale * line['label_spread']:.2g}, the student's scores {line['score_spread']:.2g}): the student will "
            "be taught to say nothing; raise label.scale, or map the labels to a teacher's own scale with "
            "label.map_to, or use a better teacher"
        )
    return said


def _label_scale(train: config.Train) -> float:
    """What the losses multiply the labels by to make of them what the student's scores should be; 0: none uses them."""
    scales = [
        loss.student_temperature / loss.teacher_temperature if isinstance(loss, config.KlLoss) else 1.0
        for loss in train.losses
        if isinstance(loss, config.KlLoss | config.MarginMseLoss)
    ]
    return max(scales, default=0.0)


def _plural(side: str) -> str:
    return {"query": "queries", "passage": "passages"}[side]
