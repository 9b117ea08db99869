"""Texts taken apart for BM25, against bm25s, its stop words and PyStemmer, and by what Unicode says of words."""

import bm25s
import pytest
import Stemmer

from distill.config.languages import STEMMED
from distill.retrieval.analysis import Analyser, TermNumbers, stop_words


def test_english_terms_are_those_of_bm25s():
    texts = ["The cats' 2nd café, isn't it? naïve_word x1 a I", "Ünder ǅ ﬁt İx", "", "the of", "running RUNS ran"]
    expected = bm25s.tokenize(texts, stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)
    analyser = Analyser()
    terms = [[term for word in analyser.words(text) if (term := analyser.term(word)) is not None] for text in texts]
    assert terms == [[term for term in each if term] for each in expected]


def test_every_language_has_its_stemmer():
    for language in STEMMED:
        Stemmer.Stemmer(language)
        assert Analyser(language).term("7x7") == "7x7"
    assert "der" in stop_words("german") and "и" in stop_words("russian") and not stop_words("finnish")


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("hindi", "हिन्दी में किताबें", ["हिन्दी", "में", "किताबें"]),  # vowel signs are in words
        ("arabic", "الْكِتَابُ الجديد", ["الْكِتَابُ", "الجديد"]),
        ("german", "Mu\u0308ller Straße", ["müller", "straße"]),  # a decomposed umlaut
        ("turkish", "IŞIK İstanbul", ["ışık", "istanbul"]),
        ("none", "東京 2020年 iPhone手机 水", ["2020", "iphone", "東京", "年", "手机", "水"]),
        ("japanese", "ＡＢＣ ｶﾞｽ", ["abc", "ガス"]),  # characters of full and half width
        ("thai", "เป็นเมือง", ["เป็", "ป็น", "นเ", "เมื", "มือ", "อง"]),
        ("korean", "서울은 대한민국의", ["서울", "울은", "대한", "한민", "민국", "국의"]),
    ],
)
def test_words_in_other_scripts(language, text, words):
    assert Analyser(language).words(text) == words


def test_forms_of_a_word_have_one_number_and_unknown_words_none():
    numbers = TermNumbers(Analyser(), {}, grows=True)
    found, offsets = numbers.of(["the cat and cats", "", "dogs cat"])
    assert found.tolist() == [0, 0, 1, 0] and offsets.tolist() == [0, 2, 2, 4]
    queries = TermNumbers(Analyser(), numbers.terms)
    assert queries.count(["dog zebra dog", "of"]).toarray().tolist() == [[0, 2], [0, 0]]
    assert numbers.terms == {"cat": 0, "dog": 1}
