"""Squared error of sparse representations against a teacher's, over the vocabulary (`SparseMSELoss`).

Never a [batch, vocabulary] tensor: a term that neither side has costs nothing, one that the teacher alone has costs
its square and gives no gradient, since an inactive term of the student has none to pass on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.student.head import SparseReps


def embedding_mse(pairs: Sequence[tuple[SparseReps, SparseReps]]) -> Tensor:
    """Mean over all texts of the mean over the vocabulary of (student - teacher)^2.

    `pairs`: representations of some texts, and the teacher's of the same texts.
    """
    texts = sum(len(student) for student, _ in pairs)
    return torch.stack([_squared_errors(*pair) / pair[0].vocab_size for pair in pairs]).sum() / texts


def _squared_errors(student: SparseReps, teacher: SparseReps) -> Tensor:
    """Sum over all texts and terms."""
    ours, theirs = (reps.texts * reps.vocab_size + reps.terms for reps in (student, teacher))  # ascending, distinct
    at = torch.searchsorted(theirs, ours)  # [nnz]
    shared = F.pad(theirs, (0, 1), value=-1)[at] == ours
    goals = torch.where(shared, F.pad(teacher.values, (0, 1))[at], 0.0)  # the teacher's weight of the student's terms
    missed = teacher.values.clone()
    missed[at[shared]] = 0.0
    return (student.values - goals).square().sum() + missed.square().sum()
