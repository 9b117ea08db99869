"""Distillation losses on the scores of a query's passages: KL divergence, MarginMSE, InfoNCE.

Pure functions of score tensors. Each is a mean over queries, and equals its namesake in sentence-transformers
(`SparseDistillKLDivLoss`, `SparseMarginMSELoss`, `SparseMultipleNegativesRankingLoss`) on the same scores.
The positive stands first in every list, or the passage with the highest label in a list without a positive.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def kl(student: Tensor, teacher: Tensor, student_temperature: float = 1.0, teacher_temperature: float = 1.0) -> Tensor:
    """KL(teacher ‖ student) of the softmax over each query's passages; both scores [b, 1+n] (arXiv 2010.11386).

    Multiplied by the student's temperature squared, so that the gradient's scale does not depend on it.
    """
    log_student = F.log_softmax(student / student_temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / teacher_temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True) * student_temperature**2


def margin_mse(student: Tensor, teacher: Tensor, pairs: str = "positive") -> Tensor:
    """Mean squared error of score differences; both scores [b, 1+n] (arXiv 2010.02666).

    `pairs`: "positive" compares the positive with each negative; "all" compares all pairs of passages in the list,
    each unordered pair once, as SPLADE-v3 does.
    """
    error = student - teacher.detach()  # [b, 1+n]; the error of a margin is the difference of two of these
    if pairs == "positive":
        return (error[:, :1] - error[:, 1:]).square().mean()
    first, second = torch.triu_indices(error.shape[1], error.shape[1], offset=1, device=error.device)
    return (error[:, first] - error[:, second]).square().mean()


def infonce(scores: Tensor, positives: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of each query's positive; scores [b, N], index of the positive int64 [b] (arXiv 1807.03748)."""
    return F.cross_entropy(scores / temperature, positives)
