"""Effectiveness by ir-measures, cost by FLOPS and active dimensions, and paired tests between two systems.

FLOPS is the expected number of products per query-passage pair, Σ_v p_q(v) p_d(v), with p the share of queries
(passages) in which term v is active (Paria et al., ICLR 2020; Formal et al., SIGIR 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import ir_measures
import numpy as np
from scipy import sparse, stats

from distill.errors import RecipeError

Id = TypeVar("Id", int, str)  # of a query or passage: its row in a store, or its string id
_PERMUTED_VALUES = 1 << 22  # held in memory at once


def parse_measures(names: Iterable[str], where: str = "evaluate.metrics") -> list[ir_measures.Measure]:
    """Parse names such as `nDCG@10` into ir-measures objects; `MRR@10` means `RR@10`. Raises `RecipeError`."""
    measures = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name.removeprefix("M") if name.startswith("MRR") else name)
            supported = any(p.supports(measure) and p.is_available() for p in ir_measures.DefaultPipeline.providers)
        except (NameError, ValueError, SyntaxError, KeyError, AttributeError, AssertionError):
            supported = False
        if not supported:
            raise RecipeError(
                f"{where}: {name!r} is not a measure that ir-measures can compute; "
                "valid names are nDCG@10, RR@10, R@100, AP, P@5, Success@10 and the like"
            )
        measures.append(measure)
    return measures


def per_query(
    names: Sequence[str], judgements: Mapping[Id, Mapping[Id, int]], ranking: Mapping[Id, Sequence[Id]]
) -> dict[str, np.ndarray]:
    """Compute each measure per judged query, in the order of `judgements`; a query without a ranking gets 0.

    `judgements`: query -> passage -> grade (the gain of nDCG). `ranking`: query -> passages, best first.
    Returns one float64 [queries] per name.
    """
    measures = parse_measures(names)
    qrels = [
        ir_measures.Qrel(str(query), str(passage), int(grade))
        for query, graded in judgements.items()
        for passage, grade in graded.items()
    ]
    # Scores are derived from ranks: trec_eval would break ties of real scores by passage id, not by retrieval order.
    run = [
        ir_measures.ScoredDoc(str(query), str(passage), float(-rank))
        for query, passages in ranking.items()
        if query in judgements
        for rank, passage in enumerate(passages)
    ]
    column = {str(query): i for i, query in enumerate(judgements)}
    values = {measure: np.zeros(len(column)) for measure in measures}
    for metric in ir_measures.iter_calc(list(values), qrels, run):
        values[metric.measure][column[metric.query_id]] = metric.value
    return {name: values[measure] for name, measure in zip(names, measures, strict=True)}


def check_depth(names: Sequence[str], depth: int) -> None:
    """Raise `RecipeError` for a measure whose cutoff is beyond a ranking of `depth` passages."""
    for name, measure in zip(names, parse_measures(names), strict=True):
        cutoff = measure.params.get("cutoff")
        if cutoff is not None and cutoff < 1:
            raise RecipeError(f"evaluate.metrics: {name} looks at no passage; the number after @ is at least 1")
        if cutoff is not None and cutoff > depth:
            raise RecipeError(
                f"evaluate.metrics: {name} looks at {cutoff} passages, but rankings have an "
                f"evaluate.depth of {depth}; raise evaluate.depth"
            )


def depth_needed(names: Sequence[str], depth: int) -> int:
    """Ranking depth that these measures need: the largest cutoff, or `depth` if one has no cutoff."""
    cutoffs = []
    for measure in parse_measures(names):
        try:
            cutoffs.append(int(measure["cutoff"]))
        except (KeyError, TypeError, ValueError):
            return depth
    return min(depth, max(cutoffs))


def activation_rates(vectors: sparse.csr_matrix) -> np.ndarray:
    """Share of rows in which each term is active: float64 [vocabulary]."""
    active = vectors.indices[vectors.data != 0]
    return np.bincount(active, minlength=vectors.shape[1]) / max(vectors.shape[0], 1)


def costs(query_rates: np.ndarray, passage_rates: np.ndarray) -> dict[str, float]:
    """Mean active terms of each side and FLOPS, from each side's `activation_rates`; keys as in evaluation.json."""
    return {
        "query_terms": float(query_rates.sum()),
        "passage_terms": float(passage_rates.sum()),
        "flops": float(query_rates @ passage_rates),
    }


def paired_test(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float | int]:
    """Two-sided paired t-test on per-query values.

    Returns `difference` (mean of ours - theirs), `p`, `wins`, `losses` and `queries`. Identical values, or fewer than
    two queries, give p = 1.
    """
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if len(difference) < 2 or not difference.any():
        p = 1.0
    elif np.ptp(difference) == 0:
        p = 0.0  # the same non-zero difference for every query: t is infinite
    else:
        p = float(stats.ttest_rel(ours, theirs).pvalue)
    return {
        "difference": float(difference.mean()) if len(difference) else 0.0,
        "p": p,
        "wins": int((difference > 0).sum()),
        "losses": int((difference < 0).sum()),
        "queries": len(difference),
    }


def randomisation_test(ours: np.ndarray, theirs: np.ndarray, resamples: int = 9999) -> float:
    """Two-sided p of the paired randomisation test: each query's two values are swapped at random (Fisher).

    Exact if there are at most `resamples` ways to swap; otherwise that many are drawn with a fixed seed.
    """
    if len(ours) < 2 or np.array_equal(ours, theirs):
        return 1.0
    result = stats.permutation_test(
        (ours, theirs),
        lambda x, y, axis: np.mean(x, axis=axis) - np.mean(y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _PERMUTED_VALUES // len(ours)),
        random_state=np.random.default_rng(0),
    )
    return float(result.pvalue)
