"""Texts of any case taken apart: sentences, pieces, parts."""

from hypothesis import given
from hypothesis import strategies as st

from distill.importing.splitting import QUERY_WORDS, parts, sentences, units, words_of

WORDS = st.lists(st.sampled_from(["flow", "the", "Mach", "no.", "U.S .", "x1", ".", "?", "wing,"]), max_size=120)


def test_texts_without_capitals_or_of_capitals_only_are_split_into_sentences():
    assert units("the flow past a plate. it is laminar. see fig. 3 for it.") == [
        "the flow past a plate.",
        "it is laminar.",
        "see fig. 3 for it.",
    ]
    assert units("THE U.S . AMBASSADOR LEFT . MR. WIN STAYED. THAT WAS ALL .") == [
        "THE U.S . AMBASSADOR LEFT .",
        "MR. WIN STAYED.",
        "THAT WAS ALL .",
    ]
    assert units("In lower. case it stays. So it is.") == ["In lower. case it stays.", "So it is."]
    assert sentences("this is lower. case stays") == ["this is lower. case stays"]  # without any_case


def test_a_text_without_marks_gives_pieces_of_nearly_equal_length():
    words = [f"w{i}" for i in range(50)]
    assert units(" ".join(words)) == [" ".join(words[a:b]) for a, b in ((0, 16), (16, 33), (33, 50))]
    assert units("short text") == ["short text"]


@given(WORDS)
def test_units_keep_every_word_in_order_and_are_no_longer_than_a_query(words):
    text = " ".join(words)
    pieces = units(text)
    assert [word for piece in pieces for word in words_of(piece)] == words_of(text)
    assert all(1 <= len(words_of(piece)) <= QUERY_WORDS for piece in pieces)


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(40, 200))
def test_parts_keep_the_order_and_the_limit(counts, limit):
    made = [" ".join([f"s{i}"] * count) for i, count in enumerate(counts)]
    grouped = parts(made, limit)
    assert [sentence for group in grouped for sentence in group] == made
    assert all(group and len(words_of(" ".join(group))) <= limit for group in grouped)
    if sum(counts) <= limit:
        assert len(grouped) == (1 if counts else 0)
