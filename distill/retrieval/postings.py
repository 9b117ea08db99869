"""Posting lists of consecutive passages, in blocks whose scores fit a core's second-level cache.

Within a block, postings are sorted by term, then by passage: 6 bytes each, 2 for the place of the passage in its block
and 4 for its weight. A directory, sorted by term, holds one entry for each term of each block: where its postings are,
and their largest weight. All arrays are flat, so that a file is mapped into memory and shared by the processes that
search it; `search.cpp` reads them as they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse

FORMAT = 1  # version of the arrays
ENTRY = np.dtype(
    [
        ("start", np.uint32),  # the first posting, counted from the block's first
        ("largest", np.float32),  # weight
        ("block", np.uint16),
        ("count", np.uint16),  # of postings, less one
    ]
)
WIDTH = 32_768  # passages in a block: 128 KiB of scores, half of a small second-level cache


@dataclass(frozen=True)
class Postings:
    """P postings of `passages` passages over `vocabulary` terms, in B blocks with E entries together."""

    passages: int
    vocabulary: int
    width: int  # passages in a block; fewer in the last one
    smallest: float  # of the weights, or 0
    entries: np.ndarray  # uint32 [vocabulary + 1]: the entries of each term
    entry: np.ndarray  # ENTRY [E], of a term by block
    first: np.ndarray  # int64 [B + 1]: the first posting of each block
    place: np.ndarray  # uint16 [P]
    weight: np.ndarray  # float32 [P]

    @classmethod
    def of(cls, passages: sparse.csr_matrix, width: int = WIDTH) -> Postings:
        """Invert vectors [N, vocabulary] of at most 65,535 x `width` passages."""
        blocks = [
            _invert(passages[start : start + width], number)
            for number, start in enumerate(range(0, passages.shape[0], width))
        ]
        vocabulary = passages.shape[1]
        term = _joined([block.term for block in blocks], np.int32)
        order = _stable_order(term, vocabulary)
        return cls(
            passages.shape[0],
            vocabulary,
            width,
            float(passages.data.min(initial=0)),
            entries=np.concatenate([[0], np.cumsum(np.bincount(term, minlength=vocabulary))]).astype(np.uint32),
            entry=_joined([block.entry for block in blocks], ENTRY)[order],
            first=np.concatenate([[0], np.cumsum([len(block.place) for block in blocks])]).astype(np.int64),
            place=_joined([block.place for block in blocks], np.uint16),
            weight=_joined([block.weight for block in blocks], np.float32),
        )

    @property
    def frequencies(self) -> np.ndarray:
        """The number of postings of each term: int64 [vocabulary]."""
        return np.bincount(self._terms(), self.entry["count"].astype(np.int64) + 1, self.vocabulary).astype(np.int64)

    @property
    def nbytes(self) -> int:
        """The size of all arrays in bytes."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, np.ndarray))

    def blocks(self) -> Iterator[sparse.csc_matrix]:
        """Each block as a sparse matrix, float32 [passages of the block, vocabulary]."""
        for number, counts in enumerate(self.counts()):
            span = slice(*self.first[number : number + 2])
            shape = (min(self.width, self.passages - number * self.width), self.vocabulary)
            indptr = np.concatenate([[0], np.cumsum(counts)])
            yield sparse.csc_matrix((self.weight[span], self.place[span].astype(np.int32), indptr), shape=shape)

    def counts(self) -> Iterator[np.ndarray]:
        """The number of postings of each term in each block: int64 [vocabulary], block by block."""
        term, number = self._terms(), self.entry["block"]
        order = np.argsort(number, kind="stable")
        bounds = np.searchsorted(number[order], np.arange(len(self.first)))
        for first, last in itertools.pairwise(bounds):
            own = order[first:last]
            counts = np.zeros(self.vocabulary, dtype=np.int64)
            counts[term[own]] = self.entry["count"][own].astype(np.int64) + 1
            yield counts

    def _terms(self) -> np.ndarray:
        """The term of each entry: int64 [E]."""
        entries: np.ndarray = self.entries[1:] - self.entries[:-1]
        return np.repeat(np.arange(self.vocabulary), entries)

    def batch(self) -> pa.RecordBatch:
        """All of it as the one row of a record batch, for a file; without copying."""
        arrays, names = [], []
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                plain = value.view(np.uint32) if value.dtype == ENTRY else value
                arrays.append(pa.LargeListArray.from_arrays(pa.array([0, len(plain)]), pa.array(plain)))
            else:
                arrays.append(pa.array([value]))
            names.append(field.name)
        return pa.RecordBatch.from_arrays(arrays, names=names)

    @classmethod
    def of_batch(cls, batch: pa.RecordBatch) -> Postings:
        """View what `batch` has returned, in the mapped file."""
        columns: dict[str, Any] = {name: batch.column(name) for name in batch.schema.names}
        values = {
            name: column.values.to_numpy() if pa.types.is_large_list(column.type) else column[0].as_py()
            for name, column in columns.items()
        }
        return cls(**{**values, "entry": values["entry"].view(ENTRY)})


@dataclass(frozen=True)
class _Block:
    """One inverted block: its terms, ascending, and the postings of each."""

    term: np.ndarray
    entry: np.ndarray
    place: np.ndarray
    weight: np.ndarray


def _invert(passages: sparse.csr_matrix, number: int) -> _Block:
    inverted = passages.tocsc()
    counts = np.diff(inverted.indptr)
    term = np.flatnonzero(counts).astype(np.int32)
    entry = np.empty(len(term), ENTRY)
    entry["start"], entry["block"], entry["count"] = inverted.indptr[term], number, counts[term] - 1
    entry["largest"] = np.maximum.reduceat(inverted.data, inverted.indptr[term]) if len(term) else 0
    return _Block(
        term,
        entry,
        inverted.indices.astype(np.uint16),
        inverted.data.astype(np.float32, copy=False),
    )


def _joined(parts: Iterable[np.ndarray], dtype: Any) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])


def _stable_order(term: np.ndarray, vocabulary: int) -> np.ndarray:
    """The order that sorts entries by term and keeps that of equal terms."""
    entry = np.arange(len(term))
    by_term = sparse.coo_matrix((entry, (term, entry)), shape=(vocabulary, max(len(term), 1))).tocsr()
    return by_term.data
