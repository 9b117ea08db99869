"""BM25 in a student's own vocabulary: vectors whose dot products are BM25 scores, up to stems that share a term.

BM25 is a dot product over stems, Σ_s c_s(q) · idf_s · tf_s(d). With √idf_s on both sides it becomes one kind of vector
for queries and passages alike, and with every stem mapped to a term of the vocabulary, what a SPLADE model could say of
a text if it knew nothing but how to count words: in closed form, from the passages alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from distill.retrieval.bm25 import Bm25Index


@dataclass(frozen=True)
class LexicalVectors:
    """BM25 vectors of a collection's texts over a tokenizer's vocabulary of V terms."""

    index: Bm25Index
    terms: sparse.csr_matrix  # float32 [stems, V]: the terms that stand for a stem, each row of norm 1, or 0 for none
    stand_ins: np.ndarray  # int64 [V]: the term that stands for a token; its own, if that isn't a form of another word

    @classmethod
    def of(cls, index: Bm25Index, tokenizer: Any, texts: Sequence[str]) -> LexicalVectors:
        """Map the stems of `index` to terms of `tokenizer`; `texts` show the words behind the stems.

        A stem goes to the term with the lowest number among those that are one of its words; without one, to the pieces
        of the shortest of its words; if `texts` have none of them, to its own.
        """
        stems = index.terms
        words = _words_by_stem(texts, index)
        spelled = [(stem, spelling) for stem in stems for spelling in words.get(stem, (stem,))]
        # as inside a text: after a blank, which some tokenizers keep as a part of the word
        pieces = tokenizer([f" {spelling}" for _, spelling in spelled], add_special_tokens=False, verbose=False)
        special, size = set(tokenizer.all_special_ids), len(tokenizer)
        chosen: dict[str, list[int]] = {}
        whole: dict[str, list[int]] = {}
        for (stem, _), found in zip(spelled, pieces["input_ids"], strict=True):
            ids = [id_ for id_ in found if id_ not in special]
            chosen.setdefault(stem, ids)
            if len(ids) == 1:
                whole.setdefault(stem, []).append(ids[0])
        chosen |= {stem: [min(ids)] for stem, ids in whole.items()}
        stand_ins = np.arange(size)
        for ids in whole.values():
            stand_ins[ids] = min(ids)
        columns = [np.unique(np.array(chosen[stem], dtype=np.int64)) for stem in stems]
        counts = np.array([len(ids) for ids in columns], dtype=np.int64)
        terms = sparse.csr_matrix(
            (
                np.repeat(1 / np.sqrt(np.maximum(counts, 1)), counts).astype(np.float32),
                np.concatenate([np.empty(0, np.int64), *columns]),
                np.concatenate([[0], np.cumsum(counts)]),
            ),
            shape=(len(stems), size),
        )
        return cls(index, terms, stand_ins)

    def passages(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Vectors of rows of the passage store: float32 [len(rows), V]."""
        return self._mapped(self.index.passage_vectors(rows))

    def texts(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Vectors of any texts, weighted as passages of the collection: float32 [len(texts), V]."""
        return self._mapped(self.index.text_vectors(texts))

    def _mapped(self, weights: sparse.csr_matrix) -> sparse.csr_matrix:
        root = np.sqrt(self.index.idf)
        scaled = sparse.csr_matrix(
            (weights.data / root[weights.indices], weights.indices, weights.indptr), shape=weights.shape
        )
        return (scaled @ self.terms).tocsr()


def _words_by_stem(texts: Iterable[str], index: Bm25Index) -> dict[str, list[str]]:
    """The words of each indexed stem in `texts`, the shortest first."""
    analyser = index.statistics.analyser
    words: dict[str, list[str]] = {}
    for word in sorted({word for text in texts for word in analyser.words(text)}, key=lambda word: (len(word), word)):
        if (stem := analyser.term(word)) in index.terms and stem is not None:
            words.setdefault(stem, []).append(word)
    return words
