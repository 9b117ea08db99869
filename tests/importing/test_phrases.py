"""Key phrases against tf-idf computed by hand."""

import math

import pytest

from distill.importing.phrases import DocumentFrequencies, key_phrases

TEXTS = [
    *["boundary layer transition"] * 3,
    *["boundary layer flow"] * 7,
    *["heated wing flow"] * 14,
    *["some other text"] * 16,
]


@pytest.fixture
def frequencies():
    counted = DocumentFrequencies()
    counted.add(TEXTS)
    return counted


def test_document_frequencies_are_those_of_the_formula(frequencies):
    for word, count in {"boundary": 10, "heated": 14, "transition": 3, "unseen": 3}.items():  # at least 3
        assert frequencies.idf(word) == pytest.approx(math.log((len(TEXTS) + 1) / count))
    assert frequencies.is_content("heated") and not frequencies.is_content("the")


def test_words_of_most_passages_are_stop_words_in_any_language():
    counted = DocumentFrequencies()
    counted.add(["der Wagen", "der Hund"] * 10)
    assert not counted.is_content("der") and counted.is_content("wagen") and not counted.is_content("7")


def test_the_best_phrases_stand_in_the_order_of_the_passage(frequencies):
    text = "The heated wing of a plane. We study boundary-layer transition, and transition again; boundary layer flow."
    # boundary-layer transition: (2 ln(41/10) + 2 ln(41/10) + 2 ln(41/3)) / sqrt(3) = 6.3, transition: 5.2,
    # plane, study: ln(41/3) = 2.6, heated wing: 2 ln(41/14) / sqrt(2) = 1.5; flow is in 21 of the 40 passages
    assert key_phrases(text, 3, frequencies, set()) == ["boundary-layer transition"]
    assert key_phrases(text, 5, frequencies, set()) == ["plane", "study", "boundary-layer transition"]
    assert key_phrases(text, 3, frequencies, {"boundary", "transition"}) == ["plane", "study", "layer"]
    assert key_phrases("the wing", 3, frequencies, set()) == []
