"""`evaluate` and `tracking`: what is measured, and who is told."""

from __future__ import annotations

from distill.config.base import Dtype, Positive, Section, Split


class Evaluate(Section):
    split: Split = "test"
    metrics: tuple[str, ...] = ("nDCG@10", "RR@10", "R@100")  # names of ir-measures
    depth: Positive = 1000  # of the ranking
    dev_passages: Positive = 20_000  # searched in during training: judged ones, then candidates by rank
    batch_tokens: Positive | None = None  # padded tokens a batch; None: what suits the device
    precision: Dtype = "auto"  # of the encoder's products; auto: bfloat16 where this machine has it and it is faster
    baselines: bool = True  # BM25, the student's start, each teacher and the ensemble reranking


class Wandb(Section):
    project: str
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()


class Tracking(Section):
    wandb: Wandb | None = None
    log_every: Positive = 10  # optimizer steps
