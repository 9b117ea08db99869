"""Teachers are judged before they teach: `teachers.*.weight: auto` is fitted on judged development queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import ir_measures
import numpy as np
from ir_measures import nDCG

from distill.config import AUTO, Recipe
from distill.labelling.labels import ensemble, normalise, score_matrices, teachers_of
from distill.run.manifest import read_manifest, require_manifest
from distill.run.resolved import AutoField, Choice
from distill.run.run import Run
from distill.store.judgements import load_judgements

MEASURE = nDCG @ 10
FEWEST = 30  # development queries; on fewer, a difference says little
STEPS = (0.0, 0.25, 0.5, 1.0, 2.0)  # weights that are tried, relative to the other teachers'
GAIN = 0.002  # by which a weight must raise the measure to be taken: below it, the simpler ensemble is kept


def auto_weights(recipe: Recipe) -> tuple[AutoField, ...]:
    """The weights that the recipe leaves to the program; they are fitted once, together."""
    fitting = _Fitting()
    return tuple(
        AutoField(
            f"teachers.{name}.weight",
            partial(_choose_weight, fitting, name),
            ("teachers", "mine", "label"),
            assumed=lambda run: 1.0,
        )
        for name in _free_teachers(recipe)
    )


def needs_development_scores(run: Run) -> bool:
    """Whether teachers must score the development queries, for weights that are still to be fitted."""
    return bool(_free_teachers(run.recipe)) and _why_alike(run) is None


def _choose_weight(fitting: _Fitting, name: str, run: Run) -> Choice | None:
    """Choose a teacher's weight, with the others that are `auto`; None before the development queries are scored.

    Weights are fitted on judged queries alone. Queries that were made from passages share their words, so they favour
    teachers that count words; where no others exist, all teachers get the same weight.
    """
    if read_manifest(run.folder.data) is None:
        return None
    if (reason := _why_alike(run)) is not None:
        return Choice(1.0, f"{reason}: teachers count alike")
    names = teachers_of(run.recipe, "dev")
    if name not in names:
        return Choice(1.0, "it does not score development queries")
    if any(read_manifest(run.folder.scores(teacher, "dev")) is None for teacher in names):
        return None
    weights, alone, together = fitting.of(run)
    measured = ", ".join(f"{teacher} {value:.3f}" for teacher, value in alone.items())
    left_out = "" if weights[name] else "; with it, the ensemble is not better"
    basis = f"{MEASURE} on the judged development queries"
    return Choice(weights[name], f"{basis}: {measured}, together {together:.3f}{left_out}")


def _free_teachers(recipe: Recipe) -> list[str]:
    return [name for name, teacher in recipe.teachers.items() if teacher.weight == AUTO]


def _why_alike(run: Run) -> str | None:
    """Why no weights are fitted on an imported run's development queries; None if they are."""
    counts = require_manifest(run.folder.data, "import").counts
    queries, generated = (int(counts.get(f"queries.dev{part}", 0)) for part in ("", ".generated"))
    if generated:
        favour = "which favour teachers that count words"
        return f"{generated} of {queries} development queries are generated ones, {favour}"
    if queries < FEWEST:
        return f"{queries} development queries are too few to fit weights on"
    return None


@dataclass
class _Fitting:
    """The fit that the fields of one recipe share."""

    result: tuple[dict[str, float], dict[str, float], float] | None = None

    def of(self, run: Run) -> tuple[dict[str, float], dict[str, float], float]:
        if self.result is None:
            self.result = fit_weights(run)
        return self.result


def fit_weights(run: Run) -> tuple[dict[str, float], dict[str, float], float]:
    """Fit the weights that are `auto`, one teacher at a time, until none of `STEPS` raises the measure by `GAIN`.

    Returns the weights of all teachers that score development queries, each one's measure alone, and the ensemble's.
    """
    recipe, names = run.recipe, teachers_of(run.recipe, "dev")
    lists = _Lists.of(run, names)
    alone = {name: lists.measure({name: 1.0}) for name in names}
    free = [name for name in names if recipe.teachers[name].weight == AUTO]
    weights = {name: 0.0 if name in free else float(recipe.teachers[name].weight) for name in names}
    if not any(weights.values()):
        weights[max(free, key=lambda name: alone[name])] = 1.0
    best = lists.measure(weights)
    for _ in range(len(names) * len(STEPS)):
        tried = {
            (name, step): lists.measure({**weights, name: step})
            for name in free
            for step in STEPS
            if step != weights[name] and any({**weights, name: step}.values())
        }
        if not tried or max(tried.values()) < best + GAIN:
            break
        name, step = max(tried, key=lambda choice: tried[choice])
        weights[name], best = step, tried[name, step]
    return weights, alone, best


class _Lists:
    """The development queries' candidates with the teachers' normalised scores."""

    def __init__(self, judged: dict[str, dict[str, int]], shards: list[tuple]):
        self._judged, self._shards = judged, shards

    @classmethod
    def of(cls, run: Run, names: list[str]) -> _Lists:
        judgements = load_judgements(run.folder, "dev")
        judged = {
            str(query): {str(passage): int(grade) for passage, grade in zip(*judgements.of(query), strict=True)}
            for query in judgements.queries
        }
        shards = []
        for _, candidates, raw in score_matrices(run, "dev"):
            scores = [normalise(row, candidates.offsets, run.recipe.label.normalise) for row in raw]
            shards.append((candidates, dict(zip(names, scores, strict=True))))
        return cls(judged, shards)

    def measure(self, weights: Mapping[str, float]) -> float:
        """Mean of the measure over the judged queries, for the candidates ranked by the weighted mean of scores."""
        ranked: dict[str, dict[str, float]] = {}
        for candidates, scores in self._shards:
            matrix = np.stack([scores[name] for name in weights])
            values = np.nan_to_num(ensemble(matrix, np.array(list(weights.values()))), nan=-np.inf)
            for i, query in enumerate(candidates.query):
                entries = slice(int(candidates.offsets[i]), int(candidates.offsets[i + 1]))
                passages = map(str, candidates.passages[entries])
                ranked[str(query)] = dict(zip(passages, values[entries].tolist(), strict=True))
        return float(ir_measures.calc_aggregate([MEASURE], self._judged, ranked)[MEASURE])
