"""What the teachers make of the candidates: each one's own order, and the ensemble's.

Scores come from the score shards; nothing is scored here. The ensemble is the one that labels are made of.
"""

from __future__ import annotations

import numpy as np

from distill.config import Recipe
from distill.data.candidates import Candidates, iterate_candidates
from distill.data.labels import ensemble_scores
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.data.scores import read_scores

Ranking = dict[int, np.ndarray]  # query row -> passage rows, best first
ENSEMBLE = "ensemble"


def scored_teachers(recipe: Recipe, folder: RunFolder, split: str) -> list[str]:
    """The recipe's teachers whose scores of this split's candidates are finished."""
    return [name for name in recipe.teachers if read_manifest(folder.scores(name, split)) is not None]


def rerank(recipe: Recipe, folder: RunFolder, split: str) -> dict[str, Ranking]:
    """The candidates in the order of each scored teacher and, where two teachers or more are all there, the ensemble.

    A missing score (NaN) ranks last; ties keep the order of the miner.
    """
    teachers = scored_teachers(recipe, folder, split)
    rankings: dict[str, Ranking] = {name: {} for name in teachers}
    for name in teachers:
        candidates = iterate_candidates(folder.candidates(split))
        for (_, shard), (_, scores) in zip(candidates, read_scores(folder, name, split), strict=True):
            rankings[name].update(_ranked(shard, scores.values))
    if len(teachers) == len(recipe.teachers) > 1:
        rankings[ENSEMBLE] = {}
        for _, shard, values in ensemble_scores(recipe, folder, split):
            rankings[ENSEMBLE].update(_ranked(shard, values))
    return rankings


def _ranked(candidates: Candidates, scores: np.ndarray) -> Ranking:
    ranking = {}
    for i, query in enumerate(candidates.query.tolist()):
        at = slice(candidates.offsets[i], candidates.offsets[i + 1])
        # positives stand first in a shard, so that the place in the list must not decide ties: the rank does
        order = np.lexsort((candidates.rank[at], -np.nan_to_num(scores[at], nan=-np.inf)))
        ranking[query] = candidates.passages[at][order]
    return ranking
