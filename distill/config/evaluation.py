"""`evaluate` and `tracking`: what is measured, and who is told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from distill.config.base import Dtype, Fraction, Positive, Section, Split
from distill.config.evaluators import Evaluator


class Seismic(Section):
    """Approximate search in clustered posting lists (Bruch et al., SIGIR 2024), by the names of pyseismic-lsr."""

    n_postings: Positive = 3500  # kept a term, on average
    centroid_fraction: Annotated[float, Field(gt=0, le=1)] = 0.1  # clusters, per posting of a list
    min_cluster_size: Positive = 2  # postings
    summary_energy: Fraction = 0.4  # of a cluster's weights, kept in its summary
    query_cut: Positive = 10  # the strongest terms of a query, whose lists are looked through
    heap_factor: Annotated[float, Field(gt=0, le=1)] = 0.7  # 1: skip only clusters that cannot reach the best k


class Evaluate(Section):
    split: Split = "test"
    metrics: Annotated[tuple[str, ...], Field(min_length=1)] = ("nDCG@10", "RR@10", "R@100")  # names of ir-measures
    depth: Positive = 1000  # of the ranking
    dev_passages: Positive = 20_000  # searched in during training: judged ones, then candidates by rank
    batch_tokens: Positive | None = None  # padded tokens a batch; None: what suits the device
    precision: Dtype = "auto"  # of the encoder's products; auto: bfloat16 where this machine has it and it is faster
    baselines: bool = True  # BM25, the student's start, each teacher and the ensemble reranking
    start: bool = True  # among the baselines; false spares a large collection's encoding, with a start far from sparse
    search: Literal["exact", "seismic"] = "exact"  # for the student and its start; seismic: large collections
    seismic: Seismic = Seismic()
    top_ks: tuple[Positive, ...] = ()  # measure the student once more with each cap on the active terms of a text
    top_ks_of: Literal["both", "passages", "queries"] = "both"  # whose terms are capped
    evaluators: tuple[Evaluator, ...] = ()  # sentence-transformers' own, run on the saved student

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
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"two evaluators are called {double!r}: give one of them a `name`")
        deepest = max((entry.depth for entry in self.evaluators if entry.kind == "reciprocal-rank-fusion"), default=0)
        if deepest > self.depth:
            raise ValueError(
                f"reciprocal-rank-fusion looks at the best {deepest}, but rankings have a `depth` of {self.depth}"
            )
        return self


class Wandb(Section):
    project: str
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


class Tracking(Section):
    wandb: Wandb | None = None
    tensorboard: bool = False  # event files in the run folder, logs/tensorboard
    # whose electricity it is, as FRA (ISO 3166): each stage's energy and CO2 are estimated by CodeCarbon
    codecarbon: Annotated[str, Field(pattern=r"^[A-Z]{3}$")] | None = None
    log_every: Positive = 10  # optimizer steps
