"""Several top-k sizes trained at once: the sparse counterpart of Matryoshka representations (arXiv 2205.13147).

A term's gradient comes from the caps that keep it, so the largest terms learn to rank well on their own. Only the
losses see capped representations; regularisers see all terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill import config
from distill.sparse.reps import SparseReps


def capped(
    top_ks: Sequence[config.TopK], queries: SparseReps, passages: SparseReps
) -> Iterator[tuple[float, SparseReps, SparseReps]]:
    """Yield each cap's share of the loss (shares sum to 1) and the capped queries and passages.

    Without caps, yields all terms once.
    """
    if not top_ks:
        yield 1.0, queries, passages
        return
    query_rank, passage_rank = queries.rank, passages.rank  # int64 [nnz] of each
    total = sum(cap.weight for cap in top_ks)
    for cap in top_ks:
        share = cap.weight / total
        if cap.k is None:
            yield share, queries, passages
        else:
            yield share, queries.keep(query_rank < cap.k), passages.keep(passage_rank < cap.k)
