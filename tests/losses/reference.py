"""What the tests of this room share: sizes, dense representations made sparse, and comparison with gradients."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from distill.sparse.reps import SparseReps

B, LISTS, V = 5, 4, 50  # queries, passages per query, terms


def sparse(dense: torch.Tensor) -> SparseReps:
    active = dense > 0
    indptr = F.pad(active.sum(1).cumsum(0), (1, 0))
    return SparseReps(indptr, active.nonzero()[:, 1], dense[active], None, dense.shape[1])


def dense_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Dense queries [B, V] and passages [B * LISTS, V], non-negative, one passage empty; leaves with a gradient."""
    torch.manual_seed(0)
    queries = torch.rand(B, V).mul(torch.rand(B, V) < 0.2)
    passages = torch.rand(B * LISTS, V).mul(torch.rand(B * LISTS, V) < 0.4)
    passages[3] = 0
    return queries.requires_grad_(), passages.requires_grad_()


def columns(queries: torch.Tensor, passages: torch.Tensor) -> list[torch.Tensor]:
    """As sentence-transformers wants them: queries, positives, first negatives, ..."""
    return [queries, *passages.view(B, LISTS, V).unbind(1)]


def assert_same(
    ours: torch.Tensor, theirs: torch.Tensor, *inputs: torch.Tensor, active_terms_only: bool = False
) -> None:
    """Equal values and gradients; `active_terms_only`: `theirs` is dense, and gives inactive terms a gradient also."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    for x, gradient, reference in zip(inputs, gradients, expected, strict=True):
        torch.testing.assert_close(
            gradient, reference * (x > 0) if active_terms_only else reference, rtol=1e-4, atol=1e-6
        )
