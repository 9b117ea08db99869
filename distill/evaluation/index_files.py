"""A collection's and its queries' vectors in the files that search engines read.

The passages are encoded and written slab by slab, so memory does not grow with the collection; the output folder
appears whole or not at all.

- anserini: `docs/docs.jsonl` for JsonVectorCollection, weights times 100, rounded (naver's scale for SPLADE), and
  `topics.tsv`, a query's terms repeated as often as their rounded weight says; both for `-impact` search.
- seismic: `docs.jsonl` and `queries.jsonl` as `SeismicIndex.build` reads them, weights as they are.
- qdrant: `points.jsonl` and `queries.jsonl`, a point a line as the upsert API takes it, terms by their number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from distill.data.files import new_folder
from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.errors import RecipeError
from distill.evaluation.explain import open_model
from distill.mining.encode import encode_store, encode_texts, token_store
from distill.student.model import SpladeStudent

QUANTISED = 100  # Anserini's impacts are whole numbers
VECTOR = "splade"  # name of the sparse vector in Qdrant's points
_SLAB = 16_384  # passages encoded before they are written


def export_index(checkpoint: str | Path, folder: RunFolder, output: Path, format: str, split: str | None = None
                 ) -> Path:
    """Write the run folder's collection, and the queries of `split`, encoded by a checkpoint; returns the folder.

    Raises `RecipeError` for an unknown format, an output that is there, and a split without queries.
    """
    if format not in _FORMATS:
        raise RecipeError(f"--format {format!r}: one of {', '.join(_FORMATS)}")
    if output.exists():
        raise RecipeError(f"{output} is there already; name another folder, or remove it")
    if split is not None and not folder.queries(split).exists():
        raise RecipeError(f"{folder.root} has no {split} queries")
    write = _FORMATS[format]
    model = open_model(checkpoint)
    terms = np.array(model.tokenizer.convert_ids_to_tokens(range(model.vocab_size)), dtype=object)
    with new_folder(output) as place:
        write(place, terms, "passage", _passages(model, folder))
        if split is not None:
            write(place, terms, "query", _queries(model, folder, split))
    return output


Encoded = Iterator[tuple[list[str], sparse.csr_matrix]]  # ids, and vectors [n, V], slab by slab


def _passages(model: SpladeStudent, folder: RunFolder) -> Encoded:
    store = TextStore.open(folder.passages)
    tokens = token_store(model, store, folder, "passages")
    for first in range(0, store.collection_size, _SLAB):
        rows = np.arange(first, min(first + _SLAB, store.collection_size))
        yield store.ids(rows), encode_store(model, tokens, rows, "passage", f"encode passages from {first:,}")


def _queries(model: SpladeStudent, folder: RunFolder, split: str) -> Encoded:
    store = TextStore.open(folder.queries(split))
    rows = np.arange(len(store))
    yield store.ids(rows), encode_texts(model, store.texts(rows), "query", "encode queries")


def _anserini(place: Path, terms: np.ndarray, side: str, encoded: Encoded) -> None:
    (place / "docs").mkdir(exist_ok=True)
    path = place / "docs" / "docs.jsonl" if side == "passage" else place / "topics.tsv"
    with open(path, "w", encoding="utf-8") as file:
        for name, columns, values in _rows(encoded):
            impacts = np.rint(values * QUANTISED).astype(int)
            kept = impacts > 0
            named = zip(terms[columns[kept]], impacts[kept].tolist(), strict=True)
            if side == "passage":
                file.write(_line({"id": name, "contents": "", "vector": dict(named)}))
            else:
                file.write(f"{name}\t{' '.join(' '.join([term] * impact) for term, impact in named)}\n")


def _seismic(place: Path, terms: np.ndarray, side: str, encoded: Encoded) -> None:
    with open(place / ("docs.jsonl" if side == "passage" else "queries.jsonl"), "w", encoding="utf-8") as file:
        for name, columns, values in _rows(encoded):
            file.write(_line({"id": name, "content": "", "vector": dict(zip(terms[columns], values.tolist(),
                                                                           strict=True))}))


def _qdrant(place: Path, terms: np.ndarray, side: str, encoded: Encoded) -> None:
    with open(place / ("points.jsonl" if side == "passage" else "queries.jsonl"), "w", encoding="utf-8") as file:
        for number, (name, columns, values) in enumerate(_rows(encoded)):
            vector = {"indices": columns.tolist(), "values": values.tolist()}
            file.write(_line({"id": number, "payload": {"id": name}, "vector": {VECTOR: vector}}
                             if side == "passage" else {"id": name, "query": vector, "using": VECTOR}))


_FORMATS: dict[str, Callable[[Path, np.ndarray, str, Encoded], None]] = {
    "anserini": _anserini, "seismic": _seismic, "qdrant": _qdrant}


def _rows(encoded: Encoded) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Id, terms' numbers and weights of each text."""
    for ids, vectors in encoded:
        for i, name in enumerate(ids):
            piece = slice(vectors.indptr[i], vectors.indptr[i + 1])
            yield name, vectors.indices[piece], vectors.data[piece]


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
