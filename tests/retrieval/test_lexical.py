"""BM25's vectors over a student's vocabulary, against BM25's own scores."""

import numpy as np
import pytest
from transformers import BertTokenizer

from distill.retrieval.bm25 import build_index
from distill.retrieval.lexical import LexicalVectors
from tests.helpers.small_run import PASSAGES, VARIANTS, write_passages

QUERIES = ["cats and dogs", "the market fell", "company rain wind wind"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer_of(*words):
    pieces = [*SPECIAL, *words, *"abcdefghijklmnopqrstuvwxyz", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_passages(tmp_path_factory.mktemp("store") / "passages.arrow", PASSAGES, VARIANTS)


def test_dot_products_are_bm25_scores_if_the_vocabulary_has_the_words(store):
    index = build_index(store)
    words = {word for passage in PASSAGES for word in passage.split()}
    vectors = LexicalVectors.of(index, tokenizer_of(*sorted(words)), PASSAGES)
    every = np.arange(len(store))  # training variants, too
    queries = index.query_vectors(QUERIES).multiply(np.sqrt(index.idf)) @ vectors.terms
    expected = np.stack(index.score_pairs(QUERIES, [every] * len(QUERIES)))
    np.testing.assert_allclose((queries @ vectors.passages(every).T).toarray(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(vectors.texts(PASSAGES).toarray(), vectors.passages(every[: len(PASSAGES)]).toarray())


def test_forms_of_one_word_share_the_first_of_their_terms(store):
    tokenizer = tokenizer_of("mats", "cat", "cats", "mat")
    vectors = LexicalVectors.of(build_index(store), tokenizer, PASSAGES)
    mats, cat, cats, mat = tokenizer.convert_tokens_to_ids(["mats", "cat", "cats", "mat"])
    assert list(vectors.stand_ins[[mats, mat, cat, cats]]) == [mats, mats, cat, cat]
    assert set(vectors.texts(["mat cats"]).indices) == {mats, cat}


def test_a_word_that_the_vocabulary_lacks_goes_to_its_pieces_with_the_same_norm(store):
    tokenizer = tokenizer_of("cat", "stor", "##m")
    vectors = LexicalVectors.of(build_index(store), tokenizer, PASSAGES)
    storm = vectors.texts(["storm"])
    assert set(storm.indices) == set(tokenizer("storm", add_special_tokens=False)["input_ids"])
    index = vectors.index
    weight = float(index.text_vectors(["storm"]).data[0]) / np.sqrt(index.idf[index.terms["storm"]])
    assert np.sqrt(storm.multiply(storm).sum()) == pytest.approx(weight, rel=1e-6)


def test_special_tokens_stand_for_nothing(store):
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate([*SPECIAL, "cat"])})
    vectors = LexicalVectors.of(build_index(store), tokenizer, PASSAGES)
    assert set(vectors.texts(PASSAGES).indices) == {tokenizer.convert_tokens_to_ids("cat")}
