"""Score pairs with a teacher of the small run."""

from __future__ import annotations

import numpy as np

from distill.config import Teacher
from distill.run.layout import RunFolder
from distill.store.candidates import iterate_candidates
from teachers.base import Pairs, open_teacher, prepare
from teachers.base import Teacher as OpenTeacher
from teachers.execution import Execution
from teachers.identity import identity
from teachers.spec import TeacherSpec

FLOAT32 = Execution("cpu", "float32", 1, 64)


def prepared(cfg: Teacher, folder: RunFolder, execution: Execution = FLOAT32, name: str = "t") -> OpenTeacher:
    """The teacher, opened as a worker opens it."""
    spec = TeacherSpec(name, cfg, folder)
    identity(spec)
    prepare(spec, ["test"])
    return open_teacher(spec, execution)


def scores_of(cfg: Teacher, folder: RunFolder, pairs: Pairs, execution: Execution = FLOAT32) -> np.ndarray:
    return prepared(cfg, folder, execution).score(pairs)


def mined_pairs(folder: RunFolder, split: str = "test") -> Pairs:
    """A split's pairs as mined: a vector teacher encodes only the texts of the candidates."""
    ((_, candidates),) = iterate_candidates(folder.candidates(split))
    return Pairs(candidates.pair_queries, candidates.passages, split)
