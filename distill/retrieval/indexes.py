"""The indexes that dense and SPLADE miners search: the collection's chunks, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy import sparse

from distill.retrieval.chunks import Chunks
from distill.retrieval.exact import search_blocks, search_dense


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
        self.blocks = [_matrix(batch, len(chunks.rows(number))) for number, batch in enumerate(chunks.open())]

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `search_inverted`: rows int64 [n, min(k, N)], -1 after the last hit, and scores float32."""
        return search_blocks(self._chunks.model.queries(queries), self.blocks, k, threads)


def _matrix(batch: pa.RecordBatch, size: int) -> sparse.csr_matrix:
    """View a chunk in the mapped file as posting lists [vocabulary, size]."""
    passages, weights = batch.column("passages"), batch.column("weights")
    arrays = (weights.values.to_numpy(), passages.values.to_numpy(), passages.offsets.to_numpy())
    return sparse.csr_matrix(arrays, shape=(len(passages), size))
