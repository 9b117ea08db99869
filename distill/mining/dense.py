"""Mining with a dense model: every passage embedded once, then exact search over all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from distill.config import resolve_model
from distill.data.texts import TextStore
from distill.errors import RecipeError
from distill.mining.search import search_dense
from distill.progress import progress

_SLAB = 8192  # passages embedded at a time; sorted by length inside a slab
_BATCH = 64


class DenseIndex:
    """Embeddings of the collection in a memory-mapped temporary file in `scratch`, gone with the process.

    Similarity is the model's own: cosine or dot product. Raises `RecipeError` if the model cannot be loaded.
    """

    def __init__(self, model: str, revision: str | None, store: TextStore, scratch: Path):
        self.model = load_dense(model, revision)
        dimension = self.model.get_embedding_dimension()
        scratch.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 (lives as long as the index)
        size = store.collection_size
        self.passages = np.memmap(self._file, np.float32, "w+", shape=(size, dimension)) if size else \
            np.empty((0, dimension), np.float32)
        with progress("embed passages", size, "passages") as advance:
            for start in range(0, size, _SLAB):
                rows = np.arange(start, min(start + _SLAB, size))
                self.passages[rows] = self._embed(store.texts(rows), "document")
                advance(len(rows))

    def search(self, queries: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` passages of each query: rows int64 [n, min(k, N)] and scores float32."""
        return search_dense(self._embed(list(queries), "query"), self.passages, k)

    def _embed(self, texts: list[str], side: str) -> np.ndarray:
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        return encode(texts, batch_size=_BATCH, show_progress_bar=False, convert_to_numpy=True,
                      normalize_embeddings=self.model.similarity_fn_name == "cosine").astype(np.float32, copy=False)


def load_dense(model: str, revision: str | None) -> SentenceTransformer:
    """A sentence-transformers model whose similarity is a (normalised) dot product."""
    try:
        loaded = SentenceTransformer(resolve_model(model), revision=revision)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"the dense miner's model {model!r} cannot be loaded: {error}") from None
    if loaded.similarity_fn_name not in ("cosine", "dot"):
        raise RecipeError(f"the dense miner's model {model!r} compares by {loaded.similarity_fn_name}; "
                          "cosine and dot product are what can be searched")
    return loaded
