"""Losses equal sentence-transformers' on the same scores; regularisers equal their dense formulas."""

import itertools
import math

import pytest
import torch
from sentence_transformers.sparse_encoder import losses as st
from torch.nn import functional as F

from distill import config
from distill.losses import listwise, regularizers
from distill.losses.objective import GlobalSlice, Supervision, objective
from tests.losses.reference import LISTS, B, V, assert_same, columns, dense_batch, sparse


@pytest.fixture
def batch():
    """Dense queries [B, V] and passages [B * LISTS, V], non-negative, some empty, and teacher scores [B, LISTS]."""
    queries, passages = dense_batch()
    return queries, passages, torch.randn(B, LISTS) * 3


def gradients(value, *inputs):
    return torch.autograd.grad(value, inputs)


@pytest.mark.parametrize(("student_temperature", "teacher_temperature"), [(1.0, 1.0), (2.0, 0.5)])
def test_kl_equals_sentence_transformers(batch, student_temperature, teacher_temperature):
    queries, passages, labels = batch
    theirs = st.SparseDistillKLDivLoss(
        None, student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    scores = (queries[:, None] * passages.view(B, LISTS, V)).sum(-1)
    assert_same(
        listwise.kl(scores, labels, student_temperature, teacher_temperature),
        theirs.compute_loss_from_embeddings(columns(queries, passages), labels),
        queries,
        passages,
    )


def test_margin_mse_equals_sentence_transformers(batch):
    queries, passages, labels = batch
    scores = (queries[:, None] * passages.view(B, LISTS, V)).sum(-1)
    assert_same(
        listwise.margin_mse(scores, labels),
        st.SparseMarginMSELoss(None).compute_loss_from_embeddings(columns(queries, passages), labels),
        queries,
        passages,
    )


def test_margin_mse_over_all_pairs_takes_each_pair_once():
    student, teacher = torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 2.0]])
    by_hand = ((2 - 1) ** 2 + (3 + 1) ** 2 + (1 + 2) ** 2) / 3  # margins 01, 02, 12
    assert listwise.margin_mse(student, teacher, "all").item() == pytest.approx(by_hand)


def test_infonce_with_in_batch_negatives_equals_sentence_transformers(batch):
    queries, passages, _ = batch
    theirs = st.SparseMultipleNegativesRankingLoss(None, scale=4.0)
    ours = listwise.infonce(queries @ passages.T, torch.arange(B) * LISTS, temperature=0.25)
    assert_same(ours, theirs.compute_loss_from_embeddings(columns(queries, passages), None), queries, passages)


def test_infonce_leaves_known_positives_out_of_its_in_batch_negatives(batch):
    queries, passages, labels = batch
    train = config.Train.model_validate({"losses": [{"kind": "infonce"}]})
    masked = torch.tensor([[0, 0, 3], [5, 7, 0]])
    got = objective(train, sparse(queries), sparse(passages), Supervision(labels, GlobalSlice(0, B), masked), 1).total
    scores = queries @ passages.T
    rows = []
    for query in range(B):
        candidates = [passage for passage in range(B * LISTS) if (query, passage) not in {(0, 5), (0, 7), (3, 0)}]
        rows.append(scores[query, candidates].logsumexp(0) - scores[query, query * LISTS])
    expected = torch.stack(rows).mean()
    assert_same(got, expected, queries, passages, active_terms_only=True)


@pytest.mark.parametrize("threshold", [None, 20])
def test_flops_equals_sentence_transformers(batch, threshold):
    _, passages, _ = batch
    reps = sparse(passages)
    ours = regularizers.flops(reps if threshold is None else regularizers.above_threshold(reps, threshold), len(reps))
    theirs = st.FlopsLoss(None, threshold=threshold).compute_loss_from_embeddings(passages)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradients(ours, passages)[0], gradients(theirs, passages)[0] * (passages > 0))


