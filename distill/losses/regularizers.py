"""Regularisers that keep representations sparse (and alive), on sparse representations of the global batch.

FLOPS (arXiv 2004.05665) and L1 as in SPLADE (arXiv 2107.05720); the threshold is the l0 mask of arXiv 2504.14839;
the anti-zero term is that of naver's public training code. Never a [batch, vocabulary] tensor: a mean activation
over the vocabulary is all that couples the texts.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from distill.losses.collective import sum_over_processes, world
from distill.student.head import SparseReps


def ramp(kind: str, step: int, ramp_steps: int) -> float:
    """Share of a regulariser's weight at optimizer step `step` (1 for the first); 1 from `ramp_steps` on."""
    if kind == "constant" or step >= ramp_steps:
        return 1.0
    return (step / ramp_steps) ** {"linear": 1, "quadratic": 2}[kind]


def above_threshold(reps: SparseReps, threshold: int) -> SparseReps:
    """The same representations, texts with at most `threshold` active terms counted as zero."""
    penalised = (reps.active > threshold)[reps.texts]
    return replace(reps, values=reps.values * penalised)


def l1(reps: SparseReps, total: int) -> Tensor:
    """Mean over the `total` texts of the global batch of the sum of a text's term weights."""
    return sum_over_processes(reps.values.sum()) / total


def anti_zero(reps: SparseReps) -> Tensor:
    """One over the squared sum of all weights: grows without bound as representations die out."""
    return sum_over_processes(reps.values.sum()).square().reciprocal()


def flops(reps: SparseReps, total: int, first: int = 0, group_size: int | None = None) -> Tensor:
    """Sum over terms of the squared mean activation, in groups of `group_size` texts (None: the global batch).

    The groups are consecutive texts of the global batch, whatever the number of processes: `reps` holds its texts
    `first`, `first + 1`, ... of `total`. The result is the mean over groups, weighted by their size.
    """
    size = total if group_size is None else min(group_size, total)
    last = first + len(reps) - 1
    shared = _shared_groups(first, last, size, reps.indptr.device)
    result = reps.values.new_zeros(())
    for group in range(first // size, last // size + 1):
        if group not in shared:
            texts = min(size, total - group * size)
            result = result + _sums(reps, first, group, size).div(texts).square().sum() * (texts / total)
    result = sum_over_processes(result)
    if shared:  # groups that lie on several processes: their sums are added up, and each counts once
        sums = sum_over_processes(torch.stack([_sums(reps, first, group, size) for group in shared]))  # [shared, V]
        texts = torch.tensor([min(size, total - group * size) for group in shared], device=sums.device)
        result = result + ((sums / texts[:, None]).square().sum(1) * texts / total).sum()
    return result


def df_flops(reps: SparseReps, total: int, alpha: float = 0.1, beta: float = 10.0) -> Tensor:
    """FLOPS with each term's square weighted by how many texts it is active in (DF-FLOPS, arXiv 2505.15070).

    The weight is 1 / (1 + (x^(log_alpha 2) - 1)^beta) of a term's document frequency x: one half at x = alpha, and the
    steeper around it the larger beta is. The paper takes frequencies from a validation set every 100 steps; here they
    are those of the global batch itself, at every step, so that there is no state to save: mind that it holds enough
    texts to tell alpha apart.
    """
    counts = torch.bincount(reps.terms, minlength=reps.vocab_size).to(reps.values.dtype)  # [V]
    frequencies = sum_over_processes(counts) / total
    weights = 1 / (1 + (frequencies.pow(math.log(2) / math.log(alpha)) - 1).pow(beta))  # absent terms: 0
    means = sum_over_processes(counts.new_zeros(reps.vocab_size).index_add(0, reps.terms, reps.values)) / total
    return (weights * means.square()).sum()


def _sums(reps: SparseReps, first: int, group: int, size: int) -> Tensor:
    """Sum over the texts of one group that lie here, per term: [V]."""
    start = min(max(group * size - first, 0), len(reps))
    end = min(max((group + 1) * size - first, 0), len(reps))
    block = reps.rows(start, end)
    return block.values.new_zeros(reps.vocab_size).index_add(0, block.terms, block.values)


def _shared_groups(first: int, last: int, size: int, device: torch.device) -> list[int]:
    """Groups that lie on more than one process, ascending; the same list on every process."""
    rank, processes = world()
    if processes == 1:
        return []
    firsts = torch.zeros(processes, dtype=torch.int64, device=device)
    firsts[rank] = first
    firsts = sum_over_processes(firsts)
    return sorted({int(begin) // size for begin in firsts[1:].tolist() if int(begin) % size})
