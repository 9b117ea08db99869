"""Rerank the candidates by each teacher's scores and by the ensemble's.

Scores are read from the score shards; nothing is scored here. The ensemble is the one that labels are made from.
"""

from __future__ import annotations

import numpy as np

from distill.labelling.labels import ensemble_scores
from distill.run.manifest import read_manifest
from distill.run.run import Run
from distill.store.candidates import Candidates, iterate_candidates
from distill.store.scores import read_scores

Ranking = dict[int, np.ndarray]  # query row -> passage rows, best first
ENSEMBLE = "ensemble"


def scored_teachers(run: Run, split: str) -> list[str]:
    """Names of the teachers that have scored all of this split's candidates."""
    return [name for name in run.recipe.teachers if read_manifest(run.folder.scores(name, split)) is not None]


def rerank(run: Run, split: str) -> dict[str, Ranking]:
    """Rank the candidates by each teacher that has scored them and, if all of several teachers have, the ensemble.

    A missing score (NaN) ranks last; ties keep the miner's order.
    """
    teachers = scored_teachers(run, split)
    rankings: dict[str, Ranking] = {name: {} for name in teachers}
    for name in teachers:
        candidates = iterate_candidates(run.folder.candidates(split))
        for (_, shard), (_, scores) in zip(candidates, read_scores(run.folder, name, split), strict=True):
            rankings[name].update(_ranked(shard, scores.values))
    if len(teachers) == len(run.recipe.teachers) > 1:
        rankings[ENSEMBLE] = {}
        for _, shard, values in ensemble_scores(run, split):
            rankings[ENSEMBLE].update(_ranked(shard, values))
    return rankings


def _ranked(candidates: Candidates, scores: np.ndarray) -> Ranking:
    ranking = {}
    for i, query in enumerate(candidates.query.tolist()):
        span = slice(candidates.offsets[i], candidates.offsets[i + 1])
        # positives come first in a shard, so ties are broken by the miner's rank, not by position
        order = np.lexsort((candidates.rank[span], -np.nan_to_num(scores[span], nan=-np.inf)))
        ranking[query] = candidates.passages[span][order]
    return ranking
