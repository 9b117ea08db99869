"""Exact top-k search, dense and sparse, in blocks.

Rankings are by score, best first; ties go to the lower row, so a ranking does not depend on blocks, threads or the
order in which scores were computed. The block bounds the memory, which never grows with queries × passages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.top_k import DeviceTopK, TopK
from distill.run.device import upload

_Ranking = tuple[np.ndarray, np.ndarray]  # rows int64 [n, k] and scores float32
_STEP, _SLAB = 1024, 32_768  # queries and passages whose products are in memory at once: 128 MiB


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


def search_dense(
    queries: np.ndarray, blocks: Sequence[np.ndarray | Tensor], k: int, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Find the `k` passages with the largest dot product for each query.

    `queries`: float32 [n, d]; `blocks`: consecutive passages [N_i, d], possibly memory-mapped, or tensors on `device`,
    which
    computes the products. Returns rows int64 [n, min(k, N)] and scores float32 of the same shape.
    """
    blocks = [block[start : start + _SLAB] for block in blocks for start in range(0, len(block), _SLAB)]
    spans = [slice(start, start + _STEP) for start in range(0, len(queries), _STEP)]
    width = min(k, sum(map(len, blocks)))
    if not width or not spans:
        return np.empty((len(queries), width), np.int64), np.empty((len(queries), width), np.float32)
    search = _dense_on_cores if device == "cpu" else partial(_dense_on_device, device=torch.device(device))
    rows, scores = zip(*search([queries[span] for span in spans], blocks, width), strict=True)
    return np.concatenate(rows), np.concatenate(scores)


def _dense_on_cores(queries: Sequence[np.ndarray], blocks: Iterable[np.ndarray | Tensor], k: int) -> list[_Ranking]:
    tops, first = [TopK(len(some), k) for some in queries], 0
    for block in blocks:
        for some, top in zip(queries, tops, strict=True):
            top.add(some @ np.asarray(block).T, first)
        first += len(block)
    return [(top.rows, top.scores) for top in tops]


def _dense_on_device(
    queries: Sequence[np.ndarray], blocks: Iterable[np.ndarray | Tensor], k: int, device: torch.device
) -> list[_Ranking]:
    there = [upload(torch.from_numpy(some), device) for some in queries]
    tops, first = [DeviceTopK(len(some), k, device) for some in queries], 0
    for block in blocks:
        vectors = block if isinstance(block, Tensor) else upload(torch.tensor(block), device)
        for some, top in zip(there, tops, strict=True):
            top.add(some @ vectors.T, first)
        first += len(block)
    return [(top.rows.cpu().numpy(), top.scores.cpu().numpy()) for top in tops]
