"""Losses on cosines, angles and distances equal sentence-transformers' on the pairs and triplets of all lists."""

import pytest
import torch
from sentence_transformers.sparse_encoder import losses as st
from sentence_transformers.sparse_encoder.losses.sparse_triplet import TripletDistanceMetric

from distill.errors import RecipeError
from distill.losses import similarity
from tests.losses.reference import LISTS, B, V, dense_batch, sparse
from tests.losses.reference import assert_same as assert_equal


class Model:
    """The one attribute of a model that sentence-transformers' losses read."""

    similarity_fn_name = "dot"


@pytest.fixture
def batch():
    """Dense queries [B, V] and passages [B * LISTS, V], non-negative, and labels [B, LISTS] with some equal."""
    queries, passages = dense_batch()
    return queries, passages, torch.rand(B, LISTS).mul(4).round().div(4)


def assert_same(ours, theirs, queries, passages):
    assert_equal(ours, theirs, queries, passages, active_terms_only=True)


def pairs(queries, passages):
    return [queries.repeat_interleave(LISTS, 0), passages]


def test_cosine_mse_equals_sentence_transformers_over_all_pairs(batch):
    queries, passages, labels = batch
    theirs = st.SparseCosineSimilarityLoss(Model()).compute_loss_from_embeddings(
        pairs(queries, passages), labels.view(-1)
    )
    assert_same(similarity.cosine_mse(sparse(queries), sparse(passages), labels), theirs, queries, passages)


def test_cosent_equals_sentence_transformers_over_all_pairs_of_the_batch(batch):
    queries, passages, labels = batch
    theirs = st.SparseCoSENTLoss(Model(), scale=7.0).compute_loss_from_embeddings(
        pairs(queries, passages), labels.view(-1)
    )
    ours = similarity.cosent(similarity.cosines(sparse(queries), sparse(passages)), labels, scale=7.0)
    assert_same(ours, theirs, queries, passages)


def test_angle_equals_sentence_transformers_over_all_pairs_of_the_batch(batch):
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
def test_triplet_equals_sentence_transformers_over_the_positive_with_each_negative(batch, distance, metric, margin):
    queries, passages, _ = batch
    lists = passages.view(B, LISTS, V)
    negatives = lists[:, 1:].reshape(-1, V)
    triplets = [side.repeat_interleave(LISTS - 1, 0) for side in (queries, lists[:, 0])] + [negatives]
    theirs = st.SparseTripletLoss(Model(), distance_metric=metric, triplet_margin=margin).compute_loss_from_embeddings(
        triplets, None
    )
    assert_same(similarity.triplet(sparse(queries), sparse(passages), distance, margin), theirs, queries, passages)


def test_similarity_losses_have_finite_gradients_for_empty_texts(batch):
    queries, passages, labels = batch
    for loss in (
        lambda *reps: similarity.cosine_mse(*reps, labels),
        similarity.triplet,
        lambda *reps: similarity.cosent(similarity.cosines(*reps), labels),
    ):
        value = loss(sparse(queries.detach() * 0), sparse(passages))
        assert torch.isfinite(torch.autograd.grad(value, passages)[0]).all()


def test_angle_refuses_an_odd_vocabulary_size():
    reps = sparse(torch.tensor([[1.0, 0.0, 0.0]]))
    with pytest.raises(RecipeError, match="angle needs an even vocabulary size, but the student has 3 terms"):
        similarity.angles(reps, reps)
