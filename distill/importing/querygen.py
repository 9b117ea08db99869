"""Training queries made from the passages themselves, for collections that have none.

A query is paired with a variant of its passage from which its words are cut. A title, a sentence or a span of sentences
is cut wherever it occurs (titles are often repeated as the first sentence), so that exact copies do not give the answer
away; this is the inverse cloze task (Lee et al. 2019, arXiv 1906.00300) with the cut always made. Of key phrases, half
of the words are cut: some of a real query's words are in its passage, the others have to be inferred.

Passages longer than a window are taken apart between sentences, and each query is paired with the rest of its own part:
a student with a window of tokens would not see the place of a query from further down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

import numpy as np
import xxhash

from distill import config
from distill.importing import phrases
from distill.importing.phrases import DocumentFrequencies, key_phrases
from distill.importing.splitting import QUERY_WORDS, cut, parts, sentences, units, words_of
from distill.store.scripts import unspaced_texts

SPAN_WORDS = (20, 60)
_CONTENT_WORDS = 2  # must remain of a passage beside a query of key phrases

Kind = Literal["title", "sentence", "phrases", "span"]
WITHOUT_QUERY = {  # reason why a passage gives no query -> the passages, in words
    "empty": "without text",
    "unspaced": "without blanks between words",
    "short": "too short for a query and a rest",
    "unsuitable": "without a title, sentence or phrase of a query's length",
}


@dataclass(frozen=True)
class Generated:
    """A query and the rest of its passage. `suffix` distinguishes it from the passage's other queries."""

    kind: Kind
    query: str
    title: str
    text: str
    suffix: str


def generate(
    identifier: str,
    title: str,
    text: str,
    options: config.GenerateQueries,
    seed: int,
    frequencies: DocumentFrequencies | None = None,
    lengths: np.ndarray | None = None,
) -> Iterator[Generated]:
    """Make up to `options.per_passage` queries from one passage (or part of a long one), drawn with `seed`.

    Skips queries that are too short or too long, or would leave too little of the passage. `frequencies` of the
    collection are needed for `phrases`. `lengths`: numbers of words, ascending, that the queries' numbers of words
    shall resemble, if the kinds are drawn; None: each kind equally often.
    """
    if options.mixes:
        yield from _mixed(_Passage(identifier, title, text, options, seed, frequencies), lengths)
    else:
        yield from _title_first(identifier, title, text, options, seed)


def why_none(title: str, text: str, options: config.GenerateQueries) -> str:
    """Return why a passage gives no query: a key of `WITHOUT_QUERY`."""
    count = len(words_of(title)) + len(words_of(text))
    if not count:
        return "empty"
    if unspaced_texts([f"{title} {text}"]):
        return "unspaced"
    return "short" if count < options.min_words + options.min_passage_words else "unsuitable"


def is_dev(identifier: str, dev_share: float, seed: int) -> bool:
    """Whether a passage, with all its queries, belongs to the development split."""
    return _hash(seed, f"dev\0{identifier}") < dev_share * 2.0**64


def _title_first(
    identifier: str, title: str, text: str, options: config.GenerateQueries, seed: int
) -> Iterator[Generated]:
    """Make the title a query, then sentences drawn at random."""
    title_words = words_of(title)
    remaining = options.per_passage
    if "title" in options.kinds and options.min_words <= len(title_words) <= QUERY_WORDS:
        rest = cut(text, title_words)
        if len(words_of(rest)) >= options.min_passage_words:
            remaining -= 1
            yield Generated("title", title.strip(), "", rest, "title")
    if "sentence" not in options.kinds or not remaining:
        return
    # drawn by hash, so that the draw does not depend on the other passages of the collection
    numbered = sorted(enumerate(sentences(text)), key=lambda pair: _hash(seed, f"{identifier}\0{pair[0]}"))
    seen = {" ".join(title_words)}
    for number, sentence in numbered:
        if not remaining:
            return
        words = words_of(sentence)
        if not options.min_words <= len(words) <= QUERY_WORDS or " ".join(words) in seen:
            continue
        rest, rest_title = cut(text, words), cut(title, words)
        if len(words_of(rest_title)) + len(words_of(rest)) >= options.min_passage_words:
            seen.add(" ".join(words))
            remaining -= 1
            yield Generated("sentence", sentence, rest_title, rest, f"s{number}")


# --------------------------------------------------------------------------------------------- kinds drawn


@dataclass(frozen=True)
class _Part:
    """A part of a passage. `first`: number of its first sentence in the passage."""

    text: str
    sentences: list[str]
    first: int


