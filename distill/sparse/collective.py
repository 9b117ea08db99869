"""Sums and gathers over all processes, with gradients.

Convention: a loss has one value, that of the global batch, and every process holds it. So a sum's gradient passes
through unchanged (each process already holds the derivative of that one value), while gathered representations send
their gradient back to the process that owns them, which adds the contributions. With one process, all are identities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from distill.sparse.reps import SparseReps


def world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum `x` over all processes (same shape everywhere)."""
    if world()[1] == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total


def gather(reps: SparseReps) -> SparseReps:
    """Gather the representations of all processes, in rank order. Collective; sizes may differ."""
    rank, size = world()
    if size == 1:
        return reps
    counts = _all_gather(torch.tensor([len(reps), reps.terms.numel()], device=reps.indptr.device))  # [W, 2]
    texts, entries = counts[:, 0].tolist(), counts[:, 1].tolist()

    indptr = F.pad(_gather_padded(reps.nnz, texts).cumsum(0), (1, 0))
    values = _GatherValues.apply(reps.values, entries, rank)
    return SparseReps(indptr, _gather_padded(reps.terms, entries), values, None, reps.vocab_size)


def gather_values(x: Tensor) -> Tensor:
    """Gather the numbers [n] of all processes, in rank order. Collective; n may differ."""
    rank, size = world()
    if size == 1:
        return x
    counts = _all_gather(torch.tensor([x.numel()], device=x.device))[:, 0].tolist()
    values: Tensor = _GatherValues.apply(x, counts, rank)
    return values


def _all_gather(x: Tensor) -> Tensor:
    """Stack every process's `x` (same shape everywhere): [W, *x.shape]."""
    out = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(out, x.contiguous())
    return torch.stack(out)


def _gather_padded(x: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate every process's `x` [n], whose lengths are `sizes`: padded to the longest, gathered and cut again."""
    padded = F.pad(x, (0, max(sizes) - x.numel()))
    return torch.cat([part[:n] for part, n in zip(_all_gather(padded), sizes, strict=True)])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Tensor:
        return d_total


class _GatherValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.sizes, ctx.rank = sizes, rank
        return _gather_padded(values, sizes)

    @staticmethod
    def backward(ctx: Any, d_values: Tensor) -> tuple[Tensor, None, None]:
        total = d_values.clone()
        dist.all_reduce(total)
        return total.split(ctx.sizes)[ctx.rank], None, None
