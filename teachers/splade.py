"""SPLADE models as teachers, their own prompts and lengths; score = dot product (or cosine, as saved).

A masked language model with SPLADE pooling, and a table for queries if it has one, is loaded like a student, so that
its head never makes `[batch, length, vocabulary]` logits. What else a `SparseEncoder` may hold (CSR) runs as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from scipy import sparse

from distill import config
from distill.config import resolve_model
from distill.data.layout import RunFolder
from distill.errors import StudentError, TeacherError
from distill.mining.encode import encode_texts
from distill.student.checkpoint import load_checkpoint
from distill.student.layout import OtherLayout, read_json, read_parts
from teachers.bi_encoder import TYPICAL_TOKENS, prepare
from teachers.execution import Execution
from teachers.models import loading
from teachers.vectors import VectorTeacher

__all__ = ["SparseVectors", "StudentVectors", "open_teacher", "prepare"]


def open_teacher(name: str, cfg: config.Teacher, folder: RunFolder, execution: Execution) -> VectorTeacher:
    execution.apply_threads()
    encoder = StudentVectors if _like_a_student(name, cfg) else SparseVectors
    return VectorTeacher(name, encoder(name, cfg, execution), folder, execution)


def _like_a_student(name: str, cfg: config.Teacher) -> bool:
    """Whether `load_checkpoint` reads it as `SparseEncoder` would: no modules but ours, no prompts by other names."""
    model = resolve_model(cfg.model)
    try:
        loading(name, cfg.model, lambda: read_parts(model, cfg.revision))
        settings = (
            loading(name, cfg.model, lambda: read_json(model, "config_sentence_transformers.json", cfg.revision)) or {}
        )
    except OtherLayout:
        return False
    except StudentError as error:
        raise TeacherError(f"teacher {name!r}: {error}") from error
    prompts = {key for key, text in (settings.get("prompts") or {}).items() if text}
    return (
        prompts <= {"query", "document"}
        and not settings.get("default_prompt_name")
        and settings.get("similarity_fn_name") in (None, "dot")
    )


class StudentVectors:
    """`Encoder` over a masked language model with the exact SPLADE head."""

    def __init__(self, name: str, cfg: config.Teacher, execution: Execution):
        self._name = name
        try:
            self._student = load_checkpoint(cfg.model, cfg.revision).to(execution.device)
        except StudentError as error:
            raise TeacherError(f"teacher {name!r}: {error}") from error
        self._student.query_max_length = min(cfg.max_length, self._student.query_max_length)
        self._student.passage_max_length = min(cfg.max_length, self._student.passage_max_length)
        self.max_length = max(self._student.query_max_length, self._student.passage_max_length)

    def vectors(self, store: str, texts: list[str], execution: Execution) -> pa.RecordBatch:
        side = "query" if store == "queries" else "passage"
        try:
            found = encode_texts(
                self._student, texts, side, batch_tokens=execution.batch_tokens, precision=execution.precision
            )
        except StudentError as error:
            raise TeacherError(f"teacher {self._name!r}: {error}") from error
        return _to_arrow(found)

    def similarity(self, queries: pa.RecordBatch, passages: pa.RecordBatch) -> np.ndarray:
        return _dot_products(*(_from_arrow(batch, self._student.vocab_size) for batch in (queries, passages)))


class SparseVectors:
    """`Encoder` over any SparseEncoder."""

    def __init__(self, name: str, cfg: config.Teacher, execution: Execution):
        from sentence_transformers import SparseEncoder

        self._model: Any = loading(
            name,
            cfg.model,
            lambda: SparseEncoder(resolve_model(cfg.model), revision=cfg.revision, device=execution.device),
        )
        self.max_length = self._model.max_seq_length = min(cfg.max_length, self._model.max_seq_length or cfg.max_length)
        self._size = self._model.get_embedding_dimension()
        self._cosine = self._model.similarity_fn_name == "cosine"
        if self._model.similarity_fn_name not in ("cosine", "dot"):
            raise TeacherError(
                f"teacher {name!r}: the similarity {self._model.similarity_fn_name!r} of {cfg.model!r} "
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
    """One row a text: its active terms and their weights."""
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
    """Row by row: float32 [n]."""
    return np.asarray(a.multiply(b).sum(axis=1)).ravel().astype(np.float32)
