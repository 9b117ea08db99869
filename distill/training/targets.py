"""Teacher vectors for the loss embedding-mse: checked before training, loaded for each step.

They are the vectors that the teachers' scores were computed from (`teachers.stored_vectors`), in the folder of each
dataset's run.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from distill import config
from distill.config import OWN, EmbeddingMseLoss
from distill.errors import RecipeError, TrainingError
from distill.losses.objective import Targets
from distill.recipe.load import load_recipe
from distill.run.manifest import require_manifest
from distill.run.model_ref import ModelRef
from distill.run.run import Run
from distill.sparse.reps import SparseReps
from distill.student.layout import Parts, UnsupportedCheckpoint, read_parts, router_parts
from distill.student.model import load_tokenizer
from distill.training.datasets import Dataset, datasets
from distill.training.world import own_device
from teachers.models import loading
from teachers.spec import TeacherSpec
from teachers.stored_vectors import StoredVectors, complete_vectors

STORES = {"query": "queries", "passage": "passages"}  # side -> store of its vectors


def check_targets(run: Run) -> None:
    """Raise `RecipeError` for teachers whose vectors the student cannot learn. Needs no scores yet."""
    for field, teacher in _needed(run):
        student = run.recipe.trained_student
        assert isinstance(student, config.Student), "the recipe allows embedding-mse for kind splade only"
        _check_vocabulary(field, teacher, student)


def build_targets(run: Run) -> None:
    """Build the vectors that `DatasetTargets` opens, unless they exist."""
    check_targets(run)
    for field, teacher in _needed(run):
        labels = require_manifest(teacher.folder.labels(), "label").fields
        scores = require_manifest(teacher.folder.scores(teacher.name, "train"), "score")
        if labels["teachers"].get(teacher.name, {}).get("scores") != scores.fingerprint:
            raise TrainingError(
                f"{field}: the labels in {teacher.folder.labels()} were made from other scores of teacher "
                f"{teacher.name!r} than the present ones; run `distill label` again"
            )
        own_device()  # selects this process's GPU, where the teacher encodes missing vectors
        complete_vectors(teacher)


class DatasetTargets:
    """The teacher vectors that the losses of one dataset use."""

    def __init__(self, dataset: Dataset, vocab_size: int):
        self._needed = sorted({(loss.teacher, side) for loss in _losses(dataset) for side in loss.sides})
        self._vectors = {name: StoredVectors(name, dataset.folder) for name, _ in self._needed}
        self._vocab_size = vocab_size

    def take(self, query_rows: np.ndarray, passage_rows: np.ndarray, device: torch.device) -> Targets:
        """Load the vectors of these texts, in this order."""
        rows = {"query": query_rows, "passage": passage_rows}
        return {
            (name, side): self._reps(*self._vectors[name].take(STORES[side], rows[side]), device)
            for name, side in self._needed
        }

    def _reps(self, offsets: np.ndarray, terms: np.ndarray, weights: np.ndarray, device: torch.device) -> SparseReps:
        reps = SparseReps(
            torch.from_numpy(offsets),
            torch.from_numpy(terms.astype(np.int64)),
            torch.from_numpy(weights),
            None,
            self._vocab_size,
        )
        if terms.size and terms.max() >= self._vocab_size:  # rows that only pad the teacher's matrices
            reps = reps.keep(reps.terms < self._vocab_size)
        return SparseReps(reps.indptr.to(device), reps.terms.to(device), reps.values.to(device), None, reps.vocab_size)


def _needed(run: Run) -> Iterator[tuple[str, TeacherSpec]]:
    """Yield every teacher whose vectors are learnt, in the run of each dataset, with the recipe field that names it."""
    for name, dataset in datasets(run).items():
        field = "train.losses" if name == OWN else f"train.datasets.{name}"
        needed = sorted({loss.teacher for loss in _losses(dataset)})
        if not needed:
            continue
        teachers = run.recipe.teachers if name == OWN else load_recipe(dataset.folder.recipe).teachers
        for teacher in needed:
            if teacher not in teachers or teachers[teacher].kind != "splade":  # checked already for the run's own
                raise RecipeError(
                    f"{field}: embedding-mse names {teacher!r}, but {dataset.folder.root} has no teacher of kind "
                    f"splade by that name (its teachers: {', '.join(teachers)}); give the dataset its own losses"
                )
            yield field, TeacherSpec(teacher, teachers[teacher], dataset.folder)


def _losses(dataset: Dataset) -> list[EmbeddingMseLoss]:
    return [loss for loss in dataset.train.losses if isinstance(loss, EmbeddingMseLoss)]


def _check_vocabulary(field: str, teacher: TeacherSpec, student: config.Student) -> None:
    """Raise `RecipeError` unless teacher and student have the same vocabulary, with the same ids."""
    name, model = teacher.name, teacher.model
    try:
        parts = loading(name, model.name, lambda: read_parts(model.location, model.revision))
    except UnsupportedCheckpoint as error:
        raise RecipeError(
            f"{field}: embedding-mse: the vectors of teacher {name!r} are not over a vocabulary: {error}"
        ) from error
    teacher_ids = loading(
        name, model.name, lambda: load_tokenizer(model.name, model.revision, subfolder=parts.transformer)
    ).get_vocab()
    student_parts = router_parts(ModelRef.parse(student.model).location, student.revision) or Parts()
    student_ids = load_tokenizer(student.model, student.revision, subfolder=student_parts.transformer).get_vocab()
    if student_ids != teacher_ids:
        differing = sum(teacher_ids.get(token) != id_ for token, id_ in student_ids.items())
        raise RecipeError(
            f"{field}: embedding-mse needs the same vocabulary, but {differing:,} of the student's "
            f"{len(student_ids):,} tokens ({student.model}) have another id or are missing in teacher {name!r} "
            f"({model.name}, {len(teacher_ids):,} tokens); use a teacher with the student's vocabulary"
        )
