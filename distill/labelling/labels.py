"""From raw teacher scores to training labels, the SPLADE-v3 way (arXiv 2403.06789, section 3).

Scores are normalised per query and teacher, averaged over teachers with their weights, and mapped to the global mean
and standard deviation of a reference teacher. This takes two passes over the shards, in constant memory. A missing
score (NaN) is left out of its pair's mean over teachers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from distill.config import Label, Recipe
from distill.errors import DataError
from distill.progress import track
from distill.run.manifest import Shard, require_manifest
from distill.run.output import Output
from distill.run.run import Run
from distill.store.arrow import write_ipc
from distill.store.candidates import Candidates, candidate_shards, csr_column, lists_with, read_candidates
from distill.store.labels import LABEL_SCHEMA
from distill.store.scores import aligned_scores

log = logging.getLogger(__name__)

_SUSPICIOUS = 0.5  # share of negatives above their positive

# ------------------------------------------------------------------------------------- pure functions


def normalise(scores: np.ndarray, offsets: np.ndarray, how: str) -> np.ndarray:
    """Normalise each list of a CSR array: `min-max` to [0, 1], `z-score` to mean 0 and deviation 1, `none` not at all.

    scores: float [m], NaN where missing; offsets: int64 [q + 1]. Returns float64 [m]. A list without spread (all scores
    equal, or a single one) expresses no preference and gets the middle: 0.5, or 0 for z-scores.
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
    # relative to the numbers, so that rounding noise does not count as spread
    flat = high - low <= 1e-9 * np.maximum(np.abs(high), np.abs(low))
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (scores - low) / (high - low)
    return np.where(flat & ~np.isnan(scores), middle, spread)


