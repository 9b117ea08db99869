"""One task of the scoring job, and the worker that runs tasks: the same on Ray's actors and in a plain process."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.config import Recipe
from distill.data.candidates import Candidates, read_candidates
from distill.data.layout import RunFolder
from distill.data.scores import write_scores
from distill.data.texts import TextStore
from distill.errors import TeacherError
from ray_jobs.devices import ending_with_the_device, given_device
from teachers.base import Pairs, Teacher, open_teacher
from teachers.vectors import VectorTeacher


@dataclass(frozen=True)
class ScoreTask:
    """One score shard (`store` None), or one chunk of a vector teacher's texts."""

    teacher: str
    split: str
    shard: str  # file name of the candidate shard and of the score shard
    fingerprint: str
    number: int  # in the whole plan, the same at every launch: the tasks of a job array share out by it
    pairs: int = 0
    store: str | None = None
    chunk: int = 0

    @property
    def name(self) -> str:
        return f"{self.teacher}/{self.split}/{self.shard}"

    @property
    def group(self) -> str:
        return self.teacher


Result = dict[str, Any]  # pairs, tokens, padded_tokens, seconds; shard: what was committed, None if it was there


class ScoreWorker:
    """Runs tasks with one loaded teacher at a time; the same under Ray and without it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, threads: int, identities: dict[str, str]):
        self._recipe, self._folder, self._threads, self._identities = recipe, folder, threads, identities
        self._name: str | None = None
        self._teacher: Teacher | None = None

    def ready(self) -> int:
        return os.getpid()

    def run(self, task: ScoreTask) -> Result:
        with ending_with_the_device(task.name, self._folder):
            teacher = self._open(task.teacher)
            if task.store is None:
                return score_shard(task, teacher, self._folder)
            start = time.monotonic()
            assert isinstance(teacher, VectorTeacher)
            teacher.encode_chunk(task.split, task.store, task.chunk)
            return {"pairs": 0, "tokens": 0, "padded_tokens": 0, "seconds": time.monotonic() - start, "shard": None}

    def _open(self, name: str) -> Teacher:
        if name != self._name:
            self._name = self._teacher = None  # frees the last one's memory first
            from teachers.execution import frozen_execution  # torch: workers need it, a look at the fields doesn't

            cfg = self._recipe.teachers[name]
            record = self._folder.scores(name, "execution.json")
            execution = frozen_execution(record, cfg, given_device(), self._threads, self._identities[name])
            self._teacher = open_teacher(name, cfg, self._folder, execution)
            self._name = name
        assert self._teacher is not None
        return self._teacher


def score_shard(task: ScoreTask, teacher: Teacher, folder: RunFolder) -> Result:
    """Score one candidate shard and commit it, unless it is there. Raises `TeacherError` for NaN or infinite scores."""
    start = time.monotonic()
    path = folder.scores(task.teacher, task.split) / task.shard
    if path.exists():
        return {"pairs": 0, "tokens": 0, "padded_tokens": 0, "seconds": 0.0, "shard": None}
    candidates = read_candidates(folder.candidates(task.split) / task.shard)
    tokens, padded = teacher.work.tokens, teacher.work.padded_tokens
    scores = teacher.score(Pairs(candidates.pair_queries, candidates.passages, task.split))
    _check_finite(scores, candidates, task, folder, teacher.execution.precision)
    shard = write_scores(
        path,
        candidates,
        scores,
        fingerprint=task.fingerprint,
        teacher=task.teacher,
        execution=teacher.execution.record(),
    )
    return {
        "pairs": candidates.pairs,
        "tokens": teacher.work.tokens - tokens,
        "padded_tokens": teacher.work.padded_tokens - padded,
        "seconds": time.monotonic() - start,
        "shard": shard,
    }


def _check_finite(
    scores: np.ndarray, candidates: Candidates, task: ScoreTask, folder: RunFolder, precision: str
) -> None:
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        rows = [candidates.pair_queries[bad[0]]], [candidates.passages[bad[0]]]
        query = TextStore.open(folder.queries(task.split)).ids(np.array(rows[0]))[0]
        passage = TextStore.open(folder.passages).ids(np.array(rows[1]))[0]
        half = "; float16 may have overflowed: set the teacher's dtype to float32" if precision == "float16" else ""
        raise TeacherError(
            f"teacher {task.teacher!r} returned {scores[bad[0]]} for query {query!r} (row {rows[0][0]}) "
            f"and passage {passage!r} (row {rows[1][0]}); {len(bad)} such scores in this shard{half}"
        )
