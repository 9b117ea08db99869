"""What a training learns from: the labels of its own run, and those of other runs that `train.datasets` names.

Each dataset keeps to its run's folder: its texts, teachers, labels and token stores lie there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import config
from distill.config import OWN, Recipe
from distill.data.batches import Sampler, TrainingData
from distill.data.layout import RunFolder, run_at
from distill.data.manifest import read_manifest
from distill.data.mixing import MixedSampler
from distill.data.texts import TextStore
from distill.data.tokens import TokenStore, build_token_store, token_key
from distill.errors import TrainingError
from distill.student.base import Student


@dataclass(frozen=True)
class Dataset:
    """`train` is the recipe's section with the losses of this dataset; `prompts` None: the student's own."""

    folder: RunFolder
    train: config.Train
    prompts: config.Prompts | None = None


def datasets(recipe: Recipe, folder: RunFolder) -> dict[str, Dataset]:
    """By name, the run's own labels first."""
    others = {}
    for name, other in recipe.train.datasets.items():
        losses = recipe.train.losses if other.losses is None else other.losses
        others[name] = Dataset(run_at(other.run), recipe.train.model_copy(update={"losses": losses}), other.prompts)
    return {OWN: Dataset(folder, recipe.train), **others}


def dataset_fields(recipe: Recipe) -> dict[str, Any]:
    """What the model depends on of the other runs: their labels, wherever they lie. `TrainingError` without labels."""
    fields = {}
    for name, other in recipe.train.datasets.items():
        labels = read_manifest(run_at(other.run).labels())
        if labels is None:
            raise TrainingError(
                f"train.datasets.{name}.run: {Path(other.run).absolute()} has no finished labels; run "
                "the stages of its own recipe up to `distill label` first"
            )
        fields[name] = {
            **other.model_dump(mode="json", exclude={"run"}, exclude_none=True),
            "labels": labels.fingerprint,
        }
    return fields


def open_sampler(recipe: Recipe, folder: RunFolder) -> tuple[MixedSampler, int]:
    """Batches of all datasets, and how many queries these have together."""
    train = recipe.train
    samplers = {
        name: Sampler(TrainingData.open(dataset.folder), train.negatives, recipe.seed, train.sampling)
        for name, dataset in datasets(recipe, folder).items()
    }
    return MixedSampler(samplers, train.mixing, recipe.seed), sum(sampler.queries for sampler in samplers.values())


def build_tokens(student: Student, dataset: Dataset) -> None:
    """Make what `open_tokens` opens, unless it is there."""
    for texts, tokens, max_length, prefix in _token_plans(student, dataset):
        build_token_store(TextStore.open(texts), student.tokenizer, tokens, max_length, prefix)


def open_tokens(student: Student, dataset: Dataset) -> tuple[TokenStore, TokenStore]:
    """Token ids of a dataset's training queries and of its passages."""
    queries, passages = (TokenStore.open(tokens) for _, tokens, *_ in _token_plans(student, dataset))
    return queries, passages


def _token_plans(student: Student, dataset: Dataset) -> Iterator[tuple[Path, Path, int, str]]:
    """For queries and passages: text store, token store, maximum length, prefix."""
    folder = dataset.folder
    prompts = student.prompts if dataset.prompts is None else dataset.prompts.model_dump()
    for name, texts, prompt, max_length in (
        ("queries.train", folder.queries("train"), "query", student.query_max_length),
        ("passages", folder.passages, "document", student.passage_max_length),
    ):
        prefix = prompts.get(prompt, "")
        yield texts, folder.tokens(token_key(student.tokenizer, prefix), name), max_length, prefix
