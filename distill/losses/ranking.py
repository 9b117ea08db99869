"""Losses on the teacher's ranking of a query's passages: RankNet, with LambdaRank's or FIRST's weights, and ADR-MSE.

They need no common scale of teacher and student scores, only an order. All are pure functions of scores [b, 1+n].
Passages with equal labels form no pair.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ranknet(student: Tensor, teacher: Tensor, weights: str = "equal") -> Tensor:
    """log(1 + exp(s_j - s_i)) over all pairs of a list in which the teacher prefers i (Burges et al. 2005).

    `weights` of a pair: "equal"; "rank": 1 / (r_i + r_j) of the teacher's ranks (FIRST, arXiv 2406.15657, eq. 3);
    "ndcg": the change in nDCG when the two swap ranks in the student's ranking, with the labels, scaled to [0, 1] per
    list, as linear gains (LambdaRank, Burges 2010). Weighted mean over the pairs of each list (zero if it has none),
    then mean over lists.
    """
    teacher = teacher.detach()
    preferred = teacher[:, :, None] > teacher[:, None, :]  # [b, m, m]: i before j
    match weights:
        case "equal":
            weight = preferred.to(student.dtype)
        case "rank":
            rank = _ranks(teacher)
            weight = preferred / (rank[:, :, None] + rank[:, None, :])
        case "ndcg":
            weight = preferred * _ndcg_changes(student.detach(), teacher)
    losses = F.softplus(student[:, None, :] - student[:, :, None]) * weight  # [b, m, m]
    return (losses.sum((1, 2)) / weight.sum((1, 2)).clamp(min=torch.finfo(student.dtype).tiny)).mean()


def adr_mse(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Squared error of approximate ranks, discounted by log2 of one plus the teacher's (arXiv 2405.07920, ADR-MSE).

    The approximate rank of passage i is one plus the sum over the other passages j of
    sigmoid((s_j - s_i) / temperature) (Qin, Liu & Li 2010). Mean over all passages.
    """
    ahead = ((student[:, None, :] - student[:, :, None]) / temperature).sigmoid()  # [b, m, m]: j before i
    approximate = ahead.sum(2) + 0.5  # [b, m]; the sum includes the passage itself, with sigmoid(0) = 0.5
    rank = _ranks(teacher.detach()).to(student.dtype)
    return ((approximate - rank).square() / (1 + rank).log2()).mean()


def _ranks(scores: Tensor) -> Tensor:
    """Rank of each passage in its list, 1 for the highest score, ties in list order: int64 [b, m]."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1


def _ndcg_changes(student: Tensor, teacher: Tensor) -> Tensor:
    """Absolute change in nDCG when passages i and j swap ranks in the student's ranking: [b, m, m]."""
    lowest, highest = teacher.amin(1, keepdim=True), teacher.amax(1, keepdim=True)
    gains = (teacher - lowest) / (highest - lowest).clamp(min=torch.finfo(teacher.dtype).tiny)
    discounts = 1 / (1 + _ranks(student)).log2()
    ideal = (gains / (1 + _ranks(gains)).log2()).sum(1)[:, None, None].clamp(min=torch.finfo(teacher.dtype).tiny)
    change = (gains[:, :, None] - gains[:, None, :]) * (discounts[:, :, None] - discounts[:, None, :])
    return change.abs() / ideal
