"""Scores of sparse representations: dot products at a cost proportional to the number of active terms.

A block of g queries at a time is made dense ([V, g], g bounded), and passages gather their terms from it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.sparse.reps import SparseReps

QUERY_BLOCK = 64  # queries made dense at a time: 64 x 30,522 float32 are 8 MB


def list_scores(queries: SparseReps, passages: SparseReps) -> Tensor:
    """Score each query [b] with its own passages [b * m], grouped by query: [b, m]."""
    per_query = len(passages) // max(len(queries), 1)
    blocks = []
    for start in range(0, len(queries), QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, len(queries))
        block = passages.rows(start * per_query, end * per_query)
        dense = queries.rows(start, end).to_dense().view(-1)  # [g * V]
        index = block.row_ids // per_query * queries.vocab_size + block.terms  # [nnz], into `dense`
        products = dense[index] * block.values  # [nnz]
        blocks.append(sum_by_text(products, block).view(end - start, per_query))
    return torch.cat(blocks)


def all_scores(queries: SparseReps, passages: SparseReps) -> Tensor:
    """Score every query [b] with every passage [N]: [b, N]."""
    blocks = []
    for start in range(0, len(queries), QUERY_BLOCK):
        dense = queries.rows(start, min(start + QUERY_BLOCK, len(queries))).to_dense().T.contiguous()  # [V, g]
        blocks.append(
            F.embedding_bag(
                passages.terms,
                dense,
                passages.indptr,
                mode="sum",
                include_last_offset=True,
                per_sample_weights=passages.values,
            ).T
        )
    return torch.cat(blocks)


def sum_by_text(entries: Tensor, reps: SparseReps) -> Tensor:
    """Sum one number per entry [nnz] over each text: [n]; on a GPU, too, always in the same order."""
    if entries.is_cuda:  # index_add adds in any order there
        return torch.segment_reduce(entries, "sum", offsets=reps.indptr, initial=0.0)
    return entries.new_zeros(len(reps)).index_add(0, reps.row_ids, entries)


def sum_by_term(entries: Tensor, reps: SparseReps) -> Tensor:
    """Sum one number per entry [nnz] over all texts, per term: [V]; on a GPU, too, always in the same order."""
    if entries.is_cuda:
        order = torch.sort(reps.terms, stable=True)
        starts = torch.searchsorted(order.values, torch.arange(reps.vocab_size + 1, device=entries.device))
        return torch.segment_reduce(entries[order.indices], "sum", offsets=starts, initial=0.0)
    return entries.new_zeros(reps.vocab_size).index_add(0, reps.terms, entries)
