"""Mining with a dense model: every passage embedded once, then exact search over all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from sentence_transformers import SentenceTransformer

from distill.config import Miner, missing_folder, resolve_model
from distill.data.texts import TextStore
from distill.errors import RecipeError
from distill.mining.encode import Precision
from distill.progress import progress

_SLAB = 8192  # passages embedded at a time; sorted by length inside a slab
_BATCH = 64


class DenseModel:
    """Embeddings of passages and queries. Raises `RecipeError` if the model cannot be loaded, or searched with,
    and for vectors that are not finite.

    Similarity is the model's own: cosine or dot product.
    """

    def __init__(self, miner: Miner, store: TextStore, precision: Precision, device: str | None = None):
        self.model = load_dense(miner.model, miner.revision, device)
        self._name, self._store, self._precision = miner.model, store, precision

    def passages(self, rows: np.ndarray, title: str) -> pa.RecordBatch:
        """One column of vectors, a row a passage."""
        vectors = np.empty((len(rows), self.model.get_embedding_dimension()), np.float32)
        with progress(title, len(rows), "passages") as advance:
            for start in range(0, len(rows), _SLAB):
                part = rows[start : start + _SLAB]
                vectors[start : start + len(part)] = self._embed(self._store.texts(part), "document")
                advance(len(part))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        return pa.RecordBatch.from_arrays([column], names=["vector"])

    def queries(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d]."""
        return self._embed(list(texts), "query")

    def _embed(self, texts: list[str], side: str) -> np.ndarray:
        encode = self.model.encode_query if side == "query" else self.model.encode_document
        with torch.autocast(
            self.model.device.type, getattr(torch, self._precision), enabled=self._precision != "float32"
        ):
            vectors = encode(
                texts,
                batch_size=_BATCH,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=self.model.similarity_fn_name == "cosine",
            )
        if not np.isfinite(vectors).all():
            raise RecipeError(
                f"the dense miner's model {self._name!r} made vectors with NaN or infinite values in "
                f"{self._precision}"
                + ("" if self._precision == "float32" else "; set mine.precision to bfloat16 or float32")
            )
        return vectors.astype(np.float32, copy=False)


def load_dense(model: str, revision: str | None, device: str | None = None) -> SentenceTransformer:
    """A sentence-transformers model whose similarity is a (normalised) dot product."""
    if (missing := missing_folder(resolve_model(model))) is not None:
        raise RecipeError(f"the dense miner's model cannot be loaded: {missing}")
    try:
        loaded = SentenceTransformer(resolve_model(model), revision=revision, device=device)
    except (OSError, ValueError, RuntimeError) as error:
        raise RecipeError(f"the dense miner's model {model!r} cannot be loaded: {error}") from None
    if loaded.similarity_fn_name not in ("cosine", "dot"):
        raise RecipeError(
            f"the dense miner's model {model!r} compares by {loaded.similarity_fn_name}; "
            "cosine and dot product are what can be searched"
        )
    return loaded
