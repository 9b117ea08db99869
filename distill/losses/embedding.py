"""Squared error of sparse representations against a teacher's, over the vocabulary (`SparseMSELoss`).

Never a [batch, vocabulary] tensor. A term that neither side has costs nothing. A term that only the teacher has costs
its square, without a gradient: an inactive term of the student passes none on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.sparse.reps import SparseReps


def embedding_mse(pairs: Sequence[tuple[SparseReps, SparseReps]]) -> Tensor:
    """Mean over all texts of the mean over the vocabulary of (student - teacher)^2.

    `pairs`: the student's and the teacher's representations of the same texts, one pair per side.
    """
    texts = sum(len(student) for student, _ in pairs)
    return torch.stack([_squared_errors(*pair) / pair[0].vocab_size for pair in pairs]).sum() / texts


def _squared_errors(student: SparseReps, teacher: SparseReps) -> Tensor:
    """Sum of the squared errors over all texts and terms."""
    # one key per (text, term), ascending and distinct: [nnz] of each
    student_keys, teacher_keys = (reps.row_ids * reps.vocab_size + reps.terms for reps in (student, teacher))
    match = torch.searchsorted(teacher_keys, student_keys)  # [nnz of the student]
    shared = F.pad(teacher_keys, (0, 1), value=-1)[match] == student_keys
    targets = torch.where(shared, F.pad(teacher.values, (0, 1))[match], 0.0)  # teacher's weights of student's terms
    missed = teacher.values.clone()  # weights of terms that only the teacher has
    missed[match[shared]] = 0.0
    return (student.values - targets).square().sum() + missed.square().sum()
