"""Texts taken apart for BM25: words in lower case, without a language's stop words, stemmed; or pairs of characters.

Stemmers are Snowball's (PyStemmer), stop words those of bm25s, for the languages that it has a list for. Runs of
characters of scripts without blanks between words, and of Hangul, whose particles are written onto their words, become
overlapping pairs, as in Lucene's CJKBigramFilter; English words are those of bm25s.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import bm25s.stopwords
import numpy as np
import Stemmer
from scipy import sparse

from distill.config.languages import STEMMED
from distill.store.scripts import UNSPACED

_WORD, _ASCII_WORD = re.compile(r"\w\w+"), re.compile(r"\w\w+", re.ASCII)  # bm25s: \b\w\w+\b, which is the same
_HANGUL = "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff"
_PAIRED = re.compile(f"[{UNSPACED}{_HANGUL}]")
_LISTS = {  # languages of which bm25s has stop words; those of languages counted in pairs are not used
    "danish": "DANISH",
    "dutch": "DUTCH",
    "english": "EN",
    "french": "FRENCH",
    "german": "GERMAN",
    "italian": "ITALIAN",
    "norwegian": "NORWEGIAN",
    "portuguese": "PORTUGUESE",
    "russian": "RUSSIAN",
    "spanish": "SPANISH",
    "swedish": "SWEDISH",
    "turkish": "TURKISH",
}


@dataclass(frozen=True)
class Analyser:
    """How texts of a language (a value of `data.language` but `auto`) become terms."""

    language: str = "english"
    stemming: bool = True

    def words(self, text: str) -> list[str]:
        """Take a text apart into words of at least two characters, in lower case, and pairs of characters."""
        if self.language == "turkish":
            text = text.replace("İ", "i").replace("I", "ı")
        text = text.lower()
        if text.isascii():
            return _ASCII_WORD.findall(text)
        if self.language == "english":
            pattern = _WORD
        else:
            text, pattern = unicodedata.normalize("NFKC", text), _patterns()[0]
        if not _PAIRED.search(text):
            return pattern.findall(text)
        run, character = _patterns()[1:]
        words = pattern.findall(run.sub(" ", text))
        for found in run.findall(text):
            characters = character.findall(found)
            words += map("".join, itertools.pairwise(characters)) if len(characters) > 1 else characters
        return words

    def term(self, word: str) -> str | None:
        """The term that a word counts as; None for a stop word."""
        if word in stop_words(self.language):
            return None
        stemmer = _stemmer(self.language) if self.stemming else None
        return word if stemmer is None else stemmer.stemWord(word) or word


class TermNumbers(dict[str, int]):
    """The number of the term that each word counts as; -1 for stop words and, unless it `grows`, unknown terms.

    Words are added when they are first asked for, so that each is stemmed once.
    """

    def __init__(self, analyser: Analyser, terms: dict[str, int], grows: bool = False):
        super().__init__()
        self.analyser, self.terms, self._grows = analyser, terms, grows

    def __missing__(self, word: str) -> int:
        term = self.analyser.term(word)
        number = -1 if term is None else self.terms.get(term, -1)
        if self._grows and number < 0 and term is not None:
            number = self.terms[term] = len(self.terms)
        self[word] = number
        return number

    def of(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Number the terms of texts, in order: int32 [terms], and the offsets of the texts, int64 [n + 1]."""
        numbers: list[int] = []
        ends = [0]
        for text in texts:
            numbers.extend(map(self.__getitem__, self.analyser.words(text)))
            ends.append(len(numbers))
        found = np.array(numbers, np.int32)
        known = found >= 0
        return found[known], np.concatenate([[0], np.cumsum(known)])[ends]

    def count(self, texts: Iterable[str]) -> sparse.csr_matrix:
        """Count the known terms of texts: float32 [n, terms]."""
        numbers, offsets = self.of(texts)
        return counted(numbers, offsets, len(self.terms))


def counted(numbers: np.ndarray, offsets: np.ndarray, vocabulary: int) -> sparse.csr_matrix:
    """Count term numbers, int32 [terms], per text: float32 [n, vocabulary], with sorted columns."""
    ones = np.ones(len(numbers), np.float32)
    counts = sparse.csr_matrix((ones, numbers, offsets), shape=(len(offsets) - 1, vocabulary))
    counts.sum_duplicates()
    return counts


@cache
def stop_words(language: str) -> frozenset[str]:
    """The stop words of a language, in lower case; none if bm25s has no list."""
    return frozenset(getattr(bm25s.stopwords, f"STOPWORDS_{_LISTS[language]}")) if language in _LISTS else frozenset()


@cache
def _stemmer(language: str) -> Stemmer.Stemmer | None:
    return Stemmer.Stemmer(language, 0) if language in STEMMED else None


@cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Expressions for words with their combining marks (vowel signs, accents), for runs that become pairs, and for one
    character of such a run."""
    spans: list[list[int]] = []
    for number in itertools.chain(range(0x20000), range(0xE0100, 0xE01F0)):  # all planes with marks
        if not unicodedata.category(chr(number)).startswith("M"):
            continue
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in spans) + "\u200c\u200d"  # and joiners
    character = rf"(?=\w)[{UNSPACED}{_HANGUL}][{marks}]*"
    return re.compile(rf"\w[\w{marks}]+"), re.compile(f"(?:{character})+"), re.compile(character)
