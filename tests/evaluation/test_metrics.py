"""Measures worked out by hand, costs against dense formulas, the paired test against SciPy's."""

import math

import numpy as np
import pytest
from scipy import sparse, stats

from distill.errors import RecipeError
from distill.evaluation.metrics import (
    activation_rates,
    check_depth,
    costs,
    depth_needed,
    paired_test,
    parse_measures,
    per_query,
)

NAMES = ["nDCG@10", "RR@10", "R@100"]


def test_per_query_values_worked_out_by_hand():
    judgements = {4: {10: 2, 11: 1}, 7: {10: 1}, 9: {12: 1}}
    ranking = {4: [11, 13, 10], 7: [*range(100, 110), 10]}  # no ranking for query 9
    values = per_query(NAMES, judgements, ranking)
    ideal = 2 + 1 / math.log2(3)
    assert values["nDCG@10"] == pytest.approx([(1 + 2 / math.log2(4)) / ideal, 0, 0])
    assert values["RR@10"] == pytest.approx([1, 0, 0])  # query 7's passage is at rank 11
    assert values["R@100"] == pytest.approx([1, 1, 0])


def test_the_order_of_the_ranking_counts_not_the_passage_number():
    judgements = {0: {5: 1}}
    assert per_query(["RR@10"], judgements, {0: [9, 5, 1]})["RR@10"] == pytest.approx([0.5])


def test_mrr_and_rr_name_the_same_measure():
    assert per_query(["MRR@10", "RR@10"], {0: {1: 1}}, {0: [2, 1]}) == {"MRR@10": [0.5], "RR@10": [0.5]}


@pytest.mark.parametrize("name", ["nDCG10", "recall@100", "RR@", "nDCG(gains=2)@10", ""])
def test_an_unknown_measure_is_named(name):
    with pytest.raises(RecipeError, match="is not a measure"):
        parse_measures([name])


def test_depth_needed_is_the_largest_cutoff():
    assert depth_needed(NAMES, 1000) == 100
    assert depth_needed(["nDCG@10", "AP"], 1000) == 1000


def test_a_cutoff_beyond_the_ranking_is_refused():
    check_depth(["nDCG@10", "AP", "MRR@10"], 10)
    with pytest.raises(RecipeError, match=r"R@1000 looks at 1000 passages, but .*evaluate\.depth of 100"):
        check_depth(["nDCG@10", "R@1000"], 100)


def test_costs_equal_the_dense_formulas():
    rng = np.random.default_rng(0)
    queries, passages = sparse.random(20, 40, 0.2, "csr", rng=rng), sparse.random(30, 40, 0.4, "csr", rng=rng)
    pairs = (queries.toarray() != 0).astype(float) @ (passages.toarray() != 0).astype(float).T
    assert costs(activation_rates(queries), activation_rates(passages)) == pytest.approx(
        {
            "query_terms": (queries.toarray() != 0).sum(axis=1).mean(),
            "passage_terms": (passages.toarray() != 0).sum(axis=1).mean(),
            "flops": pairs.mean(),
        }
    )
    assert not activation_rates(queries[:0]).any()


def test_paired_test_matches_scipy():
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(50), rng.random(50)
    result = paired_test(ours, theirs)
    assert result["p"] == pytest.approx(stats.ttest_rel(ours, theirs).pvalue)
    assert result["difference"] == pytest.approx(ours.mean() - theirs.mean())
    assert result["wins"] + result["losses"] == 50
    assert paired_test(ours, ours)["p"] == 1 and paired_test(ours[:1], theirs[:1])["p"] == 1
    assert paired_test(np.ones(3), np.zeros(3))["p"] == 0
