"""Seismic against exact search: recall, scores and the shape of the result."""

import numpy as np
from scipy import sparse

from distill.config import Seismic
from distill.retrieval.exact import search_sparse
from distill.retrieval.seismic import build_seismic, search_seismic, seismic_bytes


def zipfian(rng: np.random.Generator, texts: int, terms: int, vocabulary: int) -> sparse.csr_matrix:
    """Random texts of `terms` distinct terms with the frequencies of words."""
    share = 1 / np.arange(1, vocabulary + 1)
    rows = [np.sort(rng.choice(vocabulary, terms, replace=False, p=share / share.sum())) for _ in range(texts)]
    weights = rng.gamma(2.0, 0.5, texts * terms).astype(np.float32)
    return sparse.csr_matrix(
        (weights, np.concatenate(rows), np.arange(0, texts * terms + 1, terms)), shape=(texts, vocabulary)
    )


def recall(rows: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows, exact, strict=True)]))


def test_recall_is_at_least_95_percent_and_scores_are_nearly_exact():
    rng = np.random.default_rng(0)
    queries, passages = zipfian(rng, 60, 12, 3000), zipfian(rng, 2000, 40, 3000)
    exact, _ = search_sparse(queries, passages, 10)
    cfg = Seismic(query_cut=12, heap_factor=0.9)
    index = build_seismic(passages, cfg)
    rows, scores = search_seismic(index, queries, 10, cfg)
    assert recall(rows, exact) >= 0.95
    dense = (queries @ passages.T).toarray()
    np.testing.assert_allclose(scores, np.take_along_axis(dense, rows, axis=1), rtol=5e-3)
    again, _ = search_seismic(build_seismic(passages, cfg, threads=1), queries, 10, cfg, threads=1)
    np.testing.assert_array_equal(rows, again)
    hasty = search_seismic(index, queries, 10, Seismic(query_cut=1))[0]
    assert recall(hasty, exact) < recall(rows, exact)


def test_vocabularies_above_sixteen_bits_can_be_searched():
    passages = sparse.csr_matrix(([1.0, 2.0, 1.0], ([0, 1, 1], [69_999, 4463, 69_999])), (2, 70_000), dtype=np.float32)
    rows, scores = search_seismic(build_seismic(passages, Seismic()), passages, 2, Seismic())
    assert rows.tolist() == [[0, 1], [1, 0]] and scores.tolist() == [[1, 1], [5, 1]]


def test_texts_without_terms_and_queries_without_hits_get_empty_rows(tmp_path):
    passages = sparse.csr_matrix(np.array([[0, 1, 0, 0], [0, 0, 0, 0], [2, 1, 0, 0]], np.float32))
    queries = sparse.csr_matrix(np.array([[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]], np.float32))
    index = build_seismic(passages, Seismic())
    rows, scores = search_seismic(index, queries, 5, Seismic())
    assert rows.tolist() == [[-1, -1], [-1, -1], [2, 0]] and scores[2].tolist() == [3, 1]
    assert seismic_bytes(index, tmp_path) > 0 and list(tmp_path.iterdir()) == []
    empty = build_seismic(passages[:0], Seismic())
    assert search_seismic(empty, queries, 5, Seismic())[0].shape == (3, 0)
