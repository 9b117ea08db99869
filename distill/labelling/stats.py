"""What the teachers' scores look like before they become labels: for `distill label --stats`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.stats import kendalltau

from distill.config import Label, Recipe
from distill.data.labels import Moments, keep_negatives, score_matrices
from distill.data.layout import RunFolder

_SAMPLED_QUERIES = 2000  # for quantiles and rank correlations
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class TeacherStats:
    """Raw scores of one teacher over the training candidates."""

    scores: int
    missing: int
    mean: float
    std: float
    quantiles: dict[str, float]  # "0.05" -> score, over the sampled queries
    negatives_above_positive: float  # share of negatives above their query's best positive


@dataclass(frozen=True)
class LabelStats:
    teachers: dict[str, TeacherStats]
    kendall_tau: dict[tuple[str, str], float]  # mean over sampled queries; 1: the same order, 0: unrelated
    sampled_queries: int


def label_stats(recipe: Recipe, folder: RunFolder) -> LabelStats:
    """Each teacher's distribution, their agreement on the order of a query's candidates, and suspicious negatives."""
    names = list(recipe.teachers)
    moments = {name: Moments() for name in names}
    missing, above, negatives = (dict.fromkeys(names, 0) for _ in range(3))
    sampled: list[np.ndarray] = []  # one [teachers, candidates] per query
    for _, candidates, raw in score_matrices(recipe, folder, "train"):
        for name, scores in zip(names, raw, strict=True):
            moments[name].add(scores)
            missing[name] += int(np.isnan(scores).sum())
            true = keep_negatives(scores, candidates.positive, candidates.offsets, Label(drop_false_negatives=0.0))
            above[name] += int((~true).sum())
            negatives[name] += int((~candidates.positive & ~np.isnan(scores)).sum())
        # the head of each shard: shards are cut from queries in no particular order
        for i in range(min(len(candidates), _SAMPLED_QUERIES - len(sampled))):
            sampled.append(raw[:, candidates.offsets[i] : candidates.offsets[i + 1]])
    flat = np.concatenate(sampled, axis=1) if sampled else np.empty((len(names), 0))
    teachers = {
        name: TeacherStats(
            moments[name].count,
            missing[name],
            moments[name].mean,
            moments[name].std,
            _quantiles(scores[~np.isnan(scores)]),
            above[name] / max(1, negatives[name]),
        )
        for name, scores in zip(names, flat, strict=True)
    }
    taus = {(names[a], names[b]): _mean_tau(sampled, a, b) for a, b in itertools.combinations(range(len(names)), 2)}
    return LabelStats(teachers, taus, len(sampled))


def _quantiles(scores: np.ndarray) -> dict[str, float]:
    if not scores.size:
        return {}
    return {str(q): float(value) for q, value in zip(_QUANTILES, np.quantile(scores, _QUANTILES), strict=True)}


def _mean_tau(sampled: list[np.ndarray], a: int, b: int) -> float:
    """NaN where no query has two candidates that both teachers scored, and tell apart."""
    taus = []
    for scores in sampled:
        both = ~np.isnan(scores[[a, b]]).any(axis=0)
        if both.sum() > 1 and np.ptp(scores[a, both]) > 0 and np.ptp(scores[b, both]) > 0:
            taus.append(float(kendalltau(scores[a, both], scores[b, both]).statistic))
    return float(np.mean(taus)) if taus else float("nan")
