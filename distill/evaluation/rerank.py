"""What the teachers make of the candidates: each one's own order, and the ensemble's.

Scores come from the score shards; nothing is scored here. The ensemble is the one that labels are made of: per-query
normalised scores, weighted mean (`distill.data.labels`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from distill.config import Recipe
from distill.data.candidates import iterate_candidates
from distill.data.labels import ensemble, normalise
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.data.scores import read_scores

Ranking = dict[int, np.ndarray]  # query row -> passage rows, best first
ENSEMBLE = "ensemble"


def scored_teachers(recipe: Recipe, folder: RunFolder, split: str) -> list[str]:
    """The recipe's teachers whose scores of this split's candidates are finished."""
    return [name for name in recipe.teachers if read_manifest(folder.scores(name, split)) is not None]


def rerank(recipe: Recipe, folder: RunFolder, split: str) -> dict[str, Ranking]:
    """The candidates in each scored teacher's order and, with two teachers or more, in the ensemble's.

    A missing score (NaN) ranks last; ties keep the order of the miner.
    """
    teachers = scored_teachers(recipe, folder, split)
    weights = np.array([recipe.teachers[name].weight for name in teachers])
    names = [*teachers, ENSEMBLE] if len(teachers) > 1 else teachers
    rankings: dict[str, Ranking] = {name: {} for name in names}
    shards = {name: dict(read_scores(folder, name, split)) for name in teachers}
    for shard, candidates in iterate_candidates(folder.candidates(split)) if teachers else ():
        raw = {name: shards[name][shard].values for name in teachers}
        scores = raw if len(teachers) < 2 else {**raw, ENSEMBLE: ensemble(
            np.stack([normalise(raw[name], candidates.offsets, recipe.label.normalise) for name in teachers]), weights)}
        for name in names:
            for i, query in enumerate(candidates.query.tolist()):
                at = slice(candidates.offsets[i], candidates.offsets[i + 1])
                rankings[name][query] = candidates.passages[at][_order(scores[name][at], candidates.rank[at])]
    return rankings


def _order(scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    return np.lexsort((ranks, -np.nan_to_num(scores, nan=-np.inf)))


def top(rankings: Mapping[int, np.ndarray]) -> int:
    """The longest of the rankings: how deep the candidates go."""
    return max(map(len, rankings.values()), default=0)
