"""From raw teacher scores to training labels, the SPLADE-v3 way (arXiv 2403.06789, section 3).

Per query and teacher the scores are normalised, teachers are averaged with their weights, and the result is mapped
to a reference teacher's global mean and standard deviation. Two passes, shard by shard, in constant memory.
A pair's missing score (NaN) takes its teacher out of that pair's mean; the other teachers carry it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from distill.config import Label, Recipe
from distill.data.arrow import RowReader, Shard, write_ipc
from distill.data.candidates import Candidates, candidate_shards, csr_column, only_batch, read_candidates
from distill.data.fingerprint import check_same, fingerprint
from distill.data.layout import RunFolder
from distill.data.manifest import FORMAT, Manifest, read_manifest, require_manifest, write_manifest
from distill.data.scores import aligned_scores
from distill.errors import DataError
from distill.progress import track

SCHEMA = pa.schema(
    [
        ("query", pa.int64()),
        ("passages", pa.list_(pa.int64())),
        ("positive", pa.list_(pa.bool_())),
        ("labels", pa.list_(pa.float32())),
    ]
)


# ------------------------------------------------------------------------------------- pure functions


def normalise(scores: np.ndarray, offsets: np.ndarray, how: str) -> np.ndarray:
    """Normalise each list of a CSR array by itself: `min-max` to [0, 1], `z-score` to mean 0 and deviation 1, `none`.

    scores: float [m], NaN where missing; offsets: int64 [q + 1]. Returns float64 [m]. A list without any spread (all
    equal, or a single score) says nothing about preference and gets the middle: 0.5, or 0 for z-scores.
    """
    scores = np.asarray(scores, np.float64)
    if how == "none":
        return scores.copy()
    lengths = np.diff(offsets)
    if how == "min-max":
        low, high = (_per_list(reduce, scores, offsets) for reduce in (np.fmin, np.fmax))
        middle = 0.5
    elif how == "z-score":
        low, high = _mean_std(scores, offsets)
        high = low + high
        middle = 0.0
    else:
        raise ValueError(f"unknown normalisation {how!r}")
    low, high = np.repeat(low, lengths), np.repeat(high, lengths)
    # a deviation of rounding noise is none: compare with the size of the numbers
    flat = high - low <= 1e-9 * np.maximum(np.abs(high), np.abs(low))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (scores - low) / (high - low)
    return np.where(flat & ~np.isnan(scores), middle, spread)


def ensemble(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over teachers of normalised scores [teachers, m]; NaN entries are left out of their pair's mean.

    Returns float64 [m]; NaN where no teacher has a score.
    """
    weights = np.asarray(weights, np.float64)[:, None]
    there = ~np.isnan(matrix)
    total = (weights * there).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * np.where(there, matrix, 0.0)).sum(axis=0) / total


def affine_map(values: np.ndarray, mean: float, std: float, to_mean: float, to_std: float) -> np.ndarray:
    """Map values of a given mean and standard deviation to another mean and deviation; without spread, to the mean."""
    slope = to_std / std if std > 0 else 0.0
    return (values - mean) * slope + to_mean


def keep_negatives(labels: np.ndarray, positive: np.ndarray, offsets: np.ndarray, limits: Label) -> np.ndarray:
    """bool [m]: False for negatives that `limits` leaves out: likely unjudged positives, or too easy ones.

    With one positive a list these are the filters of sentence-transformers' `mine_hard_negatives`; with several, the
    best one counts (there, the worst). Without a labelled positive in the list no margin drops anything.
    """
    best = _per_list(np.fmax, np.where(positive, labels, np.nan), offsets)
    best = np.repeat(best, np.diff(offsets))
    out = np.zeros(len(labels), bool)
    if limits.drop_false_negatives is not None:
        out |= labels > best + limits.drop_false_negatives
    if limits.relative_margin is not None:
        out |= labels > best - limits.relative_margin * np.abs(best)
    if limits.max_score is not None:
        out |= labels > limits.max_score
    if limits.min_score is not None:
        out |= labels < limits.min_score
    return positive | ~out


