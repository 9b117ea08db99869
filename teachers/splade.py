"""SPLADE models as teachers, with their own prompts and lengths; score = dot product (or cosine, as saved).

A masked language model with SPLADE pooling, with or without a query table, is loaded like a student, so its head never
computes `[batch, length, vocabulary]` logits. Any other `SparseEncoder` (CSR, say) runs as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from distill.errors import ModelError, StudentError, TeacherError
from distill.retrieval.encode import encode_texts
from distill.student.base import Side
from distill.student.checkpoint import load_student
from distill.student.layout import UnsupportedCheckpoint, read_parts
from teachers.bi_encoder import TYPICAL_TOKENS, prepare
from teachers.execution import Execution
from teachers.models import loading
from teachers.spec import TeacherSpec
from teachers.vectors import VectorTeacher

__all__ = ["SparseVectors", "StudentVectors", "open_teacher", "prepare"]


def open_teacher(spec: TeacherSpec, execution: Execution) -> VectorTeacher:
    execution.apply_threads()
    encoder = StudentVectors(spec, execution) if loads_as_student(spec) else SparseVectors(spec, execution)
    return VectorTeacher(spec, encoder, execution)


def loads_as_student(spec: TeacherSpec) -> bool:
    """Whether `load_student` reads the model as `SparseEncoder` does: only our modules, no prompts by other names."""
    model = spec.model
    try:
        loading(spec.name, model.name, lambda: read_parts(model.location, model.revision))
        settings = loading(spec.name, model.name, lambda: model.read_json("config_sentence_transformers.json")) or {}
    except UnsupportedCheckpoint:
        return False
    except ModelError as error:
        raise TeacherError(f"teacher {spec.name!r}: {error}") from error
    prompts = {key for key, text in (settings.get("prompts") or {}).items() if text}
    return (
        prompts <= {"query", "document"}
        and not settings.get("default_prompt_name")
        and settings.get("similarity_fn_name") in (None, "dot")
    )


class StudentVectors:
    """`Encoder` over a masked language model with the exact SPLADE head."""

    def __init__(self, spec: TeacherSpec, execution: Execution):
        self._name, max_length = spec.name, spec.config.max_length
        try:
            self._student = load_student(spec.model.name, spec.model.revision).to(execution.device)
        except StudentError as error:
            raise TeacherError(f"teacher {spec.name!r}: {error}") from error
        self._student.query_max_length = min(max_length, self._student.query_max_length)
        self._student.passage_max_length = min(max_length, self._student.passage_max_length)
        self.max_length = max(self._student.query_max_length, self._student.passage_max_length)

    def vectors(self, store: str, texts: list[str], execution: Execution) -> pa.RecordBatch:
        side: Side = "query" if store == "queries" else "passage"
        try:
            vectors = encode_texts(
                self._student, texts, side, batch_tokens=execution.batch_tokens, precision=execution.precision
            )
        except StudentError as error:
            raise TeacherError(f"teacher {self._name!r}: {error}") from error
        return _to_arrow(vectors)

    def similarity(self, queries: pa.RecordBatch, passages: pa.RecordBatch) -> np.ndarray:
        return _dot_products(*(_from_arrow(batch, self._student.vocab_size) for batch in (queries, passages)))


class SparseVectors:
    """`Encoder` over any SparseEncoder."""

    def __init__(self, spec: TeacherSpec, execution: Execution):
        from sentence_transformers import SparseEncoder

        model, max_length = spec.model, spec.config.max_length
        self._model: Any = loading(
            spec.name,
            model.name,
            lambda: SparseEncoder(model.location, revision=model.revision, device=execution.device),
        )
        self.max_length = self._model.max_seq_length = min(max_length, self._model.max_seq_length or max_length)
        size = self._model.get_embedding_dimension()
        assert size is not None
        self._size = size
        self._cosine = self._model.similarity_fn_name == "cosine"
        if self._model.similarity_fn_name not in ("cosine", "dot"):
            raise TeacherError(
                f"teacher {spec.name!r}: the similarity {self._model.similarity_fn_name!r} of {model.name!r} "
                "is not supported (dot and cosine are)"
            )

    def vectors(self, store: str, texts: list[str], execution: Execution) -> pa.RecordBatch:
        encode = self._model.encode_query if store == "queries" else self._model.encode_document
        with execution.autocast():
            rows = encode(
                texts,
                batch_size=max(1, execution.batch_tokens // TYPICAL_TOKENS),
                convert_to_tensor=False,
                convert_to_sparse_tensor=True,
                save_to_cpu=True,
                show_progress_bar=False,
            )
        rows = [row.coalesce() for row in rows]
        indptr = np.cumsum([0, *(row.values().numel() for row in rows)])
        terms, values = (
            torch.cat(parts).numpy()
            for parts in ([row.indices()[0] for row in rows], [row.values().float() for row in rows])
        )
        return _to_arrow(sparse.csr_matrix((values, terms, indptr), shape=(len(rows), self._size)))

    def similarity(self, queries: pa.RecordBatch, passages: pa.RecordBatch) -> np.ndarray:
        a, b = (_from_arrow(batch, self._size) for batch in (queries, passages))
        scores = _dot_products(a, b)
        if self._cosine:
            scores = scores / np.maximum(np.sqrt(_dot_products(a, a) * _dot_products(b, b)), 1e-12)
        return scores


def _to_arrow(vectors: sparse.csr_matrix) -> pa.RecordBatch:
    """One row per text: its active terms and their weights."""
    offsets = pa.array(vectors.indptr, pa.int32())
    columns = [
        pa.ListArray.from_arrays(offsets, pa.array(flat))
        for flat in (vectors.indices.astype(np.int32), vectors.data.astype(np.float32))
    ]
    return pa.RecordBatch.from_arrays(columns, names=["terms", "values"])


def _from_arrow(batch: pa.RecordBatch, size: int) -> sparse.csr_matrix:
    terms, values = batch.column("terms"), batch.column("values")
    indptr = np.concatenate([[0], np.cumsum(np.diff(terms.offsets.to_numpy()))])
    return sparse.csr_matrix(
        (values.flatten().to_numpy(), terms.flatten().to_numpy(), indptr), shape=(batch.num_rows, size)
    )


def _dot_products(a: sparse.csr_matrix, b: sparse.csr_matrix) -> np.ndarray:
    """Dot product of each row of `a` with that of `b`, float32 [n]."""
    return np.asarray(a.multiply(b).sum(axis=1)).ravel().astype(np.float32)
