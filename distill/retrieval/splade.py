"""Mining with a SPLADE checkpoint: the collection is encoded once, then searched exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy import sparse

from distill.config import Miner
from distill.retrieval.encode import Precision, encode_store, encode_texts, token_store
from distill.retrieval.postings import Postings
from distill.run.device import default_device
from distill.run.layout import RunFolder
from distill.store.texts import TextStore
from distill.student.checkpoint import load_student


class SpladeModel:
    """Encodes passages and queries as sparse vectors. Raises `StudentError` if the model is no SPLADE checkpoint."""

    def __init__(
        self, miner: Miner, store: TextStore, folder: RunFolder, precision: Precision, device: str | None = None
    ):
        assert miner.model is not None  # the schema requires it for this kind
        self.student = load_student(miner.model, miner.revision).to(device or default_device())
        self._store, self._folder, self._precision = store, folder, precision

    def passages(self, rows: np.ndarray, title: str) -> pa.RecordBatch:
        """Return the posting lists of `rows` as `Postings` in one row."""
        tokens = token_store(self.student, self._store, self._folder, "passages")
        vectors = encode_store(self.student, tokens, rows, "passage", title, precision=self._precision)
        return Postings.of(vectors).batch()

    def queries(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return float32 [n, vocabulary]."""
        return encode_texts(self.student, texts, "query", precision=self._precision)