@dataclass
class _Passage:
    """A passage that queries are drawn from, and what earlier queries have used."""

    identifier: str
    title: str
    text: str
    options: config.GenerateQueries
    seed: int
    frequencies: DocumentFrequencies | None
    seen: set[str] = field(default_factory=set)  # queries of titles, sentences and spans, in words
    used: set[str] = field(default_factory=set)  # words of key phrases

    def parts(self) -> list[_Part]:
        """One part, or several if title and text have more words than the window."""
        window, split = self.options.window, units(self.text)
        title_words = len(words_of(self.title))
        if window is None or title_words + len(words_of(self.text)) <= window or not split:
            return [_Part(self.text, split, 0)]
        grouped = parts(split, max(window - title_words, window // 2))
        firsts = accumulate((len(group) for group in grouped), initial=0)
        return [_Part(" ".join(group), group, first) for group, first in zip(grouped, firsts, strict=False)]

    def draw(self, key: str) -> float:
        """Draw a number in [0, 1) by hash: it does not depend on the other passages of the collection."""
        return _hash(self.seed, f"{self.identifier}\0{key}") / 2.0**64

    def without(self, words: list[str], text: str) -> tuple[str, str] | None:
        """Return title and text without consecutive words; None if too little remains."""
        title, rest = cut(self.title, words), cut(text, words)
        enough = len(words_of(title)) + len(words_of(rest)) >= self.options.min_passage_words
        return (title, rest) if enough else None


def _mixed(passage: _Passage, lengths: np.ndarray | None) -> Iterator[Generated]:
    """Go through the parts, each time beginning with another kind; or take the kind nearest to a drawn length."""
    kinds = sorted(passage.options.kinds, key=lambda kind: passage.draw(f"kind\0{kind}"))
    split = passage.parts()
    for slot in range(passage.options.per_passage * len(split)):
        turn, number = divmod(slot, len(split))
        first = (turn + number) % len(kinds)
        target = None if lengths is None else int(lengths[int(passage.draw(f"length\0{slot}") * len(lengths))])
        made = (_MAKERS[kind](passage, split[number], slot, target) for kind in (*kinds[first:], *kinds[:first]))
        candidates = (candidate for candidate in made if candidate is not None)
        if target is None:
            query = next(candidates, None)
        else:
            query = min(candidates, key=lambda query: abs(len(words_of(query.query)) - target), default=None)
        if query is not None:
            words = words_of(query.query)
            passage.seen.add(" ".join(words))
            if query.kind == "phrases":
                passage.used.update(words)
            yield query


def _title(passage: _Passage, part: _Part, slot: int, target: int | None) -> Generated | None:
    """The title; it speaks of the beginning."""
    words = words_of(passage.title)
    if part.first or not passage.options.min_words <= len(words) <= QUERY_WORDS or " ".join(words) in passage.seen:
        return None
    rest = passage.without(words, part.text)
    return Generated("title", passage.title.strip(), *rest, "title") if rest else None


def _sentence(passage: _Passage, part: _Part, slot: int, target: int | None) -> Generated | None:
    """A sentence drawn at random, or one whose length is nearest to the target."""
    order = []
    for number, sentence in enumerate(part.sentences, start=part.first):
        words = words_of(sentence)
        if passage.options.min_words <= len(words) <= QUERY_WORDS:
            distance = 0 if target is None else abs(len(words) - target)
            order.append((distance, passage.draw(f"sentence\0{number}"), number, words, sentence))
    for _, _, number, words, sentence in sorted(order):
        joined = " ".join(words)
        if joined in passage.seen or joined == " ".join(words_of(passage.title)):
            continue
        if rest := passage.without(words, part.text):
            return Generated("sentence", sentence, *rest, f"s{number}")
    return None


def _span(passage: _Passage, part: _Part, slot: int, target: int | None) -> Generated | None:
    """Consecutive sentences whose length is nearest to the target, or to a number drawn between 20 and 60 words."""
    low, high = SPAN_WORDS
    wanted = target or low + int(passage.draw(f"span\0{slot}") * (high - low + 1))
    counts = [len(words_of(sentence)) for sentence in part.sentences]
    order = []
    for i in range(len(counts)):
        words = counts[i]
        for j in range(i + 1, len(counts)):
            words += counts[j]
            if words > high:
                break
            if words >= max(low, passage.options.min_words):
                order.append((abs(words - wanted), passage.draw(f"span\0{slot}\0{part.first + i}"), i, j))
    for _, _, i, j in sorted(order):
        query = " ".join(part.sentences[i : j + 1])
        words_in_query = words_of(query)
        if " ".join(words_in_query) not in passage.seen and (rest := passage.without(words_in_query, part.text)):
            return Generated("span", query, *rest, f"s{part.first + i}-{part.first + j}")
    return None


def _phrases(passage: _Passage, part: _Part, slot: int, target: int | None) -> Generated | None:
    """Key phrases of title and part; half of their words, drawn at random, are cut from the passage."""
    frequencies = passage.frequencies
    assert frequencies is not None  # counted by the caller
    low, high = phrases.FEWEST, phrases.MOST
    number = low + int(passage.draw(f"phrases\0{slot}") * (high - low + 1)) if target is None else target
    chosen = key_phrases(f"{passage.title} . {part.text}", min(max(number, low), high), frequencies, passage.used)
    query = " ".join(chosen)
    words = sorted(set(words_of(query)), key=lambda word: passage.draw(f"cut\0{slot}\0{word}"))
    title, text = passage.title, part.text
    for word in words[: len(words) // 2]:
        title, text = cut(title, [word]), cut(text, [word])
    remaining = {word for word in words_of(f"{title} {text}") if frequencies.is_content(word)}
    return Generated("phrases", query, title, text, f"p{slot}") if words and len(remaining) >= _CONTENT_WORDS else None


_MAKERS = {"title": _title, "sentence": _sentence, "span": _span, "phrases": _phrases}


def _hash(seed: int, key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode(), seed & (2**64 - 1))
