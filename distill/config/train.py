"""`train`: batches, optimizer, the cached step, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.config.base import FilePath, Fraction, Positive, Section
from distill.config.losses import AnyRegularizer, DfFlopsRegularizer, KlLoss, Loss, Reconstruction
from distill.config.student import Prompts


class Checkpoints(Section):
    every: Positive = 500  # optimizer steps
    keep_last: Positive = 2


class TopK(Section):
    k: Positive | None  # strongest terms kept of each query and passage; None: all
    weight: Annotated[float, Field(gt=0)] = 1.0  # relative to the others


class Sampling(Section):
    """How a step draws a query's negatives from its pool, without replacement."""

    by: Literal["uniform", "label", "hardest"] = "uniform"  # label: the chance grows as exp(label / temperature)
    temperature: Annotated[float, Field(gt=0)] = 1.0  # of `label`, in label units
    ranks: tuple[Positive, Positive] | None = None  # only negatives at these places, the highest label first

    @model_validator(mode="after")
    def _every_field_counts(self) -> Sampling:
        if self.temperature != 1.0 and self.by != "label":
            raise ValueError("temperature belongs to by: label")
        if self.ranks is not None and self.ranks[0] > self.ranks[1]:
            raise ValueError(f"ranks go from the first to the last place: {self.ranks[0]} is after {self.ranks[1]}")
        return self


OWN = "own"  # the name of the run's own labels among the datasets


class Dataset(Section):
    """Another run's labels to train on: its recipe has prepared them up to `distill label`, with teachers and miners
    of its own."""

    run: FilePath  # its run folder
    losses: tuple[Loss, ...] | None = None  # None: those of `train`
    prompts: Prompts | None = None  # of its texts in training; None: the student's


class Mixing(Section):
    """Which dataset the next batch comes from."""

    by: Literal["proportional", "round-robin"] = "proportional"  # drawn by size, or in turn
    temperature: Annotated[float, Field(gt=0)] = 1.0  # drawn by size^(1 / temperature); large: all alike

    @model_validator(mode="after")
    def _every_field_counts(self) -> Mixing:
        if self.temperature != 1.0 and self.by != "proportional":
            raise ValueError("temperature belongs to by: proportional")
        return self


class Train(Section):
    batch_size: Positive = 32  # queries, over all processes
    negatives: Positive = 7  # passages a query besides its positive
    sampling: Sampling = Sampling()
    datasets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Dataset] = {}  # beside the run's own
    mixing: Mixing = Mixing()
    epochs: Annotated[float, Field(gt=0)] = 1.0
    steps: Positive | None = None  # overrides epochs
    lr: Annotated[float, Field(gt=0)] = 2e-5
    head_lr: Annotated[float, Field(gt=0)] | None = None  # the MLM head's own; None: lr
    table_lr: Annotated[float, Field(gt=0)] | None = None  # the learned query table's own; None: lr
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    optimizer: Literal["adamw", "sgd"] = "adamw"
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0  # 0: no clipping
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    losses: tuple[Loss, ...] = (KlLoss(kind="kl"),)
    top_ks: tuple[TopK, ...] = ()  # the losses are averaged over these caps, so that one student serves all of them
    reconstruction: Reconstruction | None = None  # beside the losses, for students of kind csr
    query_regularizers: tuple[AnyRegularizer, ...] = ()
    passage_regularizers: tuple[AnyRegularizer, ...] = ()
    chunk_tokens: Positive = 8192  # padded tokens encoded at a time
    activation_budget: Annotated[float, Field(ge=0)] = 0.0  # GiB of graphs kept instead of recomputed
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None  # None: the model's own
    processes: Positive | None = None  # on this machine; None: one per GPU, else 1
    checkpoints: Checkpoints = Checkpoints()
    evaluate_every: Positive | None = None  # optimizer steps between evaluations on the development set
    max_bad_steps: Positive = 10  # steps with a non-finite loss or gradient before the run stops
    activation_checkpointing: bool = False
    # passed through, as a section or the path of a JSON file; what contradicts the recipe is refused
    deepspeed: dict[str, Any] = {}

    @property
    def losses_by_field(self) -> dict[str, tuple[Loss, ...]]:
        """The run's own losses, and those that datasets have instead."""
        return {
            "losses": self.losses,
            **{f"datasets.{name}.losses": other.losses for name, other in self.datasets.items() if other.losses},
        }

    @field_validator("deepspeed", mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(Path(value).expanduser().read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{value} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ValueError(f"{value} is not valid JSON: {error}") from None

    @model_validator(mode="after")
    def _some_loss(self) -> Train:
        if not self.losses:
            raise ValueError("needs at least one loss")
        if OWN in self.datasets:
            raise ValueError(f"datasets.{OWN}: the name belongs to the run's own labels; choose another")
        for name, dataset in self.datasets.items():
            if dataset.losses == ():
                raise ValueError(f"datasets.{name}.losses: needs at least one loss")
        if self.mixing != Mixing() and not self.datasets:
            raise ValueError("mixing has no effect without datasets")
        if len({cap.k for cap in self.top_ks}) < len(self.top_ks):
            raise ValueError("top_ks has a cap twice")
        return self

    @model_validator(mode="after")
    def _batch_tells_common_terms_apart(self) -> Train:
        """In fewer texts, one alone would make a term common: every term would count, as in plain FLOPS."""
        for side, texts, terms in (
            ("query", self.batch_size, self.query_regularizers),
            ("passage", self.batch_size * (1 + self.negatives), self.passage_regularizers),
        ):
            for term in terms:
                if isinstance(term, DfFlopsRegularizer) and term.alpha * texts <= 1:
                    raise ValueError(
                        f"{side}_regularizers: df-flops tells terms apart by their frequency in the "
                        f"{texts} texts of a batch, where alpha {term.alpha:g} is no more than one text; "
                        "raise alpha, batch_size or negatives"
                    )
        return self