@pytest.mark.parametrize("group_size", [1, 4, 7, 100])
def test_flops_in_groups_is_the_mean_over_groups_of_texts(batch, group_size):
    _, passages, _ = batch
    groups = passages.split(group_size)
    by_hand = sum(group.mean(0).square().sum() * len(group) for group in groups) / len(passages)
    torch.testing.assert_close(regularizers.flops(sparse(passages), len(passages), 0, group_size), by_hand)


def test_df_flops_weights_terms_by_their_document_frequency(batch):
    _, passages, _ = batch
    frequencies = (passages > 0).float().mean(0)
    weights = [0.0 if x == 0 else 1 / (1 + (x ** (math.log(2) / math.log(0.3)) - 1) ** 4) for x in frequencies.tolist()]
    expected = (torch.tensor(weights) * passages.mean(0).square()).sum()
    got = regularizers.df_flops(sparse(passages), len(passages), alpha=0.3, beta=4.0)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, passages)[0], gradients(expected, passages)[0] * (passages > 0))
    for texts, share in ((torch.eye(20, V), 0.03), (torch.ones(20, V), 1.0)):  # rare terms cost little
        plain, weighted = texts.mean(0).square().sum(), regularizers.df_flops(sparse(texts), 20)
        assert weighted <= share * plain and (share < 1 or weighted == plain)


def test_l1_and_anti_zero_follow_the_published_formulas(batch):
    queries, _, _ = batch
    torch.testing.assert_close(regularizers.l1(sparse(queries), B), queries.abs().sum(-1).mean())
    torch.testing.assert_close(regularizers.anti_zero(sparse(queries)), 1 / queries.sum() ** 2)


def test_ramps_reach_the_full_weight_and_stay():
    steps = (1, 5, 10, 20)
    assert [regularizers.ramp("quadratic", step, 10) for step in steps] == pytest.approx([0.01, 0.25, 1, 1])
    assert [regularizers.ramp("linear", step, 10) for step in steps] == [0.1, 0.5, 1, 1]
    assert [regularizers.ramp("constant", step, 10) for step in steps] == [1, 1, 1, 1]
    assert regularizers.ramp("quadratic", 1, 0) == 1


def test_the_objective_is_the_weighted_sum_of_its_parts(batch):
    queries, passages, labels = batch
    train = config.Train.model_validate(
        {
            "losses": [
                {"kind": "kl", "weight": 0.99},
                {"kind": "margin-mse", "weight": 0.05, "pairs": "all"},
                {"kind": "infonce", "weight": 0.1},
                {"kind": "infonce", "weight": 0.2, "in_batch": False},
            ],
            "query_regularizers": [{"kind": "l1", "weight": 0.3, "ramp": "linear", "ramp_steps": 10}],
            "passage_regularizers": [{"kind": "flops", "weight": 0.5, "ramp": "quadratic", "ramp_steps": 4}],
        }
    )
    got = objective(train, sparse(queries), sparse(passages), Supervision(labels, GlobalSlice(0, B)), step=2)
    scores = (queries[:, None] * passages.view(B, LISTS, V)).sum(-1)
    errors = scores - labels
    margin_errors = [errors[:, i] - errors[:, j] for i, j in itertools.combinations(range(LISTS), 2)]
    expected = {
        "kl": 0.99 * F.kl_div(scores.log_softmax(1), labels.softmax(1), reduction="batchmean"),
        "margin-mse": 0.05 * torch.stack(margin_errors).square().mean(),
        "infonce": 0.1 * F.cross_entropy(queries @ passages.T, torch.arange(B) * LISTS)
        + 0.2 * F.cross_entropy(scores, torch.zeros(B, dtype=torch.long)),
        "query-l1": 0.3 * 0.2 * queries.sum(-1).mean(),
        "passage-flops": 0.5 * 0.25 * passages.mean(0).square().sum(),
    }
    assert got.parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got.parts[name], value.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.total, sum(expected.values()))
