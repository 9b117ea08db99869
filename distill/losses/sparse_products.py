"""Scores of sparse representations: dot products that cost as many operations as there are active terms.

A few queries at a time are laid out over the vocabulary ([V, g], g bounded), and passages gather from them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.student.head import SparseReps

QUERIES_AT_ONCE = 64  # laid out over the vocabulary: 64 x 30,522 float32 are 8 MB


def list_scores(queries: SparseReps, passages: SparseReps) -> Tensor:
    """Each query with its own passages: queries [b], passages [b * m] grouped by query; returns [b, m]."""
    lists = len(passages) // max(len(queries), 1)
    blocks = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        end = min(start + QUERIES_AT_ONCE, len(queries))
        block = passages.rows(start * lists, end * lists)
        laid_out = queries.rows(start, end).to_dense().view(-1)  # [g * V]
        place = block.texts // lists * queries.vocab_size + block.terms
        products = laid_out[place] * block.values  # [nnz]
        blocks.append(_sum_by_text(products, block).view(end - start, lists))
    return torch.cat(blocks)


def all_scores(queries: SparseReps, passages: SparseReps) -> Tensor:
    """Every query with every passage: [b, N]."""
    blocks = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        laid_out = queries.rows(start, min(start + QUERIES_AT_ONCE, len(queries))).to_dense().T.contiguous()  # [V, g]
        blocks.append(
            F.embedding_bag(
                passages.terms,
                laid_out,
                passages.indptr,
                mode="sum",
                include_last_offset=True,
                per_sample_weights=passages.values,
            ).T
        )
    return torch.cat(blocks)


def _sum_by_text(entries: Tensor, reps: SparseReps) -> Tensor:
    return entries.new_zeros(len(reps)).index_add(0, reps.texts, entries)
