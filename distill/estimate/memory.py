"""Memory of a training process: states that DeepSpeed partitions, the graph of a chunk, what a step keeps of a batch.

Parameters, gradients and optimizer states are float32 at every stage (`distill.training.engine`); ZeRO spreads states
over the processes from stage 1 on, gradients from 2, parameters from 3 (Rajbhandari et al. 2020, arXiv 1910.02054).
A layer's graph holds 34 bytes a token and channel in 16 bits, and 5 for each head and neighbour (Korthikanti et al.
2022, arXiv 2205.05198); float32 doubles it.
"""

from __future__ import annotations

from dataclasses import dataclass

from distill.config import ModelShape, Recipe

BYTES_PER_TERM = 20  # of a sparse representation: term, value, arg-max position
ACTIVE_TERMS = 300  # of a text, at a trained sparsity
_HEAD_CHANNELS = 64


@dataclass(frozen=True)
class Memory:
    """Bytes in one process."""

    states: float  # parameters, gradients, optimizer
    graph: float  # of one chunk
    kept: float  # graphs within the activation budget
    batch: float  # sparse representations of the batch's texts that the process encodes

    @property
    def total(self) -> float:
        return self.states + self.graph + self.kept + self.batch


def training_memory(recipe: Recipe, parameters: float, shape: ModelShape, ranks: int) -> Memory:
    """`parameters`: of the student, embeddings included."""
    train = recipe.train
    stage = train.deepspeed.get("zero_optimization", {}).get("stage", 0)
    optimizer = 8 if train.optimizer == "adamw" else 0
    states = 4 / (ranks if stage >= 3 else 1) + 4 / (ranks if stage >= 2 else 1) + optimizer / (ranks if stage else 1)
    per_token = graph_bytes_per_token(shape, recipe.student.passage_max_length, train.precision)
    texts = -(-train.batch_size // ranks) * (2 + train.negatives)
    return Memory(
        parameters * states,
        per_token * train.chunk_tokens,
        train.activation_budget * 2**30,
        float(texts) * ACTIVE_TERMS * BYTES_PER_TERM,
    )


def graph_bytes_per_token(shape: ModelShape, length: int, precision: str) -> float:
    """Bytes that the graph of a forward holds for each token of a text of `length` tokens."""
    heads = (shape.attention or shape.hidden) / _HEAD_CHANNELS
    half = shape.layers * (34 * shape.hidden + 5 * heads * length)
    return half * (2 if precision == "fp32" else 1)
