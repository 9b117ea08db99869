"""Mining with a dense model: the collection is embedded once, then searched exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer

from distill.config import Miner
from distill.errors import ModelError, RecipeError
from distill.progress import progress
from distill.retrieval.encode import Precision
from distill.run.device import until_it_fits
from distill.run.model_ref import ModelRef
from distill.store.texts import TextStore

_SLAB = 8192  # passages embedded together; sorted by length within a slab
_CPU_BATCH = 64  # texts
_GPU_BATCH_TOKENS = 65_536


class DenseModel:
    """Embeds passages and queries. Raises `RecipeError` for a model that cannot be loaded or searched, and for vectors
    that are not finite.

    Similarity is the model's own: cosine or dot product.
    """

    def __init__(self, miner: Miner, store: TextStore, precision: Precision, device: str | None = None):
        assert miner.model is not None  # the schema requires it for this kind
        self.model = load_dense(miner.model, miner.revision, device)
        self._name, self._store, self._precision = miner.model, store, precision
        self._longest = self.model.max_seq_length or 512
        on_cpu = self.model.device.type == "cpu"
        self._tokens = _CPU_BATCH * self._longest if on_cpu else _GPU_BATCH_TOKENS  # of a batch, at most

    def passages(self, rows: np.ndarray, title: str) -> pa.RecordBatch:
        """Return one column of vectors, one row per passage."""
        dimension = self.model.get_embedding_dimension()
        assert dimension is not None  # known for every loaded model
        vectors = np.empty((len(rows), dimension), np.float32)
        with progress(title, len(rows), "passages") as advance:
            for start in range(0, len(rows), _SLAB):
                part = rows[start : start + _SLAB]
                vectors[start : start + len(part)] = self._embed(self._store.texts(part), "document")
                advance(len(part))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.RecordBatch.from_arrays([column], names=["vector"])

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, d]."""
        return self._embed(list(texts), "query")

    def _embed(self, texts: list[str], side: Literal["query", "document"]) -> np.ndarray:
        encode = self.model.encode_query if side == "query" else self.model.encode_document

        def vectors_of(tokens: int) -> np.ndarray:
            return encode(
                texts,
                batch_size=max(1, tokens // self._longest),
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=self.model.similarity_fn_name == "cosine",
            )

        kind = self.model.device.type
        with torch.autocast(kind, getattr(torch, self._precision), enabled=self._precision != "float32"):
            vectors, self._tokens = until_it_fits(vectors_of, self._tokens)
        if not np.isfinite(vectors).all():
            raise RecipeError(
                f"the dense miner's model {self._name!r} produces NaN or infinite values in "
                f"{self._precision}"
                + ("" if self._precision == "float32" else "; set mine.precision to bfloat16 or float32")
            )
        return vectors.astype(np.float32, copy=False)


def load_dense(model: str, revision: str | None, device: str | None = None) -> SentenceTransformer:
    """Load a sentence-transformers model. Its similarity must be cosine or dot product."""
    ref = ModelRef.parse(model, revision)
    try:
        ref.check_found()
        loaded = SentenceTransformer(ref.location, revision=revision, device=device)
    except (ModelError, OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"the dense miner's model {model!r} cannot be loaded: {error}") from None
    if loaded.similarity_fn_name not in ("cosine", "dot"):
        raise RecipeError(
            f"the dense miner's model {model!r} uses {loaded.similarity_fn_name} similarity; only cosine and dot "
            "product can be searched. Choose another model"
        )
    return loaded
