"""What is exported: for each query its passages with texts and ids, positives first, and their scores or labels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.config import Recipe
from distill.data.candidates import read_candidates
from distill.data.fingerprint import check_same
from distill.data.labels import Labels, label_fields, read_labels, teachers_of
from distill.data.layout import SPLITS, RunFolder
from distill.data.manifest import require_manifest
from distill.data.scores import aligned_scores
from distill.data.texts import TextStore
from distill.errors import RecipeError
from distill.progress import track

_QUERIES = 256  # whose texts are in memory at once


@dataclass(frozen=True)
class ScoredList:
    """One query; the first `positives` passages are its positives. A score is None where the source brought none."""

    query_id: str
    query: str
    passage_ids: list[str]
    passages: list[str]  # title and text, as models read them; empty for formats without texts
    positives: int
    scores: list[float | None]  # exact float32 values


@dataclass
class Tally:
    """What went out, and what did not."""

    queries: int = 0
    pairs: int = 0
    unscored: int = 0  # of the pairs
    short: int = 0  # queries with too few negatives
    unusable: int = 0  # queries that the format cannot hold
    variants: int = 0  # pairs with passages outside the source's collection


@dataclass(frozen=True)
class Source:
    """Finished shards of a split: of a teacher, or of the labels."""

    folder: RunFolder
    teacher: str | None
    split: str
    shards: tuple[str, ...]

    def read(self, shard: str) -> Labels:
        """Passages and scores of a shard; NaN for a score that isn't there."""
        if self.teacher is None:
            return read_labels(self.folder.labels(self.split) / shard)
        candidates = read_candidates(self.folder.candidates(self.split) / shard)
        scores = aligned_scores(self.folder.scores(self.teacher, self.split) / shard, candidates)
        return Labels(candidates.query, candidates.offsets, candidates.passages, candidates.positive, scores)


def source_of(recipe: Recipe, folder: RunFolder, teacher: str | None, split: str) -> Source:
    """What `distill export` was asked for; an error where there is no such thing, or it isn't finished."""
    if split not in SPLITS:
        raise RecipeError(f"--split {split!r}: there are {', '.join(SPLITS)}")
    path: Path
    if teacher is None:
        if split != "train":
            raise RecipeError(
                f"--split {split}: labels are made for training only; name a teacher with --teacher "
                f"({', '.join(recipe.teachers)})"
            )
        path, stage = folder.labels(), "label"
    elif teacher not in recipe.teachers:
        raise RecipeError(f"--teacher {teacher!r}: the recipe's teachers are {', '.join(recipe.teachers)}")
    elif teacher not in teachers_of(recipe, split):
        raise RecipeError(f"--split {split}: teacher {teacher!r} is imported, and has scores for training only")
    else:
        path, stage = folder.scores(teacher, split), "score"
    manifest = require_manifest(path, stage)
    if teacher is None:
        check_same(path, manifest.fields, label_fields(recipe, folder))
    return Source(folder, teacher, split, tuple(shard.name for shard in manifest.shards))


def negatives_range(source: Source) -> tuple[int, int]:
    """The fewest and the most negatives of a list that has a positive and a negative; (0, 0) where none has."""
    counts = []
    for shard in source.shards:
        negatives, positives = _counts(source.read(shard))
        counts.append(negatives[(negatives > 0) & (positives > 0)])
    every = np.concatenate([*counts, np.empty(0, np.int64)])
    return (int(every.min()), int(every.max())) if every.size else (0, 0)


def scored_lists(source: Source, negatives: int | None, texts: bool, tally: Tally) -> Iterator[ScoredList]:
    """Every list, in order, with its first `negatives` negatives (None: all); lists with fewer are left out."""
    queries = TextStore.open(source.folder.queries(source.split))
    passages = TextStore.open(source.folder.passages)
    for shard in track(source.shards, description="export", unit="shards"):
        labels = source.read(shard)
        starts = labels.offsets[:-1]
        here, positives = _counts(labels)
        stops = labels.offsets[1:] if negatives is None else starts + positives + negatives
        kept = np.flatnonzero(here >= (negatives or 0))
        tally.short += len(here) - len(kept)
        for group in np.split(kept, range(_QUERIES, len(kept), _QUERIES)):
            lengths = (stops - starts)[group]
            ends = np.cumsum(lengths)
            flat = np.repeat(starts[group] - (ends - lengths), lengths) + np.arange(lengths.sum())
            rows = labels.passages[flat]
            tally.variants += int((rows >= passages.collection_size).sum())
            columns = [
                passages.ids(rows),
                passages.texts(rows) if texts else [],
                [None if math.isnan(score) else score for score in labels.labels[flat].tolist()],
            ]
            asked = labels.query[group]
            for i, (query_id, query) in enumerate(zip(queries.ids(asked), queries.texts(asked), strict=True)):
                piece = slice(int(ends[i] - lengths[i]), int(ends[i]))
                ids, found, scores = (column[piece] for column in columns)
                yield ScoredList(query_id, query, ids, found, int(positives[group[i]]), scores)


def _counts(labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """int64 [q] each: negatives and positives of each list."""
    before = np.concatenate([[0], np.cumsum(labels.positive)])
    positives = np.diff(before[labels.offsets])
    return np.diff(labels.offsets) - positives, positives
