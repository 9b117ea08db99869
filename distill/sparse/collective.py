"""Sums and gathers over all processes, with gradients.

Convention: a loss has one value, that of the global batch, and every process holds it. So a sum's gradient passes
through unchanged (each process already holds the derivative of that one value), and what a process gathered from
others sends its gradient back to the owners, where the contributions are added. Without processes, all are identities.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from distill.student.head import SparseReps


def world() -> tuple[int, int]:
    """This process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of every process's `x` (same shape everywhere)."""
    return x if world()[1] == 1 else _Sum.apply(x)


def gather(reps: SparseReps) -> SparseReps:
    """The representations of all processes, in rank order. Every process must call it; their sizes may differ."""
    rank, size = world()
    if size == 1:
        return reps
    counts = _all_gather(torch.tensor([len(reps), reps.terms.numel()], device=reps.indptr.device))  # [W, 2]
    texts, entries = counts[:, 0].tolist(), counts[:, 1].tolist()

    def gathered(x: Tensor, sizes: list[int]) -> Tensor:
        padded = F.pad(x, (0, max(sizes) - x.numel()))
        return torch.cat([part[:n] for part, n in zip(_all_gather(padded), sizes, strict=True)])

    indptr = F.pad(gathered(reps.active, texts).cumsum(0), (1, 0))
    values = _GatherValues.apply(reps.values, entries, rank)
    return SparseReps(indptr, gathered(reps.terms, entries), values, None, reps.vocab_size)


def gather_values(x: Tensor) -> Tensor:
    """The numbers [n] of all processes, in rank order; their counts may differ. Every process must call it."""
    rank, size = world()
    if size == 1:
        return x
    counts = _all_gather(torch.tensor([x.numel()], device=x.device))[:, 0].tolist()
    return _GatherValues.apply(x, counts, rank)


def _all_gather(x: Tensor) -> Tensor:
    """[W, *x.shape]."""
    out = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(out, x.contiguous())
    return torch.stack(out)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, d_total):
        return d_total


class _GatherValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values, entries, rank):
        ctx.entries, ctx.rank = entries, rank
        parts = _all_gather(F.pad(values, (0, max(entries) - values.numel())))
        return torch.cat([part[:n] for part, n in zip(parts, entries, strict=True)])

    @staticmethod
    def backward(ctx, d_values):
        total = d_values.clone()
        dist.all_reduce(total)
        return total.split(ctx.entries)[ctx.rank], None, None
