"""A collection of any size in the shape of MS MARCO's passages, for benchmarks of indexing and search.

55 words per passage, of which 48 differ, from a vocabulary of three million: ranks by Zipf and Mandelbrot's law,
log-normal lengths, and some words said twice. Words are made of syllables in a form that English stemming keeps apart.
None is a stop word, so that every word is indexed. The passages do not depend on the number asked for: a smaller
collection is the beginning of a larger one.
Usage: python benchmarks/collection.py FOLDER --passages 200000 --queries 1000  (passages.arrow, queries.arrow)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy import sparse

from distill.store.arrow import BATCH_ROWS, write_ipc
from distill.store.texts import PASSAGE_SCHEMA, QUERY_SCHEMA, TextStore

VOCABULARY = 3_000_000
MEAN_WORDS, SPREAD = 55.0, 0.38  # of the passages' lengths: the mean, and the standard deviation of its logarithm
QUERY_WORDS = 4.0  # without stop words, on average; at least 2
_EXPONENT, _SHIFT = 1.1, 6.0  # a word's frequency is proportional to (rank + shift) ** -exponent
_REPEATED = 0.07  # share of the words that repeat an earlier one of their passage
_QUERY_FROM = 100  # rank of the most frequent word in a query
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprtvz" for vowel in "aeiou"]
_LAST = [consonant + vowel for consonant in "bdfgklmnprtvz" for vowel in "aou"]  # no suffix that stemming takes off


def term_ids(passages: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield blocks of passages as words: ids int32 [words] (ranks by frequency, from 0), offsets int64 [block + 1]."""
    for number, start in enumerate(range(0, passages, BATCH_ROWS)):
        yield _block(number, min(BATCH_ROWS, passages - start), seed)


def term_vectors(passages: int, seed: int = 0) -> Iterator[sparse.csr_matrix]:
    """Yield blocks of passages as counts of their words: float32 [block, VOCABULARY], with sorted columns."""
    for ids, offsets in term_ids(passages, seed):
        counts = sparse.csr_matrix((np.ones(len(ids), np.float32), ids, offsets), (len(offsets) - 1, VOCABULARY))
        counts.sum_duplicates()
        yield counts


def query_ids(queries: int, passages: int, seed: int = 0) -> list[np.ndarray]:
    """Draw queries: some different words of a passage, without the most frequent ones: int32 [words] each."""
    rng = np.random.default_rng([seed, 1 << 32])
    blocks = -(-passages // BATCH_ROWS)
    chosen = np.sort(rng.integers(0, blocks, min(blocks, 8)))  # few blocks, since each is drawn whole
    drawn: list[np.ndarray] = []
    for i, block in enumerate(chosen.tolist()):
        ids, offsets = _block(block, min(BATCH_ROWS, passages - block * BATCH_ROWS), seed)
        for row in rng.integers(0, len(offsets) - 1, len(range(i, queries, len(chosen)))).tolist():
            words = np.unique(ids[offsets[row] : offsets[row + 1]])
            words = words[words >= _QUERY_FROM]
            drawn.append(rng.permutation(words)[: 2 + rng.poisson(QUERY_WORDS - 2)])
    return drawn


def query_vectors(queries: int, passages: int, seed: int = 0) -> sparse.csr_matrix:
    """The queries of `query_ids` as float32 [queries, VOCABULARY] of ones."""
    drawn = [np.sort(ids) for ids in query_ids(queries, passages, seed)]
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in drawn])])
    ids = np.concatenate([np.empty(0, np.int32), *drawn])
    return sparse.csr_matrix((np.ones(len(ids), np.float32), ids, offsets), (len(drawn), VOCABULARY))


def spelled(ids: np.ndarray) -> list[str]:
    """Spell words by their ids: two syllables for the 2,535 most frequent ones, three or four for the others."""
    words = []
    for id_ in ids.tolist():
        rest, last = divmod(id_, len(_LAST))
        word = _LAST[last]
        rest, syllable = divmod(rest, len(_SYLLABLES))
        word = _SYLLABLES[syllable] + word
        while rest:
            rest, syllable = divmod(rest - 1, len(_SYLLABLES))
            word = _SYLLABLES[syllable] + word
        words.append(word)
    return words


def write_collection(folder: Path, passages: int, queries: int, seed: int = 0) -> tuple[TextStore, TextStore]:
    """Write passages.arrow and queries.arrow, text stores, into `folder`."""
    key = {"fingerprint": f"collection-{seed}-{passages}"}
    write_ipc(folder / "passages.arrow", PASSAGE_SCHEMA, _passage_batches(passages, seed), key)
    texts = [" ".join(spelled(ids)) for ids in query_ids(queries, passages, seed)]
    batch = pa.RecordBatch.from_pydict({"id": [f"q{i}" for i in range(queries)], "text": texts}, schema=QUERY_SCHEMA)
    write_ipc(folder / "queries.arrow", QUERY_SCHEMA, [batch], key)
    return TextStore.open(folder / "passages.arrow"), TextStore.open(folder / "queries.arrow")


def _drawn(uniform: np.ndarray) -> np.ndarray:
    """Turn uniform numbers into ranks by the inverse of the (continuous) distribution function: int32."""
    power = 1 - _EXPONENT
    first, last = (_SHIFT + 0.5) ** power, (_SHIFT + VOCABULARY + 0.5) ** power
    ranks = (first + uniform * (last - first)) ** (1 / power) - _SHIFT - 0.5
    return np.clip(ranks, 0, VOCABULARY - 1).astype(np.int32)


def _block(number: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the first `size` passages of a block, see `term_ids`."""
    rng = np.random.default_rng([seed, number])
    lengths = np.maximum(8, rng.lognormal(np.log(MEAN_WORDS) - SPREAD**2 / 2, SPREAD, BATCH_ROWS)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = _drawn(rng.random(offsets[-1]))
    place = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)  # in the passage
    earlier = np.arange(len(ids)) - place + (rng.random(len(ids)) * place).astype(np.int64)
    ids = np.where(rng.random(len(ids)) < _REPEATED, ids[earlier], ids)
    return ids[: offsets[size]], offsets[: size + 1]


def _passage_batches(passages: int, seed: int) -> Iterator[pa.RecordBatch]:
    start = 0
    for ids, offsets in term_ids(passages, seed):
        distinct, at = np.unique(ids, return_inverse=True)
        words = np.array(spelled(distinct), dtype=object)[at].tolist()
        bounds = offsets.tolist()
        texts = [" ".join(words[bounds[i] : bounds[i + 1]]) for i in range(len(bounds) - 1)]
        rows = range(start, start + len(texts))
        columns = {"id": [str(row) for row in rows], "title": [""] * len(texts), "text": texts}
        yield pa.RecordBatch.from_pydict({**columns, "origin": [-1] * len(texts)}, schema=PASSAGE_SCHEMA)
        start += len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--passages", type=int, default=200_000)
    parser.add_argument("--queries", type=int, default=1000)
    args = parser.parse_args()
    write_collection(args.folder, args.passages, args.queries)


if __name__ == "__main__":
    main()
