"""A task of the scoring job, and the worker that runs tasks, in a Ray actor or in a plain process."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.errors import RecipeError, TeacherError
from distill.recipe.imports import import_own_code
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.store.candidates import Candidates, read_candidates
from distill.store.scores import write_scores
from distill.store.texts import TextStore
from ray_jobs.devices import ending_with_the_device, given_device
from teachers.base import Pairs, Teacher, open_teacher, overflow_hint
from teachers.spec import TeacherSpec
from teachers.vectors import Chunk, VectorTeacher


@dataclass(frozen=True)
class ScoreTask:
    """One score shard to write, or, if `chunk` is given, one chunk of a vector teacher's texts to encode."""

    teacher: str
    split: str
    shard: str  # file name of the candidate shard and of the score shard
    fingerprint: str
    number: int  # in the whole plan, the same at every launch: it decides which task of a job array takes it
    pairs: int = 0
    chunk: Chunk | None = None

    @property
    def name(self) -> str:
        return f"{self.teacher}/{self.split}/{self.shard}"

    @property
    def group(self) -> str:
        return self.teacher


Result = dict[str, Any]  # pairs, tokens, padded_tokens, seconds; shard: the committed one, None if it existed already


class ScoreWorker:
    """Runs tasks, with one teacher loaded at a time."""

    def __init__(self, run: Run, threads: int, identities: dict[str, str]):
        with contextlib.suppress(RecipeError):  # another machine may lack what only training needs
            import_own_code(run.recipe)
        self._run, self._threads, self._identities = run, threads, identities
        self._name: str | None = None
        self._teacher: Teacher | None = None

    def ready(self) -> int:
        return os.getpid()

    def run(self, task: ScoreTask) -> Result:
        with ending_with_the_device(task.name, self._run.folder):
            teacher = self._open(task.teacher)
            if task.chunk is None:
                return score_shard(task, teacher, self._run.folder)
            start = time.monotonic()
            assert isinstance(teacher, VectorTeacher)
            teacher.encode_chunk(task.chunk)
            return {"pairs": 0, "tokens": 0, "padded_tokens": 0, "seconds": time.monotonic() - start, "shard": None}

    def _open(self, name: str) -> Teacher:
        if name != self._name:
            self._name = self._teacher = None  # frees the previous teacher's memory first
            from teachers.execution import frozen_execution  # imports torch, which the driver does without

            spec = TeacherSpec.of(self._run, name)
            execution = frozen_execution(spec, self._identities[name], given_device(), self._threads)
            self._teacher = open_teacher(spec, execution)
            self._name = name
        assert self._teacher is not None
        return self._teacher


def score_shard(task: ScoreTask, teacher: Teacher, folder: RunFolder) -> Result:
    """Score and commit a candidate shard, unless committed already. Raises `TeacherError` for non-finite scores."""
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
        query_row, passage_row = candidates.pair_queries[bad[:1]], candidates.passages[bad[:1]]  # of the first one
        query = TextStore.open(folder.queries(task.split)).ids(query_row)[0]
        passage = TextStore.open(folder.passages).ids(passage_row)[0]
        raise TeacherError(
            f"teacher {task.teacher!r} returned {scores[bad[0]]} for query {query!r} (row {query_row[0]}) "
            f"and passage {passage!r} (row {passage_row[0]}); {len(bad)} such scores in this shard"
            + overflow_hint(precision)
        )
