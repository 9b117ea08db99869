"""The best passages of a ranking: by score, best first; ties go to the lower row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class TopK:
    """The best `k` passages of each of `n` queries, updated block by block."""

    def __init__(self, n: int, k: int):
        self.k = k
        self.rows = np.empty((n, 0), dtype=np.int64)
        self.scores = np.empty((n, 0), dtype=np.float32)

    def add(self, scores: np.ndarray, first_row: int) -> None:
        """Merge `scores` float32 [n, block] of the passages `first_row`, `first_row + 1`, ..., higher than before."""
        held, width = self.rows.shape[1], min(self.k, self.rows.shape[1] + scores.shape[1])
        rows = np.empty((len(scores), width), dtype=np.int64)
        best = np.empty((len(scores), width), dtype=np.float32)
        for i in range(len(scores)):
            # with k passages held, only better ones count: of equal ones, the lower row is among those held
            new = np.flatnonzero(scores[i] > self.scores[i, -1]) if held == self.k else np.arange(scores.shape[1])
            rows[i], best[i] = best_of(
                np.concatenate([self.rows[i], new + first_row]), np.concatenate([self.scores[i], scores[i, new]]), width
            )
        self.rows, self.scores = rows, best


class DeviceTopK:
    """As `TopK`, of scores on a device."""

    def __init__(self, n: int, k: int, device: torch.device):
        self.k = k
        self.rows = torch.empty((n, 0), dtype=torch.int64, device=device)
        self.scores = torch.empty((n, 0), device=device)

    def add(self, scores: Tensor, first_row: int) -> None:
        """As `TopK.add`."""
        most = scores.shape[1]
        if self.rows.shape[1] == self.k:
            # only better ones count: of equal ones, the lower row is among those held
            most = int((scores > self.scores[:, -1:]).sum(dim=1).max())
        if not most:
            return
        scores, rows = _best_of_block(scores, min(self.k, most))
        scores, rows = torch.cat([self.scores, scores], dim=1), torch.cat([self.rows, rows + first_row], dim=1)
        # a stable sort of blocks in row order leaves ties with the lower row
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.k]
        self.scores, self.rows = scores.gather(1, order), rows.gather(1, order)


def best_of(rows: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of one query's passages, best first, ties to the lower row."""
    if len(rows) > k:
        threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = scores >= threshold  # with all ties at the boundary, which the sort below decides
        rows, scores = rows[keep], scores[keep]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def _best_of_block(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best scores of each query and their places, in the order of places; both [n, k]."""
    best, places = scores.topk(k, dim=1)
    # topk takes any of the scores that equal the k-th; a query for which it has left some is sorted whole
    left = ((scores >= best[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(left):
        ordered = scores[left].sort(dim=1, descending=True, stable=True)
        best[left], places[left] = ordered.values[:, :k], ordered.indices[:, :k]
    places, order = places.sort(dim=1)
    return best.gather(1, order), places
