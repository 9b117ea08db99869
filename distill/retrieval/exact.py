"""Exact top-k search, dense and sparse, in blocks.

Rankings are by score, best first; ties go to the lower row, so a ranking does not depend on blocks, threads or the
order in which scores were computed. The block bounds the memory, which never grows with queries × passages.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy import sparse

_BLOCK_BYTES = 128 << 20  # of the scores that one thread holds


def search_sparse(
    queries: sparse.csr_matrix, passages: sparse.csr_matrix, k: int, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` passages with the largest dot product for each query, among those that share a term with it.

    `queries` [n, vocabulary] and `passages` [N, vocabulary] are sparse float32. Returns rows int64 [n, min(k, N)] and
    scores float32 of the same shape; if fewer passages share a term, the rest has row -1 and score 0.
    """
    return search_inverted(queries, passages.T.tocsr(), k, threads)


def search_inverted(
    queries: sparse.csr_matrix,
    inverted: sparse.csr_matrix,
    k: int,
    threads: int | None = None,
    block_bytes: int = _BLOCK_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
    """As `search_sparse`, over posting lists [vocabulary, N] (`passages.T.tocsr()`) that serve several searches.

    `block_bytes`: of the scores that one thread holds.
    """
    size = inverted.shape[1]
    width = min(k, size)
    rows = np.full((queries.shape[0], width), -1, dtype=np.int64)
    scores = np.zeros((queries.shape[0], width), dtype=np.float32)
    if width == 0 or queries.shape[0] == 0:
        return rows, scores
    postings = np.diff(inverted.indptr)

    def search_block(span: tuple[int, int]) -> None:
        product = queries[span[0] : span[1]] @ inverted
        for i in range(product.shape[0]):
            hits = slice(product.indptr[i], product.indptr[i + 1])
            best_rows, best_scores = _best(product.indices[hits], product.data[hits], width)
            rows[span[0] + i, : len(best_rows)] = best_rows
            scores[span[0] + i, : len(best_rows)] = best_scores

    # A query's row of the product has at most as many entries as its posting lists have together; 12 bytes each.
    entries = np.diff(np.concatenate([[0], np.cumsum(postings[queries.indices], dtype=np.int64)])[queries.indptr])
    entries = np.minimum(entries, size)
    spans = _spans(12 * entries + 1, block_bytes)
    threads = min(threads or min(os.cpu_count() or 1, 8), len(spans))
    if threads == 1:
        for span in spans:
            search_block(span)
    else:
        with ThreadPoolExecutor(threads) as pool:  # SciPy's product releases the GIL
            list(pool.map(search_block, spans))
    return rows, scores


def search_blocks(
    queries: sparse.csr_matrix, blocks: Iterable[sparse.csr_matrix], k: int, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `search_inverted`, over the posting lists of consecutive blocks of passages.

    Rankings and scores equal those of a single block: a dot product is always summed in the order of the query's terms.
    """
    rows = np.empty((queries.shape[0], 0), dtype=np.int64)
    scores = np.empty((queries.shape[0], 0), dtype=np.float32)
    first = 0
    for block in blocks:
        block_rows, block_scores = search_inverted(queries, block, k, threads)
        rows = np.concatenate([rows, np.where(block_rows >= 0, block_rows + first, -1)], axis=1)
        scores = np.concatenate([scores, block_scores], axis=1)
        # a stable sort of blocks in row order leaves ties with the lower row; empty places go last
        order = np.argsort(np.where(rows >= 0, -scores, np.inf), axis=1, kind="stable")[:, :k]
        rows, scores = np.take_along_axis(rows, order, axis=1), np.take_along_axis(scores, order, axis=1)
        first += block.shape[1]
    return rows, scores


class TopK:
    """The best `k` passages of each of `n` queries, updated block by block."""

    def __init__(self, n: int, k: int):
        self.k = k
        self.rows = np.empty((n, 0), dtype=np.int64)
        self.scores = np.empty((n, 0), dtype=np.float32)

    def add(self, scores: np.ndarray, first_row: int) -> None:
        """Merge `scores` float32 [n, block] of the passages `first_row`, `first_row + 1`, ..."""
        width = min(self.k, self.rows.shape[1] + scores.shape[1])
        rows = np.empty((len(scores), width), dtype=np.int64)
        best = np.empty((len(scores), width), dtype=np.float32)
        block = np.arange(first_row, first_row + scores.shape[1])
        for i in range(len(scores)):
            rows[i], best[i] = _best(
                np.concatenate([self.rows[i], block]), np.concatenate([self.scores[i], scores[i]]), width
            )
        self.rows, self.scores = rows, best


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


def _best(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of one query's passages, best first, ties to the lower row."""
    if len(rows) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= threshold  # with all ties at the boundary, which the sort below decides
        rows, scores = rows[keep], scores[keep]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def _spans(sizes: np.ndarray, limit: int) -> list[tuple[int, int]]:
    """Cut [0, len(sizes)) into runs whose sizes sum to at most `limit` (a run of one may be larger)."""
    spans, start, total = [], 0, 0
    for i, size in enumerate(sizes.tolist()):
        if total + size > limit and i > start:
            spans.append((start, i))
            start, total = i, 0
        total += size
    spans.append((start, len(sizes)))
    return spans
