"""`train`: batches, losses, optimizer, the cached step, checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill.config.base import ExecutionOnly, FilePath, Fraction, IfSet, Positive, Section
from distill.config.losses import AnyRegularizer, DfFlopsRegularizer, KlLoss, Loss, Regularizer
from distill.config.student import Prompts


class Checkpoints(Section):
    """Training states from which an interrupted training resumes."""

    every: Positive = 500
    """Optimizer steps between checkpoints."""
    keep_last: Positive = 2
    """Number of checkpoints kept."""


class TopK(Section):
    """A cap on the number of active terms, with its share in the loss."""

    k: Positive | None
    """Number of terms kept of each query and passage, the strongest. null: all."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight in the mean over the caps."""


QueryWeights = Literal["equal", "root", "count"]


class Sampling(Section):
    """How a step draws a query's negatives from its pool, without replacement."""

    by: Literal["uniform", "label", "hardest"] = "uniform"
    """`uniform`; `label`: with a probability that grows as exp(label / temperature); `hardest`: highest labels."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of `by: label`, in label units."""
    ranks: tuple[Positive, Positive] | None = None
    """First and last rank of the negatives drawn from; rank 1 has the highest label. null: all."""

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> Sampling:
        if self.temperature != 1.0 and self.by != "label":
            raise ValueError("temperature belongs to by: label")
        if self.ranks is not None and self.ranks[0] > self.ranks[1]:
            raise ValueError(f"ranks are the first and the last rank: {self.ranks[0]} is after {self.ranks[1]}")
        return self


OWN = "own"  # the name of the run's own labels among the datasets


class Dataset(Section):
    """Labels of another run to train on: its own recipe, teachers and miners prepared them, up to `distill label`."""

    run: FilePath
    """Run folder."""
    losses: tuple[Loss, ...] | None = None
    """Losses on this dataset. null: those of `train`."""
    prompts: Prompts | None = None
    """Prefixes of its texts in training. null: the student's."""


class Mixing(Section):
    """Which dataset the next batch comes from."""

    by: Literal["proportional", "round-robin"] = "proportional"
    """`proportional`: drawn by size; `round-robin`: in turn."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of `by: proportional`: drawn by size^(1 / temperature); large values draw all datasets equally often."""

    @model_validator(mode="after")
    def _every_field_has_an_effect(self) -> Mixing:
        if self.temperature != 1.0 and self.by != "proportional":
            raise ValueError("temperature belongs to by: proportional")
        return self