@dataclass
class Moments:
    """Running count, mean and (population) standard deviation; merges like Chan et al.'s parallel variance."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def add(self, values: np.ndarray) -> None:
        values = values[~np.isnan(values)].astype(np.float64)
        if not values.size:
            return
        mean = float(values.mean())
        distance, total = mean - self.mean, self.count + values.size
        self.squares += float(((values - mean) ** 2).sum()) + distance**2 * self.count * values.size / total
        self.mean += distance * values.size / total
        self.count = total

    @property
    def std(self) -> float:
        return math.sqrt(self.squares / self.count) if self.count else 0.0


# -------------------------------------------------------------------------------------------- the stage


def teachers_of(recipe: Recipe, split: str) -> list[str]:
    """The teachers that have scores for a split: imported ones know the training candidates only."""
    return [name for name, teacher in recipe.teachers.items() if split == "train" or teacher.kind != "imported"]


def ensemble_scores(recipe: Recipe, folder: RunFolder, split: str) -> Iterator[tuple[str, Candidates, np.ndarray]]:
    """(shard name, candidates, float64 [m] ensemble of the recipe's teachers before any mapping) for every shard.

    For ranking candidates by the ensemble, too: the mapping that labels get on top is monotone. Nothing where no
    teacher has scores for the split.
    """
    if not teachers_of(recipe, split):
        return
    for name, candidates, raw in score_matrices(recipe, folder, split):
        yield name, candidates, _ensemble(recipe, candidates, raw, split)


def label_fields(recipe: Recipe, folder: RunFolder) -> dict[str, Any]:
    """What the labels depend on: the hashed part of their manifest. `StorageError` while a teacher isn't finished."""
    return {
        "stage": "label",
        "format": FORMAT,
        "candidates": require_manifest(folder.candidates("train"), "mine").fingerprint,
        "teachers": {
            name: {
                "scores": require_manifest(folder.scores(name, "train"), "score").fingerprint,
                "weight": teacher.weight,
            }
            for name, teacher in recipe.teachers.items()
        },
        **recipe.label.model_dump(
            mode="json",
            exclude={
                name for name in ("relative_margin", "max_score", "min_score") if getattr(recipe.label, name) is None
            },
        ),
    }


def build_labels(recipe: Recipe, folder: RunFolder) -> Manifest:
    """Write the label shards of the training split; returns at once where that is done.

    Left out, and counted: pairs without any score, negatives beyond the recipe's limits (`keep_negatives`), and
    then queries without a positive or without a negative. `counts` also tells constant and single-candidate lists.
    """
    target = folder.labels()
    fields = label_fields(recipe, folder)
    done = read_manifest(target)
    if done is not None:
        check_same(target, done.fields, fields)
        return done
    ours, reference = Moments(), Moments()
    counts: dict[str, Any] = {
        "queries": 0,
        "pairs": 0,
        "queries_single": 0,
        "pairs_unscored": 0,
        "false_negatives_dropped": 0,
        "queries_dropped": 0,
    }
    constant, missing = dict.fromkeys(recipe.teachers, 0), dict.fromkeys(recipe.teachers, 0)
    outscored = negatives = 0
    total = len(candidate_shards(folder.candidates("train")))
    for _, candidates, raw in track(score_matrices(recipe, folder, "train"), total, "label: measure", "shards"):
        values = _ensemble(recipe, candidates, raw, "train")
        ours.add(values)
        counts["queries_single"] += int((np.diff(candidates.offsets) == 1).sum())
        for name, scores in zip(recipe.teachers, raw, strict=True):
            constant[name] += _constant_lists(scores, candidates.offsets)
            missing[name] += int(np.isnan(scores).sum())
            if name == recipe.label.map_to:
                reference.add(scores)
        above = ~keep_negatives(values, candidates.positive, candidates.offsets, Label(drop_false_negatives=0.0))
        outscored += int(above.sum())
        negatives += int((~candidates.positive).sum())
    if not ours.count:
        raise DataError("no candidate has a score: there is nothing to train on", path=folder.candidates("train"))
    shards: list[Shard] = []
    final = Moments()
    for name, candidates, raw in track(score_matrices(recipe, folder, "train"), total, "label: write", "shards"):
        values = _ensemble(recipe, candidates, raw, "train")
        if recipe.label.map_to is not None:
            values = affine_map(values, ours.mean, ours.std, reference.mean, reference.std)
        values = values * recipe.label.scale
        batch, kept = _labelled(candidates, values, recipe.label, counts)
        final.add(kept)
        shards.append(write_ipc(target / name, SCHEMA, [batch], {"fingerprint": fingerprint(fields)}))
    if not counts["queries"]:
        raise DataError(
            "no query has both a positive and a negative with a score: there is nothing to train on",
            path=folder.candidates("train"),
        )
    counts |= {
        "constant_lists": constant,
        "missing_scores": missing,
        "negatives_above_positive": outscored / max(1, negatives),
        "mean": final.mean,
        "std": final.std,
    }
    manifest = Manifest(fields, tuple(shards), counts)
    write_manifest(target, manifest)
    return manifest


def _labelled(
    candidates: Candidates, values: np.ndarray, limits: Label, counts: dict[str, Any]
) -> tuple[pa.RecordBatch, np.ndarray]:
    """The label shard's rows, and its labels flat; `counts` goes on."""
    keep = ~np.isnan(values)
    counts["pairs_unscored"] += int((~keep).sum())
    fit = keep_negatives(values, candidates.positive, candidates.offsets, limits)
    counts["false_negatives_dropped"] += int((keep & ~fit).sum())
    keep &= fit
    queries = np.repeat(np.arange(len(candidates)), np.diff(candidates.offsets))
    sizes = np.bincount(queries[keep], minlength=len(candidates))
    positives = np.bincount(queries[keep & candidates.positive], minlength=len(candidates))
    useful = (positives > 0) & (positives < sizes)
    counts["queries_dropped"] += int((~useful).sum())
    counts["queries"] += int(useful.sum())
    keep &= useful[queries]
    counts["pairs"] += int(keep.sum())
    offsets = np.concatenate([[0], np.cumsum(sizes[useful])]).astype(np.int64)
    labels = values[keep].astype(np.float32)
    flat = zip((candidates.passages[keep], candidates.positive[keep], labels), list(SCHEMA)[1:], strict=True)
    columns = [
        pa.array(candidates.query[useful], pa.int64()),
        *(csr_column(offsets, column, field.type) for column, field in flat),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA), labels


@dataclass(frozen=True)
class Labels:
    """Labels of some queries' passages (CSR), positives first in every list."""

    query: np.ndarray  # int64 [q]
    offsets: np.ndarray  # int64 [q + 1]
    passages: np.ndarray  # int64 [m]
    positive: np.ndarray  # bool [m]
    labels: np.ndarray  # float32 [m]


def read_labels(path) -> Labels:
    """One label shard, its arrays in the mapped file (but `positive`: Arrow keeps bits)."""
    batch = only_batch(RowReader(path))
    passages = batch.column("passages")
    return Labels(
        batch.column("query").to_numpy(),
        passages.offsets.to_numpy().astype(np.int64),
        passages.values.to_numpy(),
        batch.column("positive").values.to_numpy(zero_copy_only=False),
        batch.column("labels").values.to_numpy(),
    )


def score_matrices(recipe: Recipe, folder: RunFolder, split: str) -> Iterator[tuple[str, Candidates, np.ndarray]]:
    """(shard name, candidates, raw scores [teachers, m] in the order of `teachers_of`) for every shard."""
    path, teachers = folder.candidates(split), teachers_of(recipe, split)
    for name in teachers:
        require_manifest(folder.scores(name, split), "score")
    for shard in candidate_shards(path):
        candidates = read_candidates(path / shard.name)
        raw = np.empty((len(teachers), candidates.pairs), np.float32)
        for row, teacher in zip(raw, teachers, strict=True):
            row[:] = aligned_scores(folder.scores(teacher, split) / shard.name, candidates)
        yield shard.name, candidates, raw


def _ensemble(recipe: Recipe, candidates: Candidates, raw: np.ndarray, split: str) -> np.ndarray:
    normalised = np.stack([normalise(scores, candidates.offsets, recipe.label.normalise) for scores in raw])
    return ensemble(normalised, np.array([recipe.teachers[name].weight for name in teachers_of(recipe, split)]))


def _per_list(reduce: np.ufunc, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Reduce each list of a CSR array; NaN for an empty one (`reduceat` would take its neighbour's first value)."""
    result = np.full(len(offsets) - 1, np.nan)
    filled = np.flatnonzero(np.diff(offsets) > 0)
    if filled.size:
        result[filled] = reduce.reduceat(values, offsets[:-1][filled])
    return result


def _mean_std(scores: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of each list, over the scores that are there."""
    there = ~np.isnan(scores)
    count = _per_list(np.add, there.astype(np.float64), offsets)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _per_list(np.add, np.where(there, scores, 0.0), offsets) / count
        distance = np.where(there, scores - np.repeat(mean, np.diff(offsets)), 0.0)
        return mean, np.sqrt(_per_list(np.add, distance**2, offsets) / count)


def _constant_lists(scores: np.ndarray, offsets: np.ndarray) -> int:
    """Lists of two and more scores without any difference between them."""
    low, high = (_per_list(reduce, scores, offsets) for reduce in (np.fmin, np.fmax))
    return int(((np.diff(offsets) > 1) & (low == high)).sum())
