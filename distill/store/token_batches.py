"""Batches by token budget: texts sorted by length, so that padding is a few per cent of the tokens.

The one place where scoring, encoding and training cut texts into what a model reads at once. The batches depend on
the lengths and the budget alone: they are part of what makes a shard's bytes, and a resumed training, repeat.
"""

from __future__ import annotations

import numpy as np


def token_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split n texts into batches of at most `batch_tokens` padded tokens (one text at least), longest first.

    lengths: int [n] tokens, special ones included. Returns index arrays that together hold each of 0..n-1 once.
    Longest first, so that a batch that does not fit the memory shows at the start; ties keep their order.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def padded_tokens(lengths: np.ndarray, batch: np.ndarray) -> int:
    """Tokens of one batch, padding included."""
    return len(batch) * int(lengths[batch].max())
