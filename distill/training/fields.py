"""Fingerprint inputs of the untrained student and of the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.config import Recipe, dump_set, meaning_of
from distill.errors import TrainingError
from distill.retrieval.bm25_settings import bm25_fields
from distill.run.files import checksum
from distill.run.layout import run_at
from distill.run.manifest import FORMAT, read_manifest, require_manifest
from distill.run.model_ref import WEIGHTS_FILE, find_file
from distill.run.run import Run


def dataset_fields(recipe: Recipe) -> dict[str, Any]:
    """Fingerprint inputs of the datasets of other runs: their labels, not their folders.

    Raises `TrainingError` for a run without finished labels.
    """
    fields = {}
    for name, other in recipe.train.datasets.items():
        labels = read_manifest(run_at(other.run).labels())
        if labels is None:
            raise TrainingError(
                f"train.datasets.{name}.run: {Path(other.run).absolute()} has no finished labels; run its recipe up to "
                "`distill label` first"
            )
        fields[name] = {
            **dump_set(other, exclude={"run"}, exclude_none=True),
            "labels": labels.fingerprint,
        }
    return fields


def training_fields(run: Run) -> dict[str, Any]:
    """Fingerprint inputs of the trained model."""
    labels = read_manifest(run.folder.labels())
    if labels is None:
        raise TrainingError(f"{run.folder.labels()}: no labels to train on; run `distill label` first")
    others = dataset_fields(run.recipe)
    by_place = {"datasets": others, "order": list(others)}  # whose turn it is depends on the order
    return {
        "stage": "train",
        "format": FORMAT,
        "labels": labels.fingerprint,
        "seed": run.recipe.seed,
        "student": student_fields(run),
        "train": {**meaning_of(run.recipe.train), **by_place},
        **({"selection": _selection_fields(run.recipe)} if run.recipe.train.evaluate_every is not None else {}),
    }


def _selection_fields(recipe: Recipe) -> dict[str, Any]:
    """Fingerprint inputs of the choice among the evaluated steps."""
    evaluate = recipe.evaluate
    return {
        "metric": evaluate.metrics[0],
        **evaluate.model_dump(mode="json", include={"depth", "dev_passages"}),
    }


def student_fields(run: Run) -> dict[str, Any]:
    """Fingerprint inputs of the recipe's section `student`: the model and a file of query weights by content."""
    student = run.recipe.trained_student
    fields = {
        **dump_set(student, exclude={"model", "revision"}),
        "model": run.model(student.model, student.revision).identity(),
    }
    if getattr(student, "lexical_start", None) is not None:
        fields |= bm25_fields(run)
    if (file := getattr(student.query, "file", None)) is not None:
        fields["query"] = {**fields["query"], "file": {"content": checksum(find_file(file, WEIGHTS_FILE))}}
    return fields


def start_fields(run: Run) -> dict[str, Any]:
    """Fingerprint inputs of the untrained student."""
    return {
        "stage": "start",
        "format": FORMAT,
        "seed": run.recipe.seed,
        "student": student_fields(run),
        "data": require_manifest(run.folder.data, "import").fingerprint,
    }
