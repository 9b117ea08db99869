"""The indexes that dense and SPLADE miners search: the collection's chunks, memory-mapped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distill.retrieval.chunks import Chunks
from distill.retrieval.exact import search_dense
from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.postings import Postings
from distill.run.device import free_memory, if_it_fits, upload


class DenseIndex:
    """The embeddings of the collection, memory-mapped.

    A GPU keeps them if they take up to half of its free memory; else they are copied to it for every search.
    """

    def __init__(self, chunks: Chunks):
        self._chunks = chunks
        columns = [batch.column("vector") for batch in chunks.open()]
        self.blocks = [column.values.to_numpy().reshape(len(column), -1) for column in columns]

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the best `k` passages of each query: rows int64 [n, min(k, N)], scores float32. Ignores `threads`."""
        vectors, device = self._chunks.model.queries(queries), self._chunks.device
        if device != "cpu":
            blocks = self._blocks_there
            found = if_it_fits(lambda: search_dense(vectors, blocks, k, device), device, "the search of embeddings")
            if found is not None:
                return found
        return search_dense(vectors, self.blocks, k)

    @cached_property
    def _blocks_there(self) -> Sequence[np.ndarray | Tensor]:
        """The embeddings on the GPU, or as they are if they would take too much of it."""
        if sum(block.nbytes for block in self.blocks) > free_memory(self._chunks.device) / 2:
            return self.blocks
        return [upload(torch.tensor(block), torch.device(self._chunks.device)) for block in self.blocks]


class SpladeIndex:
    """The posting lists of the collection, memory-mapped."""

    def __init__(self, chunks: Chunks):
        self._chunks = chunks
        self.index = InvertedIndex([Postings.of_batch(batch) for batch in chunks.open()], chunks.device)

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As `InvertedIndex.search`: rows int64 [n, min(k, N)], -1 after the last hit, and scores float32."""
        return self.index.search(self._chunks.model.queries(queries), k, threads)
