"""Queries made from passages: sentences, cutting, and what is refused as a query."""

import json
from pathlib import Path

import pytest

from distill.config import GenerateQueries
from distill.data.querygen import cut, generate, is_dev, sentences, words_of

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
def test_sentences(text, expected):
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
def test_cutting_takes_the_words_and_their_closing_marks(text, query, rest):
    assert cut(text, words_of(query)) == rest


def test_a_title_is_cut_from_the_text_that_repeats_it():
    options = GenerateQueries(min_words=3, min_passage_words=4)
    text = "on the flow of air . we study how it moves around a wing . results are shown for three wings ."
    made = {g.suffix: g for g in generate("7", "On the flow of air", text, options, 0)}
    assert made["title"].query == "On the flow of air" and made["title"].title == ""
    assert made["title"].text == "we study how it moves around a wing . results are shown for three wings ."
    (sentence,) = (g for g in made.values() if g.suffix != "title")
    assert sentence.query in text and sentence.query not in sentence.text and sentence.title == "On the flow of air"
    assert words_of(sentence.query) != words_of("on the flow of air")  # the title is no second query


def test_short_queries_and_short_remains_are_refused():
    text = "one two three four five six seven . eight nine ten ."
    made = generate("1", "", text, GenerateQueries(min_words=3, min_passage_words=3), 0)
    assert sorted(g.query for g in made) == ["eight nine ten .", "one two three four five six seven ."]
    assert not list(generate("1", "", text, GenerateQueries(min_words=3, min_passage_words=8), 0))
    assert not list(generate("1", "a title", text, GenerateQueries(kinds=("title",), min_words=3), 0))
    long = " ".join(["word"] * 41) + " . " + " ".join(["other"] * 60) + " ."
    assert not list(generate("1", "", long, GenerateQueries(), 0))


def test_draws_depend_on_the_passage_and_the_seed_alone():
    text = " ".join(f"sentence number {i} tells something else ." for i in range(20))
    draws = [[g.query for g in generate("1", "", text, GenerateQueries(), seed)] for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len({tuple(draw) for draw in draws}) == 3
    assert len(draws[0]) == 2 and [len(list(generate("1", "", text, GenerateQueries(per_passage=5), 0)))] == [5]
    share = sum(is_dev(str(i), 0.1, 3) for i in range(5000)) / 5000
    assert 0.08 < share < 0.12 and not any(is_dev(str(i), 0.0, 3) for i in range(1000))


@pytest.mark.skipif(not CRANFIELD.is_file(), reason="the Cranfield collection isn't beside this checkout")
def test_cranfield_gives_about_two_queries_a_passage_none_in_its_own_variant():
    passages = [json.loads(line) for line in CRANFIELD.read_text().splitlines()]
    made = [(p, g) for p in passages for g in generate(p["_id"], p["title"], p["text"], GenerateQueries(), 17)]
    assert len(made) > 1.9 * len(passages)
    for _, generated in made:
        left = " ".join(words_of(f"{generated.title} {generated.text}"))
        assert f" {' '.join(words_of(generated.query))} " not in f" {left} "
