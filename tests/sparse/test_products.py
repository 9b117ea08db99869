"""Scores of sparse representations equal dense dot products, and so do their gradients at active terms."""

import pytest
import torch

from distill.sparse import products
from distill.sparse.products import all_scores, list_scores
from tests.losses.reference import LISTS, B, V, assert_same, dense_batch, sparse


@pytest.fixture(params=[64, 2], ids=["one-block", "blocks"])
def batch(request, monkeypatch):
    """Dense queries [B, V] and passages [B * LISTS, V], some empty."""
    monkeypatch.setattr(products, "QUERY_BLOCK", request.param)
    return dense_batch()


def test_list_scores_are_dot_products_of_each_query_with_its_passages(batch):
    queries, passages = batch
    expected = (queries[:, None] * passages.view(B, LISTS, V)).sum(-1)
    torch.testing.assert_close(list_scores(sparse(queries), sparse(passages)), expected)


def test_all_scores_are_dot_products_of_each_query_with_every_passage(batch):
    queries, passages = batch
    torch.testing.assert_close(all_scores(sparse(queries), sparse(passages)), queries @ passages.T)


def test_gradients_of_sparse_scores_are_the_dense_ones_at_active_terms(batch):
    queries, passages = batch
    weight = torch.randn(B, B * LISTS)
    per_list = (queries[:, None] * passages.view(B, LISTS, V)).sum(-1)
    for ours, theirs in [
        (all_scores(sparse(queries), sparse(passages)), queries @ passages.T),
        (list_scores(sparse(queries), sparse(passages)).repeat(1, B), per_list.repeat(1, B)),
    ]:
        assert_same((ours * weight).sum(), (theirs * weight).sum(), queries, passages, active_terms_only=True)
