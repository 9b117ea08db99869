"""Chunks: the texts of one step, sorted by length to reduce padding, cut into pieces that fit in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from distill.store.token_batches import token_batches


@dataclass(frozen=True)
class Chunk:
    """Texts encoded together: `rows` index the texts of one side. Idle chunks only equalise chunk counts over ranks."""

    rows: np.ndarray  # int64 [k]
    idle: bool = False


def cut(lengths: np.ndarray, budget: int) -> list[Chunk]:
    """Cut texts into chunks of at most `budget` padded tokens (always at least one text), the longest texts first.

    `lengths` int [n]: tokens per text, special tokens included. With long texts first, memory peaks at the start.
    """
    return [Chunk(rows) for rows in token_batches(lengths, budget)]


def pad_chunks(chunks: list[Chunk], count: int) -> list[Chunk]:
    """Split the same texts into exactly `count` >= len(chunks) chunks, since ZeRO communicates in every chunk.

    The chunks with most texts are halved. With fewer texts than chunks, idle chunks encode a text again.
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
