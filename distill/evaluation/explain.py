"""Explain a SPLADE checkpoint's retrieval: the terms of a text, and the terms that a query and a passage share.

Plain functions that return data; the caller displays it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from distill.retrieval.encode import encode_store, encode_texts, token_store
from distill.retrieval.exact import search_sparse
from distill.run.device import default_device
from distill.run.layout import RunFolder
from distill.store.texts import TextStore
from distill.student.base import Side, Student
from distill.student.checkpoint import load_student


@dataclass(frozen=True)
class Term:
    """A vocabulary term as the tokenizer writes it, with its weight in a text or its contribution to a score."""

    text: str
    weight: float


@dataclass(frozen=True)
class Hit:
    """A passage retrieved for a query. `matches`: shared terms by contribution, which sum to `score`."""

    row: int
    score: float
    matches: tuple[Term, ...]


def open_model(checkpoint: str | Path, *, trust_remote_code: bool = False) -> Student:
    """Load a checkpoint as `load_student` does, ready to encode; on the GPU if there is one."""
    return load_student(checkpoint, trust_remote_code=trust_remote_code).to(default_device()).eval()


def explain(model: Student, text: str, side: Side = "passage") -> list[Term]:
    """Return all active terms of a text, strongest first."""
    return _terms(model, encode_texts(model, [text], side))


def encode_collection(model: Student, passages: RunFolder | Sequence[str]) -> sparse.csr_matrix:
    """Encode a run folder's searchable passages, or a list of texts: float32 [n, vocabulary]."""
    if not isinstance(passages, RunFolder):
        return encode_texts(model, passages, "passage", "encode passages")
    store = TextStore.open(passages.passages)
    tokens = token_store(model, store, passages, "passages")
    return encode_store(model, tokens, np.arange(store.collection_size), "passage", "encode passages")


def search_and_explain(model: Student, vectors: sparse.csr_matrix, query: str, k: int = 5) -> list[Hit]:
    """Return the `k` best passages for a query among `encode_collection`'s vectors, with the terms that matched."""
    query_vector = encode_texts(model, [query], "query")
    rows, scores = search_sparse(query_vector, vectors, k)
    return [
        Hit(row, score, tuple(_terms(model, query_vector.multiply(vectors[row]).tocsr())))
        for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
        if row >= 0
    ]


def _terms(model: Student, vector: sparse.csr_matrix) -> list[Term]:
    order = np.lexsort((vector.indices, -vector.data))
    names = model.term_names()
    return [
        Term(names[term] or f"term-{term}", float(weight))
        for term, weight in zip(vector.indices[order].tolist(), vector.data[order], strict=True)
    ]
