"""Training datasets: the labels of the run itself, and those of other runs that `train.datasets` names.

The texts, teachers, labels and token stores of a dataset are in the folder of its run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill import config
from distill.config import OWN
from distill.run.layout import RunFolder, run_at
from distill.run.run import Run
from distill.store.texts import TextStore
from distill.store.tokens import TokenStore, build_token_store, token_key
from distill.student.base import Student
from distill.training.batches import Sampler, TrainingData
from distill.training.mixing import MixedSampler


@dataclass(frozen=True)
class Dataset:
    """One run's labels. `train`: the recipe's section with this dataset's losses; `prompts` None: the student's own."""

    folder: RunFolder
    train: config.Train
    prompts: config.Prompts | None = None

    @property
    def pseudo_positives(self) -> bool:
        """Whether a loss takes the highest label for the positive of a list without one."""
        return any(getattr(loss, "pseudo_positive", False) for loss in self.train.losses)


def datasets(run: Run) -> dict[str, Dataset]:
    """All datasets by name, the run's own labels first."""
    others = {}
    for name, other in run.recipe.train.datasets.items():
        losses = run.recipe.train.losses if other.losses is None else other.losses
        others[name] = Dataset(run_at(other.run), run.recipe.train.model_copy(update={"losses": losses}), other.prompts)
    return {OWN: Dataset(run.folder, run.recipe.train), **others}


def open_sampler(run: Run) -> tuple[MixedSampler, int]:
    """Open the sampler over all datasets, and return the total number of their queries."""
    train = run.recipe.train
    samplers = {
        name: Sampler(
            TrainingData.open(dataset.folder),
            train.negatives,
            run.recipe.seed,
            train.sampling,
            dataset.pseudo_positives,
            train.query_weights,
        )
        for name, dataset in datasets(run).items()
    }
    return MixedSampler(samplers, train.mixing, run.recipe.seed), sum(sampler.queries for sampler in samplers.values())


def build_tokens(student: Student, dataset: Dataset) -> None:
    """Build the token stores that `open_tokens` opens, unless they exist."""
    for texts, tokens, max_length, prefix in _token_plans(student, dataset):
        build_token_store(TextStore.open(texts), student.tokenizer, tokens, max_length, prefix)


def open_tokens(student: Student, dataset: Dataset) -> tuple[TokenStore, TokenStore]:
    """Open the token ids of a dataset's training queries and of its passages."""
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
