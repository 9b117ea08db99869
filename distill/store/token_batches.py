"""Batches by token budget: texts sorted by length, so that padding is a few per cent of the tokens.

Scoring, encoding and training all form their batches here. Batches depend on lengths and budget only, so the bytes of
a shard and a resumed training are reproducible.
"""

from __future__ import annotations

import numpy as np


def token_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Split n texts into batches of at most `batch_tokens` padded tokens, or of one text, longest first.

    lengths: int [n], tokens including special ones. Returns index arrays that together hold each of 0..n-1 once.
    The longest come first so that running out of memory shows at the start; ties keep their order.
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
    """Return the number of tokens of a batch, including padding."""
    return len(batch) * int(lengths[batch].max())
