"""Bi-encoders as teachers: a `SentenceTransformer` with its own prompts and similarity function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from teachers.execution import Execution
from teachers.models import loading
from teachers.spec import TeacherSpec
from teachers.vectors import VectorTeacher, plan_vectors

TYPICAL_TOKENS = 128  # per text: converts a token budget into the batch size that sentence-transformers takes


def prepare(spec: TeacherSpec, splits: Sequence[str]) -> None:
    plan_vectors(spec, splits)


def open_teacher(spec: TeacherSpec, execution: Execution) -> VectorTeacher:
    return VectorTeacher(spec, DenseEncoder(spec, execution), execution)


class DenseEncoder:
    """`Encoder` over a SentenceTransformer; vectors are float32, as the model gives them."""

    def __init__(self, spec: TeacherSpec, execution: Execution):
        from sentence_transformers import SentenceTransformer

        execution.apply_threads()
        model, max_length = spec.model, spec.config.max_length
        self._model = loading(
            spec.name,
            model.name,
            lambda: SentenceTransformer(model.location, revision=model.revision, device=execution.device),
        )
        self.max_length = self._model.max_seq_length = min(max_length, self._model.max_seq_length or max_length)

    def vectors(self, store: str, texts: list[str], execution: Execution) -> pa.RecordBatch:
        encode = self._model.encode_query if store == "queries" else self._model.encode_document
        with execution.autocast():
            vectors = encode(
                texts,
                batch_size=max(1, execution.batch_tokens // TYPICAL_TOKENS),
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        vectors = np.ascontiguousarray(vectors, np.float32)  # [n, d]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        return pa.RecordBatch.from_arrays([column], names=["vector"])

    def similarity(self, queries: pa.RecordBatch, passages: pa.RecordBatch) -> np.ndarray:
        return self._model.similarity_pairwise(_matrix(queries), _matrix(passages)).numpy().astype(np.float32)


def _matrix(batch: pa.RecordBatch) -> torch.Tensor:
    return torch.tensor(batch.column("vector").flatten().to_numpy().reshape(batch.num_rows, -1))  # [n, d]
