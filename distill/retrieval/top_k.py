"""The best passages of a ranking: by score, best first; ties go to the lower row."""

from __future__ import annotations

import numpy as np


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
            rows[i], best[i] = best_of(
                np.concatenate([self.rows[i], block]), np.concatenate([self.scores[i], scores[i]]), width
            )
        self.rows, self.scores = rows, best


def best_of(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of one query's passages, best first, ties to the lower row."""
    if len(rows) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= threshold  # with all ties at the boundary, which the sort below decides
        rows, scores = rows[keep], scores[keep]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]
