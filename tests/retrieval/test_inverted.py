"""Search of posting lists, in C++ and without a compiler, against the sorted dense product in NumPy."""

import numpy as np
import pytest
from scipy import sparse

from distill import native
from distill.retrieval import inverted
from distill.retrieval.exact import search_blocks, search_sparse
from distill.retrieval.inverted import InvertedIndex
from distill.retrieval.postings import Postings
from distill.store.arrow import RowReader, write_ipc
from distill.store.candidates import only_batch

FLAGS = "-ffp-contract=off"


@pytest.fixture(params=["native", "x86-64-v3", "x86-64", "scipy"])
def engine(request, monkeypatch):
    """The search compiled for this processor, for AVX2 and for SSE, and SciPy.

    Patches a private function: users cannot choose, it follows from their processor and compiler.
    """
    library = (
        None
        if request.param == "scipy"
        else inverted.declared(native.load(inverted.SOURCE, f"-march={request.param}", FLAGS))
    )
    monkeypatch.setattr(inverted, "_library", lambda: library)
    return request.param


def reference(queries, passages, k):
    """The best k positive scores of float32 sums in the order of the query's terms: rows by score, ties by row."""
    dense, scores = passages.toarray(), np.zeros((queries.shape[0], passages.shape[0]), np.float32)
    for i in range(queries.shape[0]):
        span = slice(*queries.indptr[i : i + 2])
        for term, weight in zip(queries.indices[span], queries.data[span], strict=True):
            scores[i] += weight * dense[:, term]
    order = np.stack([np.lexsort((np.arange(scores.shape[1]), -row))[:k] for row in scores])
    best = np.take_along_axis(scores, order, axis=1)
    return np.where(best > 0, order, -1), np.maximum(best, 0)


def whole(shape, density, seed):
    """Small whole numbers: many ties, and sums that are exact in any order."""
    rng = np.random.default_rng(seed)
    return sparse.random(*shape, density, "csr", np.float32, rng, data_rvs=lambda n: rng.integers(1, 4, n))


def index_of(passages, width, run):
    return InvertedIndex([Postings.of(passages[i : i + run], width) for i in range(0, passages.shape[0], run)])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("k", [1, 7, 500])
@pytest.mark.parametrize("width,run", [(1, 50), (13, 200), (64, 77), (8192, 200)])
def test_rankings_and_scores_equal_the_sorted_product(engine, width, run, k, threads):
    queries = sparse.vstack([whole((30, 50), 0.1, 0), sparse.csr_matrix((1, 50), dtype=np.float32)], format="csr")
    passages = whole((200, 50), 0.1, 1)
    expected = reference(queries, passages, min(k, 200))
    rows, scores = index_of(passages, width, run).search(queries, k, threads)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("k", [1, 7, 40])
def test_ties_go_to_the_lower_row_also_where_few_passages_have_a_term(engine, k):
    queries, passages = whole((40, 300), 0.02, 15), whole((2000, 300), 0.003, 16)  # two passages in a hundred
    expected = reference(queries, passages, k)
    assert k == 1 or (np.diff(expected[1], axis=1) == 0).mean() > 0.3  # ties
    rows, scores = index_of(passages, 500, 1500).search(queries, k)
    np.testing.assert_array_equal(rows, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_scores_have_the_bits_of_float32_sums_in_the_order_of_the_terms(engine, k):
    rng = np.random.default_rng(2)
    queries = sparse.random(12, 300, 0.1, "csr", np.float32, rng)
    half = sparse.random(900, 300, 0.05, "csr", np.float32, rng)
    passages = sparse.vstack([half, half], format="csr")  # every score twice: a sum in another order would break ties
    expected = reference(queries, passages, k)
    for index in (index_of(passages, 64, 1000), index_of(passages, 8192, 1800)):
        rows, scores = index.search(queries, k)
        np.testing.assert_array_equal(rows, expected[0])
        np.testing.assert_array_equal(scores, expected[1])


@pytest.mark.parametrize("k", [1, 10, 100])
def test_lists_that_cannot_matter_are_left_out_without_a_difference(engine, k):
    """Words of every frequency with weights like BM25's: common words weigh little, so most postings are left out."""
    rng = np.random.default_rng(3)
    frequency = np.geomspace(1, 3000, 60).astype(int)
    rows = np.concatenate([rng.choice(6000, n, replace=False) for n in frequency])
    terms = np.repeat(np.arange(60), frequency)
    weights = (np.log(6000 / frequency)[terms] * rng.uniform(0.3, 1, len(rows))).astype(np.float32)
    passages = sparse.csr_matrix((weights, (rows, terms)), shape=(6000, 60))
    passages = sparse.vstack([passages[:2000], passages[:2000], passages[2000:]], format="csr")
    queries = whole((40, 60), 0.2, 4)
    expected = reference(queries, passages, k)
    found = index_of(passages, 256, 8000).search(queries, k)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])


