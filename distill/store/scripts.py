"""Scripts that write words without blanks between them: Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan.

What splits texts at blanks (the generation of queries, estimates of lengths) sees one long word in them. BM25 counts
pairs of characters in them instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Hangul is not among them: Korean has blanks between words
UNSPACED = (  # inside the brackets of a regular expression
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_MOSTLY = 0.5  # of a text's letters


def split_unspaced(text: str) -> tuple[str, int]:
    """The text with blanks in place of the characters of such scripts, and their number."""
    return _UNSPACED.subn(" ", text)


def unspaced_texts(texts: Iterable[str]) -> int:
    """Count the texts that are mostly in such scripts."""
    return sum(_is_unspaced(text) for text in texts)


def _is_unspaced(text: str) -> bool:
    spaced, characters = split_unspaced(text)
    letters = characters + sum(character.isalnum() for character in spaced)
    return letters > 0 and characters > _MOSTLY * letters
