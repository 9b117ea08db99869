"""Types that all teachers share, and how a teacher is opened from the recipe.

Each kind of teacher is a module with two functions: `prepare`, called once by the driver (token stores, plans), and
`open_teacher`, called by each worker (loads the model). The modules are imported on demand, so a worker pays only for
the kinds it scores with. The fingerprint inputs are in `teachers.identity`.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np

from teachers.execution import Execution, resolve_execution
from teachers.spec import TeacherSpec

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

    def take(self, indices: np.ndarray) -> Pairs:
        return Pairs(self.query_rows[indices], self.passage_rows[indices], self.split)


@dataclass
class Work:
    """Number of tokens a teacher has read so far; 0 for teachers that do not count them."""

    tokens: int = 0
    padded_tokens: int = 0


class Teacher(Protocol):
    """Scores pairs. The same pairs in the same order give the same bytes under one execution record."""

    name: str
    max_length: int  # tokens per pair, or per text for teachers that encode texts separately

    @property
    def execution(self) -> Execution:
        """The settings in use; they differ from those at opening after an out-of-memory retry."""
        ...

    @property
    def work(self) -> Work: ...

    def score(self, pairs: Pairs) -> np.ndarray:
        """Raw scores, float32 [n]: logits, never passed through a sigmoid."""
        ...


def overflow_hint(precision: str) -> str:
    """The end of an error message about scores or vectors that are not finite."""
    return "; float16 may have overflowed: set the teacher's dtype to float32" if precision == "float16" else ""


def prepare(spec: TeacherSpec, splits: Sequence[str]) -> None:
    """Build what all workers share (token stores, plans, indexes). Idempotent."""
    _module(spec).prepare(spec, splits)


def open_teacher(spec: TeacherSpec, execution: Execution | None = None) -> Teacher:
    """Load a teacher; `prepare` must have run. Raises `TeacherError`.

    `execution` is the run's frozen record; None resolves one for this machine.
    """
    return _module(spec).open_teacher(spec, execution or resolve_execution(spec.config))


def _module(spec: TeacherSpec) -> ModuleType:
    return importlib.import_module(_KINDS[spec.config.kind])
