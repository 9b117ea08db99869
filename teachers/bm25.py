"""BM25 as a teacher: scores the candidates with the statistics of the collection, variants of passages included.

The run's index serves; workers map it into memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.errors import TeacherError
from distill.retrieval.bm25 import open_index, shared_index
from distill.store.texts import TextStore
from teachers.base import Pairs, Work
from teachers.execution import Execution
from teachers.spec import TeacherSpec


def prepare(spec: TeacherSpec, splits: Sequence[str]) -> None:
    shared_index(spec.folder, spec.bm25, verify=True)


def open_teacher(spec: TeacherSpec, execution: Execution) -> Bm25Teacher:
    return Bm25Teacher(spec, execution)


class Bm25Teacher:
    def __init__(self, spec: TeacherSpec, execution: Execution):
        self.name, self.execution, self._folder, self.work = spec.name, execution, spec.folder, Work()
        self.max_length = 1 << 30  # reads whole texts
        home = spec.folder.index("bm25")
        index = open_index(TextStore.open(spec.folder.passages), home, spec.bm25)
        if index is None:
            raise TeacherError(
                f"teacher {spec.name!r}: no BM25 index of these passages in {home}; run `distill score` again, which "
                "builds it"
            )
        self._index = index

    def score(self, pairs: Pairs) -> np.ndarray:
        """float32 [n]; 0 for a passage that shares no term with the query."""
        if not len(pairs):
            return np.empty(0, np.float32)
        queries = TextStore.open(self._folder.queries(pairs.split))
        order = np.argsort(pairs.query_rows, kind="stable")
        rows, starts = np.unique(pairs.query_rows[order], return_index=True)
        lists = np.split(pairs.passage_rows[order], starts[1:])
        scores = np.empty(len(pairs), np.float32)
        scores[order] = np.concatenate(self._index.score_pairs(queries.texts(rows), lists))
        return scores