def ensemble(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average normalised scores [teachers, m] over teachers, weighted, without NaN entries.

    Returns float64 [m]; NaN where no teacher has a score.
    """
    weights = np.asarray(weights, np.float64)[:, None]
    scored = ~np.isnan(matrix)
    total = (weights * scored).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * np.where(scored, matrix, 0.0)).sum(axis=0) / total


def affine_map(values: np.ndarray, mean: float, std: float, to_mean: float, to_std: float) -> np.ndarray:
    """Map values of a given mean and standard deviation to another mean and deviation; without spread, to that mean."""
    slope = to_std / std if std > 0 else 0.0
    return (values - mean) * slope + to_mean


def keep_negatives(labels: np.ndarray, positive: np.ndarray, offsets: np.ndarray, limits: Label) -> np.ndarray:
    """Return bool [m]: False for negatives beyond `limits`, which are likely unjudged positives or too easy.

    With one positive per list these are the filters of sentence-transformers' `mine_hard_negatives`; with several, the
    best one counts (there, the worst). Margins drop nothing from a list without a labelled positive, and of the limits
    only `min_score` applies to a list without any: none of its passages is held to be a negative.
    """
    judged = np.repeat(lists_with(positive, offsets), np.diff(offsets))
    best = _per_list(np.fmax, np.where(positive, labels, np.nan), offsets)
    best = np.repeat(best, np.diff(offsets))
    dropped = np.zeros(len(labels), bool)
    if limits.drop_false_negatives is not None:
        dropped |= labels > best + limits.drop_false_negatives
    if limits.relative_margin is not None:
        dropped |= labels > best - limits.relative_margin * np.abs(best)
    if limits.max_score is not None:
        dropped |= judged & (labels > limits.max_score)
    if limits.min_score is not None:
        dropped |= labels < limits.min_score
    return positive | ~dropped


@dataclass
class Moments:
    """Running count, mean and population standard deviation, updated by Chan et al.'s parallel formula."""

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
    """Return the teachers that score a split: imported ones have scores for the training candidates only."""
    return [name for name, teacher in recipe.teachers.items() if split == "train" or teacher.kind != "imported"]


def ensemble_scores(run: Run, split: str) -> Iterator[tuple[str, Candidates, np.ndarray]]:
    """Yield (shard name, candidates, float64 [m] ensemble of the teachers, not mapped) for every shard of a split.

    Yields nothing if no teacher scores the split. Reranking also uses this ensemble: mapping is monotone, so it would
    not change a ranking.
    """
    if not teachers_of(run.recipe, split):
        return
    for name, candidates, raw in score_matrices(run, split):
        yield name, candidates, _ensemble(run.recipe, candidates, raw, split)


def score_matrices(run: Run, split: str) -> Iterator[tuple[str, Candidates, np.ndarray]]:
    """Yield (shard name, candidates, raw scores [teachers, m] in the order of `teachers_of`) for every shard."""
    path, teachers = run.folder.candidates(split), teachers_of(run.recipe, split)
    for name in teachers:
        require_manifest(run.folder.scores(name, split), "score")
    for shard in candidate_shards(path):
        candidates = read_candidates(path / shard.name)
        raw = np.empty((len(teachers), candidates.pairs), np.float32)
        for row, teacher in zip(raw, teachers, strict=True):
            row[:] = aligned_scores(run.folder.scores(teacher, split) / shard.name, candidates)
        yield shard.name, candidates, raw


def build_labels(run: Run, output: Output) -> None:
    """Write the label shards of the training split.

    Left out and counted: pairs without any score, negatives beyond the recipe's limits (`keep_negatives`), and then
    queries of which one side is left, or none. A query without a positive among its candidates needs two passages.
    Constant and single-candidate lists are also counted.
    """
    measured = _measure(run)
    options, home = run.recipe.label, run.folder.candidates("train")
    if not measured.ensemble.count:
        raise DataError("no candidate has a score: there is nothing to train on", path=home)
    counts: dict[str, Any] = {
        "queries": 0,
        "pairs": 0,
        "queries_single": measured.single_lists,
        "pairs_unscored": 0,
        "false_negatives_dropped": 0,
        "queries_dropped": 0,
    }
    shards: list[Shard] = []
    final = Moments()
    for name, candidates, raw in track(
        score_matrices(run, "train"), len(candidate_shards(home)), "label: write", "shards"
    ):
        values = _ensemble(run.recipe, candidates, raw, "train")
        if options.map_to is not None:
            ours, reference = measured.ensemble, measured.reference
            values = affine_map(values, ours.mean, ours.std, reference.mean, reference.std)
        batch, labels = _label_batch(candidates, values * options.scale, options, counts)
        final.add(labels)
        shard = write_ipc(output.folder / name, LABEL_SCHEMA, [batch], {"fingerprint": output.fingerprint})
        assert shard is not None  # only exclusive writes give None
        shards.append(shard)
    if not counts["queries"]:
        raise DataError(
            "no query has both a positive and a negative with a score or, without a positive, two passages with a "
            "score: there is nothing to train on",
            path=home,
        )
    counts |= {
        "constant_lists": measured.constant_lists,
        "missing_scores": measured.missing,
        "negatives_above_positive": measured.outscored / max(1, measured.negatives),
        "mean": final.mean,
        "std": final.std,
    }
    output.finish(shards, counts)
    if (share := counts["negatives_above_positive"]) > _SUSPICIOUS:
        log.warning(
            "%.0f%% of the negatives outscore their query's best positive: check the teachers' scales and signs with "
            "`distill label --stats`",
            100 * share,
        )


@dataclass
class _Measured:
    """Statistics of the training scores, from the first pass."""

    constant_lists: dict[str, int]  # per teacher
    missing: dict[str, int]  # scores, per teacher
    ensemble: Moments = field(default_factory=Moments)
    reference: Moments = field(default_factory=Moments)  # raw scores of the teacher `map_to`
    single_lists: int = 0  # lists of one candidate
    outscored: int = 0  # negatives above their query's best positive
    negatives: int = 0  # of queries with a positive


def _measure(run: Run) -> _Measured:
    recipe = run.recipe
    measured = _Measured(dict.fromkeys(recipe.teachers, 0), dict.fromkeys(recipe.teachers, 0))
    total = len(candidate_shards(run.folder.candidates("train")))
    for _, candidates, raw in track(score_matrices(run, "train"), total, "label: measure", "shards"):
        values = _ensemble(recipe, candidates, raw, "train")
        measured.ensemble.add(values)
        measured.single_lists += int((np.diff(candidates.offsets) == 1).sum())
        for name, scores in zip(recipe.teachers, raw, strict=True):
            measured.constant_lists[name] += _constant_lists(scores, candidates.offsets)
            measured.missing[name] += int(np.isnan(scores).sum())
            if name == recipe.label.map_to:
                measured.reference.add(scores)
        below = keep_negatives(values, candidates.positive, candidates.offsets, Label(drop_false_negatives=0.0))
        measured.outscored += int((~below).sum())
        judged = np.repeat(candidates.has_positive, np.diff(candidates.offsets))
        measured.negatives += int((judged & ~candidates.positive).sum())
    return measured


def _label_batch(
    candidates: Candidates, values: np.ndarray, limits: Label, counts: dict[str, Any]
) -> tuple[pa.RecordBatch, np.ndarray]:
    """Build one label shard; returns its rows and the flat label values. Adds to `counts`."""
    keep = ~np.isnan(values)
    counts["pairs_unscored"] += int((~keep).sum())
    within_limits = keep_negatives(values, candidates.positive, candidates.offsets, limits)
    counts["false_negatives_dropped"] += int((keep & ~within_limits).sum())
    keep &= within_limits
    queries = np.repeat(np.arange(len(candidates)), np.diff(candidates.offsets))
    sizes = np.bincount(queries[keep], minlength=len(candidates))
    positives = np.bincount(queries[keep & candidates.positive], minlength=len(candidates))
    unjudged = ~candidates.has_positive & (sizes > 1)
    useful = ((positives > 0) & (positives < sizes)) | unjudged
    if unjudged.any():
        counts["queries_without_positives"] = counts.get("queries_without_positives", 0) + int(unjudged.sum())
    counts["queries_dropped"] += int((~useful).sum())
    counts["queries"] += int(useful.sum())
    keep &= useful[queries]
    counts["pairs"] += int(keep.sum())
    offsets = np.concatenate([[0], np.cumsum(sizes[useful])]).astype(np.int64)
    labels = values[keep].astype(np.float32)
    flat = zip((candidates.passages[keep], candidates.positive[keep], labels), list(LABEL_SCHEMA)[1:], strict=True)
    columns = [
        pa.array(candidates.query[useful], pa.int64()),
        *(csr_column(offsets, column, schema_field.type) for column, schema_field in flat),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=LABEL_SCHEMA), labels


def _ensemble(recipe: Recipe, candidates: Candidates, raw: np.ndarray, split: str) -> np.ndarray:
    normalised = np.stack([normalise(scores, candidates.offsets, recipe.label.normalise) for scores in raw])
    return ensemble(normalised, np.array([recipe.teachers[name].known_weight for name in teachers_of(recipe, split)]))


def _per_list(reduce: np.ufunc, values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Reduce each list of a CSR array; NaN for an empty list, for which `reduceat` would give its neighbour's value."""
    result = np.full(len(offsets) - 1, np.nan)
    filled = np.flatnonzero(np.diff(offsets) > 0)
    if filled.size:
        result[filled] = reduce.reduceat(values, offsets[:-1][filled])
    return result


def _mean_std(scores: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population standard deviation of each list, without missing scores."""
    scored = ~np.isnan(scores)
    count = _per_list(np.add, scored.astype(np.float64), offsets)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = _per_list(np.add, np.where(scored, scores, 0.0), offsets) / count
        distance = np.where(scored, scores - np.repeat(mean, np.diff(offsets)), 0.0)
        return mean, np.sqrt(_per_list(np.add, distance**2, offsets) / count)


def _constant_lists(scores: np.ndarray, offsets: np.ndarray) -> int:
    """Count the lists of two or more scores that are all equal."""
    low, high = (_per_list(reduce, scores, offsets) for reduce in (np.fmin, np.fmax))
    return int(((np.diff(offsets) > 1) & (low == high)).sum())
