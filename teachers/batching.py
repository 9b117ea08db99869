"""Batches by token budget: texts sorted by length, so that padding is a few per cent of the tokens.

The plan depends on the lengths and the budget alone: it is part of what makes a shard's bytes repeat.
"""

from __future__ import annotations

import numpy as np


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split n items into batches of at most `batch_tokens` padded tokens (one item at least), longest first.

    lengths: int[n] tokens. Returns index arrays that together hold each of 0..n-1 once. Longest first, so that a
    batch that does not fit the memory shows at the start; ties keep their order, so the plan is a function of
    its arguments.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start:start + size])
        start += size
    return batches


def padding_share(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Share of padding among the tokens that the batches hold, in [0, 1)."""
    padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
    return 1.0 - float(np.sum(lengths)) / padded if padded else 0.0
