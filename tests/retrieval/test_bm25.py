"""BM25 against bm25s, and against the written-out formula for passages that are not in the index."""

import json
import math
from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import pytest
import Stemmer

from distill.retrieval.bm25 import build_index, open_index, save_index
from distill.retrieval.bm25_settings import Bm25Settings
from tests.helpers.small_run import PASSAGES, VARIANTS, write_passages

CRANFIELD = Path(__file__).resolve().parents[3] / "shared" / "data" / "cranfield"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_passages(tmp_path_factory.mktemp("store") / "passages.arrow", PASSAGES, VARIANTS)


def test_scores_equal_bm25s(store):
    queries = ["cats and dogs", "the market fell", "company rain wind wind"]
    stemmer = Stemmer.Stemmer("english")
    reference = bm25s.BM25()
    reference.index(bm25s.tokenize(PASSAGES, stemmer=stemmer, show_progress=False), show_progress=False)
    words = bm25s.tokenize(queries, stemmer=stemmer, return_ids=False, show_progress=False)
    expected = np.stack([reference.get_scores(query) for query in words])
    index = build_index(store)
    every = np.arange(len(PASSAGES))
    np.testing.assert_allclose(np.stack(index.score_pairs(queries, [every] * 3)), expected, rtol=1e-5, atol=1e-6)
    rows, scores = index.search(queries, 4)
    for i in range(3):
        hit = rows[i] >= 0
        np.testing.assert_allclose(scores[i][hit], np.sort(expected[i])[::-1][:4][hit], rtol=1e-5)
        np.testing.assert_allclose(expected[i][rows[i][hit]], scores[i][hit], rtol=1e-5)


def test_a_variant_is_scored_by_its_own_words_with_the_statistics_of_the_collection(store):
    """Variant "the fell in the wind" keeps 2 stems (fell, wind) of passage 6's "tree fell storm wind"."""
    lengths = [
        len(words)
        for words in bm25s.tokenize(PASSAGES, stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)
    ]
    mean = sum(lengths) / len(PASSAGES)

    def weight(frequency, length):
        idf = math.log(1 + (len(PASSAGES) - frequency + 0.5) / (frequency + 0.5))
        return idf / (1 + 1.5 * (0.25 + 0.75 * length / mean))

    index = build_index(store)
    original, variant = index.score_pairs(["storm wind tree"], [np.array([6, 10])])[0]
    assert original == pytest.approx(weight(1, 4) + weight(2, 4) + weight(2, 4), rel=1e-5)
    assert variant == pytest.approx(weight(2, 2), rel=1e-5)


def test_variants_and_empty_passages_are_never_found(store):
    rows, scores = build_index(store).search(["wind", "", "zebra", "the of"], 50)
    assert rows.shape == (4, len(PASSAGES))
    assert sorted(rows[0][rows[0] >= 0]) == [4, 6]
    assert (rows[1:] == -1).all() and (scores[1:] == 0).all()


def test_bm25_ties_go_to_the_lower_row(tmp_path):
    index = build_index(write_passages(tmp_path / "passages.arrow", ["same words"] * 5 + ["other"]))
    assert index.search(["words"], 3)[0].tolist() == [[0, 1, 2]]


def test_empty_collections_queries_and_lists_of_pairs_give_empty_results(tmp_path, store):
    assert build_index(write_passages(tmp_path / "passages.arrow", [])).search(["word"], 3)[0].shape == (1, 0)
    assert build_index(store).search([], 3)[0].shape == (0, 3)
    assert build_index(store).score_pairs([], []) == []
    pairs = build_index(store).score_pairs(["a", "cat"], [np.array([], int), np.array([0, 1])])
    assert [len(scores) for scores in pairs] == [0, 2]


@pytest.mark.skipif(not CRANFIELD.is_dir(), reason="the Cranfield collection is not beside this checkout")
def test_cranfield_gives_the_published_figures(tmp_path):
    corpus = [json.loads(line) for line in (CRANFIELD / "corpus.jsonl").open()]
    queries = [json.loads(line) for line in (CRANFIELD / "queries.jsonl").open()]
    lines = (CRANFIELD / "qrels" / "test.tsv").read_text().splitlines()[1:]
    qrels = [ir_measures.Qrel(q, p, int(grade)) for q, p, grade in (line.split("\t") for line in lines)]
    store = write_passages(tmp_path / "passages.arrow", [f"{p['title']} {p['text']}" for p in corpus])
    rows, _ = build_index(store).search([query["text"] for query in queries], 100)
    run = [
        ir_measures.ScoredDoc(query["_id"], corpus[row]["_id"], -rank)
        for query, ranking in zip(queries, rows, strict=True)
        for rank, row in enumerate(ranking)
        if row >= 0
    ]
    measured = ir_measures.calc_aggregate([ir_measures.nDCG @ 10, ir_measures.R @ 100], qrels, run)
    assert measured[ir_measures.nDCG @ 10] == pytest.approx(0.430, abs=0.005)
    assert measured[ir_measures.R @ 100] == pytest.approx(0.753, abs=0.005)


