"""The languages that a recipe may name, by the names of their Snowball stemmers, and their ISO 639-1 codes."""

from __future__ import annotations

import re

from distill.config.base import nearest

STEMMED = {  # has a stemmer in PyStemmer
    "arabic": "ar",
    "armenian": "hy",
    "basque": "eu",
    "catalan": "ca",
    "czech": "cs",
    "danish": "da",
    "dutch": "nl",
    "english": "en",
    "esperanto": "eo",
    "estonian": "et",
    "finnish": "fi",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "hindi": "hi",
    "hungarian": "hu",
    "indonesian": "id",
    "irish": "ga",
    "italian": "it",
    "lithuanian": "lt",
    "nepali": "ne",
    "norwegian": "no",
    "persian": "fa",
    "polish": "pl",
    "portuguese": "pt",
    "romanian": "ro",
    "russian": "ru",
    "serbian": "sr",
    "sesotho": "st",
    "spanish": "es",
    "swedish": "sv",
    "tamil": "ta",
    "turkish": "tr",
    "yiddish": "yi",
}
BIGRAMS = {  # counted in pairs of characters
    "burmese": "my",
    "chinese": "zh",
    "japanese": "ja",
    "khmer": "km",
    "korean": "ko",
    "lao": "lo",
    "thai": "th",
    "tibetan": "bo",
}
NO_LANGUAGE = "none"
_CODES = {code: name for name, code in (STEMMED | BIGRAMS).items()} | {"nb": "norwegian", "nn": "norwegian"}


def language_name(text: str) -> str:
    """Return the name of a language given by name or ISO code, or `none`. Raises `ValueError` for an unknown one."""
    name = text.strip().lower()
    if name in (NO_LANGUAGE, *STEMMED, *BIGRAMS):
        return name
    if (code := re.split("[-_]", name)[0]) in _CODES:  # "de-AT"
        return _CODES[code]
    if len(name) <= 3:
        raise ValueError(f"no language with a stemmer has the code {text!r}; valid: none, {', '.join(sorted(_CODES))}")
    raise ValueError(f"no stemmer for the language {text!r}{nearest(name, (NO_LANGUAGE, *STEMMED, *BIGRAMS))}")
