"""Losses on cosines, angles and distances equal sentence-transformers' on the pairs and triplets of all lists."""

import pytest
import torch
from sentence_transformers.sparse_encoder import losses as st
from sentence_transformers.sparse_encoder.losses.sparse_triplet import TripletDistanceMetric
from torch.nn import functional as F

from distill.errors import RecipeError
from distill.losses import similarity
from distill.student.head import SparseReps

B, LISTS, V = 5, 4, 50


class Model:
    """What sentence-transformers' losses want of a model before they see embeddings."""

    similarity_fn_name = "dot"


def sparse(dense):
    active = dense > 0
    return SparseReps(F.pad(active.sum(1).cumsum(0), (1, 0)), active.nonzero()[:, 1], dense[active], None, V)


@pytest.fixture
def batch():
    """Dense queries [B, V] and passages [B * LISTS, V], non-negative, and labels [B, LISTS] with some equal."""
    torch.manual_seed(0)
    queries = torch.rand(B, V).mul(torch.rand(B, V) < 0.2)
    passages = torch.rand(B * LISTS, V).mul(torch.rand(B * LISTS, V) < 0.4)
    labels = torch.rand(B, LISTS).mul(4).round().div(4)
    return queries.requires_grad_(), passages.requires_grad_(), labels


def assert_same(ours, theirs, queries, passages):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for x, mine, reference in zip(
        (queries, passages),
        torch.autograd.grad(ours, (queries, passages)),
        torch.autograd.grad(theirs, (queries, passages)),
        strict=True,
    ):
        torch.testing.assert_close(mine, reference * (x > 0), rtol=1e-4, atol=1e-6)


def pairs(queries, passages):
    return [queries.repeat_interleave(LISTS, 0), passages]


def test_cosine_similarity_loss(batch):
    queries, passages, labels = batch
    theirs = st.SparseCosineSimilarityLoss(Model()).compute_loss_from_embeddings(
        pairs(queries, passages), labels.view(-1)
    )
    assert_same(similarity.cosine_mse(sparse(queries), sparse(passages), labels), theirs, queries, passages)


def test_cosent_loss_compares_all_pairs_of_the_batch(batch):
    queries, passages, labels = batch
    theirs = st.SparseCoSENTLoss(Model(), scale=7.0).compute_loss_from_embeddings(
        pairs(queries, passages), labels.view(-1)
    )
    ours = similarity.cosent(similarity.cosines(sparse(queries), sparse(passages)), labels, scale=7.0)
    assert_same(ours, theirs, queries, passages)


def test_angle_loss(batch):
    queries, passages, labels = batch
    theirs = st.SparseAnglELoss(Model(), scale=7.0).compute_loss_from_embeddings(
        pairs(queries, passages), labels.view(-1)
    )
    ours = similarity.cosent(similarity.angles(sparse(queries), sparse(passages)), labels, scale=7.0)
    assert_same(ours, theirs, queries, passages)


@pytest.mark.parametrize(
    ("distance", "metric", "margin"),
    [("euclidean", TripletDistanceMetric.EUCLIDEAN, 1.0), ("cosine", TripletDistanceMetric.COSINE, 0.2)],
)
def test_triplet_loss_is_over_the_positive_with_each_negative(batch, distance, metric, margin):
    queries, passages, _ = batch
    lists = passages.view(B, LISTS, V)
    negatives = lists[:, 1:].reshape(-1, V)
    triplets = [side.repeat_interleave(LISTS - 1, 0) for side in (queries, lists[:, 0])] + [negatives]
    theirs = st.SparseTripletLoss(Model(), distance_metric=metric, triplet_margin=margin).compute_loss_from_embeddings(
        triplets, None
    )
    assert_same(similarity.triplet(sparse(queries), sparse(passages), distance, margin), theirs, queries, passages)


def test_empty_texts_have_finite_gradients(batch):
    queries, passages, labels = batch
    for loss in (
        lambda *reps: similarity.cosine_mse(*reps, labels),
        similarity.triplet,
        lambda *reps: similarity.cosent(similarity.cosines(*reps), labels),
    ):
        value = loss(sparse(queries.detach() * 0), sparse(passages))
        assert torch.isfinite(torch.autograd.grad(value, passages)[0]).all()


def test_an_odd_vocabulary_has_no_halves():
    with pytest.raises(RecipeError, match="angle halves the vocabulary, and 3 terms have no halves"):
        reps = SparseReps(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), None, 3)
        similarity.angles(reps, reps)
