"""Metrics of one training step."""

from __future__ import annotations

import resource

import torch
from torch import Tensor

from distill.sparse.collective import sum_over_processes
from distill.sparse.reps import SparseReps


def sparsity(queries: SparseReps, passages: SparseReps) -> dict[str, float]:
    """Sparsity over the texts of all processes: mean number of active terms, share of empty texts, and FLOPS.

    FLOPS is the expected number of products of a query and a passage: the sum over terms of the product of the shares
    of queries and of passages in which the term is active.
    """
    measured: dict[str, float] = {}
    shares = []
    for side, reps in (("query", queries), ("passage", passages)):
        counts = torch.bincount(reps.terms, minlength=reps.vocab_size).double()  # [V]
        sums = sum_over_processes(torch.cat([counts, counts.new_tensor([len(reps), (reps.nnz == 0).sum()])]))
        texts = sums[-2]
        shares.append(sums[:-2] / texts)
        measured[f"{side}_active"] = float(shares[-1].sum())
        measured[f"{side}_empty"] = float(sums[-1] / texts)
    measured["flops"] = float((shares[0] * shares[1]).sum())
    return measured


def texts_with(sides: tuple[SparseReps, SparseReps]) -> Tensor:
    """Number of texts of all processes with each term: float64 [V]."""
    queries, passages = (torch.bincount(reps.terms, minlength=reps.vocab_size).double() for reps in sides)
    return sum_over_processes(queries + passages)


def total(value: float, device: torch.device) -> float:
    """Sum a number over processes."""
    return float(sum_over_processes(torch.tensor(value, dtype=torch.float64, device=device)))


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory of this process: allocated on the GPU, or resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def spread(scores: Tensor) -> float:
    """Mean over queries of the standard deviation of their passages' scores (or labels) [b, 1+n]."""
    return float(scores.std(1, correction=0).mean())


def teacher_confidence(labels: Tensor, temperature: float) -> float:
    """Mean probability of the teacher's top passage: 1 means that its distribution has collapsed."""
    return float((labels / temperature).softmax(1).max(1).values.mean())
