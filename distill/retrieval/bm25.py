"""BM25 over the searchable collection: Lucene's formula, English stemming and stop words.

Texts are tokenized by bm25s with PyStemmer's stemmer. The weights, one sparse matrix (passages × stems), are computed
here because training variants of passages, which are not indexed, must be scored with the collection's statistics
(Kamphuis et al., ECIR 2020, "Lucene (accurate)"). A saved index is memory-mapped, so that processes share it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import Stemmer
from bm25s.tokenization import Tokenizer
from scipy import sparse

from distill.errors import StorageError
from distill.progress import progress
from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.postings import Postings
from distill.run.files import read_object, write_atomic, write_json, xxh128_file
from distill.run.seals import sealed
from distill.store.arrow import RowReader, write_ipc
from distill.store.candidates import only_batch
from distill.store.texts import TextStore

log = logging.getLogger(__name__)

_PAIRS = 200_000  # scored at once
_PARTS = ("data", "indices", "indptr")  # of a sparse matrix
_POSTINGS = "postings.arrow"


@dataclass(frozen=True)
class Bm25Index:
    """The BM25 weights of a collection's passages, made by `build_index` or `open_index`."""

    store: TextStore
    tokenizer: Tokenizer
    weights: sparse.csr_matrix  # float32 [collection_size, stems]
    idf: np.ndarray  # float32 [stems]
    mean_length: float  # stems per passage
    k1: float
    b: float
    saved_postings: Postings | None = None  # of an index on disk

    @cached_property
    def postings(self) -> InvertedIndex:
        """The posting lists of the weights."""
        return InvertedIndex.of(self.weights) if self.saved_postings is None else InvertedIndex([self.saved_postings])

    def search(self, queries: Sequence[str], k: int, threads: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the best `k` passages of each query: rows int64 [n, min(k, N)] and scores float32.

        Only passages that share a stem with the query are ranked; the rest of a row is -1, with score 0.
        """
        return self.postings.search(self.query_vectors(queries), k, threads)

    def score_pairs(self, queries: Sequence[str], passages: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Score `queries[i]` against the rows `passages[i]`, int64 [m_i], of the store.

        Training variants (rows from `collection_size`) are weighted by their own words with the collection's idf and
        mean length. Returns one float32 [m_i] per query.
        """
        counts = np.array([len(rows) for rows in passages], dtype=np.int64)
        vectors = self.query_vectors(queries)
        query_of = np.repeat(np.arange(len(queries)), counts)  # [pairs]
        rows = np.concatenate([np.empty(0, np.int64), *passages]).astype(np.int64)  # [pairs]
        scores = np.empty(len(rows), dtype=np.float32)
        for start in range(0, len(rows), _PAIRS):
            span = slice(start, start + _PAIRS)
            distinct, at = np.unique(rows[span], return_inverse=True)
            weights = self.passage_vectors(distinct)
            scores[span] = np.asarray(vectors[query_of[span]].multiply(weights[at]).sum(axis=1)).ravel()
        return np.split(scores, np.cumsum(counts)[:-1]) if len(counts) else []

    def query_vectors(self, queries: Sequence[str]) -> sparse.csr_matrix:
        """Count each indexed stem in each query: float32 [n, stems]."""
        return _count(self.tokenizer.streaming_tokenize(queries, update_vocab=False, allow_empty=False), len(self.idf))

    def passage_vectors(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return the BM25 weights of any rows of the store, indexed or not: float32 [len(rows), stems]."""
        rows = np.asarray(rows, dtype=np.int64)
        indexed = rows < self.store.collection_size
        if indexed.all():
            return self.weights[rows]
        variants = self.text_vectors(self.store.texts(rows[~indexed]))
        stacked = sparse.vstack([self.weights[rows[indexed]], variants], format="csr")
        return stacked[np.argsort(np.concatenate([np.flatnonzero(indexed), np.flatnonzero(~indexed)]))]

    def text_vectors(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Return the BM25 weights that texts would have as passages of the collection: float32 [n, stems]."""
        return _weigh(self.query_vectors(texts), self.idf, self.mean_length, self.k1, self.b)


def build_index(store: TextStore, k1: float = 1.5, b: float = 0.75) -> Bm25Index:
    """Index the searchable passages, rows [0, collection_size) of `store`."""
    tokenizer = new_tokenizer()
    parts = []
    with progress("BM25 index", store.collection_size, "passages") as advance:
        for texts in store.text_batches(stop=store.collection_size):
            parts.append(_count(tokenizer.streaming_tokenize(texts, update_vocab=True, allow_empty=False), None))
            advance(len(texts))
    vocabulary = len(tokenizer.stem_to_sid)
    for part in parts:
        part.resize(part.shape[0], vocabulary)
    counts = sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix((0, vocabulary), dtype=np.float32)
    n = counts.shape[0]
    frequency = np.bincount(counts.indices, minlength=vocabulary)  # passages with the stem
    idf = np.log1p((n - frequency + 0.5) / (frequency + 0.5)).astype(np.float32)
    mean_length = float(counts.sum()) / max(n, 1)
    weights = _weigh(counts, idf, mean_length, k1, b)
    return Bm25Index(store, tokenizer, weights, idf, mean_length, k1, b)


def save_index(index: Bm25Index, folder: Path, postings: bool = False) -> None:
    """Write an index into `folder` for `open_index`, replacing an existing one.

    `postings`: also write the posting lists, for searching.
    """
    (folder / "index.json").unlink(missing_ok=True)  # written last: without it the arrays are invalid
    arrays = {**_arrays("", index.weights), "idf": index.idf}
    if postings:
        with sealed(folder / _POSTINGS):
            batch = index.postings.runs[0].batch()
            write_ipc(folder / _POSTINGS, batch.schema, [batch])
    for name, array in arrays.items():
        path = folder / f"{name}.npy"
        with sealed(path), write_atomic(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    with sealed(folder / "index.json"):
        write_json(
            folder / "index.json",
            {
                "made_of": _made_of(index.store, index.k1, index.b),
                "mean_length": index.mean_length,
                "checksums": {name: xxh128_file(folder / f"{name}.npy") for name in arrays},
                "stems": list(index.tokenizer.stem_to_sid),
            },
        )


def open_index(
    store: TextStore, folder: Path, k1: float = 1.5, b: float = 0.75, verify: bool = False
) -> Bm25Index | None:
    """Open the index of `store` saved in `folder`, memory-mapped; it equals a newly built one.

    None if there is no index, it has other texts or parameters, or it cannot be opened; with `verify`, also if a file
    is damaged.
    """
    try:
        saved = read_object(folder / "index.json")
        checksums, stems = saved["checksums"], saved["stems"]
        if saved["made_of"] != _made_of(store, k1, b) or (
            verify and any(xxh128_file(folder / f"{name}.npy") != checksum for name, checksum in checksums.items())
        ):
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in checksums}
        tokenizer = new_tokenizer()
        tokenizer.stem_to_sid = {stem: number for number, stem in enumerate(stems)}
        passages = store.collection_size
        found = (folder / _POSTINGS).exists()
        postings = Postings.of_batch(only_batch(RowReader(folder / _POSTINGS))) if found else None
        weights = _matrix("", arrays, (passages, len(stems)))
        return Bm25Index(store, tokenizer, weights, arrays["idf"], float(saved["mean_length"]), k1, b, postings)
    except FileNotFoundError:
        return None
    except (StorageError, AttributeError, EOFError, KeyError, TypeError, ValueError) as error:
        log.warning("%s: a damaged index of BM25 (%s); it is built again", folder, error)
        return None


def _arrays(prefix: str, matrix: sparse.csr_matrix) -> dict[str, np.ndarray]:
    return {f"{prefix}{part}": getattr(matrix, part) for part in _PARTS}


def _matrix(prefix: str, arrays: dict[str, np.ndarray], shape: tuple[int, int]) -> sparse.csr_matrix:
    return sparse.csr_matrix(tuple(arrays[f"{prefix}{part}"] for part in _PARTS), shape=shape)


def new_tokenizer() -> Tokenizer:
    """Split texts into stems: English stemming and stop words."""
    return Tokenizer(stopwords="english", stemmer=Stemmer.Stemmer("english"))


def _made_of(store: TextStore, k1: float, b: float) -> dict[str, Any]:
    return {"texts": store.fingerprint, "passages": store.collection_size, "k1": k1, "b": b}


def _count(texts: Iterable[list[int]], vocabulary: int | None) -> sparse.csr_matrix:
    """Count stems: one row per text, and `vocabulary` columns (None: up to the highest stem)."""
    stems = [np.asarray(text, dtype=np.int32) for text in texts]
    indptr = np.concatenate([[0], np.cumsum([len(text) for text in stems])]).astype(np.int64)
    indices = np.concatenate([np.empty(0, np.int32), *stems])
    if vocabulary is None:
        vocabulary = int(indices.max(initial=-1)) + 1
    ones = np.ones(len(indices), dtype=np.float32)
    counts = sparse.csr_matrix((ones, indices, indptr), shape=(len(stems), vocabulary))
    counts.sum_duplicates()
    return counts


def _weigh(counts: sparse.csr_matrix, idf: np.ndarray, mean_length: float, k1: float, b: float) -> sparse.csr_matrix:
    """idf · tf / (tf + k1 (1 - b + b · length / mean length)), on the non-zeros of `counts` [n, stems]."""
    lengths = np.asarray(counts.sum(axis=1)).ravel()
    norm = k1 * (1 - b + b * lengths / max(mean_length, 1e-9))
    tf = counts.data
    data = idf[counts.indices] * (tf / (tf + np.repeat(norm, np.diff(counts.indptr))))
    return sparse.csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), shape=counts.shape)
