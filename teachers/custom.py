"""User-defined teachers by import path: any class that scores texts, one score per pair.

class MyRanker:
    def __init__(self, **options): ...                               # `options` of the recipe
    def score(self, queries: list[str], passages: list[str]): ...    # raw scores, one per pair
    @classmethod
    def identity(cls, **options) -> dict: ...                        # optional: further fingerprint inputs
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill.errors import TeacherError
from distill.store.texts import TextStore
from teachers.base import Pairs, Work
from teachers.execution import Execution
from teachers.identity import import_class
from teachers.spec import TeacherSpec

_PAIRS = 4096  # pairs whose texts are in memory at once


def prepare(spec: TeacherSpec, splits: Sequence[str]) -> None:
    pass


def open_teacher(spec: TeacherSpec, execution: Execution) -> CustomTeacher:
    return CustomTeacher(spec, execution)


class CustomTeacher:
    def __init__(self, spec: TeacherSpec, execution: Execution):
        self.name, self.execution, self._folder, self.work = spec.name, execution, spec.folder, Work()
        self.max_length = 1 << 30  # gets whole texts
        execution.apply_threads()
        self._scorer = import_class(spec)(**spec.config.options)
        self._passages = TextStore.open(spec.folder.passages)

    def score(self, pairs: Pairs) -> np.ndarray:
        """float32 [n]. Raises `TeacherError` if the class returns anything but one score per pair."""
        queries = TextStore.open(self._folder.queries(pairs.split))
        parts = [np.empty(0, np.float32)]
        for start in range(0, len(pairs), _PAIRS):
            part = pairs.take(np.arange(start, min(start + _PAIRS, len(pairs))))
            scores = np.asarray(
                self._scorer.score(queries.texts(part.query_rows), self._passages.texts(part.passage_rows)), np.float32
            )
            if scores.shape != (len(part),):
                raise TeacherError(
                    f"teacher {self.name!r}: its score() returned the shape {scores.shape} for "
                    f"{len(part)} pairs; it must return one number per pair"
                )
            parts.append(scores)
        return np.concatenate(parts)
