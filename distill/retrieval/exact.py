"""Exact top-k search, dense and sparse, in blocks.

Rankings are by score, best first; ties go to the lower row, so a ranking does not depend on blocks, threads or the
order in which scores were computed. The block bounds the memory, which never grows with queries × passages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse

from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.top_k import TopK

_BLOCK_BYTES = 128 << 20  # of the scores that one thread holds


def search_sparse(
    queries: sparse.csr_matrix,
    passages: sparse.csr_matrix,
    k: int,
    threads: int | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` passages with the largest positive dot product for each query.

    `queries` [n, vocabulary] and `passages` [N, vocabulary] are sparse float32. Returns rows int64 [n, min(k, N)] and
    scores float32 of the same shape; if fewer passages have a positive score, the rest has row -1 and score 0.
    `device`: as of `InvertedIndex`.
    """
    return InvertedIndex.of(passages, device).search(queries, k, threads)


def search_blocks(
    queries: sparse.csr_matrix,
    blocks: Iterable[sparse.csr_matrix],
    k: int,
    threads: int | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """As `search_sparse`, over consecutive passages that come in blocks, of which one is held at a time."""
    n, first = queries.shape[0], 0
    rows, scores = np.empty((n, 0), dtype=np.int64), np.empty((n, 0), dtype=np.float32)
    for block in blocks:
        least = scores[:, -1] if scores.shape[1] == k else None
        block_rows, block_scores = InvertedIndex.of(block, device).search(queries, k, threads, least)
        rows = np.concatenate([rows, np.where(block_rows >= 0, block_rows + first, -1)], axis=1)
        scores = np.concatenate([scores, block_scores], axis=1)
        # a stable sort of blocks in row order leaves ties with the lower row; empty places go last
        order = np.argsort(np.where(rows >= 0, -scores, np.inf), axis=1, kind="stable")[:, :k]
        rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
        first += block.shape[0]
    return rows, scores


def search_dense(queries: np.ndarray, blocks: Sequence[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` passages with the largest dot product for each query.

    `queries`: float32 [n, d]; `blocks`: consecutive passages [N_i, d], possibly memory-mapped. Returns rows int64
    [n, min(k, N)] and scores float32 of the same shape.
    """
    width = min(k, sum(map(len, blocks)))
    rows = np.empty((len(queries), width), np.int64)
    scores = np.empty((len(queries), width), np.float32)
    step = max(1, _BLOCK_BYTES // (4 * max([1, *map(len, blocks)])))
    for start in range(0, len(queries), step):
        span = slice(start, start + step)
        top, first = TopK(len(queries[span]), k), 0
        for block in blocks:
            top.add(queries[span] @ block.T, first)
            first += len(block)
        rows[span], scores[span] = top.rows, top.scores
    return rows, scores
