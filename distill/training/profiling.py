"""Costs of a step: memory of a kept graph, measured, and operations per token, counted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from distill.planning.memory import chunk_tokens, kept_bytes
from distill.run.device import ran_out_of_memory
from distill.training.rng import rng_state, set_rng_state

if TYPE_CHECKING:
    from distill import config
    from distill.student.base import Student
    from distill.training.engine import Engine
    from distill.training.state import TrainState


def graph_bytes_per_token(engine: Engine, max_length: int, tokens: int) -> float:
    """Measure the bytes per padded token that the graph of a forward holds, on one chunk of full-length texts."""
    student, device = engine.student, engine.world.device
    texts = max(1, min(tokens // max_length, 16))
    ids = [np.full(max_length, student.tokenizer.unk_token_id or 0)] * texts
    parameters = {parameter.untyped_storage().data_ptr() for parameter in student.parameters()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    rng = rng_state(device)
    input_ids, attention_mask = student.assemble(ids, max_length)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        reps = engine.encode(input_ids.to(device), attention_mask.to(device))
    del reps
    set_rng_state(rng, device)
    return sum(held.values()) / input_ids.numel()


def fit_memory(engine: Engine, train: config.Train, state: TrainState, max_length: int) -> float:
    """Lower `chunk_tokens: auto` in the state to what a GPU has room for; returns the bytes for graphs that are kept.

    `state.graph_bytes` is measured where it is needed. Collective.
    """
    world = engine.world
    cuda = world.device.type == "cuda"
    if (cuda or train.activation_budget not in ("auto", 0)) and not state.graph_bytes:
        state.graph_bytes = max(world.gather(_graph_bytes(engine, max_length, state.chunk_tokens)))
    # gradients and the optimizer's states, 12 bytes per parameter, are made by the first step
    to_come = 12 * sum(parameter.numel() for parameter in engine.student.parameters())
    free = float(world.min(torch.cuda.mem_get_info(world.device)[0] - to_come)) if cuda else 0.0
    state.chunk_tokens = min(state.chunk_tokens, chunk_tokens(train, cuda, free, state.graph_bytes))
    return kept_bytes(train, cuda, free, state.chunk_tokens * state.graph_bytes)


def _graph_bytes(engine: Engine, max_length: int, tokens: int) -> float:
    """As `graph_bytes_per_token`; infinite, so that none is kept, if not even one graph fits in memory."""
    try:
        return graph_bytes_per_token(engine, max_length, tokens)
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        return math.inf


def flops_per_token(student: Student) -> float:
    """Floating-point operations per token of a plain forward and backward: 2 per weight forward, 4 backward.

    The head's product over the vocabulary counts only forward, since its backward is sparse. The products of attention
    are left out.
    """
    weights = sum(module.weight.numel() for module in student.modules() if isinstance(module, nn.Linear))
    return 6.0 * weights + 2.0 * student.forward_weights
