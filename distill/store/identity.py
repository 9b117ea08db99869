"""Identity of texts: passages that are copies of each other, passages that are a query's own document, and queries
with the same text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import xxhash

from distill.run.layout import RunFolder
from distill.store.arrow import RowReader
from distill.store.judgements import Judgements
from distill.store.texts import TextStore

COPY_SCHEMA = pa.schema([("row", pa.int64()), ("first", pa.int64())])
OWN_SCHEMA = pa.schema([("query", pa.int64()), ("passage", pa.int64())])


@dataclass(frozen=True)
class Copies:
    """Passages with the text of an earlier one: `rows` int64 [c] ascending; `first` int64 [c], the earliest row of each
    text."""

    rows: np.ndarray
    first: np.ndarray

    @classmethod
    def load(cls, folder: RunFolder) -> Copies:
        """Read the copies that the import found."""
        table = RowReader(folder.copies).table()
        return cls(*(table.column(name).to_numpy() for name in COPY_SCHEMA.names))

    def originals(self, passages: np.ndarray) -> np.ndarray:
        """Replace passages by the first one with their text: int64 of the same shape."""
        if not len(self.rows):
            return passages
        place = np.minimum(np.searchsorted(self.rows, passages), len(self.rows) - 1)
        return np.where(self.rows[place] == passages, self.first[place], passages)

    def with_copies(self, passages: np.ndarray) -> np.ndarray:
        """All passages with the text of any of these: int64, ascending."""
        originals = np.unique(self.originals(passages))
        first, rows = self._by_first
        starts, ends = np.searchsorted(first, originals, "left"), np.searchsorted(first, originals, "right")
        copies = [rows[start:end] for start, end in zip(starts, ends, strict=True) if start < end]
        return np.sort(np.concatenate([originals, *copies]))

    @cached_property
    def _by_first(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.first, kind="stable")
        return self.first[order], self.rows[order]


def load_own_documents(folder: RunFolder, split: str) -> dict[int, int]:
    """Query row -> the passage that is the query itself, and is left out of its rankings and negatives."""
    table = RowReader(folder.own_documents(split)).table()
    return dict(zip(*(table.column(name).to_pylist() for name in OWN_SCHEMA.names), strict=True))


def text_digests(store: TextStore) -> np.ndarray:
    """Hash the texts of a store, of passages those of the collection: uint64 [n]. Blanks around a text do not count."""
    parts = [np.empty(0, np.uint64)]
    for texts in store.text_batches(store.collection_size):
        parts.append(np.array([xxhash.xxh3_64_intdigest(text.strip().encode()) for text in texts], np.uint64))
    return np.concatenate(parts)


def equal_queries(queries: TextStore) -> list[np.ndarray]:
    """The rows of queries that share a text, blanks around it aside: one int64 array per such text."""
    _, codes, counts = np.unique(text_digests(queries), return_inverse=True, return_counts=True)
    shared = np.flatnonzero(counts[codes] > 1)
    by_text: dict[str, list[int]] = {}
    for row, text in zip(shared.tolist(), queries.texts(shared), strict=True):
        by_text.setdefault(text.strip(), []).append(row)
    return [np.array(rows, np.int64) for rows in by_text.values() if len(rows) > 1]


def positives_of_equal_queries(queries: TextStore, judgements: Judgements) -> dict[int, np.ndarray]:
    """Query row -> the positives of all queries with its text: int64. Queries with a text of their own are left out."""
    known: dict[int, np.ndarray] = {}
    for rows in equal_queries(queries):
        positives = np.unique(np.concatenate([judgements.positives(row) for row in rows.tolist()]))
        known |= dict.fromkeys(rows.tolist(), positives)
    return known
