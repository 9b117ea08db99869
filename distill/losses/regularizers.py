"""Regularisers that keep representations sparse (and alive), on sparse representations of the global batch.

FLOPS (arXiv 2004.05665) and L1 as in SPLADE (arXiv 2107.05720); the threshold is the l0 mask of arXiv 2504.14839;
the anti-zero term is that of naver's public training code. Never a [batch, vocabulary] tensor: texts are coupled
only through the mean activation per term [vocabulary].
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from distill.sparse.collective import sum_over_processes, world
from distill.sparse.products import sum_by_term
from distill.sparse.reps import SparseReps


def ramp(kind: str, step: int, ramp_steps: int) -> float:
    """Fraction of a regulariser's weight at optimizer step `step` (1 for the first); 1 from `ramp_steps` on."""
    if kind == "constant" or step >= ramp_steps:
        return 1.0
    return (step / ramp_steps) ** {"linear": 1, "quadratic": 2}[kind]


def above_threshold(reps: SparseReps, threshold: int) -> SparseReps:
    """Zero the values of texts with at most `threshold` active terms: only denser texts are penalised."""
    penalised = (reps.nnz > threshold)[reps.row_ids]
    return replace(reps, values=reps.values * penalised)


def l1(reps: SparseReps, total: int) -> Tensor:
    """Mean over the `total` texts of the global batch of the sum of each text's term weights."""
    return sum_over_processes(reps.values.sum()) / total


def anti_zero(reps: SparseReps) -> Tensor:
    """One over the squared sum of all weights: grows without bound as representations become empty."""
    return sum_over_processes(reps.values.sum()).square().reciprocal()


def flops(reps: SparseReps, total: int, first: int = 0, group_size: int | None = None) -> Tensor:
    """Sum over terms of the squared mean activation, in groups of `group_size` texts (None: the global batch).

    Groups are consecutive texts of the global batch, independent of the number of processes: `reps` holds its texts
    `first`, `first + 1`, ... of `total`. Returns the mean over groups, weighted by their size.
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
    if shared:  # groups split over processes: their sums are added over processes, and each group counts once
        sums = sum_over_processes(torch.stack([_sums(reps, first, group, size) for group in shared]))  # [shared, V]
        counts = torch.tensor([min(size, total - group * size) for group in shared], device=sums.device)
        result = result + ((sums / counts[:, None]).square().sum(1) * counts / total).sum()
    return result


def df_flops(reps: SparseReps, total: int, alpha: float = 0.1, beta: float = 10.0) -> Tensor:
    """FLOPS with each term's square weighted by its document frequency (DF-FLOPS, arXiv 2505.15070).

    The weight is 1 / (1 + (x^(log_alpha 2) - 1)^beta) for document frequency x (share of texts): one half at
    x = alpha, and steeper around it for larger beta. The paper measures frequencies on a validation set every 100
    steps. Here they are those of the global batch at every step, so that there is no state to save; the batch must
    hold enough texts for alpha to be more than one text.
    """
    counts = torch.bincount(reps.terms, minlength=reps.vocab_size).to(reps.values.dtype)  # [V]
    frequencies = sum_over_processes(counts) / total
    weights = 1 / (1 + (frequencies.pow(math.log(2) / math.log(alpha)) - 1).pow(beta))  # absent terms: 0
    means = sum_over_processes(sum_by_term(reps.values, reps)) / total
    return (weights * means.square()).sum()


def _sums(reps: SparseReps, first: int, group: int, size: int) -> Tensor:
    """Sum of the values of one group's texts on this process, per term: [V]."""
    start = min(max(group * size - first, 0), len(reps))
    end = min(max((group + 1) * size - first, 0), len(reps))
    block = reps.rows(start, end)
    return sum_by_term(block.values, block)


def _shared_groups(first: int, last: int, size: int, device: torch.device) -> list[int]:
    """Groups split over more than one process, ascending; the same list on every process."""
    rank, processes = world()
    if processes == 1:
        return []
    firsts = torch.zeros(processes, dtype=torch.int64, device=device)
    firsts[rank] = first
    firsts = sum_over_processes(firsts)
    return sorted({int(begin) // size for begin in firsts[1:].tolist() if int(begin) % size})
