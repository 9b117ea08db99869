"""Queries generated from passages: sentence splitting, cutting, and the limits of a query."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.config import GenerateQueries
from distill.importing.phrases import DocumentFrequencies
from distill.importing.querygen import generate, is_dev, why_none
from distill.importing.splitting import cut, sentences, words_of

CRANFIELD = Path(__file__).parents[3] / "shared" / "data" / "cranfield" / "corpus.jsonl"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('One here. Two there! "Three?" Four', ["One here.", "Two there!", '"Three?"', "Four"]),
        ("Dr. Smith et al. saw Fig. 3. It rained.", ["Dr. Smith et al. saw Fig. 3.", "It rained."]),
        ("by h. l. dryden . at mach no. 5.8 it held . end", ["by h. l. dryden .", "at mach no. 5.8 it held .", "end"]),
        ("called /laws ./ the use of it . done .", ["called /laws ./ the use of it .", "done ."]),
        ("First paragraph\n\nSecond one. Über alles.", ["First paragraph", "Second one.", "Über alles."]),
        ("version 3.11 of e.g. this is lower. case stays", ["version 3.11 of e.g. this is lower. case stays"]),
        ("", []),
        (" . ", ["."]),
    ],
)
def test_texts_are_split_into_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "query", "rest"),
    [
        ("shear flow past a plate . the study of it .", "Shear flow past a plate .", "the study of it ."),
        ("Before. Shear-flow past: a plate! After.", "shear flow past a plate", "Before. After."),
        ("a b c. x a b c. y", "a b c", "x y"),
        ("the cat (a b) sat", "a b", "the cat ( sat"),
        ("a b", "a b", ""),
        ("nothing here", "a b", "nothing here"),
        ("ab bab", "a b", "ab bab"),
        ("kept as it is", "", "kept as it is"),
    ],
)
def test_cutting_removes_the_words_and_their_closing_marks(text, query, rest):
    assert cut(text, words_of(query)) == rest


def test_a_title_query_is_cut_from_a_text_that_repeats_the_title():
    options = GenerateQueries(min_words=3, min_passage_words=4)
    text = "on the flow of air . we study how it moves around a wing . results are shown for three wings ."
    made = {g.suffix: g for g in generate("7", "On the flow of air", text, options, 0)}
    assert made["title"].query == "On the flow of air" and made["title"].title == ""
    assert made["title"].text == "we study how it moves around a wing . results are shown for three wings ."
    (sentence,) = (g for g in made.values() if g.suffix != "title")
    assert sentence.query in text and sentence.query not in sentence.text and sentence.title == "On the flow of air"
    assert words_of(sentence.query) != words_of("on the flow of air")  # not the title again


def test_queries_outside_the_length_limits_or_with_short_remains_are_skipped():
    text = "one two three four five six seven . eight nine ten ."
    made = generate("1", "", text, GenerateQueries(min_words=3, min_passage_words=3), 0)
    assert sorted(g.query for g in made) == ["eight nine ten .", "one two three four five six seven ."]
    assert not list(generate("1", "", text, GenerateQueries(min_words=3, min_passage_words=8), 0))
    assert not list(generate("1", "a title", text, GenerateQueries(kinds=("title",), min_words=3), 0))
    long = " ".join(["word"] * 41) + " . " + " ".join(["other"] * 60) + " ."
    assert not list(generate("1", "", long, GenerateQueries(), 0))


def test_drawn_sentences_depend_only_on_the_passage_and_the_seed():
    text = " ".join(f"sentence number {i} tells something else ." for i in range(20))
    draws = [[g.query for g in generate("1", "", text, GenerateQueries(), seed)] for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) == 3
    assert len(draws[0]) == 2 and [len(list(generate("1", "", text, GenerateQueries(per_passage=5), 0)))] == [5]
    share = sum(is_dev(str(i), 0.1, 3) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12 and not any(is_dev(str(i), 0.0, 3) for i in range(1000))


@pytest.mark.skipif(not CRANFIELD.is_file(), reason="the Cranfield collection isn't beside this checkout")
def test_cranfield_gives_about_two_queries_per_passage_none_of_them_in_its_own_variant():
    passages = [json.loads(line) for line in CRANFIELD.read_text().splitlines()]
    made = [(p, g) for p in passages for g in generate(p["_id"], p["title"], p["text"], GenerateQueries(), 17)]
    assert len(made) > 1.9 * len(passages)
    for _, generated in made:
        rest = " ".join(words_of(f"{generated.title} {generated.text}"))
        assert f" {' '.join(words_of(generated.query))} " not in f" {rest} "


# ------------------------------------------------------------------------------------------------ kinds drawn

DRAWN = GenerateQueries(kinds=("title", "sentence", "phrases", "span"), window=80)
VOCABULARY = [f"{a}{b}" for a in ("flow", "wing", "heat", "plate", "shock") for b in "abcdefgh"]


def counted(*texts):
    frequencies = DocumentFrequencies()
    frequencies.add(texts)
    return frequencies


def document(sentences_, words=12):
    return " ".join(
        " ".join(VOCABULARY[(7 * s + 3 * w) % len(VOCABULARY)] for w in range(words)).capitalize() + "."
        for s in range(sentences_)
    )


def drawn(title, text, options=DRAWN, seed=0, identifier="1", lengths=None):
    return list(generate(identifier, title, text, options, seed, counted(f"{title} {text}"), lengths))


def test_each_kind_is_drawn_equally_often_where_all_are_there():
    text = " ".join(
        f"Sentence {n} of this text has the words alpha{n} beta{n} gamma{n} and delta{n}." for n in range(4)
    )
    counts = Counter(g.kind for i in range(400) for g in drawn("A title of five words", text, identifier=str(i)))
    assert sum(counts.values()) == 800 and all(150 < counts[kind] < 250 for kind in DRAWN.kinds)


def test_a_span_is_consecutive_sentences_cut_from_the_passage():
    options = GenerateQueries(kinds=("span",), per_passage=1)
    text = document(6)
    for seed in range(20):
        (span,) = drawn("", text, options, seed)
        assert span.query in text and 24 <= len(words_of(span.query)) <= 60 and span.query.count(".") >= 2
        assert span.text == " ".join(text.replace(span.query, " ").split())


def test_half_of_the_key_phrases_are_cut_and_the_others_stay():
    options = GenerateQueries(kinds=("phrases",), per_passage=1)
    for seed in range(20):
        (query,) = drawn("Supersonic nozzle design", document(3), options, seed)
        words, rest = set(words_of(query.query)), set(words_of(f"{query.title} {query.text}"))
        assert 3 <= len(words) <= 8 and len(words - rest) == len(words) // 2


def test_a_passage_that_is_only_a_title_gives_some_of_its_words():
    (query,) = drawn("Digital Computers in Universities", "")
    assert query.kind == "phrases" and query.query == "Digital Computers Universities" and query.text == ""
    left = {"Computers in Universities", "Digital in Universities", "Digital Computers in"}
    assert query.title in left
    for title, text, reason in [
        ("Algorithm 123", "", "short"),
        ("", " ", "empty"),
        ("", "日本語の文章には単語の間に空白がありません", "unspaced"),
        ("", " ".join(["the"] * 30), "unsuitable"),
    ]:
        assert drawn(title, text) == [] and why_none(title, text, DRAWN) == reason


def test_queries_come_from_all_parts_of_a_long_passage_with_the_rest_of_their_part():
    numbered = [" ".join(f"part{i}word{j}" for j in range(10)).upper() + " ." for i in range(60)]  # 600 words
    made = drawn("", " ".join(numbered))
    assert len(made) >= 2 * 8 - 2  # parts of at most 80 words
    places = {int(word[4:].split("word")[0]) for query in made for word in words_of(query.query)}
    assert min(places) < 8 and max(places) > 52
    for query in made:
        numbers = [int(word[4:].split("word")[0]) for word in words_of(f"{query.query} {query.text}")]
        assert max(numbers) - min(numbers) < 8 and len(words_of(query.text)) <= 80


def test_lengths_resemble_the_given_ones():
    options = GenerateQueries(kinds=DRAWN.kinds, per_passage=1)
    passages = [(f"Title number {i} has words", f"{document(8, 5 + i % 12)}") for i in range(60)]
    frequencies = counted(*(text for _, text in passages))
    for lengths in ([3, 3, 4, 5], [12] * 3, [5, 30, 40]):
        queries = [
            len(words_of(g.query))
            for i, (title, text) in enumerate(passages)
            for g in generate(str(i), title, text, options, 0, frequencies, np.array(lengths))
        ]
        assert abs(np.mean(queries) - np.mean(lengths)) < 0.2 * np.mean(lengths)


TEXT = st.lists(st.sampled_from([*VOCABULARY, "The", "of", ".", "?", "NATO", "U.S .", "e.g.", "1962"]), max_size=150)


@settings(max_examples=60, deadline=None)
@given(TEXT.map(lambda words: words[:9]), TEXT, st.sampled_from([None, 80]), st.integers(0, 5), st.booleans())
def test_queries_come_from_their_passage_and_leave_one_within_the_limits(title, text, window, seed, with_lengths):
    options = GenerateQueries(kinds=DRAWN.kinds, window=window, per_passage=3, min_passage_words=10)
    title, text = " ".join(title), " ".join(text)
    lengths = np.array([2, 9, 30]) if with_lengths else None
    made = drawn(title, text, options, seed, lengths=lengths)
    assert made == drawn(title, text, options, seed, lengths=lengths)
    assert len({query.suffix for query in made}) == len({query.query.lower() for query in made}) == len(made)
    parts = -(-len(words_of(text)) // 40)
    assert len(made) <= 3 * (1 if window is None else max(1, parts))
    limits = {"title": (5, 40), "sentence": (5, 40), "phrases": (3, 8), "span": (20, 60)}
    passage = words_of(f"{title} {text}")
    for query in made:
        low, high = limits[query.kind]
        words, rest = words_of(query.query), words_of(f"{query.title} {query.text}")
        assert low <= len(words) <= high and set(words) <= set(passage) and set(rest) <= set(passage)
        assert len(rest) >= (2 if query.kind == "phrases" else 10) and len(rest) < len(passage)
        if window is not None:
            assert len(rest) <= window
        if query.kind != "phrases":
            assert f" {' '.join(words)} " not in f" {' '.join(words_of(query.text))} "


def test_a_window_needs_kinds_that_are_drawn():
    with pytest.raises(ValueError, match="window has no effect without phrases or span"):
        GenerateQueries(window=160)
