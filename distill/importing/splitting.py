"""Texts taken apart: words, sentences, runs of a few sentences; and words cut from a text."""

from __future__ import annotations

import itertools
import math
import re

QUERY_WORDS = 40  # longer sentences are not used as queries
_PIECE_WORDS = 20  # of a text without marks between sentences

_WORD = re.compile(r"\w+", re.UNICODE)
# Where a sentence may end: a mark between blanks ("slipstream . the"), as in tokenised corpora; a mark followed by a
# blank and a character that can open a sentence; an empty line.
_PATTERN = r"""(?<=\s)[.!?]+(?=\s)[/"')\]]*\s*
             | [.!?]+["'”’)\]]*\s+(?=["'“‘(\[]*[{opening}])
             | \s*\n\s*\n\s*"""
_END = re.compile(_PATTERN.format(opening=r"^\W_a-z"), re.VERBOSE)
_END_IN_LOWER_CASE = re.compile(_PATTERN.format(opening=r"^\W_"), re.VERBOSE)
# A full stop after these does not end a sentence: abbreviations, and the single letters of initials and "i.e."
_ABBREVIATION = re.compile(
    r"\b(?:[^\W\d_]|dr|mr|mrs|ms|prof|st|jr|sr|vs|cf|al|fig|figs|eq|eqs|ref|refs|no|nos|vol|pp|ed|approx|etc|inc|ltd|"
    r"co|corp|dept|est|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec)$",
    re.IGNORECASE,
)
_DOTTED = re.compile(r"\b(?:[^\W\d_]\.)+[^\W\d_]\s$")  # "U.S ." in tokenised corpora


def words_of(text: str) -> list[str]:
    """Split a text into words in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return start and end of every word of a text."""
    return [match.span() for match in _WORD.finditer(text)]


def sentences(text: str, *, any_case: bool = False) -> list[str]:
    """Split a text into sentences, stripped, with their punctuation.

    `any_case`: a sentence of a text without capitals may begin with a small letter; "U.S ." ends none.
    """
    ends = _END_IN_LOWER_CASE if any_case and text == text.lower() else _END
    parts, start = [], 0
    for match in ends.finditer(text):
        mark = match.group().lstrip()
        attached = match.start() > 0 and not text[match.start() - 1].isspace()
        abbreviation = _ABBREVIATION if attached else _DOTTED if any_case else None
        if (
            mark.startswith(".")
            and abbreviation is not None
            and abbreviation.search(text, max(start, match.start() - 12), match.start())
        ):
            continue
        parts.append(text[start : match.end()].strip())
        start = match.end()
    parts.append(text[start:].strip())
    return [sentence for sentence in parts if sentence]


def units(text: str) -> list[str]:
    """Split a text of any case into sentences with words, at most `QUERY_WORDS` long.

    A longer one, and a text without marks between sentences, gives pieces of at most 20 words of nearly equal length.
    """
    pieces = []
    whole = [sentence for sentence in sentences(text, any_case=True) if _WORD.search(sentence)]
    for sentence in whole:
        spans = word_spans(sentence)
        if len(spans) <= (QUERY_WORDS if len(whole) > 1 else _PIECE_WORDS):
            pieces.append(sentence)
            continue
        number = math.ceil(len(spans) / _PIECE_WORDS)
        starts = [0, *(spans[i * len(spans) // number][0] for i in range(1, number)), len(sentence)]
        pieces += [sentence[start:end].strip() for start, end in itertools.pairwise(starts)]
    return pieces


def parts(sentences: list[str], limit: int) -> list[list[str]]:
    """Group consecutive sentences into parts of nearly equal length, at most `limit` words; no sentence is longer."""
    counts = [len(word_spans(sentence)) for sentence in sentences]
    share = sum(counts) / max(1, math.ceil(sum(counts) / limit))
    grouped: list[list[str]] = []
    words = 0
    for sentence, count in zip(sentences, counts, strict=True):
        if not grouped or words >= share or words + count > limit:
            grouped.append([])
            words = 0
        grouped[-1].append(sentence)
        words += count
    return grouped


def cut(text: str, words: list[str]) -> str:
    """Cut every occurrence of `words` (lower case, consecutive) from a text, whatever is between the words."""
    if not words:
        return text
    spans = word_spans(text)
    lowered = [text[start:end].lower() for start, end in spans]
    pieces, resume, i = [], 0, 0
    while i + len(words) <= len(lowered):
        if lowered[i] == words[0] and lowered[i : i + len(words)] == words:
            pieces.append(text[resume : spans[i][0]])
            i += len(words)
            # closing marks are cut along with the words
            resume = _closing_marks(text, spans[i - 1][1], spans[i][0] if i < len(spans) else len(text))
        else:
            i += 1
    pieces.append(text[resume:])
    return " ".join(piece.strip() for piece in pieces if piece.strip()) if len(pieces) > 1 else text


def _closing_marks(text: str, start: int, stop: int) -> int:
    """The end of the closing marks that follow a cut (".", "?", ...); opening quotes and brackets stay."""
    end = start
    for i in range(start, stop):
        if text[i] in ".!?,;:)]}\"'”’/":
            end = i + 1
        elif not text[i].isspace():
            break
    return end
