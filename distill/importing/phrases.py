"""The most characteristic words of a passage, as a short query: tf-idf over the collection.

Candidates are runs of up to three words that neither stop words nor punctuation interrupt (RAKE, Rose et al. 2010),
ranked by the sum of their words' tf-idf over the square root of their number.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache

import numpy as np
import xxhash

from distill.importing.splitting import word_spans, words_of

FEWEST, MOST = 3, 8  # words of a query
_RUN = 3  # words
_BUCKETS = 1 << 22  # 16 MiB of counters, whatever the collection; words that share one count as equally frequent
_COMMON, _COMMON_FROM = 0.5, 20  # share of the passages from which a word is a stop word, in collections of this size
_RAREST = 3  # passages
_JOINT = re.compile(r"[\s\-'’]*")  # between words of one run


class DocumentFrequencies:
    """Number of passages that contain a word, counted in one pass and in constant memory."""

    def __init__(self) -> None:
        self.passages = 0
        self._counts = np.zeros(_BUCKETS, np.uint32)

    def add(self, texts: Iterable[str]) -> None:
        """Count passages, given as title and text."""
        buckets: list[int] = []
        for text in texts:
            buckets += {_bucket(word) for word in words_of(text)}
            self.passages += 1
        np.add.at(self._counts, np.array(buckets, np.int64), 1)

    def idf(self, word: str) -> float:
        """ln((N + 1) / df), at least 0; the rarest words, many of them misspelt, have the df of those in 3 passages."""
        return max(0.0, math.log((self.passages + 1) / max(_RAREST, int(self._counts[_bucket(word)]))))

    def is_content(self, word: str) -> bool:
        """Whether a word in lower case can tell passages apart: it has letters, and is no stop word."""
        common = self.passages >= _COMMON_FROM and self._counts[_bucket(word)] > _COMMON * self.passages
        return len(word) > 1 and not word.isdecimal() and word not in _stop_words() and not common


def key_phrases(text: str, number: int, frequencies: DocumentFrequencies, used: set[str]) -> list[str]:
    """Return the best phrases of a text, in its order, with at most `number` different words in all.

    None of the words is in `used` (lower case). Fewer than `FEWEST` words give no phrases.
    """
    counts = Counter(words_of(text))

    def weight(word: str) -> float:
        return counts[word] * frequencies.idf(word)

    runs = list(_runs(text, frequencies, used))
    weights = [sum(map(weight, words)) / math.sqrt(len(words)) for _, words in runs]
    chosen: list[int] = []
    taken: set[str] = set()
    for i in sorted(range(len(runs)), key=lambda i: (-weights[i], i)):
        words = set(runs[i][1])
        if len(words) + len(taken) <= number and not words & taken:
            chosen.append(i)
            taken |= words
    return [runs[i][0] for i in sorted(chosen)] if len(taken) >= FEWEST else []


def _runs(text: str, frequencies: DocumentFrequencies, used: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield every run of one to three different content words, as written and as words in lower case."""
    spans = word_spans(text)
    words = [text[start:end].lower() for start, end in spans]
    content = [word not in used and frequencies.is_content(word) for word in words]
    for i in range(len(words)):
        for j in range(i, min(i + _RUN, len(words))):
            if not content[j] or words[j] in words[i:j]:
                break
            if j > i and not _JOINT.fullmatch(text, spans[j - 1][1], spans[j][0]):
                break
            yield " ".join(text[spans[i][0] : spans[j][1]].split()), words[i : j + 1]


@lru_cache(1 << 16)
def _bucket(word: str) -> int:
    return xxhash.xxh3_64_intdigest(word.encode()) % _BUCKETS


@cache
def _stop_words() -> frozenset[str]:
    """English; in other languages the words of more than half of the passages serve instead."""
    from bm25s.stopwords import STOPWORDS_EN_PLUS  # imports scipy

    return frozenset(STOPWORDS_EN_PLUS)
