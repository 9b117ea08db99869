"""`train.losses` and the regularisers of `train`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.config.base import Count, IfSet, Positive, Section

Weight = Annotated[float, Field(gt=0)]


class KlLoss(Section):
    """Kullback-Leibler divergence between the teacher's and the student's softmax over a query's passages."""

    kind: Literal["kl"]
    """KL divergence (`SparseDistillKLDivLoss`)."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    student_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divisor of the student's scores."""
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divisor of the labels."""


class MarginMseLoss(Section):
    """Squared error of score differences against label differences."""

    kind: Literal["margin-mse"]
    """MarginMSE (`SparseMarginMSELoss`)."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    pairs: Literal["positive", "all"] = "positive"
    """`positive`: the positive with each negative, in a list without a positive the passage with the highest label with
    each other one; `all`: all pairs of the list (SPLADE-v3)."""


class InfoNceLoss(Section):
    """Cross-entropy of the positive against negatives; labels are not read."""

    kind: Literal["infonce"]
    """InfoNCE (`SparseMultipleNegativesRankingLoss`)."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divisor of the scores."""
    in_batch: bool = True
    """Add the passages of all other queries, over all processes, as negatives, except known positives."""
    pseudo_positive: IfSet[bool] = False
    """In a list without a positive, the passage with the highest label takes its place. Otherwise training data with
    such lists is refused."""


class RankNetLoss(Section):
    """Logistic loss on the pairs of a list that the teacher orders."""

    kind: Literal["ranknet"]
    """RankNet."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    pair_weights: Literal["equal", "rank", "ndcg"] = "equal"
    """`rank`: by the teacher's ranks (FIRST, arXiv 2406.15657); `ndcg`: by the change of nDCG (LambdaRank)."""


class AdrMseLoss(Section):
    """Squared error of approximate ranks, discounted by the teacher's ranks (arXiv 2405.07920)."""

    kind: Literal["adr-mse"]
    """ADR-MSE."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divisor of score differences in the approximate rank; lower is closer to the true rank."""


class TripletLoss(Section):
    """Hinge loss on the distances of the positive and of each negative from the query; labels are not read."""

    kind: Literal["triplet"]
    """Triplet loss (`SparseTripletLoss`)."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Distance of two vectors."""
    margin: Annotated[float, Field(ge=0)] = 5.0
    """Margin by which the positive must be closer than a negative."""
    pseudo_positive: IfSet[bool] = False
    """In a list without a positive, the passage with the highest label takes its place. Otherwise training data with
    such lists is refused."""


class CosineLoss(Section):
    """Squared error of the cosine against the label, which must lie between 0 and 1."""

    kind: Literal["cosine-similarity"]
    """`SparseCosineSimilarityLoss`."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""


class CosentLoss(Section):
    """Pairwise ranking loss on similarities, over all pairs of the global batch that the labels order."""

    kind: Literal["cosent", "angle"]
    """Similarity: `cosent` the cosine (`SparseCoSENTLoss`), `angle` AnglE's (`SparseAnglELoss`)."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    scale: Annotated[float, Field(gt=0)] = 20.0
    """Factor of the similarities (inverse temperature)."""


class EmbeddingMseLoss(Section):
    """Squared error of sparse vectors against those of a teacher of kind splade with the student's vocabulary."""

    kind: Literal["embedding-mse"]
    """`SparseMSELoss`."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    teacher: str
    """Name of the teacher; for a loss of `train.datasets`, a teacher of that run."""
    of: Literal["both", "query", "passage"] = "both"
    """Texts whose vectors are distilled."""

    @property
    def sides(self) -> tuple[Literal["query", "passage"], ...]:
        """The texts that `of` selects."""
        return ("query", "passage") if self.of == "both" else (self.of,)


class CustomLoss(Section):
    """A user-defined function (scores [b, 1+n], labels [b, 1+n], **options) -> mean over the b queries. The positive is
    first in a list, or the highest label if it has no positive."""

    kind: Literal["custom"]
    """A user-defined function."""
    weight: Weight = 1.0
    """Factor of this loss in the sum."""
    cls: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """Import path of the function, package.module:name."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""


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
    """Fields of all regularisers: a weight that grows from zero during the first `ramp_steps` optimizer steps."""

    weight: Annotated[float, Field(ge=0)]
    """Factor of this regulariser after the ramp."""
    ramp: Literal["constant", "linear", "quadratic"] = "quadratic"
    """Growth of the weight; `constant`: no ramp."""
    ramp_steps: Count = 0
    """Length of the ramp in optimizer steps; 0: no ramp."""

    @model_validator(mode="after")
    def _a_ramp_has_steps(self) -> Ramped:
        if self.ramp == "constant" and self.ramp_steps:
            raise ValueError("ramp_steps has no effect with ramp: constant")
        return self


class SparsityRegularizer(Ramped):
    """Fields of the regularisers that make representations sparser: a target that their weight is adjusted to."""

    target_terms: IfSet[Positive | None] = None
    """Mean number of active terms per text to hold: training adjusts the weight, `weight` is where it starts. null:
    `weight` is kept."""

    @model_validator(mode="after")
    def _a_target_has_a_weight_to_adjust(self) -> SparsityRegularizer:
        if self.target_terms is not None and self.weight == 0:
            raise ValueError("target_terms multiplies `weight`, which is 0; set a weight above 0 to start from")
        return self


class Regularizer(SparsityRegularizer):
    """A penalty on the weights of the global batch."""

    kind: Literal["flops", "l1", "anti-zero"]
    """`flops`: squared mean weight of a term, summed over terms (`FlopsLoss`); `l1`: mean sum of a text's weights;
    `anti-zero`: inverse squared sum of all weights, against representations that die out."""
    group_size: Positive | None = None
    """Of `flops`: number of texts over which means are taken. null: the global batch."""
    threshold: Count | None = None
    """Texts with at most this many active terms are exempt (arXiv 2504.14839). null: none are."""

    @model_validator(mode="after")
    def _group_size_belongs_to_flops(self) -> Regularizer:
        if self.group_size is not None and self.kind != "flops":
            raise ValueError("group_size belongs to flops")
        return self

    @model_validator(mode="after")
    def _the_target_is_in_reach(self) -> Regularizer:
        if self.target_terms is None:
            return self
        if self.kind == "anti-zero":
            raise ValueError("target_terms has no meaning with anti-zero, which does not make texts sparser; remove it")
        if self.threshold is not None and self.threshold >= self.target_terms:
            raise ValueError(
                f"target_terms {self.target_terms} is out of reach: texts with at most {self.threshold} terms are "
                "exempt (threshold); lower threshold below the target, or leave it out"
            )
        return self


class DfFlopsRegularizer(SparsityRegularizer):
    """FLOPS with each term weighted by its document frequency in the batch (arXiv 2505.15070)."""

    kind: Literal["df-flops"]
    """DF-FLOPS."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Document frequency, as a share of the texts, at which a term gets half of the full penalty."""
    beta: Annotated[float, Field(gt=0)] = 10.0
    """Steepness of the penalty around `alpha`."""


class CustomRegularizer(Ramped):
    """A user-defined function (SparseReps of this process's texts, number of texts in the global batch, **options) ->
    value of the global batch."""

    kind: Literal["custom"]
    """A user-defined function."""
    cls: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """Import path of the function, package.module:name."""
    options: dict[str, Any] = {}
    """Keyword arguments of the function."""


AnyRegularizer = Annotated[Regularizer | DfFlopsRegularizer | CustomRegularizer, Field(discriminator="kind")]
