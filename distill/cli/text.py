"""Texts from elsewhere on a terminal."""

from __future__ import annotations

import re

# controls but tab and line feed, and marks that change the direction of what follows
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """The text with a replacement character for each one that a terminal would obey instead of showing it."""
    return _COMMANDS.sub("\ufffd", text)
