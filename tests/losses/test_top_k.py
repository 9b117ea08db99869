"""Several top-k sizes at once: the mean of sentence-transformers' losses on representations that it capped."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sparse_encoder import losses as st
from sentence_transformers.util import select_max_active_dims
from torch.nn import functional as F

from distill import config
from distill.losses.objective import GlobalSlice, Supervision, objective
from tests.losses.reference import LISTS, B, assert_same, columns, dense_batch, sparse


def caps(dense, k):
    return dense * (select_max_active_dims(dense.detach(), k) > 0)  # inactive terms have no gradient


@pytest.mark.parametrize("top_ks", [[(3, 1.0)], [(2, 1.0), (5, 3.0)], [(1, 0.5), (4, 0.25), (None, 1.0)]], ids=str)
def test_losses_with_top_k_caps_are_the_weighted_mean_over_the_caps(top_ks):
    queries, passages = dense_batch()
    labels = torch.randn(B, LISTS) * 3
    train = config.Train.model_validate(
        {
            "losses": [{"kind": "margin-mse", "weight": 0.5}, {"kind": "infonce"}],
            "passage_regularizers": [{"kind": "l1", "weight": 0.1}],
            "top_ks": [{"k": k, "weight": weight} for k, weight in top_ks],
        }
    )
    ours = objective(train, sparse(queries), sparse(passages), Supervision(labels, GlobalSlice(0, B)), step=1).total

    theirs = 0.1 * passages.relu().sum(1).mean()  # of all terms
    for k, weight in top_ks:
        q, p = caps(queries, k), caps(passages, k)
        margin_mse = st.SparseMarginMSELoss(None).compute_loss_from_embeddings(
            columns(q, p), labels[:, :1] - labels[:, 1:]
        )
        infonce = F.cross_entropy(q @ p.T, torch.arange(B) * LISTS)
        theirs = theirs + (0.5 * margin_mse + infonce) * weight / sum(w for _, w in top_ks)
    assert_same(ours, theirs, queries, passages)


def test_duplicate_top_k_caps_are_refused():
    with pytest.raises(ValueError, match="a cap twice"):
        config.Train.model_validate({"top_ks": [{"k": 3}, {"k": 3}]})
