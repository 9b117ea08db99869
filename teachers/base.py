"""What a teacher is, and how one is opened from the recipe.

A kind is a module with two functions: `prepare` (done once by the driver: token stores, plans) and `open_teacher`
(done by each worker: loads the model). Modules are imported on demand, so that a worker pays only for the kinds it
scores with. What a teacher's scores depend on stands in `teachers.identity`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from distill import config
from distill.data.layout import RunFolder

if TYPE_CHECKING:
    from teachers.execution import Execution

_KINDS = {
    "cross-encoder": "teachers.cross_encoder",
    "llm": "teachers.llm",
    "bi-encoder": "teachers.bi_encoder",
    "splade": "teachers.splade",
    "bm25": "teachers.bm25",
    "custom": "teachers.custom",
}


@dataclass(frozen=True)
class Pairs:
    """Query and passage rows of one split's stores, to be scored together."""

    query_rows: np.ndarray  # int64 [n]
    passage_rows: np.ndarray  # int64 [n]
    split: str

    def __len__(self) -> int:
        return len(self.query_rows)

    def take(self, where: np.ndarray) -> Pairs:
        return Pairs(self.query_rows[where], self.passage_rows[where], self.split)


@dataclass
class Work:
    """What a teacher has read so far; 0 where it doesn't count tokens."""

    tokens: int = 0
    padded_tokens: int = 0


class Teacher(Protocol):
    """Scores pairs. The same pairs in the same order give the same bytes under one execution record."""

    name: str
    max_length: int  # tokens of a pair, or of a text where texts are encoded apart

    @property
    def execution(self) -> Execution:
        """As used: differs from the one given after an out-of-memory retry."""
        ...

    @property
    def work(self) -> Work: ...

    def score(self, pairs: Pairs) -> np.ndarray:
        """Raw scores, float32 [n]: logits, never passed through a sigmoid."""
        ...


def prepare(name: str, cfg: config.Teacher, folder: RunFolder, splits: Sequence[str]) -> None:
    """Make what all workers share (token stores). Idempotent."""
    _module(cfg).prepare(name, cfg, folder, splits)


def open_teacher(name: str, cfg: config.Teacher, folder: RunFolder, execution: Execution | None = None) -> Teacher:
    """Load a teacher; `prepare` must have run. Raises `TeacherError`.

    `execution` is the record frozen for this run; None resolves one for this machine.
    """
    if execution is None:
        from teachers.execution import resolve_execution

        execution = resolve_execution(cfg)
    return _module(cfg).open_teacher(name, cfg, folder, execution)


def _module(cfg: config.Teacher) -> ModuleType:
    return importlib.import_module(_KINDS[cfg.kind])
