"""SPLADE models as teachers: a `SparseEncoder`, its own prompts; score = dot product (or cosine, as saved)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from distill import config
from distill.config import resolve_model
from distill.data.layout import RunFolder
from distill.errors import TeacherError
from teachers.bi_encoder import TYPICAL_TOKENS, prepare
from teachers.execution import Execution
from teachers.models import loading
from teachers.vectors import VectorTeacher

__all__ = ["SparseVectors", "open_teacher", "prepare"]


def open_teacher(name: str, cfg: config.Teacher, folder: RunFolder, execution: Execution) -> VectorTeacher:
    return VectorTeacher(name, SparseVectors(name, cfg, execution), folder, execution)


class SparseVectors:
    """`Encoder` over a SparseEncoder; vectors are kept as active terms and their weights."""

    def __init__(self, name: str, cfg: config.Teacher, execution: Execution):
        from sentence_transformers import SparseEncoder

        execution.apply_threads()
        self._model: Any = loading(name, cfg.model, lambda: SparseEncoder(
            resolve_model(cfg.model), revision=cfg.revision, device=execution.device))
        self._execution = execution
        self.max_length = self._model.max_seq_length = min(cfg.max_length, self._model.max_seq_length or cfg.max_length)
        self._size = self._model.get_embedding_dimension()
        self._cosine = self._model.similarity_fn_name == "cosine"
        if self._model.similarity_fn_name not in ("cosine", "dot"):
            raise TeacherError(f"teacher {name!r}: the similarity {self._model.similarity_fn_name!r} of {cfg.model!r} "
                               "is not supported (dot and cosine are)")

    def vectors(self, store: str, texts: list[str]) -> pa.RecordBatch:
        encode = self._model.encode_query if store == "queries" else self._model.encode_document
        with self._execution.autocast():
            rows = encode(texts, batch_size=max(1, self._execution.batch_tokens // TYPICAL_TOKENS),
                          convert_to_tensor=False, convert_to_sparse_tensor=True, save_to_cpu=True,
                          show_progress_bar=False)
        rows = [row.coalesce() for row in rows]
        offsets = pa.array(np.concatenate([[0], np.cumsum([row.values().numel() for row in rows])]), pa.int32())
        terms = torch.cat([row.indices()[0] for row in rows]).to(torch.int32).numpy()
        values = torch.cat([row.values() for row in rows]).float().numpy()
        columns = [pa.ListArray.from_arrays(offsets, pa.array(flat)) for flat in (terms, values)]
        return pa.RecordBatch.from_arrays(columns, names=["terms", "values"])

    def similarity(self, queries: pa.RecordBatch, passages: pa.RecordBatch) -> np.ndarray:
        a, b = self._matrix(queries), self._matrix(passages)
        scores = np.asarray(a.multiply(b).sum(axis=1)).ravel()
        if self._cosine:
            norms = [np.sqrt(np.asarray(m.multiply(m).sum(axis=1)).ravel()) for m in (a, b)]
            scores = scores / np.maximum(norms[0] * norms[1], 1e-12)
        return scores.astype(np.float32)

    def _matrix(self, batch: pa.RecordBatch) -> sparse.csr_matrix:
        terms, values = batch.column("terms"), batch.column("values")
        lengths = np.diff(terms.offsets.to_numpy())
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        return sparse.csr_matrix((values.flatten().to_numpy(), terms.flatten().to_numpy(), indptr),
                                 shape=(batch.num_rows, self._size))
