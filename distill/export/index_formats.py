"""Sparse vectors in the formats of search engines: one `Format` each, with lines for passages and for queries.

Weights are written as they are, except for Anserini, whose impact index holds integers: round(100 · weight), as in
naver's and Anserini's own SPLADE indexes; a query repeats each term that many times. Terms are named by their token; a
token that an engine does not accept becomes `term-<its number>`, in passages and queries alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SCALE = 100  # factor of Anserini's integer weights


@dataclass(frozen=True)
class Text:
    """A passage or query to write; `terms` [n] are numbers in the vocabulary, `weights` [n] their weights."""

    row: int
    id: str
    text: str
    terms: np.ndarray
    weights: np.ndarray


Lines = Callable[[Text, Sequence[str]], str]  # takes a text and the terms' names; ends with a line break


@dataclass(frozen=True)
class Format:
    """`per_file`: passages per file, None for all in one; `setup`: name and content of a configuration file."""

    passages: str  # file name with "{part:05d}" for its number; gzipped if it ends in .gz
    queries: str  # file name with "{split}"
    passage: Lines
    query: Lines
    per_file: int | None
    refused: re.Pattern[str] | None = None  # pattern that the name of a term must not match
    setup: tuple[str, dict[str, Any]] | None = None


def term_names(tokens: Sequence[str | None], refused: re.Pattern[str] | None) -> list[str]:
    """One unique name per term; `tokens`: the student's names, None for a term without one."""
    taken = set(tokens)
    names = []
    for i, token in enumerate(tokens):
        if token is None or not token or (refused is not None and refused.search(token)):
            token = f"term-{i}"
            while token in taken:
                token += "-"
        names.append(token)
    return names


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _vector(text: Text, names: Sequence[str]) -> dict[str, float]:
    return {names[term]: weight for term, weight in zip(text.terms.tolist(), _floats(text.weights), strict=True)}


def _floats(weights: np.ndarray) -> list[float]:
    """The shortest decimal numbers that read back to the same float32."""
    return [float(str(weight)) for weight in weights.astype(np.float32)]


def _quantised(text: Text, names: Sequence[str]) -> dict[str, int]:
    """Integer weights; terms whose weight rounds to zero are left out."""
    weights = np.rint(text.weights * SCALE).astype(np.int64)
    return {names[term]: weight for term, weight in zip(text.terms.tolist(), weights.tolist(), strict=True) if weight}


def _anserini_passage(text: Text, names: Sequence[str]) -> str:
    return _json({"id": text.id, "contents": text.text, "vector": _quantised(text, names)})


def _anserini_query(text: Text, names: Sequence[str]) -> str:
    terms = [name for name, weight in _quantised(text, names).items() for _ in range(weight)]
    return f"{text.id}\t{' '.join(terms)}\n"


def _opensearch_passage(text: Text, names: Sequence[str]) -> str:
    source: dict[str, Any] = {"text": text.text}
    if len(text.terms):
        source["embedding"] = _vector(text, names)
    return _json({"index": {"_id": text.id}}) + _json(source)


def _opensearch_query(text: Text, names: Sequence[str]) -> str:
    query = {"neural_sparse": {"embedding": {"query_tokens": _vector(text, names)}}}
    return _json({"id": text.id, "body": {"query": query}})


def _qdrant_vector(text: Text) -> dict[str, list]:
    return {"indices": text.terms.tolist(), "values": _floats(text.weights)}


def _qdrant_passage(text: Text, names: Sequence[str]) -> str:
    """A point's id must be a number, so it is the row; the passage's id is in the payload."""
    return _json(
        {"id": text.row, "vector": {"splade": _qdrant_vector(text)}, "payload": {"id": text.id, "text": text.text}}
    )


def _qdrant_query(text: Text, names: Sequence[str]) -> str:
    return _json({"id": text.id, "query": _qdrant_vector(text), "using": "splade"})


def _seismic(text: Text, names: Sequence[str]) -> str:
    return _json({"id": text.id, "content": text.text, "vector": _vector(text, names)})


FORMATS = {
    "anserini": Format(
        "collection/part-{part:05d}.jsonl.gz",
        "queries.{split}.tsv",
        _anserini_passage,
        _anserini_query,
        per_file=250_000,
        refused=re.compile(r"\s"),
    ),
    # a bulk request may have up to 100 MiB
    "opensearch": Format(
        "bulk-{part:05d}.ndjson.gz",
        "queries.{split}.jsonl",
        _opensearch_passage,
        _opensearch_query,
        per_file=10_000,
        refused=re.compile(r"\."),
        setup=(
            "index.json",
            {"mappings": {"properties": {"text": {"type": "text"}, "embedding": {"type": "rank_features"}}}},
        ),
    ),
    "qdrant": Format(
        "points-{part:05d}.jsonl.gz",
        "queries.{split}.jsonl",
        _qdrant_passage,
        _qdrant_query,
        per_file=250_000,
        setup=("collection.json", {"sparse_vectors": {"splade": {}}}),
    ),
    # reads one plain file, and truncates the name of a term to 100 characters when searching
    "seismic": Format(
        "passages.jsonl",
        "queries.{split}.jsonl",
        _seismic,
        _seismic,
        per_file=None,
        refused=re.compile(r".{101}", re.DOTALL),
    ),
}
