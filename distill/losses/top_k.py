"""Several top-k sizes trained at once: the sparse counterpart of Matryoshka representations (arXiv 2205.13147).

A term's gradient comes from the caps that keep it, so the strongest terms learn to do with little company. The caps
are applied to representations; regularisers see all terms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from distill import config
from distill.student.head import SparseReps


def capped(
    top_ks: Sequence[config.TopK], queries: SparseReps, passages: SparseReps
) -> Iterator[tuple[float, SparseReps, SparseReps]]:
    """Share of the loss (they add up to 1), queries and passages at each cap; all terms where there are no caps."""
    if not top_ks:
        yield 1.0, queries, passages
        return
    ranks = [reps.rank for reps in (queries, passages)]
    total = sum(cap.weight for cap in top_ks)
    for cap in top_ks:
        kept = [
            reps if cap.k is None else reps.keep(rank < cap.k)
            for reps, rank in zip((queries, passages), ranks, strict=True)
        ]
        yield cap.weight / total, *kept
