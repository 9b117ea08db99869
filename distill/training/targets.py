"""Vectors of teachers that a student learns (the loss embedding-mse): found, checked, and brought to a step.

They are those that the teachers' scores were made of (`teachers.stored_vectors`), in the folder of each dataset's run.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from distill import config
from distill.config import OWN, EmbeddingMseLoss, Recipe, resolve_model
from distill.data.layout import RunFolder
from distill.data.manifest import require_manifest
from distill.errors import RecipeError, TrainingError
from distill.losses.objective import Targets
from distill.recipe_file import load_recipe
from distill.student.head import SparseReps
from distill.student.layout import OtherLayout, read_parts, router_parts
from distill.student.model import load_tokenizer
from distill.training.datasets import Dataset, datasets
from distill.training.world import own_device
from teachers.models import loading
from teachers.stored_vectors import StoredVectors, complete_vectors

STORES = {"query": "queries", "passage": "passages"}


def check_targets(recipe: Recipe, folder: RunFolder) -> None:
    """Refuse, before the work, teachers whose vectors the student cannot learn; nothing needs to be scored for it."""
    for field, _, name, teacher in _needed(recipe, folder):
        _check_vocabulary(field, name, teacher, recipe.student)


def build_targets(recipe: Recipe, folder: RunFolder) -> None:
    """Make what `DatasetTargets` opens, unless it is there."""
    check_targets(recipe, folder)
    for field, dataset, name, teacher in _needed(recipe, folder):
        labels = require_manifest(dataset.folder.labels(), "label").fields
        scores = require_manifest(dataset.folder.scores(name, "train"), "score")
        if labels["teachers"].get(name, {}).get("scores") != scores.fingerprint:
            raise TrainingError(
                f"{field}: the labels in {dataset.folder.labels()} were not made with the scores of "
                f"{name!r} that are there now; run `distill label` again"
            )
        own_device()  # where the teacher encodes, if it has to
        complete_vectors(name, teacher, dataset.folder)


class DatasetTargets:
    """The vectors that one dataset's losses need."""

    def __init__(self, dataset: Dataset, vocab_size: int):
        self._needed = sorted({(loss.teacher, side) for loss in _losses(dataset) for side in loss.sides})
        self._vectors = {name: StoredVectors(name, dataset.folder) for name, _ in self._needed}
        self._vocab_size = vocab_size

    def take(self, query_rows: np.ndarray, passage_rows: np.ndarray, device: torch.device) -> Targets:
        """Of these texts, in the order given."""
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
        if terms.size and terms.max() >= self._vocab_size:  # rows that only pad the teacher's matrices are no terms
            reps = reps.keep(reps.terms < self._vocab_size)
        return SparseReps(reps.indptr.to(device), reps.terms.to(device), reps.values.to(device), None, reps.vocab_size)


def _needed(recipe: Recipe, folder: RunFolder) -> Iterator[tuple[str, Dataset, str, config.Teacher]]:
    """Every teacher whose vectors are learnt: the recipe's field that says so, the dataset, its name, and itself."""
    for name, dataset in datasets(recipe, folder).items():
        field = "train.losses" if name == OWN else f"train.datasets.{name}"
        needed = sorted({loss.teacher for loss in _losses(dataset)})
        if not needed:
            continue
        teachers = recipe.teachers if name == OWN else load_recipe(dataset.folder.recipe).teachers
        for teacher in needed:
            if teacher not in teachers or teachers[teacher].kind != "splade":  # the run's own are, or no recipe
                raise RecipeError(
                    f"{field}: embedding-mse names {teacher!r}, which is no teacher of kind splade of "
                    f"{dataset.folder.root} ({', '.join(teachers)}); give the dataset losses of its own"
                )
            yield field, dataset, teacher, teachers[teacher]


def _losses(dataset: Dataset) -> list[EmbeddingMseLoss]:
    return [loss for loss in dataset.train.losses if isinstance(loss, EmbeddingMseLoss)]


def _check_vocabulary(field: str, name: str, teacher: config.Teacher, student: config.Student) -> None:
    """Both must have the same words in the same places."""
    model = resolve_model(teacher.model)
    try:
        parts = loading(name, teacher.model, lambda: read_parts(model, teacher.revision))
    except OtherLayout as error:
        raise RecipeError(
            f"{field}: embedding-mse: the vectors of teacher {name!r} are not over a vocabulary: {error}"
        ) from error
    theirs = loading(
        name, teacher.model, lambda: load_tokenizer(teacher.model, teacher.revision, subfolder=parts.transformer)
    ).get_vocab()
    own_parts = router_parts(resolve_model(student.model), student.revision)
    ours = load_tokenizer(
        student.model, student.revision, subfolder=own_parts.transformer if own_parts else ""
    ).get_vocab()
    if ours != theirs:
        differing = sum(theirs.get(word) != place for word, place in ours.items())
        raise RecipeError(
            f"{field}: embedding-mse compares weights of the same words, and {differing:,} of the "
            f"student's {len(ours):,} words ({student.model}) are not where teacher {name!r} "
            f"({teacher.model}, {len(theirs):,} words) has them; take a teacher with its vocabulary"
        )
