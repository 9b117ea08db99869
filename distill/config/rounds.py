"""`rounds`: mining, scoring, labelling and training again, from the last round's student.

The recipe as it stands is the first round. Each entry of `rounds` is one more, and says what differs from the recipe:
a JSON merge patch (RFC 7396), so a section is merged field by field, a list is replaced whole, and null removes what
was there. A model called `round:previous` is the checkpoint that the round before has saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.config.base import Section

PREVIOUS = "round:previous"
SHARED = ("name", "run_dir", "data", "rounds", "follows")  # what no round can have of its own


class Follows(Section):
    """Which run a recipe is a further round of. Written by the program, into the recipe of each such round."""

    run: Path  # the first round's folder, whose data and fine-tuned teachers serve all
    checkpoint: Path  # the student that the round before has saved
    model: str | None = None  # whose weights that student once started from: it has the same shape


def merged(tree: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """`tree` with a JSON merge patch applied; neither is changed."""
    result = dict(tree)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merged(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def with_previous(tree: Any, checkpoint: str) -> Any:
    """`tree` with the path of the last checkpoint wherever a `model` is called `round:previous`."""
    if isinstance(tree, dict):
        here = {"model": checkpoint, "revision": None} if tree.get("model") == PREVIOUS else {}
        return {key: with_previous(value, checkpoint) for key, value in tree.items()} | here
    return [with_previous(value, checkpoint) for value in tree] if isinstance(tree, list) else tree