def test_only_scores_above_the_least_are_found(engine):
    queries, passages = whole((20, 50), 0.2, 5), whole((300, 50), 0.2, 6)
    rows, scores = reference(queries, passages, 300)
    least = scores[:, 30].copy()
    above = scores > least[:, None]
    found = InvertedIndex.of(passages).search(queries, 300, least=least)
    np.testing.assert_array_equal(found[0], np.where(above, rows, -1))
    np.testing.assert_array_equal(found[1], np.where(above, scores, 0))


def test_pairs_are_scored_as_the_search_scores_them(engine):
    rng = np.random.default_rng(7)
    queries = sparse.random(9, 80, 0.3, "csr", np.float32, rng)
    passages = sparse.random(400, 80, 0.1, "csr", np.float32, rng)
    index = index_of(passages, 32, 150)
    query_of, rows = rng.integers(0, 9, 500), rng.integers(0, 400, 500)
    every_row, every_score = reference(queries, passages, 400)
    table = np.zeros((9, 401), np.float32)
    np.put_along_axis(table, every_row, every_score, axis=1)  # -1 is the last column, which nothing asks for
    np.testing.assert_array_equal(index.score(queries, query_of, rows), table[query_of, rows])
    assert index.score(queries, np.empty(0, int), np.empty(0, int)).shape == (0,)
    with pytest.raises(IndexError, match=r"rows 0..400 of an index of 400 passages"):
        index.score(queries, np.zeros(2, int), np.array([0, 400]))


def test_negative_weights_are_summed_like_others(engine):
    rng = np.random.default_rng(8)
    queries, passages = whole((10, 30), 0.3, 9), whole((200, 30), 0.3, 10)
    for matrix in (queries, passages):
        signed = matrix.copy()
        signed.data *= rng.choice([-1, 1], len(signed.data))
        other = {id(queries): passages, id(passages): queries}[id(matrix)]
        pair = (signed, other) if matrix is queries else (other, signed)
        expected = reference(*pair, 20)
        found = index_of(pair[1], 16, 70).search(pair[0], 20)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_search_over_blocks_that_come_one_by_one_equals_the_search_of_all(engine):
    queries, passages = whole((12, 40), 0.2, 11), whole((120, 40), 0.1, 12)
    for k in (1, 10, 300):
        rows, scores = search_sparse(queries, passages, k)
        for size in (1, 13, 1000):
            found = search_blocks(queries, (passages[i : i + size] for i in range(0, 120, size)), k)
            np.testing.assert_array_equal(found[0], rows)
            np.testing.assert_array_equal(found[1], scores)


def test_postings_of_a_file_are_mapped_and_equal_those_in_memory(tmp_path):
    passages, queries = whole((500, 70), 0.1, 13), whole((5, 70), 0.2, 14)
    built = Postings.of(passages, 64)
    write_ipc(tmp_path / "postings.arrow", built.batch().schema, [built.batch()])
    opened = Postings.of_batch(only_batch(RowReader(tmp_path / "postings.arrow")))
    assert not opened.weight.flags.owndata and not opened.place.flags.owndata
    for one, other in zip(
        InvertedIndex([built]).search(queries, 9), InvertedIndex([opened]).search(queries, 9), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(opened.frequencies, np.diff(passages.tocsc().indptr))
    restored = sparse.vstack([block.tocsr() for block in opened.blocks()])
    assert (restored != passages).nnz == 0


def test_empty_collections_and_queries_give_empty_rankings(engine):
    single = sparse.csr_matrix(np.ones((1, 5), np.float32))
    assert InvertedIndex.of(single).search(sparse.csr_matrix((0, 5), dtype=np.float32), 3)[0].shape == (0, 1)
    assert InvertedIndex.of(sparse.csr_matrix((0, 5), dtype=np.float32)).search(single, 3)[0].shape == (1, 0)
    nothing = sparse.csr_matrix((4, 5), dtype=np.float32)
    assert InvertedIndex.of(nothing).search(single, 3)[0].tolist() == [[-1, -1, -1]]
    assert InvertedIndex([]).search(single, 3)[0].shape == (1, 0)
