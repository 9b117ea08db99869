"""Mining with a SPLADE checkpoint: the collection encoded once, then exact sparse search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.mining.encode import encode_store, encode_texts, token_store
from distill.mining.search import search_inverted
from distill.student.checkpoint import load_checkpoint


class SpladeIndex:
    """Vectors of the collection, in memory: 8 bytes per active term. Raises `StudentError` for no SPLADE checkpoint."""

    def __init__(self, model: str, revision: str | None, passages: TextStore, folder: RunFolder):
        self.student = load_checkpoint(model, revision).to("cuda" if torch.cuda.is_available() else "cpu")
        tokens = token_store(self.student, passages, folder, "passages")
        vectors = encode_store(self.student, tokens, np.arange(passages.collection_size), "passage", "encode passages")
        self.inverted = vectors.T.tocsr()  # [vocabulary, N]: the posting lists

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` passages of each query: rows int64 [n, min(k, N)], -1 where none shares a term; scores."""
        return search_inverted(encode_texts(self.student, queries, "query"), self.inverted, k)
