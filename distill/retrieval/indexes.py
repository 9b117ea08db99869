"""The indexes that dense and SPLADE miners search: the collection's chunks, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.retrieval.chunks import Chunks
from distill.retrieval.exact import search_dense
from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.postings import Postings


class DenseIndex:
    """The embeddings of the collection, memory-mapped."""

    def __init__(self, chunks: Chunks):
        self._chunks = chunks
        columns = [batch.column("vector") for batch in chunks.open()]
        self.blocks = [column.values.to_numpy().reshape(len(column), -1) for column in columns]

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the best `k` passages of each query: rows int64 [n, min(k, N)], scores float32. Ignores `threads`."""
        return search_dense(self._chunks.model.queries(queries), self.blocks, k)


class SpladeIndex:
    """The posting lists of the collection, memory-mapped."""

    def __init__(self, chunks: Chunks):
        self._chunks = chunks
        self.index = InvertedIndex([Postings.of_batch(batch) for batch in chunks.open()], chunks.device)

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `InvertedIndex.search`: rows int64 [n, min(k, N)], -1 after the last hit, and scores float32."""
        return self.index.search(self._chunks.model.queries(queries), k, threads)