class Train(Section):
    """Batches, losses, optimizer, cached step and checkpoints."""

    batch_size: Positive = 32
    """Queries per optimizer step, over all processes."""
    negatives: Positive = 7
    """Negatives per query, besides its positive. A list without a positive gives one passage more."""
    sampling: Sampling = Sampling()
    """How negatives are drawn."""
    datasets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")], Dataset] = {}
    """Name -> labels of another run, in addition to the run's own."""
    mixing: Mixing = Mixing()
    """How batches are drawn from several datasets."""
    query_weights: IfSet[QueryWeights] = "equal"
    """How often an epoch draws a query of `data.query_log`: each once (`equal`), in proportion to the root of its count
    (`root`), or to its count (`count`). The log's queries have as many draws in all as there are of them."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training queries."""
    steps: Positive | Literal["auto"] | None = None
    """Number of optimizer steps. `auto`: chosen after the import, one pass over the training queries, but at least 100
    and at most 1,500 steps. null: from `epochs`."""
    lr: Annotated[float, Field(gt=0)] = 2e-5
    """Peak learning rate."""
    head_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of the MLM head. null: `lr`."""
    table_lr: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate of a learned query table. null: `lr`."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate after the warm-up: decays to 0 (`linear`, `cosine`), or stays `constant`."""
    warmup_ratio: Fraction = 0.01
    """Share of the steps in which the learning rate grows linearly from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Weight decay of matrices; biases, norms and query tables have none."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD without momentum."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Norm to which gradients are clipped; 0: no clipping."""
    precision: ExecutionOnly[Literal["auto", "fp32", "bf16", "fp16"]] = "auto"
    """Precision of matrix products. `auto`: bf16 on a GPU that has it, else fp16; on a CPU bf16 if it is faster, else
    fp32."""
    losses: tuple[Loss, ...] = (KlLoss(kind="kl"),)
    """Losses, summed with their weights."""
    top_ks: tuple[TopK, ...] = ()
    """Caps on the active terms over which the losses are averaged, so that one student serves all of them. []: none."""
    query_regularizers: tuple[AnyRegularizer, ...] = ()
    """Regularisers of the queries' representations."""
    passage_regularizers: tuple[AnyRegularizer, ...] = ()
    """Regularisers of the passages' representations."""
    chunk_tokens: ExecutionOnly[Positive | Literal["auto"]] = "auto"
    """Padded tokens encoded at a time by each process; bounds the memory and does not change the gradients. `auto`:
    8,192 on a CPU, up to 65,536 on a GPU, as its memory permits."""
    activation_budget: ExecutionOnly[Annotated[float, Field(ge=0)] | Literal["auto"]] = "auto"
    """Memory in GiB per process for autograd graphs that are kept instead of recomputed; 0: none is kept. `auto`: none
    on a CPU, what a GPU has to spare."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout probability. null: the model's own."""
    processes: ExecutionOnly[Positive | None] = None
    """Number of processes on this machine. null: one per GPU, else 1."""
    checkpoints: ExecutionOnly[Checkpoints] = Checkpoints()
    """Checkpoints to resume from."""
    evaluate_every: Positive | None = None
    """Optimizer steps between evaluations on the development set; the best parameters become the model, those of the
    untrained student if no step is better. null: no evaluation, and the last parameters become the model."""
    max_bad_steps: ExecutionOnly[Positive] = 10
    """Number of steps with a non-finite loss or gradient at which training stops."""
    activation_checkpointing: ExecutionOnly[bool] = False
    """Recompute each layer's activations in the backward pass."""
    deepspeed: ExecutionOnly[dict[str, Any]] = {}
    """Settings for DeepSpeed, as a section or as the path of a JSON file; settings that contradict the recipe are
    refused."""

    @property
    def losses_by_field(self) -> dict[str, tuple[Loss, ...]]:
        """Field -> losses: those of the run, and those of datasets that replace them."""
        return {
            "losses": self.losses,
            **{f"datasets.{name}.losses": data.losses for name, data in self.datasets.items() if data.losses},
        }

    @property
    def targets(self) -> dict[str, Regularizer | DfFlopsRegularizer]:
        """Side -> its regulariser with `target_terms`; sides without one are left out."""
        sides = {"query": self.query_regularizers, "passage": self.passage_regularizers}
        return {side: term for side, terms in sides.items() for term in _with_target(terms)}

    @field_validator("deepspeed", mode="before", json_schema_input_type=dict[str, Any] | str)
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
    def _losses_and_datasets(self) -> Train:
        if not self.losses:
            raise ValueError("needs at least one loss")
        if OWN in self.datasets:
            raise ValueError(f"datasets.{OWN}: this name denotes the run's own labels; choose another")
        for name, dataset in self.datasets.items():
            if dataset.losses == ():
                raise ValueError(f"datasets.{name}.losses: needs at least one loss")
        if self.mixing != Mixing() and not self.datasets:
            raise ValueError("mixing has no effect without datasets")
        if len({cap.k for cap in self.top_ks}) < len(self.top_ks):
            raise ValueError("top_ks contains a cap twice; remove one")
        return self

    @model_validator(mode="after")
    def _batches_are_large_enough_for_df_flops(self) -> Train:
        """In a smaller batch one text would make a term common: every term would count fully, as in plain FLOPS."""
        for side, texts, regularizers in (
            ("query", self.batch_size, self.query_regularizers),
            ("passage", self.batch_size * (1 + self.negatives), self.passage_regularizers),
        ):
            for regularizer in regularizers:
                if isinstance(regularizer, DfFlopsRegularizer) and regularizer.alpha * texts <= 1:
                    raise ValueError(
                        f"{side}_regularizers: df-flops measures document frequencies in the {texts} texts of a batch, "
                        f"where alpha {regularizer.alpha:g} is at most one text; raise alpha, batch_size or negatives"
                    )
        return self

    @model_validator(mode="after")
    def _one_target_per_side(self) -> Train:
        for side, terms in (("query", self.query_regularizers), ("passage", self.passage_regularizers)):
            if len(_with_target(terms)) > 1:
                raise ValueError(
                    f"{side}_regularizers: only one regulariser of a side can hold a target; remove target_terms from "
                    "the others"
                )
        return self


def _with_target(terms: tuple[AnyRegularizer, ...]) -> list[Regularizer | DfFlopsRegularizer]:
    """Return the regularisers that hold a target."""
    return [
        term for term in terms if isinstance(term, Regularizer | DfFlopsRegularizer) and term.target_terms is not None
    ]
