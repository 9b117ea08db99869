"""Which language a collection is in: by function words, and by script where a script belongs to one language.

Each text of a sample has one vote, for the language of which it has the most function words; texts without any, or with
as many of two languages, have none. Two thirds of the votes make the language of the collection.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distill.config.languages import BIGRAMS, NO_LANGUAGE, STEMMED
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.store.function_words import FUNCTION_WORDS
from distill.store.texts import TextStore

_SAMPLE = 1000  # texts
_CHARACTERS = 2000  # read of each text
_CLEAR = 2 / 3  # of the votes
_WORD = re.compile(r"[^\W\d_][\w\u0300-\u036f\u0900-\u0dff]*")  # with the vowel signs of Indic scripts
_LETTER = re.compile(r"[^\W\d_]")
_SCRIPTS = {
    "armenian": re.compile(r"[\u0530-\u058f]"),
    "burmese": re.compile(r"[\u1000-\u109f]"),
    "greek": re.compile(r"[\u0370-\u03ff\u1f00-\u1fff]"),
    "khmer": re.compile(r"[\u1780-\u17ff]"),
    "korean": re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]"),
    "lao": re.compile(r"[\u0e80-\u0eff]"),
    "tamil": re.compile(r"[\u0b80-\u0bff]"),
    "thai": re.compile(r"[\u0e00-\u0e7f]"),
    "tibetan": re.compile(r"[\u0f00-\u0fff]"),
    "japanese": re.compile(r"[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9d]"),
    "chinese": re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"),
}
_KANA = 0.05  # of the characters of a Japanese text, at least


@dataclass(frozen=True)
class Language:
    """The language of a collection, a value of `data.language`, and how it was found."""

    name: str
    reason: str

    def __str__(self) -> str:
        """As the import's manifest has it."""
        return f"{self.name} ({self.reason})"


def language_of(texts: Sequence[str]) -> Language:
    """Find the language of a sample of texts; `none` if it has no stemmer, or none is in the clear majority."""
    votes = Counter(vote for text in texts if (vote := _vote(text[:_CHARACTERS])) is not None)
    if not votes:
        return Language(NO_LANGUAGE, f"none of {len(texts):,} sampled passages has a known language's function words")
    # of equally many votes, the first name
    (name, count), *others = sorted(votes.items(), key=lambda item: (-item[1], item[0]))
    share = f"{count / votes.total():.0%} of {votes.total():,} sampled passages"
    if count < _CLEAR * votes.total():
        further = ", ".join(f"{number / votes.total():.0%} {other.title()}" for other, number in others[:2])
        return Language(NO_LANGUAGE, f"several languages: {share} are {name.title()}, {further}")
    if name == "croatian":  # its stemmer is the Serbian one, which reads Latin script, too
        return Language("serbian", f"{share} are Croatian or Serbian")
    if name not in STEMMED and name not in BIGRAMS:
        return Language(NO_LANGUAGE, f"{share} are {name.title()}, for which there is no stemmer")
    return Language(name, f"{share} are {name.title()}")


def language_of_store(store: TextStore) -> Language:
    """Find the language of a collection from passages at equal distances."""
    size = store.collection_size
    rows = np.unique(np.linspace(0, size - 1, min(size, _SAMPLE)).astype(np.int64)) if size else np.empty(0, np.int64)
    return language_of(store.texts(rows))


def imported_language(folder: RunFolder) -> Language:
    """The language that the import found, from its manifest; of data from before it looked, found now."""
    manifest = read_manifest(folder.data)
    recorded = manifest.counts.get("language") if manifest is not None else None
    if not isinstance(recorded, str):
        return language_of_store(TextStore.open(folder.passages))
    name, _, reason = recorded.partition(" (")
    return Language(name, reason.removesuffix(")"))


def _vote(text: str) -> str | None:
    """The language of one text, None without a clear sign."""
    if not text.isascii() and (language := _by_script(text)) is not None:
        return language
    words = Counter(_WORD.findall(text.lower()))
    counts = {language: sum(words[word] for word in own & words.keys()) for language, own in FUNCTION_WORDS.items()}
    best = max(counts.values())
    leaders = [language for language, count in counts.items() if count == best]
    return leaders[0] if best and len(leaders) == 1 else None


def _by_script(text: str) -> str | None:
    letters = len(_LETTER.findall(text))
    counts = {language: len(script.findall(text)) for language, script in _SCRIPTS.items()}
    japanese = counts["japanese"] + counts["chinese"]  # kana and the characters among them
    if counts["japanese"] > _KANA * japanese:
        counts |= {"japanese": japanese, "chinese": 0}
    language = max(counts, key=lambda name: counts[name])
    return language if counts[language] > letters / 2 else None
