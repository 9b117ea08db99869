"""Several top-k sizes at once: the mean of sentence-transformers' losses on what it caps itself."""

from __future__ import annotations

import pytest
import torch
from sentence_transformers.sparse_encoder import losses as st
from sentence_transformers.util import select_max_active_dims
from test_losses import LISTS, B, V, assert_same, columns, sparse
from torch.nn import functional as F

from distill import config
from distill.losses.objective import Place, objective


def caps(dense, k):
    return dense * (select_max_active_dims(dense.detach(), k) > 0)  # terms that are not there have no gradient


@pytest.mark.parametrize("top_ks", [[(3, 1.0)], [(2, 1.0), (5, 3.0)], [(1, 0.5), (4, 0.25), (None, 1.0)]], ids=str)
def test_the_loss_is_the_weighted_mean_over_the_caps(top_ks):
    torch.manual_seed(0)
    queries = torch.rand(B, V).mul(torch.rand(B, V) < 0.2)
    passages = torch.rand(B * LISTS, V).mul(torch.rand(B * LISTS, V) < 0.4)
    passages[3] = 0
    queries, passages, labels = queries.requires_grad_(), passages.requires_grad_(), torch.randn(B, LISTS) * 3
    train = config.Train.model_validate(
        {
            "losses": [{"kind": "margin-mse", "weight": 0.5}, {"kind": "infonce"}],
            "passage_regularizers": [{"kind": "l1", "weight": 0.1}],
            "top_ks": [{"k": k, "weight": weight} for k, weight in top_ks],
        }
    )
    ours = objective(train, sparse(queries), sparse(passages), labels, Place(0, B), step=1).total

    theirs = 0.1 * passages.relu().sum(1).mean()  # of all terms
    for k, weight in top_ks:
        q, p = caps(queries, k), caps(passages, k)
        margin_mse = st.SparseMarginMSELoss(None).compute_loss_from_embeddings(
            columns(q, p), labels[:, :1] - labels[:, 1:]
        )
        infonce = F.cross_entropy(q @ p.T, torch.arange(B) * LISTS)
        theirs = theirs + (0.5 * margin_mse + infonce) * weight / sum(w for _, w in top_ks)
    assert_same(ours, theirs, queries, passages)


def test_a_cap_given_twice_is_refused():
    with pytest.raises(ValueError, match="a cap twice"):
        config.Train.model_validate({"top_ks": [{"k": 3}, {"k": 3}]})
