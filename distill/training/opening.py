"""What a training starts from, made once whatever the number of processes: the untrained student, the token stores,
and those of the teachers' vectors that are needed and gone.

All of it may take longer than processes wait for one another, so it is made before they join, under a file lock: one
process works, the others find it done.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.config import CalibratedStart, CsrStudent, Recipe, Section, resolve_model
from distill.data.checkpoints import model_field
from distill.data.files import locked, xxh128_file
from distill.data.fingerprint import check_same
from distill.data.layout import RunFolder
from distill.data.manifest import (
    Manifest,
    claim,
    claimed,
    read_manifest,
    require_manifest,
    write_manifest,
)
from distill.data.texts import TextStore
from distill.data.tokens import build_token_store, token_key
from distill.errors import RecipeError, TrainingError
from distill.evaluation.collection import open_collection
from distill.student.base import Student
from distill.student.checkpoint import load_checkpoint, save_student, start_student
from distill.student.dropout import set_dropout
from distill.training.datasets import build_tokens, dataset_fields, datasets
from distill.training.targets import build_targets

FORMAT = 1
# fields of `train` that decide how a run is carried out, not what it learns
EXECUTION = {
    "chunk_tokens",
    "activation_budget",
    "processes",
    "checkpoints",
    "max_bad_steps",
    "activation_checkpointing",
    "precision",
    "deepspeed",
}
# fields of `student` and `train` that the first version had not
LATER = {"datasets", "kind", "mixing", "prompts", "query", "reconstruction", "sampling", "table_lr", "top_ks"}


def training_fields(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What the trained model depends on: the hashed part of its manifest."""
    labels = read_manifest(folder.labels())
    if labels is None:
        raise TrainingError(f"{folder.labels()}: no labels to train on; run `distill label` first")
    others = dataset_fields(recipe)
    by_place = {"datasets": others, "order": list(others)} if others else {}  # whose turn it is goes by the order
    return {
        "stage": "train",
        "format": FORMAT,
        "labels": labels.fingerprint,
        "seed": recipe.seed,
        "student": _student_fields(recipe),
        "train": {**fields_of(recipe.train, EXECUTION), **by_place},
        **({"selection": _selection_fields(recipe)} if recipe.train.evaluate_every is not None else {}),
    }


def fields_of(section: Section, exclude: Collection[str] = ()) -> dict[str, Any]:
    """A section for a fingerprint. Of `LATER` fields only those that are set: runs begun before them go on."""
    unset = {
        name
        for name in LATER
        if name in type(section).model_fields and getattr(section, name) == type(section).model_fields[name].default
    }
    return section.model_dump(mode="json", exclude={*exclude, *unset})


def _selection_fields(recipe: Recipe) -> dict[str, Any]:
    """What decides which of the evaluated steps is saved."""
    evaluate = recipe.evaluate
    return {
        "metric": evaluate.metrics[0],
        **evaluate.model_dump(mode="json", include={"depth", "dev_passages", "precision"}),
    }


def _student_fields(recipe: Recipe) -> dict[str, Any]:
    student = recipe.student
    fields = {**fields_of(student), "model": model_field(recipe, student.model)}
    file = getattr(student.query, "file", None)
    if file is not None and (weights := Path(resolve_model(file))).is_file():
        fields["query"] = {**fields["query"], "file": {"content": xxh128_file(weights)}}
    return fields


def prepare(recipe: Recipe, folder: RunFolder) -> None:
    """Make what `open_student`, `datasets.open_tokens` and `targets.DatasetTargets` open, unless it is there.

    Raises `FingerprintError` where the folder holds the beginnings of another recipe's training.
    """
    fields = training_fields(recipe, folder)
    check_development(recipe, folder)
    begun = claimed(folder.model) if (done := read_manifest(folder.model)) is None else done.fields
    if begun is not None:
        check_same(folder.model, begun, fields)
    with locked(folder.start):
        _make_start(recipe, folder)
    claim(folder.model, fields)  # now that there is something: a model that is not found can be put right
    student = open_student(recipe, folder)
    for dataset in datasets(recipe, folder).values():
        build_tokens(student, dataset)
    build_targets(recipe, folder)


def check_development(recipe: Recipe, folder: RunFolder) -> None:
    """`RecipeError` where the recipe evaluates during training and the data has nothing to evaluate on."""
    if recipe.train.evaluate_every is not None:
        try:
            open_collection(folder, "dev")
        except RecipeError:
            raise RecipeError(
                f"train.evaluate_every evaluates on development queries, and the data in {folder.data} "
                "has none that are judged: give it some (data.source), or leave evaluate_every out"
            ) from None


def open_student(recipe: Recipe, folder: RunFolder) -> Student:
    """The untrained student, with the recipe's dropout, and frozen where it asks for it."""
    student = load_checkpoint(folder.start)
    if recipe.train.dropout is not None:
        set_dropout(student, recipe.train.dropout)
    if isinstance(recipe.student, CsrStudent) and recipe.student.frozen:
        student.freeze_dense()
    return student


def _make_start(recipe: Recipe, folder: RunFolder) -> None:
    fields = {
        "stage": "start",
        "format": FORMAT,
        "seed": recipe.seed,
        "student": _student_fields(recipe),
        "data": require_manifest(folder.data, "import").fingerprint,
    }
    done = read_manifest(folder.start)
    if done is not None:
        check_same(folder.start, done.fields, fields)
        return
    passages = TextStore.open(folder.passages)
    size = min(getattr(recipe.student, "calibration", CalibratedStart()).passages, passages.collection_size)
    rows = np.random.default_rng(recipe.seed).choice(passages.collection_size, size, replace=False)

    def document_frequencies(tokenizer: Any, max_length: int) -> tuple[np.ndarray, int]:
        tokens = build_token_store(passages, tokenizer, folder.tokens(token_key(tokenizer), "passages"), max_length)
        size = passages.collection_size
        return tokens.document_frequencies(len(tokenizer.get_vocab()), size, max_length), size

    torch.manual_seed(recipe.seed)  # an autoencoder begins with random weights
    save_student(start_student(recipe.student, passages.texts(np.sort(rows)), document_frequencies), folder.start)
    write_manifest(folder.start, Manifest(fields))
