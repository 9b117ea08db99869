"""Training queries made from the passages themselves, for collections that have none.

A query is a passage's title or one of its sentences; it is paired with a variant of the passage from which its own
words are cut (wherever they stand: titles are often repeated as the first sentence), so that matching it takes more
than copying. This is the inverse cloze task (Lee et al. 2019, arXiv 1906.00300) with the cut always made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from distill import config

QUERY_WORDS = 40  # longer sentences are no queries

_WORD = re.compile(r"\w+", re.UNICODE)
# Where a sentence may end: a mark set apart by blanks ("slipstream . the"), as tokenised corpora write it; a mark
# followed by a blank and something that opens a sentence; an empty line.
_END = re.compile(
    r"""(?<=\s)[.!?]+(?=\s)[/"')\]]*\s*
                    | [.!?]+["'”’)\]]*\s+(?=["'“‘(\[]*[^\W_a-z])
                    | \s*\n\s*\n\s*""",
    re.VERBOSE,
)
# A point after these ends no sentence: abbreviations, and the single letters of names and "i.e."
_ABBREVIATION = re.compile(
    r"\b(?:[^\W\d_]|dr|mr|mrs|ms|prof|st|jr|sr|vs|cf|al|fig|figs|eq|eqs|ref|refs|no|nos|vol|pp|ed|approx|etc|inc|ltd|"
    r"co|corp|dept|est|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec)$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Generated:
    """A query and what is left of its passage. `suffix` tells it from the passage's other queries."""

    query: str
    title: str
    text: str
    suffix: str


def sentences(text: str) -> list[str]:
    """The sentences of a text, in order, stripped, marks kept."""
    found, start = [], 0
    for match in _END.finditer(text):
        mark = match.group().lstrip()
        attached = match.start() > 0 and not text[match.start() - 1].isspace()
        if (
            mark.startswith(".")
            and attached
            and _ABBREVIATION.search(text, max(start, match.start() - 12), match.start())
        ):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if sentence]


def cut(text: str, words: list[str]) -> str:
    """`text` without the passages of it that consist of `words` (lower case), whatever stands between the words."""
    if not words:
        return text
    spans = [(match.start(), match.end()) for match in _WORD.finditer(text)]
    lowered = [text[start:end].lower() for start, end in spans]
    pieces, kept, i = [], 0, 0
    while i + len(words) <= len(lowered):
        if lowered[i] == words[0] and lowered[i : i + len(words)] == words:
            pieces.append(text[kept : spans[i][0]])
            i += len(words)
            # the marks that close what was cut go with it
            kept = _closing_marks(text, spans[i - 1][1], spans[i][0] if i < len(spans) else len(text))
        else:
            i += 1
    pieces.append(text[kept:])
    return " ".join(piece.strip() for piece in pieces if piece.strip()) if len(pieces) > 1 else text


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def generate(identifier: str, title: str, text: str, options: config.GenerateQueries, seed: int) -> Iterator[Generated]:
    """Up to `options.per_passage` queries of one passage: its title first, then sentences drawn with `seed`.

    Skips what is too short or too long for a query, and what would leave too little of the passage.
    """
    title_words = words_of(title)
    left = options.per_passage
    if "title" in options.kinds and options.min_words <= len(title_words) <= QUERY_WORDS:
        rest = cut(text, title_words)
        if len(words_of(rest)) >= options.min_passage_words:
            left -= 1
            yield Generated(title.strip(), "", rest, "title")
    if "sentence" not in options.kinds or not left:
        return
    # drawn by hash: the same for a passage whatever stands before it in the collection
    numbered = sorted(enumerate(sentences(text)), key=lambda pair: _hash(seed, f"{identifier}\0{pair[0]}"))
    seen = {" ".join(title_words)}
    for number, sentence in numbered:
        if not left:
            return
        words = words_of(sentence)
        if not options.min_words <= len(words) <= QUERY_WORDS or " ".join(words) in seen:
            continue
        rest, rest_title = cut(text, words), cut(title, words)
        if len(words_of(rest_title)) + len(words_of(rest)) >= options.min_passage_words:
            seen.add(" ".join(words))
            left -= 1
            yield Generated(sentence, rest_title, rest, f"s{number}")


def is_dev(identifier: str, dev_share: float, seed: int) -> bool:
    """Whether a passage's queries, all of them, belong to the development split."""
    return _hash(seed, f"dev\0{identifier}") < dev_share * 2.0**64


def _hash(seed: int, key: str) -> int:
    return xxhash.xxh3_64_intdigest(key.encode(), seed & (2**64 - 1))


def _closing_marks(text: str, start: int, stop: int) -> int:
    """The end of the closing marks right behind a cut: all of ".", "?" and so on, but no opening quote or bracket."""
    end = start
    for i in range(start, stop):
        if text[i] in ".!?,;:)]}\"'”’/":
            end = i + 1
        elif not text[i].isspace():
            break
    return end
