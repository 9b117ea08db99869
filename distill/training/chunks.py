"""Chunks: how the texts of one step are cut into pieces that fit in memory, sorted by length to spare padding."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.data.token_batches import token_batches


@dataclass(frozen=True)
class Chunk:
    """Texts encoded together: `rows` index one side's texts; `idle` chunks only keep the processes in step."""

    rows: np.ndarray  # int64 [k]
    idle: bool = False


def cut(lengths: np.ndarray, budget: int) -> list[Chunk]:
    """Chunks of at most `budget` padded tokens (always at least one text), the longest texts first.

    `lengths` int [n]: tokens of each text, special tokens included. Long texts first: memory peaks at the start.
    """
    return [Chunk(rows) for rows in token_batches(lengths, budget)]


def stretch(chunks: list[Chunk], count: int) -> list[Chunk]:
    """The same texts in exactly `count` >= len(chunks) chunks, since ZeRO communicates chunk by chunk.

    The chunks with most texts are halved; where there are fewer texts than chunks, idle ones encode a text again.
    """
    chunks = list(chunks)
    while len(chunks) < count:
        largest = max(range(len(chunks)), key=lambda i: len(chunks[i].rows))
        rows = chunks[largest].rows
        if len(rows) == 1:
            chunks.append(Chunk(rows, idle=True))
        else:
            half = math.ceil(len(rows) / 2)
            chunks[largest : largest + 1] = [Chunk(rows[:half]), Chunk(rows[half:])]
    return chunks
