"""Memory of a training process: model states, the autograd graph of a chunk, and what a step keeps of a batch.

Parameters, gradients and optimizer states are float32 (`distill.training.engine`). ZeRO partitions optimizer states
from stage 1, gradients from stage 2, parameters from stage 3 (Rajbhandari et al. 2020, arXiv 1910.02054). In 16 bits, a
layer's graph holds 34 bytes per token and channel, and 5 per token, head and token attended to (Korthikanti et al.
2022, arXiv 2205.05198); float32 doubles that.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.config import Recipe, max_length
from distill.planning.flops import ModelCost

BYTES_PER_TERM = 20  # in a sparse representation: term, value, arg-max position
ACTIVE_TERMS = 300  # per text, at a trained sparsity


@dataclass(frozen=True)
class Memory:
    """Bytes per process."""

    states: float  # parameters, gradients, optimizer
    graph: float  # of one chunk
    kept: float  # graphs within the activation budget
    batch: float  # sparse representations of the process's share of the batch

    @property
    def total(self) -> float:
        """All of them."""
        return self.states + self.graph + self.kept + self.batch


def training_memory(recipe: Recipe, model: ModelCost, ranks: int) -> Memory:
    """Return the memory of training a student of this shape, in each of `ranks` processes."""
    train = recipe.train
    stage = train.deepspeed.get("zero_optimization", {}).get("stage", 0)
    optimizer = 8 if train.optimizer == "adamw" else 0
    states = 4 / (ranks if stage >= 3 else 1) + 4 / (ranks if stage >= 2 else 1) + optimizer / (ranks if stage else 1)
    per_token = graph_bytes_per_token(model, max_length(recipe.trained_student, "passage"), train.precision)
    texts = -(-train.batch_size // ranks) * (2 + train.negatives)
    return Memory(
        model.parameters * states,
        per_token * train.chunk_tokens,
        train.activation_budget * 2**30,
        float(texts) * ACTIVE_TERMS * BYTES_PER_TERM,
    )


def graph_bytes_per_token(model: ModelCost, length: int, precision: str) -> float:
    """Return the bytes of the autograd graph of a forward pass, per token of a text of `length` tokens."""
    half = model.layers * (34 * model.hidden + 5 * model.heads * length)
    return half * (2 if precision == "fp32" else 1)
