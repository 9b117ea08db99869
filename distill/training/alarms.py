"""What goes wrong with sparse students, noticed early and said in words."""

from __future__ import annotations

from distill import config

DENSE = 0.25  # of the vocabulary
EMPTY = 0.05  # of the texts
CONFIDENT = 0.98  # mean probability of a teacher's favourite


def alarms(train: config.Train, line: dict[str, float], step: int, total_steps: int, vocab_size: int
           ) -> dict[str, str]:
    """Sentences about one line of the training log, by the alarm's name; empty when all is well."""
    said: dict[str, str] = {}
    for side, regularizers in (("query", train.query_regularizers), ("passage", train.passage_regularizers)):
        field = f"train.{side}_regularizers"
        if line[f"{side}_empty"] > EMPTY:
            said[f"{side}-empty"] = (
                f"{line[f'{side}_empty']:.0%} of the {_plural(side)} have no active term, and learn nothing more: "
                f"lower the weights in {field} or the learning rate, or lengthen the ramp")
        settled = max([total_steps // 4, *(term.ramp_steps for term in regularizers)])
        if step > settled and line[f"{side}_active"] > DENSE * vocab_size:
            said[f"{side}-dense"] = (f"{_plural(side)} still have {line[f'{side}_active']:,.0f} active terms of "
                                     f"{vocab_size:,}: raise the weights in {field}")
    losses = sum(abs(line[loss.kind]) for loss in {loss.kind: loss for loss in train.losses}.values())
    penalties = sum(value for name, value in line.items() if name.startswith(("query-", "passage-")))
    if penalties > losses:
        said["penalty"] = (f"the regularisers ({penalties:.3g}) outweigh the losses ({losses:.3g}): what is learnt is "
                           "mostly to be sparse")
    if any(isinstance(loss, config.KlLoss) for loss in train.losses) and line["teacher_confidence"] > CONFIDENT:
        said["saturated"] = (
            f"the teacher is saturated: it gives its favourite passage {line['teacher_confidence']:.1%} on average, so "
            "that KL sees little but the top; raise train.losses teacher_temperature")
    return said


def _plural(side: str) -> str:
    return {"query": "queries", "passage": "passages"}[side]