def test_a_saved_index_equals_the_built_one_unless_it_is_stale_or_damaged(store, tmp_path):
    built, home = build_index(store), tmp_path / "index"
    assert open_index(store, home) is None
    save_index(store, home)
    opened = open_index(store, home, verify=True)
    queries, rows = ["cat on the mats", "winds", "unheard of"], [np.arange(len(store))] * 3
    for expected, scores in zip(built.score_pairs(queries, rows), opened.score_pairs(queries, rows), strict=True):
        assert expected.tobytes() == scores.tobytes()
    for expected, result in zip(built.search(queries, 5), opened.search(queries, 5), strict=True):
        assert (expected == result).all()
    assert not opened.postings.runs[0].weight.flags.owndata  # mapped
    for other in ({"k1": 1.2}, {"b": 0.5}, {"language": "german"}, {"stemming": False}):
        assert open_index(store, home, Bm25Settings(**other)) is None
    assert open_index(write_passages(tmp_path / "others.arrow", ["one passage"]), home) is None
    for name in ("postings.arrow", "terms.txt", "idf.npy"):
        content = (home / name).read_bytes()
        (home / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert open_index(store, home, verify=True) is None
        (home / name).write_bytes(content[: len(content) // 2])  # seen without reading it all
        assert open_index(store, home) is None
        (home / name).write_bytes(content)
    assert open_index(store, home, verify=True) is not None


LANGUAGES = {
    "german": (["Die Häuser der Stadt stehen leer", "Das Haus am See", "Städte und ihre Straßen"], "haus in der stadt"),
    "french": (["L’homme d’État parle", "les hommes marchent", "Une femme et sa maison"], "un homme et la femme"),
    "russian": (["Книги стоят на полке", "Она читает новую книгу", "Город и река"], "новые книги о городе"),
    "spanish": (["Los gatos duermen en la casa", "El gato come", "Una casa blanca"], "gato de la casa"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_scores_in_other_languages_equal_bm25s_with_the_same_stemmer(tmp_path, language):
    passages, query = LANGUAGES[language]
    options = {"stemmer": Stemmer.Stemmer(language), "stopwords": language, "show_progress": False}
    reference = bm25s.BM25(k1=1.2, b=0.4)
    reference.index(bm25s.tokenize(passages, **options), show_progress=False)
    expected = reference.get_scores(bm25s.tokenize([query], return_ids=False, **options)[0])
    index = build_index(write_passages(tmp_path / "p.arrow", passages), Bm25Settings(language, k1=1.2, b=0.4))
    np.testing.assert_allclose(index.score_pairs([query], [np.arange(3)])[0], expected, rtol=1e-5, atol=1e-6)
    assert (expected > 0).sum() >= 2  # the forms of a word are one


def test_scripts_without_blanks_are_scored_by_pairs_of_characters(tmp_path):
    passages = ["東京は日本の首都です", "京都は古都", "Tokyo 東京タワー", "水"]
    pairs = [
        ["東京", "京は", "は日", "日本", "本の", "の首", "首都", "都で", "です"],
        ["京都", "都は", "は古", "古都"],
        ["tokyo", "東京", "京タ", "タワ", "ワー"],
        ["水"],
    ]
    mean = sum(map(len, pairs)) / 4

    def score(passage, query):
        total = 0.0
        for term in query:
            frequency = sum(term in other for other in pairs)
            tf, norm = passage.count(term), 1.5 * (0.25 + 0.75 * len(passage) / mean)
            total += math.log(1 + (4 - frequency + 0.5) / (frequency + 0.5)) * tf / (tf + norm)
        return total

    index = build_index(write_passages(tmp_path / "p.arrow", passages), Bm25Settings("japanese"))
    for text, query in (
        ("日本の東京", ["日本", "本の", "の東", "東京"]),
        ("水", ["水"]),
        ("TOKYO 古都", ["tokyo", "古都"]),
    ):
        scores = index.score_pairs([text], [np.arange(4)])[0]
        np.testing.assert_allclose(scores, [score(passage, query) for passage in pairs], rtol=1e-5, atol=1e-7)
        assert scores.max() > 0


def test_without_stemming_and_without_a_language_words_are_counted_as_they_are(tmp_path):
    store = write_passages(tmp_path / "p.arrow", ["the cats", "a cat", "the dog"])
    assert set(build_index(store).terms) == {"cat", "dog"}
    assert set(build_index(store, Bm25Settings(stemming=False)).terms) == {"cats", "cat", "dog"}
    assert set(build_index(store, Bm25Settings("none")).terms) == {"the", "cats", "cat", "dog"}
