"""Memory of a training process: model states, the autograd graph of a chunk, and what a step keeps of a batch.

Parameters, gradients and optimizer states are float32 (`distill.training.engine`). ZeRO partitions optimizer states
from stage 1, gradients from stage 2, parameters from stage 3 (Rajbhandari et al. 2020, arXiv 1910.02054). In 16 bits, a
layer's graph holds 34 bytes per token and channel, and 5 per token, head and token attended to (Korthikanti et al.
2022, arXiv 2205.05198); float32 doubles that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distill.config import Recipe, Train, max_length
from distill.planning.devices import Device
from distill.planning.flops import ModelCost

BYTES_PER_TERM = 20  # in a sparse representation: term, value, arg-max position
ACTIVE_TERMS = 300  # per text, at a trained sparsity
_CPU_CHUNK, _GPU_CHUNK = 8192, 65_536  # tokens; a GPU is launched less often, a CPU's caches are small
_OF_CHUNK, _OF_ALL = 0.4, 0.6  # shares of the free memory for the graph of a chunk, and for all graphs


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


def chunk_tokens(train: Train, cuda: bool, free: float = math.inf, graph_bytes: float = 0.0) -> int:
    """Return `train.chunk_tokens`; for `auto`, what a device of this kind encodes well and has room for.

    `free`: bytes beside parameters, gradients and optimizer states; `graph_bytes`: of the autograd graph, per token.
    """
    if train.chunk_tokens != "auto":
        return train.chunk_tokens
    tokens = _GPU_CHUNK if cuda else _CPU_CHUNK
    while tokens > _CPU_CHUNK and tokens * graph_bytes > _OF_CHUNK * free:
        tokens //= 2
    return tokens


def kept_bytes(train: Train, cuda: bool, free: float, chunk_bytes: float) -> float:
    """Return `train.activation_budget` in bytes; for `auto`, what remains of a GPU's free memory beside one chunk."""
    if train.activation_budget != "auto":
        return train.activation_budget * 2**30
    return max(0.0, _OF_ALL * free - chunk_bytes) if cuda else 0.0


def training_memory(recipe: Recipe, model: ModelCost, ranks: int, device: Device) -> Memory:
    """Return the memory of training a student of this shape, in each of `ranks` processes on such devices."""
    train = recipe.train
    stage = train.deepspeed.get("zero_optimization", {}).get("stage", 0)
    optimizer = 8 if train.optimizer == "adamw" else 0
    states = 4 / (ranks if stage >= 3 else 1) + 4 / (ranks if stage >= 2 else 1) + optimizer / (ranks if stage else 1)
    per_token = graph_bytes_per_token(model, max_length(recipe.trained_student, "passage"), train.precision)
    texts = -(-train.batch_size // ranks) * (2 + train.negatives)
    free = device.memory - model.parameters * states
    chunk = per_token * chunk_tokens(train, device.cuda, free, per_token)
    return Memory(
        model.parameters * states,
        chunk,
        kept_bytes(train, device.cuda, free, chunk),
        float(texts) * ACTIVE_TERMS * BYTES_PER_TERM,
    )


def graph_bytes_per_token(model: ModelCost, length: int, precision: str) -> float:
    """Return the bytes of the autograd graph of a forward pass, per token of a text of `length` tokens."""
    half = model.layers * (34 * model.hidden + 5 * model.heads * length)
    return half * (2 if precision == "fp32" else 1)
