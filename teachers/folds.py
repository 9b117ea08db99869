"""Folds over the training queries: a fine-tuned teacher never scores a query that it was trained on.

A query's fold is a hash of its first positive passage, so queries sharing that answer share a fold; a query's further
positives may belong to other folds. Development and test queries, which no fold was trained on, get the mean of the
folds' scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from distill.run.layout import RunFolder
from distill.store.identity import Copies
from distill.store.judgements import load_judgements
from distill.store.texts import TextStore
from teachers.base import Pairs, Teacher, Work

if TYPE_CHECKING:
    from teachers.execution import Execution

NO_POSITIVE = -1


def query_folds(folder: RunFolder, folds: int) -> np.ndarray:
    """The fold of each training query, int64 [queries]; `NO_POSITIVE` for a query without a positive passage."""
    judgements = load_judgements(folder, "train")
    positive = judgements.grades > 0
    queries = np.repeat(judgements.queries, np.diff(judgements.offsets))[positive]
    passages = judgements.passages[positive]
    origin = TextStore.open(folder.passages).origin(passages)
    # a variant counts as the passage it was cut from, a copy as the first passage of its text
    passages = Copies.load(folder).originals(np.where(origin >= 0, origin, passages))
    unset = np.iinfo(np.int64).max
    first = np.full(len(TextStore.open(folder.queries("train"))), unset)
    np.minimum.at(first, queries, passages)
    return np.where(first == unset, NO_POSITIVE, (_mix(first) % np.uint64(folds)).astype(np.int64))


class FoldedTeacher:
    """The fine-tuned models of one teacher; `models[k]` was trained on the queries outside fold `k`."""

    def __init__(self, name: str, models: Sequence[Teacher], folder: RunFolder):
        self.name, self._models, self._folder = name, list(models), folder
        self.max_length = models[0].max_length
        self._folds: np.ndarray | None = None

    @property
    def execution(self) -> Execution:
        return min((model.execution for model in self._models), key=lambda execution: execution.batch_tokens)

    @property
    def work(self) -> Work:
        return Work(
            sum(model.work.tokens for model in self._models), sum(model.work.padded_tokens for model in self._models)
        )

    def score(self, pairs: Pairs) -> np.ndarray:
        """float32 [n]: the held-out model's score for training queries with a positive, else the mean over models."""
        scores = np.zeros(len(pairs), np.float64)
        fold = np.full(len(pairs), NO_POSITIVE)
        if pairs.split == "train":
            if self._folds is None:
                self._folds = query_folds(self._folder, len(self._models))
            fold = self._folds[pairs.query_rows]
        for k, model in enumerate(self._models):
            scored = np.flatnonzero((fold == k) | (fold == NO_POSITIVE))
            share = np.where(fold[scored] == NO_POSITIVE, 1.0 / len(self._models), 1.0)
            scores[scored] += share * model.score(pairs.take(scored))
        return scores.astype(np.float32)


def _mix(values: np.ndarray) -> np.ndarray:
    """A fixed hash of int64 [n] (splitmix64), so that neighbouring rows fall into folds independently."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
