"""Statistics of the teachers' raw scores, for `distill label --stats`."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import kendalltau

from distill.config import Label
from distill.labelling.labels import Moments, keep_negatives, score_matrices
from distill.run.run import Run

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
    # share of negatives above their query's best positive, among queries with a positive
    negatives_above_positive: float


@dataclass(frozen=True)
class LabelStats:
    teachers: dict[str, TeacherStats]
    kendall_tau: dict[tuple[str, str], float]  # mean over sampled queries; 1: the same order, 0: unrelated
    sampled_queries: int


def label_stats(run: Run) -> LabelStats:
    """Measure each teacher's distribution of scores, the agreement of teachers, and negatives above the positive."""
    names = list(run.recipe.teachers)
    moments = {name: Moments() for name in names}
    missing, above, negatives = (dict.fromkeys(names, 0) for _ in range(3))
    sampled: list[np.ndarray] = []  # one [teachers, candidates] per query
    for _, candidates, raw in score_matrices(run, "train"):
        judged = np.repeat(candidates.has_positive, np.diff(candidates.offsets))
        for name, scores in zip(names, raw, strict=True):
            moments[name].add(scores)
            missing[name] += int(np.isnan(scores).sum())
            below = keep_negatives(scores, candidates.positive, candidates.offsets, Label(drop_false_negatives=0.0))
            above[name] += int((~below).sum())
            negatives[name] += int((judged & ~candidates.positive & ~np.isnan(scores)).sum())
        # queries are in no particular order, so the first ones are a sample
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
    """Kendall's tau of two teachers, averaged over queries; NaN if there is no query that both can rank."""
    taus = []
    for scores in sampled:
        both = ~np.isnan(scores[[a, b]]).any(axis=0)
        if both.sum() > 1 and np.ptp(scores[a, both]) > 0 and np.ptp(scores[b, both]) > 0:
            taus.append(float(kendalltau(scores[a, both], scores[b, both]).statistic))
    return float(np.mean(taus)) if taus else float("nan")


def print_label_stats(stats: LabelStats, console: Console | None = None) -> None:
    """Print each teacher's score statistics, and Kendall's tau of each pair of teachers."""
    console = console or Console()
    table = Table(
        title=f"raw scores; quantiles of {stats.sampled_queries:,} queries",
        title_justify="left",
        title_style="bold",
        header_style="bold",
    )
    columns = ("teacher", "scores", "missing", "mean", "std", "5 %", "median", "95 %", "negatives above positive")
    for i, header in enumerate(columns):
        table.add_column(header, justify="left" if i == 0 else "right")
    for name, teacher in stats.teachers.items():
        quantiles = [
            "–" if (value := teacher.quantiles.get(q)) is None else f"{value:.3f}" for q in ("0.05", "0.5", "0.95")
        ]
        table.add_row(
            name,
            f"{teacher.scores:,}",
            f"{teacher.missing:,}",
            f"{teacher.mean:.3f}",
            f"{teacher.std:.3f}",
            *quantiles,
            f"{teacher.negatives_above_positive:.1%}",
        )
    console.print(table)
    for (first, second), tau in stats.kendall_tau.items():
        console.print(f"Kendall's tau, {first} and {second}: {tau:.3f}", highlight=False)
