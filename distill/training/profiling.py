"""Measurements at the start of a run: how much a graph holds, how fast this machine multiplies."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from distill.training.rng import rng_state, set_rng_state

if TYPE_CHECKING:
    from distill.student.base import Student
    from distill.training.engine import Engine


def graph_bytes_per_token(engine: Engine, max_length: int, tokens: int) -> float:
    """Bytes that the graph of a forward holds for each padded token, measured on one chunk of full-length texts."""
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


def flops_per_token(student: Student) -> float:
    """Operations of a plain forward and backward for each token: two per weight forward, four backward; the head's
    product over the vocabulary counts once, forward, since its backward is sparse. Attention's own are left out."""
    weights = sum(module.weight.numel() for module in student.modules() if isinstance(module, nn.Linear))
    return 6.0 * weights + 2.0 * student.forward_weights


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product, as measured here."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)  # not random: the generators are set already
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
