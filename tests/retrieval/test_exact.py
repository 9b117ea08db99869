"""Exact search against NumPy's dense product and full sort, for several block sizes."""

import numpy as np
import pytest
from scipy import sparse

from distill.retrieval.exact import search_blocks, search_dense, search_inverted, search_sparse


def reference(scores: np.ndarray, k: int) -> np.ndarray:
    """Rows by score, ties by row."""
    return np.stack([np.lexsort((np.arange(scores.shape[1]), -row))[:k] for row in scores])


@pytest.mark.parametrize("k", [1, 7, 400])
@pytest.mark.parametrize("block_bytes", [1, 5_000, 1 << 27])
def test_sparse_search_equals_the_sorted_dense_product(k, block_bytes):
    rng = np.random.default_rng(0)
    # small whole numbers: many ties, and products that are exact in float32
    queries = sparse.random(30, 50, 0.1, "csr", np.float32, rng, data_rvs=lambda n: rng.integers(1, 4, n))
    passages = sparse.random(200, 50, 0.1, "csr", np.float32, rng, data_rvs=lambda n: rng.integers(1, 4, n))
    queries = sparse.vstack([queries, sparse.csr_matrix((1, 50), dtype=np.float32)], format="csr")  # and an empty one
    products = queries.toarray() @ passages.toarray().T
    expected = reference(products, k)
    rows, scores = search_inverted(queries, passages.T.tocsr(), k, block_bytes=block_bytes)
    assert rows.shape == (31, min(k, 200))
    best = np.take_along_axis(products, expected, axis=1)
    np.testing.assert_array_equal(scores, best)
    np.testing.assert_array_equal(rows, np.where(best > 0, expected, -1))
    np.testing.assert_array_equal(search_sparse(queries, passages, k)[0], rows)


@pytest.mark.parametrize("block", [1, 13, 1000])
@pytest.mark.parametrize("k", [1, 10, 300])
def test_search_over_blocks_of_posting_lists_equals_a_single_block(k, block):
    rng = np.random.default_rng(2)
    queries = sparse.random(12, 40, 0.2, "csr", np.float32, rng)
    half = sparse.random(60, 40, 0.1, "csr", np.float32, rng)
    passages = sparse.vstack([half, half], format="csr")  # every score twice
    rows, scores = search_sparse(queries, passages, k)
    blocks = [passages[i : i + block].T.tocsr() for i in range(0, 120, block)]
    block_rows, block_scores = search_blocks(queries, blocks, k)
    np.testing.assert_array_equal(block_rows, rows)
    np.testing.assert_array_equal(block_scores, scores)  # to the bit


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
