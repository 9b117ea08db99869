"""Sparse representations are cut, joined, selected and capped like dense ones, and gradient flows through."""

import pytest
import torch
from torch.nn import functional as F

from distill.sparse.reps import SparseReps


def reps_of(dense):
    indptr = F.pad((dense > 0).sum(1).cumsum(0), (1, 0))
    return SparseReps(indptr, dense.nonzero()[:, 1], dense[dense > 0], torch.arange(int(indptr[-1])), dense.shape[1])


def test_representations_are_cut_joined_and_capped_like_dense_ones():
    torch.manual_seed(0)
    dense = torch.rand(5, 11).sub(0.4).relu()
    dense[3] = 0
    reps = reps_of(dense)
    assert len(reps) == 5 and torch.equal(reps.nnz, (dense > 0).sum(1))
    assert torch.equal(reps.rows(1, 4).to_dense(), dense[1:4])
    joined = SparseReps.cat([reps.rows(0, 2), reps.rows(2, 5)])
    assert torch.equal(joined.to_dense(), dense) and torch.equal(joined.argmax, reps.argmax)
    capped = reps.top_k(3)
    expected = torch.zeros_like(dense).scatter(1, dense.topk(3).indices, dense.topk(3).values)
    assert torch.equal(capped.to_dense(), expected) and capped.nnz.max() <= 3


def test_gradient_flows_through_cutting_joining_and_capping():
    torch.manual_seed(0)
    dense = torch.rand(4, 9).sub(0.3).relu().requires_grad_()
    reps = reps_of(dense)
    SparseReps.cat([reps.rows(2, 4), reps.rows(0, 2)]).top_k(2).values.sum().backward()
    assert torch.equal(dense.grad != 0, torch.zeros(4, 9).scatter(1, dense.topk(2).indices, 1.0) * dense > 0)
    assert not reps.detach().values.requires_grad


def test_selecting_texts_and_entries_equals_dense_indexing():
    torch.manual_seed(0)
    dense = torch.rand(5, 11).sub(0.4).relu()
    dense[3] = 0
    reps = reps_of(dense)
    texts = torch.tensor([4, 3, 0, 4])
    assert torch.equal(reps.take(texts).to_dense(), dense[texts])
    assert torch.equal(reps.keep(reps.terms < 6).to_dense(), dense * (torch.arange(11) < 6))


def test_concatenation_refuses_no_parts_and_different_vocabularies():
    for parts in ([], [reps_of(torch.ones(1, 3)), reps_of(torch.ones(1, 4))]):
        with pytest.raises(ValueError, match="at least one part, and the same vocabulary"):
            SparseReps.cat(parts)
