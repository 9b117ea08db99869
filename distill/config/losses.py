"""`train.losses` and the regularisers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill.config.base import Positive, Section


class KlLoss(Section):
    kind: Literal["kl"]
    weight: float = 1.0
    student_temperature: Annotated[float, Field(gt=0)] = 1.0
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0


class MarginMseLoss(Section):
    kind: Literal["margin-mse"]
    weight: float = 1.0
    pairs: Literal["positive", "all"] = "positive"  # positive against each negative, or all pairs of the list


class InfoNceLoss(Section):
    kind: Literal["infonce"]
    weight: float = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    in_batch: bool = True  # other queries' passages, of all processes, as negatives


Loss = Annotated[KlLoss | MarginMseLoss | InfoNceLoss, Field(discriminator="kind")]


class Regularizer(Section):
    kind: Literal["flops", "l1", "anti-zero"]
    weight: Annotated[float, Field(ge=0)]
    ramp: Literal["constant", "linear", "quadratic"] = "quadratic"
    ramp_steps: Annotated[int, Field(ge=0)] = 0  # optimizer steps
    group_size: Positive | None = None  # flops: texts a mean is taken over; None: the global batch
    threshold: Annotated[int, Field(ge=0)] | None = None  # texts with at most so many active terms go free
