"""Exact dense search against NumPy's dense product and full sort, for several block sizes."""

import contextlib

import numpy as np
import pytest
import torch
from scipy import sparse

from distill.retrieval import exact
from distill.retrieval.exact import search_dense, search_sparse
from tests.helpers.simulated_cuda import simulated_cuda


def reference(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows by score, ties by row."""
    return np.stack([np.lexsort((np.arange(scores.shape[1]), -row))[:k] for row in scores])


@pytest.fixture(params=["cpu", "simulated", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Where products are computed; with slabs and steps that are smaller than most blocks."""
    monkeypatch.setattr(exact, "_STEP", 5)
    monkeypatch.setattr(exact, "_SLAB", 40)
    with simulated_cuda() if request.param == "simulated" else contextlib.nullcontext():
        yield "cpu" if request.param == "cpu" else "cuda"


@pytest.mark.parametrize("block", [1, 13, 1000])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_dense_search_equals_the_sorted_product(block, k, device):
    rng = np.random.default_rng(1)
    queries = rng.integers(-2, 3, (9, 4)).astype(np.float32)
    passages = rng.integers(-2, 3, (100, 4)).astype(np.float32)
    expected = reference(queries @ passages.T, k)
    rows, scores = search_dense(queries, [passages[i : i + block] for i in range(0, 100, block)], k, device)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ passages.T, expected, axis=1))


def test_dense_search_reads_blocks_that_the_device_keeps(device):
    """Whole numbers: equal scores everywhere, positive and negative ones, more of them than a ranking holds."""
    rng = np.random.default_rng(2)
    queries, passages = (rng.integers(-1, 2, (n, 3)).astype(np.float32) for n in (7, 200))
    expected = reference(queries @ passages.T, 60)
    blocks = [torch.tensor(block).to(device) for block in np.split(passages, [70, 150])]
    rows, scores = search_dense(queries, blocks, 60, device)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ passages.T, expected, axis=1))


def test_empty_queries_and_collections_give_empty_rankings():
    empty = sparse.csr_matrix((0, 5), dtype=np.float32)
    single = sparse.csr_matrix(np.ones((1, 5), np.float32))
    assert search_sparse(empty, single, 3)[0].shape == (0, 1)
    assert search_sparse(single, empty, 3)[0].shape == (1, 0)
    assert search_dense(np.ones((2, 3), np.float32), [np.ones((0, 3), np.float32)], 4)[0].shape == (2, 0)
    assert search_dense(np.ones((2, 3), np.float32), [], 4)[0].shape == (2, 0)
