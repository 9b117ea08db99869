"""Relevance judgements of a split, as rows: which passages answer a query, and how well."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from distill.data.arrow import RowReader
from distill.data.layout import RunFolder

JUDGEMENT_SCHEMA = pa.schema([("query", pa.int64()), ("passage", pa.int64()), ("grade", pa.int32())])


@dataclass(frozen=True)
class Judgements:
    """Judged passages by query (CSR): those of `queries[i]` are `passages[offsets[i]:offsets[i + 1]]`.

    Positive means grade > 0. Queries are rows of the split's store, ascending; passages are rows of the passage store.
    """

    queries: np.ndarray  # int64 [q]
    offsets: np.ndarray  # int64 [q + 1]
    passages: np.ndarray  # int64 [j]
    grades: np.ndarray  # int32 [j]

    def __len__(self) -> int:
        return len(self.queries)

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Passage rows and grades of one query row; empty where it has no judgement."""
        i = int(np.searchsorted(self.queries, query))
        if i == len(self.queries) or self.queries[i] != query:
            return self.passages[:0], self.grades[:0]
        piece = slice(self.offsets[i], self.offsets[i + 1])
        return self.passages[piece], self.grades[piece]

    def positives(self, query: int) -> np.ndarray:
        passages, grades = self.of(query)
        return passages[grades > 0]


def load_judgements(folder: RunFolder, split: str) -> Judgements:
    """The judgements of a split; the file is small beside the stores and is read whole."""
    table = RowReader(folder.judgements(split)).table()
    return from_triples(*(table.column(name).to_numpy() for name in ("query", "passage", "grade")))


def from_triples(query: np.ndarray, passage: np.ndarray, grade: np.ndarray) -> Judgements:
    """Group (query, passage, grade) rows by query; the order within a query is kept."""
    order = np.argsort(query, kind="stable")
    queries, first = np.unique(query[order], return_index=True)
    offsets = np.append(first, len(query)).astype(np.int64)
    return Judgements(queries.astype(np.int64), offsets, passage[order].astype(np.int64), grade[order].astype(np.int32))
