"""Losses on the teacher's ranking equal their written-out formulas."""

import math

import pytest
import torch

from distill.losses.ranking import adr_mse, ranknet

STUDENT = torch.tensor([[2.0, 1.0, 3.0], [0.5, 0.5, -1.0]], dtype=torch.float64)
TEACHER = torch.tensor([[5.0, 1.0, 3.0], [1.0, 1.0, 0.0]], dtype=torch.float64)  # the second list has a tie
PREFERRED = [[(0, 2), (0, 1), (2, 1)], [(0, 2), (1, 2)]]  # (better, worse)


def softplus(x):
    return math.log1p(math.exp(x))


def mean_over_lists(weight):
    lists = []
    for row, pairs in enumerate(PREFERRED):
        student = STUDENT[row].tolist()
        weights = [weight(row, i, j) for i, j in pairs]
        values = [w * softplus(student[j] - student[i]) for w, (i, j) in zip(weights, pairs, strict=True)]
        lists.append(sum(values) / sum(weights))
    return sum(lists) / len(lists)


def test_ranknet_is_the_mean_over_the_pairs_that_the_teacher_orders():
    assert ranknet(STUDENT, TEACHER).item() == pytest.approx(mean_over_lists(lambda *_: 1.0))


def test_ranknet_weights_pairs_by_the_teachers_ranks():
    ranks = [[1, 3, 2], [1, 2, 3]]
    expected = mean_over_lists(lambda row, i, j: 1 / (ranks[row][i] + ranks[row][j]))
    assert ranknet(STUDENT, TEACHER, "rank").item() == pytest.approx(expected)


def test_lambdarank_weights_pairs_by_the_change_in_ndcg():
    gains = [[1.0, 0.0, 0.5], [1.0, 1.0, 0.0]]
    places = [[2, 3, 1], [1, 2, 3]]  # of the student's ranking

    def change(row, i, j):
        at = [1 / math.log2(1 + place) for place in places[row]]
        ideal = sum(gain / math.log2(2 + k) for k, gain in enumerate(sorted(gains[row], reverse=True)))
        return abs(gains[row][i] - gains[row][j]) * abs(at[i] - at[j]) / ideal

    assert ranknet(STUDENT, TEACHER, "ndcg").item() == pytest.approx(mean_over_lists(change))


def test_ranknet_of_equal_labels_is_zero_with_a_finite_gradient():
    student = torch.zeros(2, 3, requires_grad=True)
    for weights in ("equal", "rank", "ndcg"):
        loss = ranknet(student, torch.ones(2, 3), weights)
        assert loss.item() == 0 and torch.isfinite(torch.autograd.grad(loss, student)[0]).all()


def test_adr_mse_is_the_discounted_error_of_approximate_ranks():
    total = 0.0
    for student, ranks in zip(STUDENT.tolist(), [[1, 3, 2], [1, 2, 3]], strict=True):
        for i, rank in enumerate(ranks):
            near = 1 + sum(1 / (1 + math.exp(-(student[j] - student[i]) / 0.5)) for j in range(3) if j != i)
            total += (near - rank) ** 2 / math.log2(1 + rank)
    assert adr_mse(STUDENT, TEACHER, temperature=0.5).item() == pytest.approx(total / 6)


def test_ranking_losses_vanish_for_the_teachers_order_with_wide_margins():
    wide = TEACHER[:1] * 50
    assert ranknet(wide, TEACHER[:1]).item() < 1e-6 and adr_mse(wide, TEACHER[:1]).item() < 1e-6
