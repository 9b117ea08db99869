"""BM25 as a teacher: candidates scored from the statistics of the collection, variants of passages included.

The collection is indexed once, beside the scores; workers map the index into memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill import config
from distill.data.files import locked
from distill.data.layout import RunFolder
from distill.data.texts import TextStore
from distill.errors import TeacherError
from distill.mining.bm25 import build_index, open_index, save_index
from teachers.base import Pairs, Work
from teachers.execution import Execution
from teachers.identity import BM25


def prepare(name: str, cfg: config.Teacher, folder: RunFolder, splits: Sequence[str]) -> None:
    home, passages = _home(name, folder), TextStore.open(folder.passages)
    with locked(home):  # the tasks of a job array start together
        if open_index(passages, home, **BM25, verify=True) is None:
            save_index(build_index(passages, **BM25), home)


def open_teacher(name: str, cfg: config.Teacher, folder: RunFolder, execution: Execution) -> Bm25Teacher:
    return Bm25Teacher(name, folder, execution)


class Bm25Teacher:
    def __init__(self, name: str, folder: RunFolder, execution: Execution):
        self.name, self.execution, self._folder, self.work = name, execution, folder, Work()
        self.max_length = 1 << 30  # reads whole texts
        index = open_index(TextStore.open(folder.passages), _home(name, folder), **BM25)
        if index is None:
            raise TeacherError(
                f"teacher {name!r}: no BM25 index of these passages in {_home(name, folder)}; start "
                "`distill score` again, which makes one"
            )
        self._index = index

    def score(self, pairs: Pairs) -> np.ndarray:
        """float32 [n]; 0 for a passage that shares no stem with the query."""
        if not len(pairs):
            return np.empty(0, np.float32)
        queries = TextStore.open(self._folder.queries(pairs.split))
        order = np.argsort(pairs.query_rows, kind="stable")
        rows, starts = np.unique(pairs.query_rows[order], return_index=True)
        lists = np.split(pairs.passage_rows[order], starts[1:])
        scores = np.empty(len(pairs), np.float32)
        scores[order] = np.concatenate(self._index.score_pairs(queries.texts(rows), lists))
        return scores


def _home(name: str, folder: RunFolder) -> Path:
    return folder.scores(name, "index")
