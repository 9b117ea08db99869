"""Sparse representations of texts in CSR form: what flows from the student's head to losses, search and checkpoints.

indptr  0        3     5           text 0 has entries 0..2, text 1 entries 3..4
terms   4  7 19  2  7              vocabulary entries, ascending within a text
values  .3 .9 .1 .5 .2             their weights, above zero
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RepsGradient:
    """Gradient of a loss with respect to representations: their values [nnz], and their vectors [B, E] if any."""

    values: Tensor
    vectors: Tensor | None = None

    def scaled(self, factor: float) -> RepsGradient:
        return RepsGradient(self.values * factor, None if self.vectors is None else self.vectors * factor)


@dataclass(frozen=True)
class SparseReps:
    """Sparse representations of a batch of texts, in CSR form. Only `values` and `vectors` may carry gradient."""

    indptr: Tensor  # int64 [B+1]
    terms: Tensor  # int64 [nnz], ascending in each text
    values: Tensor  # float32 [nnz], above zero
    argmax: Tensor | None  # int64 [nnz]: position of the token that attains the maximum; None with sum pooling
    vocab_size: int
    vectors: Tensor | None = None  # float32 [B, E]: dense vectors for a student's own losses (`Student.own_losses`)

    def __len__(self) -> int:
        return self.indptr.numel() - 1

    @cached_property
    def bounds(self) -> list[int]:
        """`indptr` on the host, for which a GPU is waited for once."""
        return self.indptr.tolist()

    @property
    def nnz(self) -> Tensor:
        """Number of active terms of each text: int64 [B]."""
        return self.indptr.diff()

    @property
    def row_ids(self) -> Tensor:
        """The text that each entry belongs to: int64 [nnz]."""
        index = torch.arange(len(self), device=self.indptr.device)
        return torch.repeat_interleave(index, self.nnz, output_size=self.terms.numel())

    def to_dense(self) -> Tensor:
        """float32 [B, V]; gradient flows to `values`."""
        dense = self.values.new_zeros(len(self), self.vocab_size)
        return dense.index_put((self.row_ids, self.terms), self.values)

    def detach(self) -> SparseReps:
        vectors = None if self.vectors is None else self.vectors.detach()
        return replace(self, values=self.values.detach(), vectors=vectors)

    def surrogate(self, gradient: RepsGradient) -> Tensor:
        """Return a scalar whose gradient with respect to values and vectors is `gradient`."""
        value = (self.values * gradient.values).sum()
        if self.vectors is None or gradient.vectors is None:
            return value
        return value + (self.vectors * gradient.vectors).sum()

    def rows(self, start: int, end: int) -> SparseReps:
        """Texts `start` to `end - 1`, as a view; gradient flows."""
        first, last = self.bounds[start], self.bounds[end]
        argmax = None if self.argmax is None else self.argmax[first:last]
        return SparseReps(
            self.indptr[start : end + 1] - first,
            self.terms[first:last],
            self.values[first:last],
            argmax,
            self.vocab_size,
            None if self.vectors is None else self.vectors[start:end],
        )

    def positions(self, texts: Tensor) -> Tensor:
        """Indices of the entries of `texts` (int64 [n]), text by text: int64 [nnz of these texts]."""
        active = self.nnz[texts]
        starts = F.pad(active.cumsum(0), (1, 0))[:-1]
        count = int(active.sum())
        shift = torch.repeat_interleave(self.indptr[:-1][texts] - starts, active, output_size=count)
        return torch.arange(count, device=shift.device) + shift

    def take(self, texts: Tensor) -> SparseReps:
        """Select `texts` (int64 [n]), in this order; gradient flows."""
        entries = self.positions(texts)
        argmax = None if self.argmax is None else self.argmax[entries]
        return SparseReps(
            F.pad(self.nnz[texts].cumsum(0), (1, 0)),
            self.terms[entries],
            self.values[entries],
            argmax,
            self.vocab_size,
            None if self.vectors is None else self.vectors[texts],
        )

    def keep(self, mask: Tensor) -> SparseReps:
        """Select the entries where `mask` (bool [nnz]) is true; gradient flows."""
        entries = mask.nonzero()[:, 0]
        active = torch.bincount(self.row_ids[entries], minlength=len(self))
        argmax = None if self.argmax is None else self.argmax[entries]
        return SparseReps(
            F.pad(active.cumsum(0), (1, 0)),
            self.terms[entries],
            self.values[entries],
            argmax,
            self.vocab_size,
            self.vectors,
        )

    @property
    def rank(self) -> Tensor:
        """Rank of each entry in its text by value, 0 for the largest, ties in order of terms: int64 [nnz]."""
        order = torch.argsort(self.values.detach(), descending=True, stable=True)
        order = order[torch.argsort(self.row_ids[order], stable=True)]  # text by text, the largest first
        rank = torch.empty_like(order)
        rank[order] = torch.arange(order.numel(), device=order.device) - self.indptr[:-1][self.row_ids]
        return rank

    def top_k(self, k: int) -> SparseReps:
        """Select the k largest terms of each text (sentence-transformers' `max_active_dims`); gradient flows."""
        return self.keep(self.rank < k)

    @staticmethod
    def cat(parts: Sequence[SparseReps]) -> SparseReps:
        """Concatenate the texts of `parts`, in order."""
        if len({part.vocab_size for part in parts}) != 1:
            raise ValueError("SparseReps.cat needs at least one part, and the same vocabulary for all parts")
        return SparseReps(
            F.pad(torch.cat([part.nnz for part in parts]).cumsum(0), (1, 0)),
            torch.cat([part.terms for part in parts]),
            torch.cat([part.values for part in parts]),
            _cat_if_all([part.argmax for part in parts]),
            parts[0].vocab_size,
            _cat_if_all([part.vectors for part in parts]),
        )


def _cat_if_all(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """Concatenate, or return None if any is missing."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(present) if len(present) == len(tensors) else None
