"""The exported lists: each query with its passages, positives first, and their scores or labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.errors import RecipeError
from distill.labelling.labels import teachers_of
from distill.labelling.stage import outputs as label_outputs
from distill.progress import track
from distill.run.layout import SPLITS, RunFolder
from distill.run.manifest import require_manifest
from distill.run.run import Run
from distill.store.candidates import read_candidates
from distill.store.labels import Labels, read_labels
from distill.store.scores import aligned_scores
from distill.store.texts import TextStore

_QUERIES = 256  # queries whose texts are in memory at once


@dataclass(frozen=True)
class ScoredList:
    """One query; the first `positives` passages are its positives. A score is None if the source has none."""

    query_id: str
    query: str
    passage_ids: list[str]
    passages: list[str]  # title and text, as models read them; empty for formats without texts
    positives: int
    scores: list[float | None]  # exact float32 values


@dataclass
class Tally:
    """Number of queries and pairs exported, and of those left out."""

    queries: int = 0
    pairs: int = 0
    unscored: int = 0  # pairs without a score
    short: int = 0  # queries with too few negatives
    unusable: int = 0  # queries that the format cannot hold
    variants: int = 0  # pairs with passages outside the source's collection


@dataclass(frozen=True)
class Source:
    """The finished shards of a split, of a teacher's scores or (`teacher` None) of the labels."""

    folder: RunFolder
    teacher: str | None
    split: str
    shards: tuple[str, ...]

    def read(self, shard: str) -> Labels:
        """Passages and scores of a shard; NaN for a missing score."""
        if self.teacher is None:
            return read_labels(self.folder.labels(self.split) / shard)
        candidates = read_candidates(self.folder.candidates(self.split) / shard)
        scores = aligned_scores(self.folder.scores(self.teacher, self.split) / shard, candidates)
        return Labels(candidates.query, candidates.offsets, candidates.passages, candidates.positive, scores)


def source_of(run: Run, teacher: str | None, split: str) -> Source:
    """The shards to export. Raises `DistillError` if they do not exist or are not finished."""
    if split not in SPLITS:
        raise RecipeError(f"--split {split!r} is not known; choose one of {', '.join(SPLITS)}")
    path: Path
    if teacher is None:
        if split != "train":
            raise RecipeError(
                f"--split {split}: labels are made for training only; name a teacher with --teacher "
                f"({', '.join(run.recipe.teachers)})"
            )
        path, stage = run.folder.labels(), "label"
    elif teacher not in run.recipe.teachers:
        raise RecipeError(
            f"--teacher {teacher!r} is not in the recipe; its teachers are {', '.join(run.recipe.teachers)}"
        )
    elif teacher not in teachers_of(run.recipe, split):
        raise RecipeError(f"--split {split}: teacher {teacher!r} is imported, and has scores for training only")
    else:
        path, stage = run.folder.scores(teacher, split), "score"
    manifest = require_manifest(path, stage)
    if teacher is None:
        for output in label_outputs(run):
            output.finished()  # raises if the labels were made from other scores
    return Source(run.folder, teacher, split, tuple(shard.name for shard in manifest.shards))


def negatives_range(source: Source) -> tuple[int, int]:
    """The smallest and largest number of negatives among lists with a positive and a negative; (0, 0) if none has."""
    counts = []
    for shard in source.shards:
        negatives, positives = _counts(source.read(shard))
        counts.append(negatives[(negatives > 0) & (positives > 0)])
    every = np.concatenate([*counts, np.empty(0, np.int64)])
    return (int(every.min()), int(every.max())) if every.size else (0, 0)


def scored_lists(source: Source, negatives: int | None, texts: bool, tally: Tally) -> Iterator[ScoredList]:
    """All lists, in order, with their first `negatives` negatives (None: all); lists with fewer are left out."""
    queries = TextStore.open(source.folder.queries(source.split))
    passages = TextStore.open(source.folder.passages)
    for shard in track(source.shards, description="export", unit="shards"):
        labels = source.read(shard)
        starts = labels.offsets[:-1]
        available, positives = _counts(labels)
        stops = labels.offsets[1:] if negatives is None else starts + positives + negatives
        exported = np.flatnonzero(available >= (negatives or 0))
        tally.short += len(available) - len(exported)
        for group in np.split(exported, range(_QUERIES, len(exported), _QUERIES)):
            lengths = (stops - starts)[group]
            ends = np.cumsum(lengths)
            flat = np.repeat(starts[group] - (ends - lengths), lengths) + np.arange(lengths.sum())
            rows = labels.passages[flat]
            tally.variants += int((rows >= passages.collection_size).sum())
            passage_ids, passage_texts = passages.ids(rows), passages.texts(rows) if texts else []
            scores = [None if math.isnan(score) else score for score in labels.labels[flat].tolist()]
            query_ids, query_texts = queries.ids(labels.query[group]), queries.texts(labels.query[group])
            for i, (query_id, query) in enumerate(zip(query_ids, query_texts, strict=True)):
                part = slice(int(ends[i] - lengths[i]), int(ends[i]))
                count = int(positives[group[i]])
                yield ScoredList(query_id, query, passage_ids[part], passage_texts[part], count, scores[part])


def _counts(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Number of negatives and of positives of each list, int64 [q] each."""
    before = np.concatenate([[0], np.cumsum(labels.positive)])
    positives = np.diff(before[labels.offsets])
    return np.diff(labels.offsets) - positives, positives
