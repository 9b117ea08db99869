"""Mining with a SPLADE checkpoint: the collection encoded once, then exact sparse search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from distill.config import Miner
from distill.data.candidates import csr_column
from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.mining.encode import Precision, encode_store, encode_texts, token_store
from distill.student.checkpoint import load_checkpoint


class SpladeModel:
    """Sparse vectors of passages and queries. Raises `StudentError` for what is no SPLADE checkpoint."""

    def __init__(
        self, miner: Miner, store: TextStore, folder: RunFolder, precision: Precision, device: str | None = None
    ):
        self.student = load_checkpoint(miner.model, miner.revision).to(
            device or ("cuda" if torch.cuda.is_available() else "cpu")
        )
        self._store, self._folder, self._precision = store, folder, precision

    def passages(self, rows: np.ndarray, title: str) -> pa.RecordBatch:
        """Posting lists, 8 bytes per active term: a row a term of the vocabulary, `passages` counted from rows[0]."""
        tokens = token_store(self.student, self._store, self._folder, "passages")
        inverted = encode_store(self.student, tokens, rows, "passage", title, precision=self._precision).T.tocsr()
        return pa.RecordBatch.from_arrays(
            [
                csr_column(inverted.indptr, inverted.indices, pa.list_(pa.int32())),
                csr_column(inverted.indptr, inverted.data, pa.list_(pa.float32())),
            ],
            names=["passages", "weights"],
        )

    def queries(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """float32 [n, vocabulary]."""
        return encode_texts(self.student, texts, "query", precision=self._precision)
