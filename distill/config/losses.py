"""`train.losses` and the regularisers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.config.base import Positive, Section

Weight = Annotated[float, Field(gt=0)]


class KlLoss(Section):
    kind: Literal["kl"]
    weight: Weight = 1.0
    student_temperature: Annotated[float, Field(gt=0)] = 1.0
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0


class MarginMseLoss(Section):
    kind: Literal["margin-mse"]
    weight: Weight = 1.0
    pairs: Literal["positive", "all"] = "positive"  # positive against each negative, or all pairs of the list


class InfoNceLoss(Section):
    kind: Literal["infonce"]
    weight: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0
    in_batch: bool = True  # other queries' passages, of all processes, as negatives


class RankNetLoss(Section):
    kind: Literal["ranknet"]
    weight: Weight = 1.0
    pair_weights: Literal["equal", "rank", "ndcg"] = "equal"  # rank: FIRST's, by the teacher's ranks; ndcg: LambdaRank


class AdrMseLoss(Section):
    kind: Literal["adr-mse"]
    weight: Weight = 1.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


class TripletLoss(Section):
    kind: Literal["triplet"]
    weight: Weight = 1.0
    distance: Literal["euclidean", "cosine"] = "euclidean"
    margin: Annotated[float, Field(ge=0)] = 5.0


class CosineLoss(Section):
    kind: Literal["cosine-similarity"]
    weight: Weight = 1.0


class CosentLoss(Section):
    kind: Literal["cosent", "angle"]
    weight: Weight = 1.0
    scale: Annotated[float, Field(gt=0)] = 20.0


class EmbeddingMseLoss(Section):
    kind: Literal["embedding-mse"]
    weight: Weight = 1.0
    teacher: str  # of kind splade, with the student's vocabulary (in `datasets`: a teacher of that run)
    of: Literal["both", "query", "passage"] = "both"  # the texts whose vectors are learnt

    @property
    def sides(self) -> tuple[Literal["query", "passage"], ...]:
        return ("query", "passage") if self.of == "both" else (self.of,)


class CustomLoss(Section):
    """`cls`: import path of a function (scores [b, 1+n], labels [b, 1+n], **options) -> mean over the b queries."""

    kind: Literal["custom"]
    weight: Weight = 1.0
    cls: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    options: dict[str, Any] = {}


Loss = Annotated[
    KlLoss
    | MarginMseLoss
    | InfoNceLoss
    | RankNetLoss
    | AdrMseLoss
    | TripletLoss
    | CosineLoss
    | CosentLoss
    | EmbeddingMseLoss
    | CustomLoss,
    Field(discriminator="kind"),
]


class Ramped(Section):
    """What all regularisers have: a weight, and how it grows from zero in the first `ramp_steps` optimizer steps."""

    weight: Annotated[float, Field(ge=0)]
    ramp: Literal["constant", "linear", "quadratic"] = "quadratic"
    ramp_steps: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _a_ramp_has_steps(self) -> Ramped:
        if self.ramp == "constant" and self.ramp_steps:
            raise ValueError("ramp_steps has no effect with ramp: constant")
        return self


class Regularizer(Ramped):
    kind: Literal["flops", "l1", "anti-zero"]
    group_size: Positive | None = None  # flops: texts a mean is taken over; None: the global batch
    threshold: Annotated[int, Field(ge=0)] | None = None  # texts with at most so many active terms go free

    @model_validator(mode="after")
    def _every_field_counts(self) -> Regularizer:
        if self.group_size is not None and self.kind != "flops":
            raise ValueError("group_size belongs to flops")
        return self


class DfFlopsRegularizer(Ramped):
    kind: Literal["df-flops"]
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1  # share of the texts from which on a term counts as common
    beta: Annotated[float, Field(gt=0)] = 10.0  # how sharply


class CustomRegularizer(Ramped):
    """`cls`: import path of a function (SparseReps of this process's texts, number of texts in the global batch,
    **options) -> value of the global batch."""

    kind: Literal["custom"]
    cls: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    options: dict[str, Any] = {}


AnyRegularizer = Annotated[Regularizer | DfFlopsRegularizer | CustomRegularizer, Field(discriminator="kind")]


class Reconstruction(Section):
    """What an autoencoder loses (`CSRReconstructionLoss`), for students of kind csr."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    beta: Annotated[float, Field(ge=0)] = 0.1  # of what dead latents make of the rest
