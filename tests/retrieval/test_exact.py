"""Exact dense search against NumPy's dense product and full sort, for several block sizes."""

import numpy as np
import pytest
from scipy import sparse

from distill.retrieval.exact import search_dense, search_sparse


def reference(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows by score, ties by row."""
    return np.stack([np.lexsort((np.arange(scores.shape[1]), -row))[:k] for row in scores])


@pytest.mark.parametrize("block", [1, 13, 1000])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_dense_search_equals_the_sorted_product(block, k):
    rng = np.random.default_rng(1)
    queries = rng.integers(-2, 3, (9, 4)).astype(np.float32)
    passages = rng.integers(-2, 3, (100, 4)).astype(np.float32)
    expected = reference(queries @ passages.T, k)
    rows, scores = search_dense(queries, [passages[i : i + block] for i in range(0, 100, block)], k)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ passages.T, expected, axis=1))


def test_empty_queries_and_collections_give_empty_rankings():
    empty = sparse.csr_matrix((0, 5), dtype=np.float32)
    single = sparse.csr_matrix(np.ones((1, 5), np.float32))
    assert search_sparse(empty, single, 3)[0].shape == (0, 1)
    assert search_sparse(single, empty, 3)[0].shape == (1, 0)
    assert search_dense(np.ones((2, 3), np.float32), [np.ones((0, 3), np.float32)], 4)[0].shape == (2, 0)
    assert search_dense(np.ones((2, 3), np.float32), [], 4)[0].shape == (2, 0)
