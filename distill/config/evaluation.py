"""`evaluate` and `tracking`: metrics, baselines and experiment trackers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config.base import Dtype, ExecutionOnly, Positive, Section, Split
from distill.config.evaluators import Evaluator
from distill.config.seismic import Seismic


class Evaluate(Section):
    """What is measured, on which queries, against which baselines."""

    split: Split = "test"
    """Split whose judged queries are evaluated."""
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("nDCG@10", "RR@10", "R@100")
    """Metrics, by their names in ir-measures; the first selects the best step during training."""
    depth: Positive = 1000
    """Number of passages per ranking."""
    dev_passages: Positive = 20_000
    """Number of passages searched during training: judged ones first, then candidates by rank."""
    batch_tokens: ExecutionOnly[Positive | None] = None
    """Padded tokens per batch. null: 4,096 on processor cores, 65,536 on a GPU."""
    precision: ExecutionOnly[Dtype] = "auto"
    """Precision of the encoder's matrix products. `auto`: 16 bits where this machine computes faster with them."""
    baselines: bool = True
    """Also measure BM25, the untrained student, and each teacher and the ensemble as rerankers."""
    start: bool = True
    """Include the untrained student in the baselines. It has many active terms, so a large collection takes long to
    encode and search."""
    search: Literal["exact", "seismic"] = "exact"
    """Search of the student and the untrained student. `seismic`: approximate, for large collections."""
    seismic: Seismic = Seismic()
    """Settings of Seismic."""
    top_ks: tuple[Positive, ...] = ()
    """Caps on the number of active terms per text; the student is measured once more with each."""
    top_ks_of: Literal["both", "passages", "queries"] = "both"
    """Side that `top_ks` caps."""
    evaluators: tuple[Evaluator, ...] = ()
    """Evaluators of sentence-transformers, run on the saved student."""

    @property
    def searches_bm25(self) -> bool:
        """Whether BM25's rankings are needed."""
        return self.baselines or any(entry.kind == "reciprocal-rank-fusion" for entry in self.evaluators)

    @model_validator(mode="after")
    def _no_option_without_effect(self) -> Evaluate:
        if self.search == "exact" and self.seismic != Seismic() and not self.top_ks:
            raise ValueError("the settings of `seismic` have no effect on exact search: set search: seismic")
        if not self.start and not self.baselines:
            raise ValueError("`start` has no effect without `baselines`")
        if self.top_ks_of != "both" and not self.top_ks:
            raise ValueError("`top_ks_of` has no effect without `top_ks`")
        return self

    @model_validator(mode="after")
    def _evaluators_fit(self) -> Evaluate:
        names = [entry.name or entry.kind for entry in self.evaluators]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"two evaluators are called {repeated!r}: give one of them a `name`")
        deepest = max((entry.depth for entry in self.evaluators if entry.kind == "reciprocal-rank-fusion"), default=0)
        if deepest > self.depth:
            raise ValueError(
                f"reciprocal-rank-fusion reads the best {deepest} of rankings that have a `depth` of {self.depth}; "
                "lower its depth, or raise evaluate.depth"
            )
        return self


class Wandb(Section):
    """Weights & Biases."""

    project: str
    """Project that the run is logged to."""
    entity: str | None = None
    """User or team. null: the account's default."""
    group: str | None = None
    """Group of runs. null: none."""
    tags: tuple[str, ...] = ()
    """Tags of the run."""


class Tracking(Section):
    """Experiment trackers, besides the JSON logs that every run writes."""

    wandb: Wandb | None = None
    """Log to Weights & Biases. null: do not."""
    tensorboard: bool = False
    """Write TensorBoard event files to logs/tensorboard in the run folder."""
    codecarbon: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    """Estimate each stage's energy and CO2 with CodeCarbon, for the electricity of this country (ISO 3166, e.g. FRA).
    null: do not."""
    log_every: Positive = 10
    """Optimizer steps between lines of the training log."""
