"""Relevance judgements of a split, by rows: the graded passages of each query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distill.run.layout import RunFolder
from distill.store.arrow import RowReader
from distill.store.candidates import lists_with

JUDGEMENT_SCHEMA = pa.schema([("query", pa.int64()), ("passage", pa.int64()), ("grade", pa.int32())])


@dataclass(frozen=True)
class Judgements:
    """Judged passages of q queries (CSR): those of `queries[i]` are `passages[offsets[i]:offsets[i + 1]]`.

    Positive means grade > 0. Queries are rows of the split's store, ascending; passages are rows of the passage store.
    """

    queries: np.ndarray  # int64 [q]
    offsets: np.ndarray  # int64 [q + 1]
    passages: np.ndarray  # int64 [j]
    grades: np.ndarray  # int32 [j]

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def with_positives(self) -> np.ndarray:
        """Rows of the queries with a positive, ascending: int64."""
        return self.queries[lists_with(self.grades > 0, self.offsets)]

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the passage rows and grades of one query row; empty if it has no judgements."""
        i = int(np.searchsorted(self.queries, query))
        if i == len(self.queries) or self.queries[i] != query:
            return self.passages[:0], self.grades[:0]
        judged = slice(self.offsets[i], self.offsets[i + 1])
        return self.passages[judged], self.grades[judged]

    def positives(self, query: int) -> np.ndarray:
        """Return the passage rows with a positive grade of one query row."""
        passages, grades = self.of(query)
        return passages[grades > 0]


def queries_without_positives(folder: RunFolder, split: str = "train") -> int:
    """Number of the split's queries without a positive judgement; 0 if the split has no queries."""
    if not folder.queries(split).exists():
        return 0
    return len(RowReader(folder.queries(split))) - len(load_judgements(folder, split).with_positives)


def load_judgements(folder: RunFolder, split: str) -> Judgements:
    """Read the judgements of a split; the file is small and is read whole."""
    table = RowReader(folder.judgements(split)).table()
    return from_triples(*(table.column(name).to_numpy() for name in ("query", "passage", "grade")))


def from_triples(query: np.ndarray, passage: np.ndarray, grade: np.ndarray) -> Judgements:
    """Group (query, passage, grade) rows by query, preserving the order within a query."""
    order = np.argsort(query, kind="stable")
    queries, first = np.unique(query[order], return_index=True)
    offsets = np.append(first, len(query)).astype(np.int64)
    return Judgements(queries.astype(np.int64), offsets, passage[order].astype(np.int64), grade[order].astype(np.int32))
